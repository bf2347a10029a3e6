package org.espalier.online;

import java.io.IOException;
import java.nio.FloatBuffer;
import java.nio.file.Files;
import java.nio.file.Path;
import java.security.MessageDigest;
import java.security.NoSuchAlgorithmException;
import java.util.ArrayList;
import java.util.HashMap;
import java.util.HexFormat;
import java.util.List;
import java.util.Map;
import java.util.Queue;
import java.util.concurrent.ConcurrentLinkedQueue;
import java.util.concurrent.atomic.AtomicLong;
import java.util.function.Supplier;
import org.bytedeco.javacpp.FloatPointer;
import org.bytedeco.javacpp.LongPointer;
import org.bytedeco.javacpp.Pointer;
import org.bytedeco.javacpp.PointerScope;
import org.bytedeco.pytorch.BoolOptional;
import org.bytedeco.pytorch.MemoryFormatOptional;
import org.bytedeco.pytorch.NoGradGuard;
import org.bytedeco.pytorch.Tensor;
import org.bytedeco.pytorch.TensorArrayRefOptional;
import org.bytedeco.pytorch.TensorOptions;
import org.bytedeco.pytorch.global.torch;
import org.bytedeco.pytorch.global.torch.ScalarType;
import org.espalier.InputException;
import org.espalier.device.DType;
import org.espalier.device.OwnedTensor;
import org.espalier.format.onnx.OnnxInitializer;
import org.espalier.format.onnx.OnnxModel;
import org.espalier.op.DpAccumulate;
import org.espalier.torch.OnnxGraph;
import org.espalier.torch.Parameter;
import org.espalier.torch.TensorView;
import org.espalier.torch.TorchScriptModel;
import org.espalier.torch.TrainableModel;

/**
 * Any model with one float32 input [batch, shape…] and an output [batch, outputs] that libtorch runs
 * under autograd; an input of int64 or int32 takes features that are whole numbers, as rows of tables are looked up
 * with. The model is switched to evaluation: a single example has no statistics of a batch.
 *
 * <p>Models are not safe for several threads, so each thread that predicts borrows a replica, whose
 * parameters are made to look at the memory of the version that it is to answer for. There are as
 * many replicas as threads that ever predicted at once. Several threads of libtorch for each would wait
 * for each other; {@link org.espalier.torch.Libtorch} leaves it at one.
 */
public final class TorchLearnable implements Learnable {
  /** Floats hold all whole numbers up to here. */
  private static final float LARGEST_WHOLE = 1 << 24;

  private final TrainableModel model;
  private final Supplier<? extends TrainableModel> replicas;
  private final Queue<Replica> idle = new ConcurrentLinkedQueue<>();
  private final AtomicLong serials = new AtomicLong();
  private final String input;
  private final String output;
  private final ScalarType type;
  private final long[] shape;
  private final int features;
  private final int outputs;
  private final List<Weight> weights = new ArrayList<>();
  private final List<Parameter> parameters;
  private final List<OwnedTensor> gradients = new ArrayList<>();

  private Tensor last;
  private float[][] seen;

  /** The input of the last forward, whose memory the next one of as many rows takes. */
  private Tensor batch;

  private int batchRows;

  private volatile boolean closed;

  /** A model of one thread at a time, and the serial number of the weights in it. */
  private static final class Replica {
    final TrainableModel model;
    final List<Parameter> parameters;
    long serial;

    Replica(TrainableModel model) {
      this.model = model;
      this.parameters = model.parameters();
    }
  }

  /** A model whose input is float32. */
  public TorchLearnable(
      TrainableModel model,
      Supplier<? extends TrainableModel> replicas,
      long[] shape,
      int outputs) {
    this(model, replicas, ScalarType.Float, shape, outputs);
  }

  /**
   * @param model is learned; closed with this
   * @param replicas makes the same model again, with any weights, for predictions
   * @param type of the input: Float, Long or Int
   * @param shape of an example's features, without the batch
   * @param outputs how many values the model's first output has for an example
   */
  public TorchLearnable(
      TrainableModel model,
      Supplier<? extends TrainableModel> replicas,
      ScalarType type,
      long[] shape,
      int outputs) {
    if (model.inputNames().size() != 1) {
      throw new IllegalArgumentException(
          "the model has the inputs " + model.inputNames() + "; one is needed");
    }
    long size = 1;
    for (long n : shape) {
      size = Math.multiplyExact(size, n);
    }
    this.model = model;
    this.replicas = replicas;
    this.input = model.inputNames().get(0);
    this.output = model.outputNames().get(0);
    this.type = type;
    this.shape = shape.clone();
    this.features = Math.toIntExact(size);
    this.outputs = outputs;
    model.train(false);
    parameters = model.parameters();
    for (Parameter p : parameters) {
      org.espalier.device.Tensor working = TensorView.of(p.tensor());
      OwnedTensor gradient = OwnedTensor.allocate(DType.F32, working.shape());
      gradients.add(gradient);
      boolean quantizable =
          p.kind() == Parameter.Kind.LINEAR || p.kind() == Parameter.Kind.CONVOLUTION;
      int axis = quantizable ? p.outputAxis() : -1;
      boolean reachable = axis == 0 || axis == working.rank() - 1;
      weights.add(
          new Weight(p.name(), working, working, gradient, p.isWeight(), reachable ? axis : -1));
    }
  }

  /** A torch tensor over memory that somebody else owns. */
  private static Tensor view(org.espalier.device.Tensor memory) {
    return torch.from_blob(memory.pointer(), memory.shape(), new TensorOptions(ScalarType.Float));
  }

  private static void copy(org.espalier.device.Tensor from, org.espalier.device.Tensor to) {
    FloatBuffer source = LinearHead.buffer(from);
    LinearHead.buffer(to).put(0, source, 0, source.capacity());
  }

  @Override
  public int features() {
    return features;
  }

  @Override
  public int outputs() {
    return outputs;
  }

  @Override
  public List<Weight> weights() {
    return List.copyOf(weights);
  }

  /** An input of examples. */
  private Tensor tensor(float[][] rows, int from, int count) {
    long[] dims = new long[shape.length + 1];
    dims[0] = count;
    System.arraycopy(shape, 0, dims, 1, shape.length);
    ScalarType stored = type == ScalarType.Float ? type : ScalarType.Long;
    Tensor empty = torch.empty(dims, new TensorOptions(stored), new MemoryFormatOptional());
    return fill(empty, rows, from, count);
  }

  private Tensor fill(Tensor tensor, float[][] rows, int from, int count) {
    if (type != ScalarType.Float) {
      LongPointer memory = new LongPointer(tensor.data_ptr());
      for (int i = 0; i < count; i++) {
        memory.position((long) i * features).put(whole(rows[from + i]));
      }
      return tensor;
    }
    FloatPointer memory = new FloatPointer(tensor.data_ptr());
    for (int i = 0; i < count; i++) {
      memory.position((long) i * features).put(rows[from + i]);
    }
    return tensor;
  }

  private long[] whole(float[] row) {
    long[] whole = new long[features];
    for (int k = 0; k < features; k++) {
      whole[k] = (long) row[k];
      if (whole[k] != row[k] || Math.abs(row[k]) > LARGEST_WHOLE) {
        throw new InputException(
            "feature "
                + (k + 1)
                + " is "
                + row[k]
                + "; the input "
                + input
                + " takes whole numbers, from -16777216 to 16777216");
      }
    }
    return whole;
  }

  private Tensor run(TrainableModel runner, Tensor in, int count) {
    Tensor given = type == ScalarType.Int ? in.to(type) : in;
    Tensor out = runner.forward(Map.of(input, given)).get(output);
    if (out.numel() != (long) count * outputs) {
      throw new IllegalArgumentException(
          "the output "
              + output
              + " has "
              + out.numel()
              + " values for "
              + count
              + " examples; "
              + outputs
              + " for each were expected");
    }
    return out;
  }

  private static void read(Tensor out, float[] to, int count) {
    LinearHead.buffer(TensorView.of(out.detach().contiguous())).get(0, to, 0, count);
  }

  @Override
  public void forward(float[][] rows, int count, float[] out) {
    forget();
    try (PointerScope scope = new PointerScope()) {
      if (batch == null || batchRows != count) {
        forgetBatch();
        batch = tensor(rows, 0, count);
        batch.retainReference();
        batchRows = count;
      } else {
        fill(batch, rows, 0, count);
      }
      last = run(model, batch, count);
      last.retainReference();
      read(last, out, count * outputs);
    }
    seen = rows;
  }

  private void forget() {
    if (last != null) {
      last.close();
      last = null;
    }
  }

  private void forgetBatch() {
    if (batch != null) {
      batch.close();
      batch = null;
    }
  }

  @Override
  public void backward(float[] gradient, int rows) {
    try (PointerScope scope = new PointerScope()) {
      differentiate(last, gradient, 0, rows);
      for (int k = 0; k < parameters.size(); k++) {
        Tensor left = parameters.get(k).tensor().mutable_grad();
        OwnedTensor own = gradients.get(k);
        if (!left.defined() || left.is_sparse() || !left.is_contiguous()) {
          copyGradient(k, left);
          gradient(k, own);
          continue;
        }
        long address = left.data_ptr().address();
        if (weights.get(k).gradient().address() != address) { // which is mostly the same again
          gradient(
              k,
              org.espalier.device.Tensor.ofAddress(address, own.bytes(), DType.F32, own.shape()));
        }
      }
    }
    forget();
  }

  private void gradient(int k, org.espalier.device.Tensor memory) {
    Weight w = weights.get(k);
    weights.set(
        k, new Weight(w.name(), w.latent(), w.working(), memory, w.isMatrix(), w.scaleAxis()));
  }

  private void copyGradient(int k, Tensor left) {
    OwnedTensor to = gradients.get(k);
    if (!left.defined()) { // no output depends on it
      Pointer.memset(to.pointer(), 0, to.bytes());
    } else {
      view(to).copy_(left.is_sparse() ? left.to_dense() : left);
    }
  }

  /**
   * Leaves the gradients of Σ slope · outputs at the parameters. Where a parameter has none, autograd leaves
   * there what it has computed; to one that it has it would add it.
   */
  private void differentiate(Tensor out, float[] slope, int from, int rows) {
    for (Parameter p : parameters) {
      p.tensor().mutable_grad().reset();
    }
    FloatPointer memory = new FloatPointer((long) rows * outputs);
    memory.put(slope, from * outputs, rows * outputs);
    Tensor factors =
        torch.from_blob(memory, out.sizes().vec().get(), new TensorOptions(ScalarType.Float));
    out.backward(factors, new BoolOptional(), false, new TensorArrayRefOptional());
  }

  @Override
  public int backwardClipped(float[] gradient, int rows, double bound) {
    forget();
    List<OwnedTensor> sums = new ArrayList<>();
    List<DpAccumulate.Parameter> list = new ArrayList<>();
    for (OwnedTensor g : gradients) {
      OwnedTensor sum = OwnedTensor.allocate(DType.F32, g.elements());
      sums.add(sum);
      list.add(new DpAccumulate.Parameter(g, sum));
    }
    int clipped = 0;
    try (DpAccumulate accumulate = new DpAccumulate(list)) {
      for (int i = 0; i < rows; i++) {
        try (PointerScope scope = new PointerScope()) {
          differentiate(run(model, tensor(seen, i, 1), 1), gradient, i, 1);
          for (int k = 0; k < parameters.size(); k++) {
            copyGradient(k, parameters.get(k).tensor().mutable_grad());
          }
        }
        clipped += accumulate.accumulate(bound) ? 1 : 0;
      }
      for (int k = 0; k < sums.size(); k++) {
        copy(sums.get(k), gradients.get(k));
        gradient(k, gradients.get(k));
      }
    } finally {
      sums.forEach(OwnedTensor::close);
    }
    return clipped;
  }

  @Override
  public Predictor predictor() {
    return new Copy();
  }

  /** The model with the working weights, for saving in its own format. */
  public TrainableModel model() {
    return model;
  }

  @Override
  public OnnxModel toOnnx(Map<String, float[]> values, Loss loss) {
    if (!(model instanceof OnnxGraph graph)) {
      throw new InputException(
          "this model did not come from ONNX and cannot be written as ONNX; a version of a"
              + " TorchScript model is a TorchScript file");
    }
    OnnxModel onnx = graph.toModel();
    for (Weight w : weights) {
      String constant = graph.constantOf(w.name());
      onnx.replaceConstant(
          OnnxInitializer.floats(constant, w.latent().shape(), values.get(w.name())));
    }
    return onnx;
  }

  /** Whether it came from ONNX, so that versions of it can be ONNX files. */
  boolean isOnnx() {
    return model instanceof OnnxGraph;
  }

  /** Whether it is a TorchScript module, so that versions of it can be TorchScript files. */
  boolean isTorchScript() {
    return model instanceof TorchScriptModel;
  }

  /**
   * Writes the TorchScript module with other weights.
   *
   * @param values of the weights, by name
   */
  void writeTorchScript(Map<String, float[]> values, Path file) {
    try (TrainableModel copy = replicas.get()) {
      for (Parameter p : copy.parameters()) {
        LinearHead.buffer(TensorView.of(p.tensor())).put(0, values.get(p.name()));
      }
      copy.save(file);
    }
  }

  private String torchScriptHash(Map<String, float[]> values) {
    try {
      Path file = Files.createTempFile("espalier", ".pt");
      try {
        writeTorchScript(values, file);
        return TorchScriptModel.contentHash(file);
      } finally {
        Files.delete(file);
      }
    } catch (IOException e) {
      throw new InputException("cannot write a temporary file: " + e, e);
    }
  }

  /** The graph or TorchScript module with zeros for parameters, hashed. */
  @Override
  public String identity() {
    if (!isOnnx() && !isTorchScript()) {
      return "";
    }
    Map<String, float[]> zeros = new HashMap<>();
    for (Weight w : weights) {
      zeros.put(w.name(), new float[Math.toIntExact(w.latent().elements())]);
    }
    if (isTorchScript()) {
      return torchScriptHash(zeros);
    }
    try {
      MessageDigest digest = MessageDigest.getInstance("SHA-256");
      digest.update(toOnnx(zeros, null).toBuffer());
      return HexFormat.of().formatHex(digest.digest());
    } catch (NoSuchAlgorithmException e) {
      throw new IllegalStateException("every JDK has SHA-256", e);
    }
  }

  @Override
  public boolean isClosed() {
    return closed;
  }

  @Override
  public void close() {
    Learnable.checkOutsideStep(this);
    synchronized (this) {
      closed = true;
      closeIdle();
      forget();
      forgetBatch();
      model.close();
      gradients.forEach(OwnedTensor::close);
    }
  }

  /** That none can be made (a full temporary folder, say) is no fault of what is to be predicted. */
  private TrainableModel replica() {
    try {
      TrainableModel made = replicas.get();
      made.train(false);
      return made;
    } catch (InputException e) {
      throw new IllegalStateException(
          "the model cannot be copied for one more thread that predicts: " + e.getMessage(), e);
    }
  }

  private void closeIdle() {
    for (Replica replica; (replica = idle.poll()) != null; ) {
      replica.model.close();
    }
  }

  /** A version's weights in native memory. */
  private final class Copy implements Predictor {
    private final List<OwnedTensor> memory = new ArrayList<>();
    private final List<Tensor> views = new ArrayList<>();
    private long serial;

    Copy() {
      try (PointerScope scope = new PointerScope()) {
        for (Weight w : weights) {
          OwnedTensor tensor = OwnedTensor.allocate(DType.F32, w.working().shape());
          memory.add(tensor);
          Tensor view = view(tensor);
          view.retainReference();
          views.add(view);
        }
      }
    }

    @Override
    public void load(List<Weight> loaded) {
      for (int k = 0; k < memory.size(); k++) {
        copy(loaded.get(k).working(), memory.get(k));
      }
      serial = serials.incrementAndGet();
    }

    @Override
    public void predict(float[][] rows, int count, float[] out) {
      if (closed) {
        throw new IllegalStateException("the model is closed");
      }
      if (count == 0) {
        return; // an empty tensor has no memory to be filled
      }
      Replica replica = idle.poll();
      if (replica == null) {
        replica = new Replica(replica());
      }
      try (PointerScope scope = new PointerScope();
          NoGradGuard guard = new NoGradGuard()) {
        if (replica.serial != serial) {
          // Nothing is copied. The memory may be another version's when the replica comes back, but
          // then its number is another one too.
          for (int k = 0; k < views.size(); k++) {
            replica.parameters.get(k).tensor().set_data(views.get(k));
          }
          replica.serial = serial;
        }
        read(run(replica.model, tensor(rows, 0, count), count), out, count * outputs);
      } finally {
        idle.add(replica);
        if (closed) { // meanwhile: whoever closed it did not see this replica
          closeIdle();
        }
      }
    }

    @Override
    public void close() {
      views.forEach(Tensor::close);
      memory.forEach(OwnedTensor::close);
    }
  }
}

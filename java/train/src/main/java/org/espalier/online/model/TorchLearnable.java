package org.espalier.online.model;

import java.io.IOException;
import java.nio.FloatBuffer;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.Objects;
import java.util.Set;
import java.util.function.Supplier;
import org.bytedeco.javacpp.FloatPointer;
import org.bytedeco.javacpp.Pointer;
import org.bytedeco.javacpp.PointerScope;
import org.bytedeco.pytorch.BoolOptional;
import org.bytedeco.pytorch.Tensor;
import org.bytedeco.pytorch.TensorArrayRefOptional;
import org.bytedeco.pytorch.TensorOptions;
import org.bytedeco.pytorch.global.torch;
import org.bytedeco.pytorch.global.torch.ScalarType;
import org.espalier.InputException;
import org.espalier.compress.onnx.Int8Model;
import org.espalier.device.DType;
import org.espalier.device.OwnedTensor;
import org.espalier.format.onnx.OnnxInitializer;
import org.espalier.format.onnx.OnnxModel;
import org.espalier.online.ExampleInput;
import org.espalier.online.Loss;
import org.espalier.online.Predictor;
import org.espalier.online.RowGradient;
import org.espalier.online.RowLookUps;
import org.espalier.online.Weight;
import org.espalier.online.memory.Floats;
import org.espalier.op.DpAccumulate;
import org.espalier.torch.Parameter;
import org.espalier.torch.TensorView;
import org.espalier.torch.TorchScriptModel;
import org.espalier.torch.TrainableModel;
import org.espalier.torch.onnx.LookUps;
import org.espalier.torch.onnx.OnnxGraph;

/**
 * Any model with inputs [batch, shape…] and an output [batch, outputs] that libtorch runs under autograd. Inputs are
 * float32, or int64 or int32, which take features that are whole numbers, as rows of tables are looked up with. The model
 * is switched to evaluation: a single example has no statistics of a batch.
 *
 * <p>Each thread that predicts has a replica of the model ({@link TorchCopies}). Several threads of libtorch for each would
 * wait for each other; {@link org.espalier.torch.Libtorch} leaves it at one.
 */
public final class TorchLearnable extends ClosableModel implements RowLookUps {
  private final TrainableModel model;
  private final ExampleTensors examples;
  private final TorchCopies copies;
  private final List<Weight> weights = new ArrayList<>();
  private final List<Parameter> parameters;

  /** Where the model came from one of integers; else null. */
  private final Int8Model integers;

  /** Of a table that is learned by rows null. */
  private final List<OwnedTensor> gradients = new ArrayList<>();

  /** By table that is learned by rows. */
  private final Map<String, RowLog> logs = new HashMap<>();

  private Tensor last;
  private float[][] seen;

  /** The inputs of the last forward, whose memory the next one of as many rows takes; empty where there is none. */
  private List<Tensor> batch = List.of();

  private int batchRows;

  /**
   * A model with one input, which is float32.
   *
   * @param shape of an example's features, without the batch
   */
  public TorchLearnable(
      TrainableModel model,
      Supplier<? extends TrainableModel> replicas,
      long[] shape,
      int outputs) {
    this(model, replicas, List.of(ExampleInput.floats(model.inputNames().get(0), shape)), outputs);
  }

  /**
   * A model of int8 weights, which stay on the grids that they lie on, and is int8 again as ONNX. Activations are rounded as the
   * model says; where it finds a range while it runs, that is the range of a batch, so that several examples at once have other
   * answers than one.
   *
   * @param inputs of the model, in the order in which an example has their values
   * @param outputs how many values the model's first output has for an example
   */
  public static TorchLearnable of(Int8Model integers, List<ExampleInput> inputs, int outputs) {
    OnnxModel floats = integers.floats();
    OnnxGraph graph = new OnnxGraph(floats);
    try {
      return new TorchLearnable(graph, () -> new OnnxGraph(floats), inputs, outputs, integers);
    } catch (RuntimeException e) {
      graph.close();
      throw e;
    }
  }

  /**
   * @param model is learned; closed with this
   * @param replicas makes the same model again with each call, with any weights, for predictions
   * @param inputs of the model, in the order in which an example has their values
   * @param outputs how many values the model's first output has for an example
   * @throws IllegalArgumentException if the model has other inputs
   */
  public TorchLearnable(
      TrainableModel model,
      Supplier<? extends TrainableModel> replicas,
      List<ExampleInput> inputs,
      int outputs) {
    this(model, replicas, inputs, outputs, null);
  }

  private TorchLearnable(
      TrainableModel model,
      Supplier<? extends TrainableModel> replicas,
      List<ExampleInput> inputs,
      int outputs,
      Int8Model integers) {
    List<String> names = inputs.stream().map(ExampleInput::name).toList();
    if (names.size() != model.inputNames().size() || !names.containsAll(model.inputNames())) {
      throw new IllegalArgumentException(
          "the model has the inputs " + model.inputNames() + ", examples have " + names);
    }
    this.model = model;
    this.integers = integers;
    examples = new ExampleTensors(inputs, model.outputNames().get(0), outputs);
    copies = new TorchCopies(replicas, examples);
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
      Int8Model.Integers grid =
          integers == null ? null : integers.grid(((OnnxGraph) model).constantOf(p.name()));
      weights.add(
          new Weight(
              p.name(),
              working,
              working,
              gradient,
              p.isWeight(),
              grid != null ? grid.axis() : reachable ? axis : -1,
              grid != null ? grid.scales() : null));
    }
  }

  /** A torch tensor over memory that somebody else owns. */
  static Tensor view(org.espalier.device.Tensor memory) {
    return torch.from_blob(memory.pointer(), memory.shape(), new TensorOptions(ScalarType.Float));
  }

  static void copy(org.espalier.device.Tensor from, org.espalier.device.Tensor to) {
    FloatBuffer source = Floats.of(from);
    Floats.of(to).put(0, source, 0, source.capacity());
  }

  @Override
  public List<ExampleInput> inputs() {
    return examples.inputs();
  }

  @Override
  public int features() {
    return examples.features();
  }

  @Override
  public int outputs() {
    return examples.outputs();
  }

  @Override
  public List<Weight> weights() {
    return List.copyOf(weights);
  }

  @Override
  public void forward(float[][] rows, int count, float[] out) {
    forget();
    try (PointerScope scope = new PointerScope()) {
      if (batch.isEmpty() || batchRows != count) {
        forgetBatch();
        batch = examples.tensors(rows, 0, count);
        batch.forEach(Tensor::retainReference);
        batchRows = count;
      } else {
        examples.fill(batch, rows, 0, count);
      }
      last = examples.run(model, batch, count);
      last.retainReference();
      ExampleTensors.read(last, out, count * outputs());
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
    batch.forEach(Tensor::close);
    batch = List.of();
  }

  @Override
  public void backward(float[] gradient, int rows) {
    try (PointerScope scope = new PointerScope()) {
      differentiate(last, gradient, 0, rows);
      for (int k = 0; k < parameters.size(); k++) {
        OwnedTensor own = gradients.get(k);
        if (own == null) {
          continue; // rowGradient adds up what its look-ups have
        }
        Tensor left = parameters.get(k).tensor().mutable_grad();
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
    weights.set(k, w.withGradient(memory));
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
    int outputs = outputs();
    FloatPointer memory = new FloatPointer((long) rows * outputs);
    memory.put(slope, from * outputs, rows * outputs);
    Tensor factors =
        torch.from_blob(memory, out.sizes().vec().get(), new TensorOptions(ScalarType.Float));
    out.backward(factors, new BoolOptional(), false, new TensorArrayRefOptional());
  }

  @Override
  public int backwardClipped(float[] gradient, int rows, double bound) {
    forget();
    if (!logs.isEmpty()) {
      throw new IllegalStateException(
          "the gradients of single examples are of whole tables, and "
              + logs.keySet()
              + " are learned by rows");
    }
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
          differentiate(examples.run(model, examples.tensors(seen, i, 1), 1), gradient, i, 1);
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
  public Map<String, String> tables() {
    if (!(model instanceof OnnxGraph graph)) {
      return Map.of();
    }
    Map<String, String> tables = new HashMap<>(graph.tables());
    // A step on rows leaves them where it takes them, beside the grid.
    weights.stream().filter(w -> w.grid() != null).forEach(w -> tables.remove(w.name()));
    return tables;
  }

  @Override
  public void learnByRows(Set<String> names) {
    if (!(model instanceof OnnxGraph graph)) {
      return; // which has no tables
    }
    graph.differentiateLookUps(names);
    logs.clear();
    for (int k = 0; k < weights.size(); k++) {
      Weight w = weights.get(k);
      if (names.contains(w.name())) {
        if (gradients.get(k) != null) {
          gradients.set(k, null).close();
        }
        gradient(k, null);
        logs.put(w.name(), new RowLog(w.latent().dimension(0)));
      } else if (gradients.get(k) == null) {
        gradients.set(k, OwnedTensor.allocate(DType.F32, w.latent().shape()));
        gradient(k, gradients.get(k));
      }
    }
  }

  @Override
  public RowGradient rowGradient(String table) {
    try (PointerScope scope = new PointerScope()) {
      Weight w = weights.stream().filter(x -> x.name().equals(table)).findFirst().orElseThrow();
      List<LookUps.LookUp> own =
          ((OnnxGraph) model).lookUps().stream().filter(l -> l.table().equals(table)).toList();
      return LookUpGradient.of(own, Floats.rowLength(w.latent()));
    }
  }

  @Override
  public void changed(String table, long[] rows) {
    logs.get(table).add(rows);
  }

  @Override
  public void changedAll() {
    logs.values().forEach(RowLog::addAll);
  }

  @Override
  public boolean knowsMissing() {
    return model instanceof OnnxGraph graph && graph.knowsMissing();
  }

  @Override
  public boolean mixesExamples() {
    return model instanceof OnnxGraph graph && graph.findsRanges();
  }

  @Override
  public Predictor predictor() {
    return copies.predictor(List.copyOf(weights), logs);
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
    if (integers != null) {
      Map<String, float[]> constants = new HashMap<>();
      values.forEach((name, value) -> constants.put(graph.constantOf(name), value));
      return integers.withValues(constants);
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
  public boolean isOnnx() {
    return model instanceof OnnxGraph;
  }

  /** Whether it is a TorchScript module, so that versions of it can be TorchScript files. */
  public boolean isTorchScript() {
    return model instanceof TorchScriptModel;
  }

  /**
   * Writes the TorchScript module with other weights.
   *
   * @param values of the weights, by name
   */
  public void writeTorchScript(Map<String, float[]> values, Path file) {
    try (TrainableModel copy = copies.replica()) {
      for (Parameter p : copy.parameters()) {
        Floats.of(TensorView.of(p.tensor())).put(0, values.get(p.name()));
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
    return isTorchScript() ? torchScriptHash(GraphIdentity.zeros(this)) : GraphIdentity.of(this);
  }

  @Override
  void free() {
    copies.close();
    forget();
    forgetBatch();
    model.close();
    gradients.stream().filter(Objects::nonNull).forEach(OwnedTensor::close);
  }
}

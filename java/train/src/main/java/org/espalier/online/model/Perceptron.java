package org.espalier.online.model;

import java.nio.FloatBuffer;
import java.util.ArrayList;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.Optional;
import java.util.Queue;
import java.util.Random;
import java.util.concurrent.ConcurrentLinkedQueue;
import java.util.function.Function;
import org.espalier.compress.onnx.Int8Model;
import org.espalier.device.DType;
import org.espalier.device.OwnedTensor;
import org.espalier.device.Tensor;
import org.espalier.format.onnx.OnnxInitializer;
import org.espalier.format.onnx.OnnxModel;
import org.espalier.online.ExampleInput;
import org.espalier.online.Loss;
import org.espalier.online.Predictor;
import org.espalier.online.Weight;
import org.espalier.online.memory.Floats;
import org.espalier.online.memory.Opened;
import org.espalier.op.Activation;
import org.espalier.torch.Parameter;
import org.espalier.torch.onnx.DenseLayers;
import org.espalier.torch.onnx.DenseLayers.Layer;
import org.espalier.torch.onnx.GraphParameters;

/**
 * A multilayer perceptron, as an ONNX graph of floats or of int8. Needs no autograd and no libtorch: a layer's gradient is the
 * product of the slopes of its outputs and what it has read, and the norm of one example's is known without writing it.
 *
 * <p>Weights have the names and the layout of the graph; those of int8 stay on their grids, and activations are rounded as the
 * graph says. All sums have a fixed order: the same bits on every instruction set, for every number of threads, and for an
 * example alone as among others, but where the range of a batch is what activations are rounded to.
 */
public final class Perceptron extends DenseModel {
  /**
   * Values of a layer that those who predict have room for: any number of rows go through in parts, but where they have a
   * range in common.
   */
  private static final int MOST_AT_ONCE = 1 << 22;

  /** Of a layer that is drawn. */
  private static final int MOST_WEIGHTS = 1 << 28;

  /** Of floats. */
  private final OnnxModel model;

  /** Where the model came from one of integers; else null. */
  private final Int8Model integers;

  private final DenseLayers dense;
  private final List<Layer> layers;
  private final List<String> constants = new ArrayList<>();
  private final List<Weight> weights = new ArrayList<>();
  private final List<LayerTensors> working;
  private final List<LayerTensors> gradients;
  private DensePass pass;
  private DenseSlopes slopes;

  private Perceptron(
      OnnxModel model, Int8Model integers, DenseLayers dense, GraphParameters parameters) {
    this.model = model;
    this.integers = integers;
    this.dense = dense;
    this.layers = dense.layers();
    Map<String, Weight> byConstant = new HashMap<>();
    for (GraphParameters.Entry entry : parameters.parameters()) {
      OnnxInitializer constant = model.constant(entry.constant());
      OwnedTensor value = own(constant.dims());
      Floats.of(value).put(0, constant.floats(), 0, (int) constant.elements());
      boolean isMatrix = entry.kind() == Parameter.Kind.LINEAR;
      Int8Model.Integers grid = integers == null ? null : integers.grid(entry.constant());
      Weight weight =
          new Weight(
              entry.name(),
              value,
              value,
              own(constant.dims()),
              isMatrix,
              grid != null ? grid.axis() : isMatrix ? entry.outputAxis() : -1,
              grid != null ? grid.scales() : null);
      constants.add(entry.constant());
      weights.add(weight);
      byConstant.put(entry.constant(), weight);
    }
    working = tensors(byConstant, Weight::working);
    gradients = tensors(byConstant, Weight::gradient);
    reserve(1);
  }

  /** By layer. */
  private List<LayerTensors> tensors(
      Map<String, Weight> byConstant, Function<Weight, Tensor> tensor) {
    Function<String, Tensor> of =
        constant -> constant == null ? null : tensor.apply(byConstant.get(constant));
    return layers.stream()
        .map(l -> new LayerTensors(of.apply(l.factors()), of.apply(l.weight()), of.apply(l.bias())))
        .toList();
  }

  /**
   * Reads a model, which stays as it is.
   *
   * @return empty where its first output is not made of its only input, which may be scaled, by layers of weight, bias and
   *     Relu, LeakyRelu, Sigmoid or Tanh alone, with factors before a weight and values rounded to 8 bits before and behind it,
   *     or where it has other parameters: libtorch learns such a model ({@link TorchLearnable})
   * @throws org.espalier.InputException where a weight is no float32
   */
  public static Optional<Perceptron> of(OnnxModel model) {
    return of(model.copy(), null);
  }

  /** The same of a model of int8 weights: they stay on the grids that they lie on, and it is int8 again as ONNX. */
  public static Optional<Perceptron> of(Int8Model integers) {
    return of(integers.floats(), integers);
  }

  private static Optional<Perceptron> of(OnnxModel model, Int8Model integers) {
    GraphParameters found = GraphParameters.of(model);
    return DenseLayers.of(model, found).map(dense -> new Perceptron(model, integers, dense, found));
  }

  /**
   * A new perceptron. Its weights are drawn with variances of 1 / inputs, of 2 / inputs in front of a rectifier (He and others,
   * «Delving deep into rectifiers», 2015), its biases are zeros.
   *
   * @param hidden widths of the layers between features and outputs; at least one
   * @param activation behind each of them
   * @param loss says what the outputs mean where it is written as ONNX
   * @throws IllegalArgumentException where a width is below 1, there is no hidden layer, or a layer has more than 2^28
   *     weights
   */
  public static Perceptron drawn(
      int features,
      List<Integer> hidden,
      int outputs,
      Activation activation,
      Loss loss,
      long seed) {
    checkWidths(features, hidden, outputs);
    LinearGraph graph = new LinearGraph("perceptron", features);
    Random random = new Random(seed);
    boolean rectifies =
        activation.kind() == Activation.Kind.RELU
            || activation.kind() == Activation.Kind.LEAKY_RELU;
    int in = features;
    for (int l = 1; l <= hidden.size(); l++) {
      int out = hidden.get(l - 1);
      float[] weight = drawn(random, in * out, (rectifies ? 2.0 : 1.0) / in);
      String name = "hidden." + l;
      graph.layer(name + ".weight", weight, name + ".bias", new float[out], name + ".sum");
      graph.activation(activation, name);
      in = out;
    }
    float[] weight = drawn(random, in * outputs, 1.0 / in);
    graph.layer("output.weight", weight, "output.bias", new float[outputs], "outputs");
    return of(graph.model(outputs, loss)).orElseThrow();
  }

  private static void checkWidths(int features, List<Integer> hidden, int outputs) {
    if (hidden.isEmpty()) {
      throw new IllegalArgumentException("no hidden layer; one or more are needed");
    }
    List<Integer> widths = new ArrayList<>(hidden);
    widths.add(0, features);
    widths.add(outputs);
    for (int l = 0; l < widths.size(); l++) {
      if (widths.get(l) < 1 || l > 0 && (long) widths.get(l - 1) * widths.get(l) > MOST_WEIGHTS) {
        throw new IllegalArgumentException(
            "features, hidden layers and outputs "
                + widths
                + "; widths from 1 on are needed, and at most "
                + MOST_WEIGHTS
                + " weights between two");
      }
    }
  }

  private static float[] drawn(Random random, int n, double variance) {
    double deviation = Math.sqrt(variance);
    float[] values = new float[n];
    for (int i = 0; i < n; i++) {
      values[i] = (float) (deviation * random.nextGaussian());
    }
    return values;
  }

  @Override
  void makeRoom(int count, Opened opened) {
    pass = opened.add(new DensePass(dense, working, count));
    slopes = opened.add(new DenseSlopes(layers, pass, working, gradients));
  }

  @Override
  public List<ExampleInput> inputs() {
    return List.of(ExampleInput.floats(model.inputs().get(0).getName(), features()));
  }

  @Override
  public int features() {
    return dense.features();
  }

  @Override
  public int outputs() {
    return dense.outputs();
  }

  @Override
  public int width() {
    return layers.stream().mapToInt(Layer::outputs).reduce(features(), Math::max);
  }

  @Override
  public List<Weight> weights() {
    return List.copyOf(weights);
  }

  @Override
  public void forward(float[][] rows, int count, float[] out) {
    reserve(count);
    pass.run(rows, 0, count, out);
  }

  @Override
  public void backward(float[] gradient, int rows) {
    slopes.compute(gradient, rows);
    slopes.write(rows);
  }

  @Override
  public int backwardClipped(float[] gradient, int rows, double bound) {
    slopes.compute(gradient, rows);
    RowFactors factors = RowFactors.of(slopes.squares(rows), bound);
    slopes.scale(factors);
    slopes.write(rows);
    return factors.clipped();
  }

  @Override
  public boolean mixesExamples() {
    return dense.mixExamples();
  }

  @Override
  public boolean descendsAlone() {
    return dense.arePlain() && weights.stream().allMatch(w -> w.grid() == null);
  }

  @Override
  public boolean outputsTell() {
    return false; // Tanh makes 1 of infinity
  }

  @Override
  public boolean isFinite(float[] slope) {
    slopes.compute(slope, 1);
    return slopes.haveFiniteProducts();
  }

  @Override
  public void descend(float[] slope, double rate) {
    slopes.descend(rate); // which isFinite has computed
  }

  @Override
  public void settle() {} // what descend changes are the latent weights

  /** A hash of the graph with zeros for weights. */
  @Override
  public String identity() {
    return GraphIdentity.of(this);
  }

  @Override
  public OnnxModel toOnnx(Map<String, float[]> values, Loss loss) {
    if (integers != null) {
      Map<String, float[]> byConstant = new HashMap<>();
      for (int k = 0; k < weights.size(); k++) {
        byConstant.put(constants.get(k), values.get(weights.get(k).name()));
      }
      return integers.withValues(byConstant);
    }
    OnnxModel onnx = model.copy();
    for (int k = 0; k < weights.size(); k++) {
      Weight w = weights.get(k);
      onnx.replaceConstant(
          OnnxInitializer.floats(constants.get(k), w.latent().shape(), values.get(w.name())));
    }
    return onnx;
  }

  @Override
  public Predictor predictor() {
    return new Copy();
  }

  /** A version's weights, and as many passes over them as threads ever predicted at once. */
  private final class Copy implements Predictor {
    private final List<OwnedTensor> memory = new ArrayList<>();
    private final List<FloatBuffer> buffers = new ArrayList<>();
    private final List<LayerTensors> copied = new ArrayList<>();
    private final Queue<DensePass> idle = new ConcurrentLinkedQueue<>();

    // Where they were taken from the last time: making a buffer costs more than a small prediction.
    private final Tensor[] sources = new Tensor[weights.size()];
    private final FloatBuffer[] sourceBuffers = new FloatBuffer[weights.size()];

    Copy() {
      Map<Tensor, Tensor> copies = new HashMap<>();
      for (Weight w : weights) {
        OwnedTensor copy = OwnedTensor.allocate(DType.F32, w.working().shape());
        memory.add(copy);
        buffers.add(Floats.of(copy));
        copies.put(w.working(), copy);
      }
      for (LayerTensors own : working) {
        copied.add(
            new LayerTensors(
                copies.get(own.factors()), copies.get(own.weight()), copies.get(own.bias())));
      }
    }

    @Override
    public void load(List<Weight> loaded) {
      for (int k = 0; k < sources.length; k++) {
        Tensor from = loaded.get(k).working();
        if (sources[k] != from) {
          sources[k] = from;
          sourceBuffers[k] = Floats.of(from);
        }
        buffers.get(k).put(0, sourceBuffers[k], 0, sourceBuffers[k].capacity());
      }
    }

    @Override
    public void predict(float[][] rows, int count, float[] out) {
      int most = mixesExamples() ? count : Math.min(count, Math.max(1, MOST_AT_ONCE / width()));
      DensePass mine = idle.poll();
      if (mine == null || mine.capacity() < most) {
        if (mine != null) {
          mine.close();
        }
        mine = new DensePass(dense, copied, Math.max(1, most));
      }
      try {
        for (int from = 0; from < count; from += most) {
          mine.run(rows, from, Math.min(most, count - from), out);
        }
      } finally {
        idle.add(mine);
      }
    }

    @Override
    public void close() {
      idle.forEach(DensePass::close);
      memory.forEach(OwnedTensor::close);
    }
  }
}

package org.espalier.compress.onnx;

import ai.onnx.proto.OnnxMl.NodeProto;
import ai.onnx.proto.OnnxMl.TensorProto.DataType;
import java.nio.ByteBuffer;
import java.nio.FloatBuffer;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.Collections;
import java.util.HashMap;
import java.util.HashSet;
import java.util.LinkedHashMap;
import java.util.LinkedHashSet;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.function.Consumer;
import java.util.function.Predicate;
import java.util.function.Supplier;
import java.util.stream.IntStream;
import org.espalier.InputException;
import org.espalier.compress.onnx.ProductFitting.Rounded;
import org.espalier.format.onnx.HalfPrecision;
import org.espalier.format.onnx.OnnxInitializer;
import org.espalier.format.onnx.OnnxModel;
import org.espalier.format.onnx.OnnxWeight;
import org.espalier.format.onnx.OnnxWeight.Kind;
import org.espalier.format.onnx.OnnxWeight.Use;
import org.espalier.format.onnx.OnnxWeights;
import org.slf4j.Logger;
import org.slf4j.LoggerFactory;

/**
 * Static int8 quantization: QuantizeLinear and DequantizeLinear nodes on both inputs of MatMul,
 * Gemm and Conv, which ONNX Runtime executes as int8 products. Activations are unsigned with one
 * range a tensor, fixed by calibration; weights are signed with one scale an output channel; biases
 * are int32 with the scale of the product. The output of a Conv is quantized too, after a Relu or
 * Clip that follows it, because ONNX Runtime has no int8 Conv of float output, and so are the operators between
 * Convs that it runs on integers ({@link IntegerOperators}). Embedding tables become int8 with one scale a row. A
 * model of float16 or bfloat16 computes in float32 afterwards ({@link HalfPrecision}).
 *
 * <p>Use: construct, {@link #calibrate}, {@link #apply}, with {@link #setRanges}, {@link #leaveSensitive} and {@link
 * #leaveImprecise} before that where some Convs and operators may stay float. To train in between: construct, {@link
 * #calibrate}, {@link #setRanges}, {@link #prepareTraining}, {@link #products}; afterwards {@link
 * #setWeights}, {@link #setRanges} where they moved, {@link #quantizedCopy}.
 *
 * <p>Not safe for several threads.
 */
public final class StaticQuantizer implements TrainableQuantizer {
  private static final Logger LOG = LoggerFactory.getLogger(StaticQuantizer.class);

  /** By how much operators of two images in int8 may raise the error of what int8 products make alone. */
  private static final double TOLERATED = 1.2;

  /** DequantizeLinear has an axis since this version. */
  private static final long OPSET = 13;

  /**
   * What to quantize.
   *
   * @param reduceRange weights of 7 bits, for processors whose 8-bit products saturate, see {@link
   *     Int8Saturation}
   * @param embeddings whether embedding tables are quantized
   * @param include which weights are quantized; embeddings are asked for too
   */
  public record Options(boolean reduceRange, boolean embeddings, Predicate<OnnxWeight> include) {
    /** All weights, in 8 bits. */
    public static Options defaults() {
      return new Options(false, true, w -> true);
    }
  }

  /**
   * A node to quantize.
   *
   * @param name what its weight is called
   * @param value the constant that holds the weight
   */
  private record Target(String name, String value, Use use) {
    /** Whether it multiplies channels with factors that equalization found, and is no weight of the model. */
    boolean isChannelwise() {
      return StaticQuantizer.isChannelwise(value);
    }
  }

  private final OnnxModel model;

  /** Whether the model computed in 16 bits. */
  private final boolean half;

  private final Options options;
  private final int qmax;
  private final Map<String, Target> targets = new LinkedHashMap<>();
  private final Map<String, Target> embeddings = new LinkedHashMap<>();

  /** Products are known by their outputs. */
  private TiedLookUps<String> tied = new TiedLookUps<>();

  private final Map<String, String> skipped = new LinkedHashMap<>();
  private final Set<String> activations = new LinkedHashSet<>();

  /** What fitting found, by the outputs of the products, and of the additions of biases. */
  private final Map<String, Rounded> rounded = new HashMap<>();

  /** What fitting multiplied the rows of weights with, by the outputs of the products. */
  private final Map<String, float[]> factors = new HashMap<>();

  private final Map<String, double[]> biasChanges = new HashMap<>();

  /** What training made of tables, by their constants. */
  private final Map<String, EmbeddingTables.Integers> trainedTables = new HashMap<>();

  private boolean fitted;

  /** What {@link #products} and {@link #quantizedCopy} go by. */
  private Map<String, ActivationRange> ranges = Map.of();

  private IntegerOperators operators;

  /** Those of {@link IntegerOperators#BINARY} that read two images as floats. */
  private Set<String> floatOperators = Set.of();

  /**
   * Plans the quantization of {@code model}, which is raised to operator set 13 if it is older, and
   * takes the form that the runtime fuses: normalizations are folded into the convolutions before
   * them.
   *
   * @throws InputException if it cannot be raised, or has nothing to quantize
   */
  public StaticQuantizer(OnnxModel model, Options options) {
    this.model = model;
    this.options = options;
    this.qmax = options.reduceRange() ? Int8Weights.MAX_7_BIT : Int8Weights.MAX_8_BIT;
    this.half = HalfPrecision.widen(model);
    OpsetUpgrade.raise(model, OPSET);
    IntegerForm.apply(model);
    BatchNormFolding.apply(model);
    GateBounds.apply(model);
    RuntimeForm.apply(model, false);
    Map<String, NodeProto> producers = model.producers();
    for (OnnxWeight weight : OnnxWeights.of(model)) {
      if (isChannelwise(weight.value())) {
        addChannelwise(weight);
        continue;
      }
      if (!options.include().test(weight)) {
        continue;
      }
      if (options.embeddings()) {
        findLookUps(weight, producers);
      }
      for (Use use : weight.uses()) {
        if (tied.contains(use.node())) {
          continue;
        }
        String reason = obstacle(weight, use, producers.get(use.node()));
        if (reason != null) {
          skipped.put(weight.name(), reason);
        } else if (use.kind() == Kind.EMBEDDING) {
          embeddings.put(use.node(), new Target(weight.name(), weight.value(), use));
        } else {
          targets.put(use.node(), new Target(weight.name(), weight.value(), use));
        }
      }
    }
    if (targets.isEmpty()) {
      throw FloatWeights.none(
          model, "MatMul, Gemm or Conv multiplies with a float32 constant", skipped);
    }
    findActivations();
  }

  /**
   * Whether a constant of a model that was calibrated is none of its parameters, but holds factors of channels or
   * what is added to them: training leaves it as it is.
   */
  public static boolean isChannelwise(String constant) {
    return ConvEqualization.isChannelwise(constant);
  }

  private void addChannelwise(OnnxWeight weight) {
    for (Use use : weight.uses()) {
      targets.put(use.node(), new Target(weight.name(), weight.value(), use));
    }
  }

  /** Notes the look-ups in a weight that read what its product reads. */
  private void findLookUps(OnnxWeight weight, Map<String, NodeProto> producers) {
    for (Use use : weight.uses()) {
      if (use.kind() == Kind.MATMUL && obstacle(weight, use, producers.get(use.node())) == null) {
        for (String lookUp : ProductSite.lookUps(weight, use, producers)) {
          tied.add(producers.get(lookUp), use.node());
        }
      }
    }
  }

  /** Why a use of a weight stays as it is; null if it can be quantized. */
  private String obstacle(OnnxWeight weight, Use use, NodeProto n) {
    OnnxInitializer w = model.constant(weight.value());
    if (w.elements() == 0) {
      return "it has no elements";
    }
    if (n == null) {
      return "it lies in a branch of If or the body of a loop, where no ranges are observed";
    }
    if (use.kind() == Kind.EMBEDDING) {
      if (!options.embeddings()) {
        return "embeddings are left as they are";
      }
      return EmbeddingTables.obstacle(model, weight, use);
    }
    if (!seesFloat(w, use)) {
      return "its arithmetic is not float32";
    }
    switch (use.kind()) {
      case MATMUL -> {
        return use.input() == 1 ? null : "it is the left factor";
      }
      case GEMM -> {
        boolean plain =
            use.input() == 1
                && Nodes.integer(n, "transA", 0) == 0
                && Nodes.real(n, "alpha", 1) == 1
                && Nodes.real(n, "beta", 1) == 1;
        return plain && biasIsPlain(n, w.dims()[use.outputAxis()])
            ? null
            : "its Gemm transposes A, has factors or a bias that is no constant vector";
      }
      case CONV -> {
        return biasIsPlain(n, w.dims()[use.outputAxis()])
            ? null
            : "its Conv has a bias that is no constant vector";
      }
      default -> {
        return Nodes.onlyFloat(n);
      }
    }
  }

  private boolean seesFloat(OnnxInitializer w, Use use) {
    DataType type = w.type();
    Map<String, NodeProto> producers = model.producers();
    for (String value : use.path().subList(1, use.path().size())) {
      NodeProto n = producers.get(value);
      if (n.getOpType().equals("Cast")) {
        type = DataType.forNumber((int) Nodes.integer(n, "to", 0));
      }
    }
    return type == DataType.FLOAT;
  }

  private boolean biasIsPlain(NodeProto n, long channels) {
    if (n.getInputCount() < 3 || n.getInput(2).isEmpty()) {
      return true;
    }
    OnnxInitializer bias = model.constant(n.getInput(2));
    return bias != null
        && bias.type() == DataType.FLOAT
        && bias.elements() == channels
        && bias.dims()[bias.dims().length - 1] == channels;
  }

  private void findActivations() {
    Map<String, NodeProto> producers = model.producers();
    Set<String> convolutions = new LinkedHashSet<>();
    Set<String> read = new LinkedHashSet<>();
    targets.forEach(
        (output, target) -> {
          read.add(producers.get(output).getInput(0));
          if (target.use().kind() == Kind.CONV) {
            convolutions.add(output);
          }
        });
    operators = new IntegerOperators(model, floatOperators);
    operators.find(convolutions, read);
    activations.clear();
    read.forEach(value -> activations.add(operators.root(value)));
    activations.addAll(operators.results());
  }

  /** The values whose ranges {@link #apply} needs: float32 tensors of the model's main graph. */
  public Set<String> activations() {
    return Collections.unmodifiableSet(activations);
  }

  /**
   * Those of the {@link #activations} that every reader sees quantized: the outputs of Conv and of the operators
   * that run on integers, or of the Relu or Clip behind one. The others are quantized in front of products only.
   */
  public Set<String> quantizedResults() {
    return Collections.unmodifiableSet(operators.results());
  }

  /** The weights that are quantized, by the names of {@link OnnxWeight}. */
  public List<String> quantized() {
    Set<String> names = new LinkedHashSet<>();
    embeddings.values().forEach(t -> names.add(t.name()));
    targets.values().stream().filter(t -> !t.isChannelwise()).forEach(t -> names.add(t.name()));
    return List.copyOf(names);
  }

  /** The weights that were asked for and stay as they are, with the reason. */
  public Map<String, String> skipped() {
    return Collections.unmodifiableMap(skipped);
  }

  /**
   * Fits the model to examples and finds the ranges of its activations. The products of MatMul are
   * fitted: channels of activations are shifted and scaled and both taken back in weights and
   * biases, so that one step suits all channels ({@link Equalization}), and weights are rounded so
   * that later rows compensate for earlier ones ({@link CompensatedRounding}). Channels of images
   * between Convs are scaled alike ({@link ConvEqualization}). Until {@link #apply}
   * the model computes what it did before; its {@link #activations()} may be others than before.
   *
   * @return what {@link #apply} takes
   * @throws InputException if a weight or an activation is not finite, naming it, or there are no
   *     examples
   */
  public Map<String, ActivationRange> calibrate(ActivationSource source, Clipping clipping) {
    return calibrate(source, List.of(clipping)).get(0);
  }

  /**
   * As {@link #calibrate(ActivationSource, Clipping)}, with the clipping that costs less: the least squared error of
   * each activation or, where large values matter more than their number, all that was seen.
   *
   * @param error to the model in float32: its examples run once for each
   */
  public Map<String, ActivationRange> calibrate(ActivationSource source, OutputError error) {
    Map<String, ActivationRange> best = null;
    double least = Double.POSITIVE_INFINITY;
    for (Map<String, ActivationRange> ranges :
        calibrate(source, List.of(new Clipping.MeanSquaredError(), new Clipping.MinMax()))) {
      setRanges(ranges);
      double made = error.of(quantizedCopy(copy -> {}));
      LOG.debug("ranges with an error of {}", made);
      if (best == null || made < least) {
        best = ranges;
        least = made;
      }
    }
    return best;
  }

  private List<Map<String, ActivationRange>> calibrate(
      ActivationSource source, List<Clipping> clippings) {
    FiniteConstants.requireWeights(model);
    try {
      if (!fitted) {
        fitted = true;
        fit(source);
      }
      return ranges(source, clippings);
    } catch (InputException e) {
      throw FiniteConstants.explained(model, e);
    }
  }

  private void fit(ActivationSource source) {
    Set<String> convolutions = new HashSet<>();
    targets.forEach(
        (output, target) -> {
          if (target.use().kind() == Kind.CONV) {
            convolutions.add(output);
          }
        });
    ConvEqualization.apply(model, convolutions, qmax, source);
    List<ProductSite> sites = ProductSite.find(model, options.include(), new LinkedHashMap<>());
    ProductFitting.fit(model, sites, qmax, source)
        .forEach(
            (product, r) -> {
              rounded.put(product.output, r);
              factors.put(product.output, product.factors);
              if (product.biasAdd != null) {
                biasChanges.put(product.biasAdd, r.meanError());
              }
            });
    // Scaled weights are new constants.
    for (OnnxWeight weight : OnnxWeights.of(model)) {
      if (isChannelwise(weight.value())) {
        addChannelwise(weight);
        continue;
      }
      for (Use use : weight.uses()) {
        targets.computeIfPresent(
            use.node(), (output, old) -> new Target(old.name(), weight.value(), use));
      }
    }
    findActivations();
  }

  /**
   * Finds the ranges of all {@link #activations()} in one run of the examples, without fitting.
   *
   * @throws InputException if there are no examples or an activation is NaN or infinite, naming it
   */
  public Map<String, ActivationRange> ranges(ActivationSource source, Clipping clipping) {
    return ranges(source, List.of(clipping)).get(0);
  }

  private List<Map<String, ActivationRange>> ranges(
      ActivationSource source, List<Clipping> clippings) {
    Map<String, ActivationHistogram> histograms = new LinkedHashMap<>();
    activations.forEach(a -> histograms.put(a, new ActivationHistogram()));
    source.run(
        model,
        activations,
        (activation, shape, values) -> {
          long bad = histograms.get(activation).add(values);
          if (bad > 0) {
            throw new InputException(
                model.name()
                    + ": the activation "
                    + activation
                    + " holds "
                    + bad
                    + " NaN or infinite values; no range can be found");
          }
        });
    return clippings.stream().map(clipping -> ranges(histograms, clipping)).toList();
  }

  private Map<String, ActivationRange> ranges(
      Map<String, ActivationHistogram> histograms, Clipping clipping) {
    Map<String, NodeProto> producers = model.producers();
    Map<String, ActivationRange> ranges = new LinkedHashMap<>();
    histograms.forEach(
        (activation, histogram) -> {
          if (histogram.count() == 0) {
            throw new InputException(
                model.name()
                    + ": calibration has no values of "
                    + activation
                    + "; give it at least one example");
          }
          float[] bounds = IntegerOperators.bounds(model, producers.get(activation));
          ActivationRange range = clipping.range(histogram);
          ranges.put(activation, bounds == null ? range : range.within(bounds[0], bounds[1]));
        });
    return ranges;
  }

  /**
   * Leaves the Convs float that alone spoil the outputs, whatever the operators between them do. {@link
   * #calibrate} and {@link #setRanges} come first.
   *
   * @param error to the model in float32: its examples run once with all Convs in int8 and, where that
   *     costs too much, several times for each that is found
   * @return the error that each of them makes alone, by the weights' names
   */
  public Map<String, Double> leaveSensitive(OutputError error) {
    Map<String, Target> all = new LinkedHashMap<>(targets);
    List<String> convs =
        all.keySet().stream()
            .filter(o -> all.get(o).use().kind() == Kind.CONV && !all.get(o).isChannelwise())
            .toList();
    rangesForPassed();
    Map<String, Double> found =
        onConvsAlone(
            () -> {
              try {
                floatOperators = IntegerOperators.BINARY;
                return Sensitivity.search(
                    convs,
                    some -> {
                      targets.values().removeIf(t -> !t.isChannelwise());
                      some.forEach(output -> targets.put(output, all.get(output)));
                      findActivations();
                      return quantizedCopy(copy -> {});
                    },
                    error);
              } finally {
                floatOperators = Set.of();
                targets.clear();
                targets.putAll(all);
              }
            });
    Map<String, Double> left = new LinkedHashMap<>();
    found.forEach((output, alone) -> left.put(targets.remove(output).name(), alone));
    findActivations();
    return left;
  }

  /**
   * Leaves additions or products of two images float, or both, where 8 bits of their results cost too much.
   * {@link #calibrate} and {@link #setRanges} come first, and {@link #leaveSensitive} where it is used.
   *
   * @param error to the model in float32
   * @return what is left, of Add and Mul
   */
  public Set<String> leaveImprecise(OutputError error) {
    rangesForPassed();
    return onConvsAlone(
        () -> {
          double least = error.of(withFloat(IntegerOperators.BINARY));
          for (Set<String> left : List.of(Set.<String>of(), Set.of("Mul"), Set.of("Add"))) {
            if (error.of(withFloat(left)) <= TOLERATED * least + OutputError.LARGE / 10) {
              return left;
            }
          }
          withFloat(IntegerOperators.BINARY);
          return IntegerOperators.BINARY;
        });
  }

  private OnnxModel withFloat(Set<String> left) {
    floatOperators = left;
    findActivations();
    return quantizedCopy(copy -> {});
  }

  /** Behind what stays float, a value that passed a grid on needs one of its own. */
  private void rangesForPassed() {
    Map<String, ActivationRange> known = new HashMap<>(ranges);
    for (String value : operators.passed()) {
      known.computeIfAbsent(value, this::range);
    }
    ranges = known;
  }

  private <T> T onConvsAlone(Supplier<T> search) {
    Map<String, Target> tables = new LinkedHashMap<>(embeddings);
    Map<String, double[]> changes = new HashMap<>(biasChanges);
    try {
      embeddings.clear();
      biasChanges.clear();
      return search.get();
    } finally {
      embeddings.putAll(tables);
      biasChanges.putAll(changes);
    }
  }

  /**
   * Quantizes the model in place.
   *
   * @param ranges the ranges of all {@link #activations()}
   * @throws InputException if weights are not finite, naming them; the model is then unusable
   */
  public void apply(Map<String, ActivationRange> ranges) {
    setRanges(ranges);
    new Rewriting(model).run();
  }

  /**
   * Sets the ranges of activations.
   *
   * @param ranges of all {@link #activations()}
   */
  public void setRanges(Map<String, ActivationRange> ranges) {
    for (String a : activations) {
      if (ranges.get(a) == null) {
        throw new IllegalArgumentException("no range for the activation " + a);
      }
    }
    this.ranges = Map.copyOf(ranges);
  }

  /** What {@link #setRanges} set. */
  public Map<String, ActivationRange> ranges() {
    return ranges;
  }

  @Override
  public void prepareTraining() {
    OnnxModel.Names names = model.names();
    Map<String, Target> own = new HashMap<>();
    targets.replaceAll(
        (output, target) -> {
          if (target.isChannelwise()) {
            return target;
          }
          Use use = target.use();
          OnnxInitializer w = model.constant(target.value());
          float[] values = new float[Math.toIntExact(w.elements())];
          Permutation.apply(w.floats(), w.dims(), use.axes()).get(values);
          String value = names.unique(target.name() + TrainableQuantizer.LATENT);
          model.addInitializer(OnnxInitializer.floats(value, dims(w, use), values));
          List<Integer> axes = IntStream.range(0, use.axes().size()).boxed().toList();
          Use direct =
              new Use(
                  use.kind(),
                  output,
                  use.input(),
                  use.axes().indexOf(use.outputAxis()),
                  use.axes().indexOf(use.reductionAxis()),
                  axes,
                  use.groups(),
                  List.of(value));
          Target made = new Target(target.name(), value, direct);
          own.put(output, made);
          return made;
        });
    List<NodeProto> nodes = new ArrayList<>();
    TiedLookUps<String> before = tied;
    tied = new TiedLookUps<>();
    for (NodeProto n : model.nodes()) {
      String output = n.getOutputCount() == 0 ? "" : n.getOutput(0);
      if (before.contains(output)) {
        String product = before.product(output);
        String weight = own.get(product).value();
        List<NodeProto> lookUp =
            EmbeddingTables.lookUp(model, names, n, weight, factors.get(product));
        tied.add(lookUp.get(EmbeddingTables.GATHER), product);
        nodes.addAll(lookUp);
      } else if (own.containsKey(output)) {
        Target target = own.get(output);
        nodes.add(n.toBuilder().setInput(target.use().input(), target.value()).build());
      } else if (biasChanges.containsKey(output)) {
        nodes.add(ConstantVector.changed(model, names, n, biasChanges.get(output)));
      } else {
        nodes.add(n);
      }
    }
    model.setNodes(nodes);
    // The biases and nodes of the graph hold it now.
    biasChanges.clear();
    factors.clear();
    // What a product read too is a table alone now.
    Map<String, NodeProto> producers = model.producers();
    for (OnnxWeight weight : OnnxWeights.of(model)) {
      if (weight.isEmbedding() && options.include().test(weight)) {
        for (Use use : weight.uses()) {
          if (obstacle(weight, use, producers.get(use.node())) == null) {
            embeddings.put(use.node(), new Target(weight.name(), weight.value(), use));
          }
        }
      }
    }
    EmbeddingTables.round(model, distinctTables());
    RuntimeForm.removeUnused(model);
  }

  /** The names of tables by the constants that hold them. */
  private Map<String, String> distinctTables() {
    Map<String, String> distinct = new LinkedHashMap<>();
    embeddings.values().forEach(table -> distinct.put(table.value(), table.name()));
    return distinct;
  }

  @Override
  public List<QuantizedTable> tables() {
    return EmbeddingTables.nearest(model, distinctTables());
  }

  @Override
  public void setTable(String table, byte[] integers, float[] scales) {
    trainedTables.put(
        table, EmbeddingTables.checked(model, distinctTables(), table, integers, scales));
  }

  @Override
  public List<QuantizedProduct> products() {
    Map<String, NodeProto> producers = model.producers();
    List<QuantizedProduct> result = new ArrayList<>();
    targets.forEach(
        (output, target) -> {
          if (target.isChannelwise()) {
            return;
          }
          NodeProto n = producers.get(output);
          String activation = operators.root(n.getInput(0));
          Rounded r =
              rounded.computeIfAbsent(
                  output,
                  o -> {
                    float[] minimum = minimumScales(model, target, biasOf(n), scale(n.getInput(0)));
                    Int8Weights q = nearest(model, target, minimum);
                    byte[] integers = new byte[q.values().remaining()];
                    q.values().get(integers);
                    return new Rounded(integers, q.scales(), null);
                  });
          result.add(
              new QuantizedProduct(
                  target.name(),
                  output,
                  activation,
                  target.value(),
                  scaleAxis(target),
                  qmax,
                  r.integers(),
                  r.scales()));
        });
    return result;
  }

  @Override
  public void setWeights(String output, byte[] integers, float[] scales) {
    Target target = targets.get(output);
    if (target == null) {
      throw new IllegalArgumentException("no product defines " + output);
    }
    OnnxInitializer w = model.constant(target.value());
    int axis = scaleAxis(target);
    long channels = axis < 0 ? 1 : dims(w, target.use())[axis];
    if (integers.length != w.elements() || scales.length != channels) {
      throw new IllegalArgumentException(
          target.name()
              + " has "
              + w.elements()
              + " weights in "
              + channels
              + " channels; given are "
              + integers.length
              + " integers and "
              + scales.length
              + " scales");
    }
    rounded.put(output, new Rounded(integers.clone(), scales.clone(), null));
  }

  @Override
  public OnnxModel quantizedCopy(Consumer<OnnxModel> change) {
    OnnxModel copy = model.copy();
    change.accept(copy);
    new Rewriting(copy).run();
    return copy;
  }

  /** The range of what passes on, and perhaps scales, another's integers. */
  private ActivationRange range(String passed) {
    ActivationRange root = ranges.get(operators.root(passed));
    float factor = operators.factor(passed);
    return new ActivationRange(root.min() * factor, root.max() * factor);
  }

  /** The step of an activation's integers. */
  private float scale(String activation) {
    return ranges.get(operators.root(activation)).scale() * operators.factor(activation);
  }

  private static String biasOf(NodeProto n) {
    return n.getInputCount() > 2 && !n.getInput(2).isEmpty() ? n.getInput(2) : null;
  }

  /** The dimensions of a weight in the layout that its node sees. */
  private static long[] dims(OnnxInitializer w, Use use) {
    return use.axes().stream().mapToLong(a -> w.dims()[a]).toArray();
  }

  /** The axis of the scales in the layout that the node sees; −1 where there is one scale. */
  private static int scaleAxis(Target target) {
    Use use = target.use();
    // The runtime knows scales of columns for matrices only.
    boolean perChannel = use.kind() != Kind.MATMUL || use.axes().size() == 2;
    return perChannel ? use.axes().indexOf(use.outputAxis()) : -1;
  }

  /**
   * The smallest scales at which the bias has an int32 form: its integers stay below 2^30, and its step, the
   * product of the scales, is a normal float. Real models have channels whose weights are as good as 0.
   *
   * @param bias null where it has none
   */
  private static float[] minimumScales(
      OnnxModel model, Target target, String bias, float activationScale) {
    int axis = scaleAxis(target);
    float[] minimum =
        new float[axis < 0 ? 1 : (int) dims(model.constant(target.value()), target.use())[axis]];
    if (bias == null) {
      return minimum;
    }
    FloatBuffer b = model.constant(bias).floats();
    for (int c = 0; c < minimum.length; c++) {
      float smallest = 2 * Float.MIN_NORMAL / activationScale;
      minimum[c] = Math.max(smallest, Math.abs(b.get(c)) / activationScale * 0x1p-30f);
      if (!(minimum[c] <= Float.MAX_VALUE)) {
        throw new InputException(
            "the bias "
                + bias
                + " is "
                + b.get(c)
                + " in channel "
                + c
                + ", which has no int32 form beside activations in steps of "
                + activationScale);
      }
    }
    return minimum;
  }

  private Int8Weights nearest(OnnxModel model, Target target, float[] minimum) {
    OnnxInitializer w = model.constant(target.value());
    int axis = scaleAxis(target);
    FloatBuffer floats = Permutation.apply(w.floats(), w.dims(), target.use().axes());
    return axis >= 0
        ? Int8Weights.of(target.name(), floats, dims(w, target.use()), axis, qmax, minimum)
        : Int8Weights.of(target.name(), floats, new long[] {1, w.elements()}, 0, qmax, minimum);
  }

  /** One pass over the nodes that emits the new ones. */
  private final class Rewriting {
    private final OnnxModel model;
    private final OnnxModel.Names names;
    private final EmbeddingTables tables;
    private final ChannelWidths widths;
    private final List<NodeProto> out = new ArrayList<>();

    /** The quantized form of an activation: the output of its QuantizeLinear. */
    private final Map<String, Quantized> quantized = new HashMap<>();

    private final Map<List<Object>, Weights> weights = new HashMap<>();
    private final Map<String, Weights> tiedWeights = new HashMap<>();
    private final Map<List<Object>, String> zeros = new HashMap<>();
    private final Set<String> bypassed = new HashSet<>();

    Rewriting(OnnxModel model) {
      this.model = model;
      this.names = model.names();
      this.tables = new EmbeddingTables(model, names, trainedTables);
      this.widths = new ChannelWidths(model, targets.keySet());
    }

    private record Quantized(String value, String scale, String zeroPoint) {}

    private record Weights(Quantized names, float[] scales, int axis) {}

    void run() {
      for (NodeProto n : model.nodes()) {
        String output = n.getOutputCount() == 0 ? "" : n.getOutput(0);
        NodeProto.Builder b = n.toBuilder();
        if (tied.contains(output)) {
          String product = tied.product(output);
          tiedWeights(product);
          out.addAll(tables.lookUpShared(tied.gather(output), targets.get(product).value()));
          continue;
        }
        if (embeddings.containsKey(output)) {
          Target table = embeddings.get(output);
          bypassed.add(table.value());
          out.addAll(tables.lookUp(n, table.name()));
          continue;
        }
        if (targets.containsKey(output)) {
          product(b, targets.get(output));
        } else if (biasChanges.containsKey(output)) {
          b = ConstantVector.changed(model, names, n, biasChanges.get(output)).toBuilder();
        } else if (widths.changes(n)) {
          widths.widen(b, names);
        }
        if (operators.isScaled(output)) {
          Quantized source = quantized.get(operators.source(output));
          quantized.put(output, scaled(source, scale(output)));
          emit(dequantize(quantized.get(output), output, -1));
          continue;
        }
        for (int input : operators.operands(output)) {
          b.setInput(input, fresh(operand(n.getInput(input)), -1));
        }
        widths.append(n, b, names);
        boolean passed = operators.isPassed(output);
        if (!passed && !operators.results().contains(output)) {
          out.add(b.build());
          continue;
        }
        // The value keeps its name for all who read it, and is now read back from 8 bits.
        String before = names.unique("float");
        out.add(b.setOutput(0, before).build());
        quantized.put(
            output,
            passed
                ? quantize(before, quantized.get(operators.source(output)))
                : layOut(output, quantize(before, ranges.get(output))));
        emit(dequantize(quantized.get(output), output, -1));
      }
      removeBypassed();
      model.setNodes(out);
      RuntimeForm.removeUnused(model);
      if (half) {
        HalfPrecision.narrow(model);
      }
    }

    /**
     * The same integers behind a Conv that multiplies each channel with 1, see {@link
     * IntegerOperators#entryChannels}.
     */
    private Quantized layOut(String value, Quantized image) {
      int channels = (int) widths.of(value, operators.entryChannels(value));
      if (channels == 0) {
        return image;
      }
      long[] dims = {channels, 1, 1, 1};
      byte[] ones = new byte[channels];
      Arrays.fill(ones, (byte) qmax);
      String integers = names.unique("ones");
      String scale = names.unique("ones_scale");
      model.addInitializer(OnnxInitializer.bytes(integers, DataType.INT8, dims, ones));
      model.addInitializer(OnnxInitializer.floats(scale, new long[0], 1f / qmax));
      String same = names.unique("image");
      String weight = fresh(new Quantized(integers, scale, zeros(DataType.INT8, -1)), -1);
      emit(
          Nodes.node("Conv", same, fresh(image, -1), weight)
              .addAttribute(Nodes.attribute("group", channels)));
      return quantize(same, image);
    }

    /** The same integers in steps of another size. */
    private Quantized scaled(Quantized q, float step) {
      String scale = names.unique("activation_scale");
      model.addInitializer(OnnxInitializer.floats(scale, new long[0], step));
      return new Quantized(q.value(), scale, q.zeroPoint());
    }

    /** The integers that an operator reads. */
    private Quantized operand(String value) {
      return quantized.computeIfAbsent(value, this::constant);
    }

    /** A number on a grid of its own: its value is that of the largest integer or of 0. */
    private Quantized constant(String value) {
      OnnxInitializer c = model.constant(value);
      float number = c.floats().get(0);
      Quantized grid = grid(new ActivationRange(Math.min(0, number), Math.max(0, number)));
      String integer = names.unique("constant");
      byte q = (byte) (number > 0 ? 255 : 0);
      model.addInitializer(OnnxInitializer.bytes(integer, DataType.UINT8, c.dims(), q));
      return new Quantized(integer, grid.scale(), grid.zeroPoint());
    }

    private void product(NodeProto.Builder n, Target target) {
      String x = n.getInput(0);
      Quantized q = quantized.get(x);
      if (q == null) {
        q = quantize(x, ranges.get(x));
        quantized.put(x, q);
      }
      String bias = biasOf(n.build());
      float scale = scale(x);
      Weights w = weights(n.build(), target, bias, scale);
      if (widths.changes(n.build())) {
        widths.widenGroups(n);
      }
      n.setInput(0, fresh(q, -1));
      n.setInput(target.use().input(), fresh(w.names(), w.axis()));
      if (bias != null) {
        n.setInput(2, bias(bias, scale, w));
      }
    }

    private Quantized quantize(String value, ActivationRange range) {
      return quantize(value, grid(range));
    }

    /** Puts a value on the grid that another has. */
    private Quantized quantize(String value, Quantized like) {
      String output = names.unique("quantized");
      emit(Nodes.node("QuantizeLinear", output, value, like.scale(), like.zeroPoint()));
      return new Quantized(output, like.scale(), like.zeroPoint());
    }

    /** Scale and zero point, without integers yet. */
    private Quantized grid(ActivationRange range) {
      String scale = names.unique("activation_scale");
      String zeroPoint = names.unique("activation_zero_point");
      model.addInitializer(OnnxInitializer.floats(scale, new long[0], range.scale()));
      model.addInitializer(
          OnnxInitializer.bytes(zeroPoint, DataType.UINT8, new long[0], (byte) range.zeroPoint()));
      return new Quantized(null, scale, zeroPoint);
    }

    /** ONNX Runtime fuses a DequantizeLinear with one reader only, so each reader gets its own. */
    private String fresh(Quantized q, int axis) {
      String output = names.unique("dequantized");
      emit(dequantize(q, output, axis));
      return output;
    }

    private NodeProto.Builder dequantize(Quantized q, String output, int axis) {
      NodeProto.Builder b =
          Nodes.node("DequantizeLinear", output, q.value(), q.scale(), q.zeroPoint());
      return axis < 0 ? b : b.addAttribute(Nodes.attribute("axis", axis));
    }

    /**
     * New nodes and the values between them are many: no names of nodes and short ones of values.
     */
    private void emit(NodeProto.Builder n) {
      out.add(n.clearName().build());
    }

    /**
     * The integers of a weight in the layout that the node sees, made once for all nodes that see
     * the same.
     *
     * @param bias the node's bias, whose integers must stay below 2^31 at the product's scale; null
     *     if it has none
     */
    private Weights weights(NodeProto n, Target target, String bias, float activationScale) {
      Use use = target.use();
      if (tied.reads(use.node())) {
        return tiedWeights(use.node());
      }
      bypassed.addAll(use.path());
      long[] dims = dims(model.constant(target.value()), use);
      long[] wide = widths.changes(n) ? widths.weights(n) : dims;
      int axis = scaleAxis(target);
      Rounded fitted = rounded.get(use.node());
      if (fitted != null) {
        ByteBuffer integers = ByteBuffer.allocateDirect(fitted.integers().length);
        integers.put(fitted.integers()).flip();
        return store(target, dims, wide, axis, integers, fitted.scales());
      }
      float[] minimum = minimumScales(model, target, bias, activationScale);
      List<Object> key = List.of(target.value(), use.axes(), axis, ChannelWidths.list(wide));
      Weights known = weights.get(key);
      if (known != null && atLeast(known.scales(), minimum)) {
        return known;
      }
      Int8Weights q = nearest(model, target, minimum);
      Weights made = store(target, dims, wide, axis, q.values(), q.scales());
      weights.put(key, made);
      return made;
    }

    /** The weights of a product that are looked up in too: stored once, as the table's rows. */
    private Weights tiedWeights(String product) {
      return tiedWeights.computeIfAbsent(
          product,
          key -> {
            Target target = targets.get(product);
            Rounded r = rounded.get(product);
            if (r == null) {
              Int8Weights q = nearest(model, target, minimumScales(model, target, null, 1));
              byte[] integers = new byte[q.values().remaining()];
              q.values().get(integers);
              r = new Rounded(integers, q.scales(), null);
            }
            bypassed.addAll(target.use().path());
            String rows =
                tables.share(target.value(), r.integers(), r.scales(), factors.get(product));
            String turned = names.unique(target.value() + "_turned");
            emit(Nodes.node("Transpose", turned, rows).addAttribute(Nodes.swap()));
            String scale = names.unique(target.value() + "_scale");
            int channels = r.scales().length;
            model.addInitializer(OnnxInitializer.floats(scale, new long[] {channels}, r.scales()));
            String zeroPoint = zeros(DataType.INT8, channels);
            return new Weights(new Quantized(turned, scale, zeroPoint), r.scales(), 1);
          });
    }

    /** Zero points of zero, {@code n} of them or, for −1, a scalar: one tensor serves all. */
    private String zeros(DataType type, int n) {
      return zeros.computeIfAbsent(
          List.of(type, n),
          key -> {
            String name = names.unique("zeros");
            long[] dims = n < 0 ? new long[0] : new long[] {n};
            model.addInitializer(
                type == DataType.INT8
                    ? OnnxInitializer.bytes(name, type, dims, new byte[Math.abs(n)])
                    : OnnxInitializer.int32s(name, dims, new int[Math.abs(n)]));
            return name;
          });
    }

    /**
     * Adds integers and scales; axis −1 for one scale.
     *
     * @param wide the shape that the node gets, see {@link ChannelWidths}
     */
    private Weights store(
        Target target, long[] dims, long[] wide, int axis, ByteBuffer integers, float[] scales) {
      if (!Arrays.equals(dims, wide)) {
        int channels = scales.length;
        ByteBuffer padded = ChannelWidths.pad(integers, dims, wide, Byte.BYTES);
        float[] more = Arrays.copyOf(scales, (int) wide[0]);
        Arrays.fill(more, channels, more.length, 1);
        return store(target, wide, wide, axis, padded, more);
      }
      String value = names.unique(target.value() + "_quantized");
      String scale = names.unique(target.value() + "_scale");
      long[] parameters = axis >= 0 ? new long[] {scales.length} : new long[0];
      model.addInitializer(OnnxInitializer.of(value, DataType.INT8, dims, integers));
      model.addInitializer(OnnxInitializer.floats(scale, parameters, scales));
      String zeroPoint = zeros(DataType.INT8, axis >= 0 ? scales.length : -1);
      return new Weights(new Quantized(value, scale, zeroPoint), scales, axis);
    }

    /** Returns the float32 value of the int32 bias, whose scale is that of the products. */
    private String bias(String bias, float activationScale, Weights w) {
      FloatBuffer b = model.constant(bias).floats();
      int n = w.scales().length;
      float[] scales = new float[n];
      int[] q = new int[n];
      for (int c = 0; c < n; c++) {
        scales[c] = activationScale * w.scales()[c];
        if (!(scales[c] >= Float.MIN_NORMAL && scales[c] <= Float.MAX_VALUE)) {
          throw new InputException(
              "the bias "
                  + bias
                  + " has no int32 form in channel "
                  + c
                  + ": its step would be "
                  + scales[c]);
        }
        double integer = c < b.limit() ? Math.rint((double) b.get(c) / scales[c]) : 0;
        if (!(Math.abs(integer) <= Integer.MAX_VALUE)) {
          // Only training can have moved it there; the answer stays right, at the speed of floats.
          LOG.warn(
              "the bias {} has no int32 form in channel {}: it stays float, and its product too",
              bias,
              c);
          return widths.widenBias(bias, n, names);
        }
        q[c] = (int) integer;
      }
      String value = names.unique(bias + "_quantized");
      String scale = names.unique(bias + "_scale");
      model.addInitializer(OnnxInitializer.int32s(value, new long[] {n}, q));
      model.addInitializer(OnnxInitializer.floats(scale, new long[] {n}, scales));
      bypassed.add(bias);
      return fresh(new Quantized(value, scale, zeros(DataType.INT32, n)), 0);
    }

    /** Takes away the nodes between a weight and its products that nothing reads any more. */
    private void removeBypassed() {
      Set<String> read = model.outputNames();
      for (int i = out.size() - 1; i >= 0; i--) {
        NodeProto n = out.get(i);
        if (n.getOutputCount() == 1
            && bypassed.contains(n.getOutput(0))
            && !read.contains(n.getOutput(0))) {
          out.remove(i);
        } else {
          read.addAll(OnnxModel.uses(n));
        }
      }
    }

    private boolean atLeast(float[] scales, float[] minimum) {
      for (int c = 0; c < minimum.length; c++) {
        if (scales[c] < minimum[c]) {
          return false;
        }
      }
      return true;
    }
  }
}

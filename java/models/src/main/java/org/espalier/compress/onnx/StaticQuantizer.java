package org.espalier.compress.onnx;

import ai.onnx.proto.OnnxMl.NodeProto;
import java.util.ArrayList;
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
import org.espalier.compress.Progress;
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
 * <p>Of one use: what comes after {@link #apply} throws an {@link IllegalStateException}. Not safe for several threads.
 */
public final class StaticQuantizer implements TrainableQuantizer {
  private static final Logger LOG = LoggerFactory.getLogger(StaticQuantizer.class);

  /** By how much operators of two images in int8 may raise the error of what int8 products make alone. */
  private static final double TOLERATED = 1.2;

  /** Of what the ranges of activations are chosen. */
  private static final List<Clipping> CLIPPINGS =
      List.of(
          new Clipping.MeanSquaredError(),
          new Clipping.MinMax(),
          new Clipping.Percentile(99.999),
          new Clipping.Percentile(99.99),
          new Clipping.Percentile(99.9));

  /** An error on a few examples is less than another where it is below this share of it. */
  private static final double LESS = 0.98;

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

  private final OnnxModel model;
  private final OneUse use;

  /** Whether the model computed in 16 bits. */
  private final boolean half;

  private final Options options;
  private final int qmax;
  private final Map<String, QuantizedUse> targets = new LinkedHashMap<>();
  private final Map<String, QuantizedUse> embeddings = new LinkedHashMap<>();

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

  private Progress progress = Progress.NONE;

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
    this.use = new OneUse(model, "was quantized");
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
          embeddings.put(use.node(), new QuantizedUse(weight.name(), weight.value(), use));
        } else {
          targets.put(use.node(), new QuantizedUse(weight.name(), weight.value(), use));
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
      targets.put(use.node(), new QuantizedUse(weight.name(), weight.value(), use));
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
  private String obstacle(OnnxWeight weight, Use use, NodeProto node) {
    return QuantizedUse.obstacle(model, weight, use, node, options.embeddings());
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
   * As {@link #calibrate(ActivationSource, Clipping)}, with the clipping that costs least: the least squared error of
   * each activation or, where large values matter more than their number, all that was seen or, where a few of them
   * are out of all proportion, nearly all. Of about equal ones the first is taken.
   *
   * @param error to the model in float32: its examples run once for each
   */
  public Map<String, ActivationRange> calibrate(ActivationSource source, OutputError error) {
    Map<String, ActivationRange> best = null;
    double least = Double.POSITIVE_INFINITY;
    for (Map<String, ActivationRange> ranges : calibrate(source, CLIPPINGS)) {
      setRanges(ranges);
      double made = error.of(quantizedCopy(copy -> {}));
      LOG.debug("ranges with an error of {}", made);
      if (best == null || made < LESS * least) {
        best = ranges;
        least = made;
      }
    }
    return best;
  }

  @Override
  public void tell(Progress listener) {
    progress = listener;
  }

  private List<Map<String, ActivationRange>> calibrate(
      ActivationSource source, List<Clipping> clippings) {
    use.check();
    FiniteConstants.requireWeights(model);
    try {
      if (!fitted) {
        fitted = true;
        fit(source);
      }
      return ranges(new ToldActivations(source, progress), clippings);
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
    ConvEqualization.apply(model, convolutions, qmax, new ToldActivations(source, progress));
    List<ProductSite> sites = ProductSite.find(model, options.include(), new LinkedHashMap<>());
    ProductFitting.fit(model, sites, qmax, source, progress)
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
            use.node(), (output, old) -> new QuantizedUse(old.name(), weight.value(), use));
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
    use.check();
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
   *     costs too much, several times for each that is found, {@value Sensitivity#MODELS} times at most for all
   *     and some for a single one
   * @return the error that each of them makes alone, by the weights' names
   */
  public Map<String, Double> leaveSensitive(OutputError error) {
    use.check();
    Map<String, QuantizedUse> all = new LinkedHashMap<>(targets);
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
                      return error.made(quantizedCopy(copy -> {})).largest();
                    },
                    progress);
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
    use.check();
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
      known.computeIfAbsent(value, passed -> operators.range(passed, ranges));
    }
    ranges = known;
  }

  private <T> T onConvsAlone(Supplier<T> search) {
    Map<String, QuantizedUse> tables = new LinkedHashMap<>(embeddings);
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
   * @throws IllegalStateException if it was called before
   */
  public void apply(Map<String, ActivationRange> ranges) {
    use.check();
    setRanges(ranges);
    use.begin();
    rewrite(model);
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
    use.check();
    OnnxModel.Names names = model.names();
    Map<String, TrainingForm.Latent> latents = new HashMap<>();
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
          model.addInitializer(OnnxInitializer.floats(value, target.dims(model), values));
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
          latents.put(output, new TrainingForm.Latent(use.input(), value));
          return new QuantizedUse(target.name(), value, direct);
        });
    tied =
        TrainingForm.apply(
            model,
            names,
            latents,
            biasChanges,
            tied,
            product -> latents.get(product).weight(),
            factors::get);
    // The biases and nodes of the graph hold it now.
    biasChanges.clear();
    factors.clear();
    // What a product read too is a table alone now.
    Map<String, NodeProto> producers = model.producers();
    for (OnnxWeight weight : OnnxWeights.of(model)) {
      if (weight.isEmbedding() && options.include().test(weight)) {
        for (Use use : weight.uses()) {
          if (obstacle(weight, use, producers.get(use.node())) == null) {
            embeddings.put(use.node(), new QuantizedUse(weight.name(), weight.value(), use));
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
    use.check();
    return EmbeddingTables.nearest(model, distinctTables());
  }

  @Override
  public void setTable(String table, byte[] integers, float[] scales) {
    trainedTables.put(
        table, EmbeddingTables.checked(model, distinctTables(), table, integers, scales));
  }

  @Override
  public List<QuantizedProduct> products() {
    use.check();
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
                    float[] minimum =
                        target.minimumScales(
                            model, QuantizedUse.bias(n), operators.scale(n.getInput(0), ranges));
                    Int8Weights q = target.nearest(model, qmax, minimum);
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
                  WeightGrid.channels(qmax, target.scaleAxis()),
                  r.integers(),
                  r.scales()));
        });
    return result;
  }

  @Override
  public void setWeights(String output, byte[] integers, float[] scales) {
    QuantizedUse target = targets.get(output);
    if (target == null) {
      throw new IllegalArgumentException("no product defines " + output);
    }
    OnnxInitializer w = model.constant(target.value());
    int axis = target.scaleAxis();
    long channels = axis < 0 ? 1 : target.dims(model)[axis];
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
    use.check();
    OnnxModel copy = model.copy();
    change.accept(copy);
    rewrite(copy);
    return copy;
  }

  /** Quantizes a model, which is this one or a copy of it with other values of constants. */
  private void rewrite(OnnxModel rewritten) {
    QdqRewriting.Plan plan =
        new QdqRewriting.Plan(
            targets,
            embeddings,
            tied,
            rounded,
            factors,
            biasChanges,
            trainedTables,
            operators,
            ranges,
            qmax);
    SumShapes sums = SumShapes.find(rewritten);
    new QdqRewriting(rewritten, plan).run();
    if (half) {
      HalfPrecision.narrow(rewritten);
    } else {
      sums.apply(rewritten);
    }
  }
}

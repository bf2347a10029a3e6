package org.espalier.compress.onnx;

import ai.onnx.proto.OnnxMl.NodeProto;
import java.util.ArrayList;
import java.util.Collections;
import java.util.HashMap;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.function.Predicate;
import java.util.function.Supplier;
import org.espalier.InputException;
import org.espalier.compress.onnx.ProductFitting.Rounded;
import org.espalier.compress.onnx.fitting.CompensatedRounding;
import org.espalier.compress.onnx.fitting.Equalization;
import org.espalier.format.onnx.HalfPrecision;
import org.espalier.format.onnx.OnnxInitializer;
import org.espalier.format.onnx.OnnxModel;
import org.espalier.format.onnx.OnnxWeight;
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
public final class StaticQuantizer extends OnnxQuantizer {
  private static final Logger LOG = LoggerFactory.getLogger(StaticQuantizer.class);

  /** By which factor operators of two images in int8 may raise the error that int8 products make alone. */
  private static final double TOLERATED = 1.2;

  /** The clippings among which the ranges of activations are chosen. */
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
   * @param weights what weights become
   * @param embeddings whether embedding tables are quantized
   * @param include which weights are quantized; embeddings are asked for too
   */
  public record Options(WeightIntegers weights, boolean embeddings, Predicate<OnnxWeight> include) {
    /** All weights, in 8 bits. */
    public static Options defaults() {
      return new Options(WeightIntegers.INT8, true, w -> true);
    }
  }

  private final Options options;
  private final int qmax;
  private final StaticPlan plan;

  /** What fitting found, by the outputs of the products, and of the additions of biases. */
  private final Map<String, Rounded> rounded = new HashMap<>();

  /** What fitting multiplied the rows of weights with, by the outputs of the products. */
  private final Map<String, float[]> factors = new HashMap<>();

  private final Map<String, double[]> biasChanges = new HashMap<>();
  private boolean fitted;

  /** The ranges that {@link #products} and {@link #quantizedCopy} use. */
  private Map<String, ActivationRange> ranges = Map.of();

  /**
   * Plans the quantization of {@code model}, which is raised to operator set 13 if it is older, and
   * takes the form that the runtime fuses: normalizations are folded into the convolutions before
   * them.
   *
   * @throws InputException if it cannot be raised, or has nothing to quantize
   */
  public StaticQuantizer(OnnxModel model, Options options) {
    super(model, OPSET);
    this.options = options;
    this.qmax = options.weights().largest();
    IntegerForm.apply(model);
    BatchNormFolding.apply(model);
    GateBounds.apply(model);
    RuntimeForm.apply(model, false);
    plan = new StaticPlan(model, options, skipped);
  }

  /**
   * Whether a constant of a model that was calibrated is none of its parameters, but holds factors of channels or
   * what is added to them: training leaves it as it is.
   */
  public static boolean isChannelwise(String constant) {
    return ConvEqualization.isChannelwise(constant);
  }

  /** The values whose ranges {@link #apply} needs: float32 tensors of the model's main graph. */
  public Set<String> activations() {
    return Collections.unmodifiableSet(plan.activations());
  }

  /**
   * Those of the {@link #activations} that every reader sees quantized: the outputs of Conv and of the operators
   * that run on integers, or of the Relu or Clip behind one. The others are quantized in front of products only.
   */
  public Set<String> quantizedResults() {
    return Collections.unmodifiableSet(plan.operators().results());
  }

  @Override
  public List<String> quantized() {
    return plan.names();
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
    ConvEqualization.apply(model, plan.convolutions(), qmax, new ToldActivations(source, progress));
    List<ProductSite> sites =
        ProductSite.find(model, options.include(), new LinkedHashMap<>()).stream()
            .filter(site -> !site.inner)
            .toList();
    ProductFitting.fit(model, sites, qmax, source, progress)
        .forEach(
            (product, r) -> {
              rounded.put(product.output, r);
              factors.put(product.output, product.factors);
              product.biasAdds.forEach(add -> biasChanges.put(add, r.meanError()));
            });
    plan.followWeights();
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
    return RangeCalibration.run(model, plan.activations(), source, clippings);
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
    Map<String, QuantizedUse> products = plan.products();
    Map<String, QuantizedUse> all = new LinkedHashMap<>(products);
    List<String> convs =
        plan.convolutions().stream().filter(o -> !all.get(o).isChannelwise()).toList();
    rangesForPassed();
    Map<String, Double> found =
        onConvsAlone(
            () -> {
              try {
                plan.leaveFloat(IntegerOperators.BINARY);
                return Sensitivity.search(
                    convs,
                    some -> {
                      products.values().removeIf(t -> !t.isChannelwise());
                      some.forEach(output -> products.put(output, all.get(output)));
                      plan.findActivations();
                      return error.made(quantizedCopy(copy -> {})).largest();
                    },
                    progress);
              } finally {
                products.clear();
                products.putAll(all);
                plan.leaveFloat(Set.of());
              }
            });
    Map<String, Double> left = new LinkedHashMap<>();
    found.forEach((output, alone) -> left.put(products.remove(output).name(), alone));
    plan.findActivations();
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
    plan.leaveFloat(left);
    return quantizedCopy(copy -> {});
  }

  /** Gives ranges to the values that share the grid of another, which they lose where that stays float. */
  private void rangesForPassed() {
    Map<String, ActivationRange> known = new HashMap<>(ranges);
    for (String value : plan.operators().passed()) {
      known.computeIfAbsent(value, passed -> plan.operators().range(passed, ranges));
    }
    ranges = known;
  }

  private <T> T onConvsAlone(Supplier<T> search) {
    Map<String, QuantizedUse> tables = new LinkedHashMap<>(plan.lookUps());
    Map<String, double[]> changes = new HashMap<>(biasChanges);
    try {
      plan.lookUps().clear();
      biasChanges.clear();
      return search.get();
    } finally {
      plan.lookUps().putAll(tables);
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
    quantizeModel();
  }

  /**
   * Sets the ranges of activations. One that was learned beyond the bounds of the Clip that makes its activation ends there:
   * ONNX Runtime takes the Clip for one that does nothing where a grid ends just behind it, and then fails to load the model.
   *
   * @param ranges of all {@link #activations()}
   */
  public void setRanges(Map<String, ActivationRange> ranges) {
    for (String a : plan.activations()) {
      if (ranges.get(a) == null) {
        throw new IllegalArgumentException("no range for the activation " + a);
      }
    }
    Map<String, NodeProto> producers = model.producers();
    Map<String, ActivationRange> bounded = new HashMap<>();
    ranges.forEach(
        (a, range) -> bounded.put(a, RangeCalibration.bounded(model, producers.get(a), range)));
    this.ranges = Map.copyOf(bounded);
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
    plan.products()
        .replaceAll(
            (output, target) -> {
              if (target.isChannelwise()) {
                return target;
              }
              QuantizedUse latent = target.makeLatent(model, names);
              latents.put(output, new TrainingForm.Latent(target.use().input(), latent.value()));
              return latent;
            });
    TiedLookUps<String> tied =
        TrainingForm.apply(
            model,
            names,
            latents,
            biasChanges,
            plan.tied(),
            product -> latents.get(product).weight(),
            factors::get);
    // The biases and nodes of the graph hold it now.
    biasChanges.clear();
    factors.clear();
    plan.followTables(tied);
    EmbeddingTables.round(model, tableNames());
    RuntimeForm.removeUnused(model);
  }

  @Override
  Map<String, String> tableNames() {
    Map<String, String> names = new LinkedHashMap<>();
    plan.lookUps().values().forEach(table -> names.put(table.value(), table.name()));
    return names;
  }

  @Override
  public List<QuantizedProduct> products() {
    use.check();
    Map<String, NodeProto> producers = model.producers();
    List<QuantizedProduct> result = new ArrayList<>();
    plan.products()
        .forEach(
            (output, target) -> {
              if (target.isChannelwise()) {
                return;
              }
              NodeProto n = producers.get(output);
              Rounded r = rounded.computeIfAbsent(output, o -> nearest(target, n));
              result.add(
                  new QuantizedProduct(
                      target.name(),
                      output,
                      plan.operators().root(n.getInput(0)),
                      target.value(),
                      WeightGrid.channels(qmax, target.scaleAxis()),
                      r.integers(),
                      r.scales()));
            });
    return result;
  }

  private Rounded nearest(QuantizedUse target, NodeProto n) {
    float[] minimum =
        target.minimumScales(
            model, QuantizedUse.bias(n), plan.operators().scale(n.getInput(0), ranges));
    Int8Weights q = target.nearest(model, qmax, minimum);
    return new Rounded(q.integers(), q.scales(), null);
  }

  @Override
  public void setWeights(String output, byte[] integers, float[] scales) {
    QuantizedUse target = plan.products().get(output);
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
  void writeNodes(OnnxModel target) {
    QdqRewriting.Fit fit =
        new QdqRewriting.Fit(
            rounded, factors, biasChanges, trainedTables, ranges, options.weights());
    new QdqRewriting(target, plan, fit).run();
  }
}

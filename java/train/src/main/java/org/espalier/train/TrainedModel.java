package org.espalier.train;

import ai.onnx.proto.OnnxMl.NodeProto;
import ai.onnx.proto.OnnxMl.TensorProto.DataType;
import java.io.DataInputStream;
import java.io.DataOutputStream;
import java.io.IOException;
import java.nio.FloatBuffer;
import java.util.ArrayList;
import java.util.BitSet;
import java.util.HashMap;
import java.util.HashSet;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.TreeMap;
import java.util.TreeSet;
import java.util.function.Function;
import java.util.stream.Stream;
import org.espalier.InputException;
import org.espalier.compress.onnx.ActivationRange;
import org.espalier.compress.onnx.ActivationSource;
import org.espalier.compress.onnx.Answers;
import org.espalier.compress.onnx.BlockQuantizer;
import org.espalier.compress.onnx.Clipping;
import org.espalier.compress.onnx.DynamicQuantizer;
import org.espalier.compress.onnx.Int8Model;
import org.espalier.compress.onnx.IntegerEnds;
import org.espalier.compress.onnx.OutputError;
import org.espalier.compress.onnx.QuantizedProduct;
import org.espalier.compress.onnx.QuantizedTable;
import org.espalier.compress.onnx.RefittingPruner;
import org.espalier.compress.onnx.RoundedActivations;
import org.espalier.compress.onnx.StaticQuantizer;
import org.espalier.compress.onnx.SumShapes;
import org.espalier.compress.onnx.TrainableQuantizer;
import org.espalier.compress.onnx.WeightGrid;
import org.espalier.compress.onnx.WeightQuantizer;
import org.espalier.device.DType;
import org.espalier.device.Tensor;
import org.espalier.format.onnx.ActiveDropout;
import org.espalier.format.onnx.ClassifierOutput;
import org.espalier.format.onnx.HalfPrecision;
import org.espalier.format.onnx.ModelStream;
import org.espalier.format.onnx.OnnxInitializer;
import org.espalier.format.onnx.OnnxModel;
import org.espalier.format.onnx.OnnxWeight;
import org.espalier.format.onnx.OnnxWeights;
import org.espalier.op.MagnitudePrune;
import org.espalier.torch.Parameter;
import org.espalier.torch.TorchDevice;
import org.espalier.torch.onnx.GraphParameters;
import org.espalier.torch.onnx.OnnxGraph;

/**
 * The model of a plan while it is trained: its graph on libtorch; its trained weights with their masks; the grids of
 * weights and activations, once a stage has quantized; and the ONNX models that are made of it. {@link Passes} run the
 * graph and give gradients, an {@link Update} makes the steps.
 */
final class TrainedModel implements AutoCloseable {
  /** Examples on which ranges are compared; their outputs are held. */
  private static final int COMPARED = 8;

  private final CompressionPlan plan;
  private final Compression.Job job;
  private final TrainedForm given;
  private final TorchDevice device;
  private final Passes passes;

  /** The float model that the graph was made from, with the weights that it had then. */
  private OnnxModel form;

  /** Null until a stage quantizes. */
  private TrainableQuantizer quantizer;

  private List<QuantizedProduct> products = List.of();
  private OnnxGraph graph;
  private List<TrainedWeight> weights = List.of();
  private ActivationSimulation activations;

  /** Null where ranges of activations are not fixed. */
  private StaticGrid fixed;

  /** What the present form adds to weights that rest, in a stage that asks for it and behind it; null in all others. */
  private LowRank lowRank;

  /** The place in the plan of the stage that asked for that. */
  private int adapting;

  /**
   * The model of a job as it is given, in float32; what is int8 stays on its grids.
   *
   * @param given the form of it
   * @param device where it trains
   * @param passes go through its graph from now on; closed before it
   */
  TrainedModel(
      CompressionPlan plan,
      Compression.Job job,
      TrainedForm given,
      TorchDevice device,
      Passes passes) {
    this.plan = plan;
    this.job = job;
    this.device = device;
    this.passes = passes;
    this.given = given;
    // What is to rest is not copied to be checked either.
    if (!given.isInt8() && plan.stages().stream().allMatch(stage -> rank(stage) > 0)) {
      adapt(0, given.floats());
      return;
    }
    open(given.floats());
    if (given.isInt8()) {
      stayOnGrids();
    }
  }

  /** Makes the graph of a form and has passes go through it. */
  private void open(OnnxModel next) {
    form = next;
    load();
    show();
  }

  private void show() {
    passes.use(lane(), fixed, logits());
  }

  /** The output of a classifier that has its logits; null where there is none. */
  private String logits() {
    return ClassifierOutput.of(form).logits();
  }

  /** What is trained; another one once a stage has quantized. */
  Lane lane() {
    return new Lane(graph, activations);
  }

  /** Makes the trainable graph of the present form; a classifier's logits are an output of it too. */
  private void load() {
    String logits = logits();
    boolean asked =
        plan.stages().stream().anyMatch(s -> s.training().objective().isForLogits(job.labels()));
    List<String> added = asked && logits != null ? List.of(logits) : List.of();
    OnnxModel opened = job.opened(form).withOutputs(added);
    if (given.isInt8()) {
      activations = Lane.dynamic(opened, device);
    }
    graph = new OnnxGraph(opened, device, this::changes);
    if (activations != null) {
      graph.transformInputs(activations);
    }
    weights = new ArrayList<>();
    for (Parameter p : graph.parameters()) {
      if (p.tensor().requires_grad()) {
        weights.add(new TrainedWeight(p, device));
      }
    }
  }

  /**
   * A weight on a grid that came with the model.
   *
   * @param began what it is at first
   */
  private record OnGrid(
      TrainedWeight weight, Int8Model.Integers grid, float[] began, IntegerEnds.Steps steps) {
    static OnGrid of(TrainedWeight weight, Int8Model.Integers grid) {
      float[] began = weight.working.values();
      return new OnGrid(
          weight, grid, began, IntegerEnds.Steps.along(grid.axis(), grid.scales(), began.length));
    }

    IntegerEnds reached() {
      return IntegerEnds.reached(FloatBuffer.wrap(began), steps);
    }

    void stay(IntegerEnds ends) {
      byte[] integers = new byte[began.length];
      for (int i = 0; i < integers.length; i++) {
        integers[i] = (byte) Math.round(began[i] / steps.of(i));
      }
      weight.stayOn(
          new WeightGrid(ends.least(), ends.largest(), grid.axis(), 0), integers, grid.scales());
    }
  }

  /** Has the weights of an int8 model stay on its grids. */
  private void stayOnGrids() {
    List<OnGrid> all = new ArrayList<>();
    byConstant()
        .forEach(
            (constant, w) -> {
              Int8Model.Integers grid = given.integers().grid(constant);
              if (grid != null) {
                all.add(OnGrid.of(w, grid));
              }
            });
    List<IntegerEnds> ends = IntegerEnds.of(all.stream().map(OnGrid::reached).toList());
    for (int i = 0; i < all.size(); i++) {
      all.get(i).stay(ends.get(i));
    }
  }

  private boolean changes(GraphParameters.Entry parameter) {
    if (parameter.kind() == Parameter.Kind.EMBEDDING) {
      return lowRank == null
          ? changesTable(parameter.name())
          : trainsTable(plan.stages().get(adapting), parameter.name());
    }
    boolean rests = lowRank != null && parameter.kind() != Parameter.Kind.OTHER;
    return rests
        ? lowRank.trains(parameter.constant())
        : !StaticQuantizer.isChannelwise(parameter.constant());
  }

  /** Whether any stage changes a table; others cost neither gradients nor copies. */
  private boolean changesTable(String name) {
    return plan.stages().stream()
        .anyMatch(
            stage ->
                trainsTable(stage, name)
                    || stage instanceof Stage.Prune p
                        && p.pruning().embeddings()
                        && p.pruning().include().test(name));
  }

  private boolean trainsTable(Stage stage, String name) {
    boolean asked = stage.training().embeddings().rule() != Training.Embeddings.Rule.AUTO;
    return (asked || rank(stage) == 0)
        && stage.training().trainsEmbedding(name, job.teacher() == null);
  }

  /** Of the matrices that a stage adds; 0 where it adds none. */
  static int rank(Stage stage) {
    return stage instanceof Stage.Train train ? train.rank() : 0;
  }

  /**
   * Gives the model the form in which a stage trains it. The {@link #lane} and all weights may be others afterwards.
   *
   * @param index of the stage
   */
  void take(int index) {
    boolean adapts = rank(plan.stages().get(index)) > 0;
    if (adapts && (lowRank == null || adapting != index)) {
      OnnxModel plain = index == 0 ? given.floats() : floatModel();
      close();
      adapt(index, plain);
    } else if (!adapts && lowRank != null) {
      OnnxModel merged = floatModel();
      close();
      lowRank = null;
      open(given.floats());
      byConstant()
          .forEach((constant, weight) -> weight.latent().set(values(merged.constant(constant))));
    }
  }

  private void adapt(int index, OnnxModel plain) {
    adapting = index;
    lowRank = new LowRank(plain, rank(plan.stages().get(index)));
    open(lowRank.adapted(plan.seed() + index));
  }

  /** The weights that a stage trains. */
  List<TrainedWeight> trained(Stage stage) {
    return weights.stream().filter(w -> !w.isTable() || trainsTable(stage, w.name())).toList();
  }

  /** The optimizer of a stage, to be closed before this; tables that the stage leaves as they are get no gradients. */
  Update update(Stage stage) {
    weights.stream()
        .filter(TrainedWeight::isTable)
        .forEach(w -> w.parameter.tensor().requires_grad_(trainsTable(stage, w.name())));
    return new Update(trained(stage), learnedRanges(), stage.training().optimizer(), device);
  }

  /** Which parameter holds what is not finite, or that none does. */
  String culprit() {
    for (TrainedWeight w : weights) {
      for (float value : w.latent().values()) {
        if (!Float.isFinite(value)) {
          return w.name();
        }
      }
    }
    return "the output " + graph.outputNames().get(0) + " (all parameters are finite)";
  }

  /** What a stage that prunes does to the weights. */
  WeightPruning pruning(Pruning pruning) {
    return new WeightPruning(pruning, weights, device);
  }

  /**
   * Prunes what calibration misses least and refits the weights that stay, and the biases beside them; what is 0 stays
   * 0. Of a model that is not quantized.
   */
  void refit(Pruning pruning, TrainingListener listener) {
    OnnxModel model = floatModel();
    Map<String, TrainedWeight> byConstant = byConstant();
    List<TrainedWeight> candidates = pruning(pruning).candidates();
    List<OnnxWeight> pruned =
        OnnxWeights.of(model).stream()
            .filter(weight -> candidates.contains(byConstant.get(weight.value())))
            .toList();
    List<MagnitudePrune.Weights> list = new ArrayList<>();
    List<BitSet> kept = new ArrayList<>();
    for (OnnxWeight weight : pruned) {
      OnnxInitializer tensor = model.constant(weight.value());
      Tensor values = Tensor.of(tensor.data(), DType.F32, tensor.dims());
      list.add(MagnitudePrune.Weights.of(weight.name(), values).axis(weight.reductionAxis()));
      kept.add(nonZeros(tensor.floats()));
    }
    Map<String, List<NodeProto>> consumers = model.consumers();
    long bytes = pruned.stream().mapToLong(w -> model.constant(w.value()).byteLength()).sum();
    new RefittingPruner(
            model,
            pruned,
            RefittingPruner.ofEachTensor(list, pruning.rule(pruning.sparsity())),
            vector -> byConstant.containsKey(vector) && consumers.get(vector).size() == 1)
        .prune(kept, job.calibration(), done -> listener.note("refitting", done, bytes));
    byConstant.forEach((constant, weight) -> weight.latent().set(values(model.constant(constant))));
    candidates.forEach(TrainedWeight::maskZeros);
  }

  private static BitSet nonZeros(FloatBuffer values) {
    BitSet bits = new BitSet(values.remaining());
    for (int i = 0; i < values.remaining(); i++) {
      bits.set(i, values.get(i) != 0);
    }
    return bits;
  }

  private static float[] values(OnnxInitializer tensor) {
    float[] values = new float[Math.toIntExact(tensor.elements())];
    tensor.floats().get(values);
    return values;
  }

  /** How far ranges of activations move towards those of the next batch; of no effect where they are not fixed. */
  void moveRanges(double momentum) {
    if (fixed != null) {
      fixed.momentum(momentum);
    }
  }

  /**
   * Puts weights and activations on grids, calibrated where the settings ask for it; what is 0 stays 0. The {@link
   * #lane} and all weights are others afterwards.
   */
  void quantize(Quantization q, TrainingListener listener) {
    OnnxModel model = floatModel();
    Set<String> pruned = new HashSet<>();
    byConstant()
        .forEach(
            (constant, w) -> {
              if (w.mask() != null) {
                pruned.add(constant);
              }
            });
    quantizer = q.quantizer(model);
    quantizer.tell((phase, done, total) -> listener.note(phase.text(), done, total));
    if (quantizer instanceof StaticQuantizer s) {
      s.setRanges(ranges(s, q, model));
    } else if (q.fit()) {
      ((WeightQuantizer) quantizer).calibrate(job.calibration());
    }
    if (quantizer instanceof BlockQuantizer b && q.weights().size() > 0) {
      b.widen(job.calibration(), Answers.of(model), q.most(job.model()));
    }
    quantizer.prepareTraining();
    reload(model);
    // Rounding keeps what is 0, so the zeros of the integers are those that were pruned, and more
    // that are as good as pruned. Weights of products are other constants than they were.
    byConstant()
        .forEach(
            (constant, w) -> {
              boolean product = w.isQuantized() && !w.isTable();
              if (product ? !pruned.isEmpty() : pruned.contains(constant)) {
                w.maskZeros();
              }
            });
  }

  /** The ranges that calibration gives the activations of a model that a quantizer will change. */
  private Map<String, ActivationRange> ranges(StaticQuantizer s, Quantization q, OnnxModel model) {
    Clipping given = q.ranges().clipping();
    boolean chosen = given == null && q.fit() && job.training() instanceof Examples.Labelled;
    if (chosen) {
      ActivationSource some = job.calibration().some(COMPARED);
      return s.calibrate(job.calibration(), new OutputError(model, some));
    }
    Clipping clipping = given == null ? new Clipping.MeanSquaredError() : given;
    return q.fit()
        ? s.calibrate(job.calibration(), clipping)
        : s.ranges(job.calibration(), clipping);
  }

  /** Makes the graph of a model that the quantizer has prepared, weights and activations on grids. */
  private void reload(OnnxModel prepared) {
    close();
    form = prepared;
    load();
    products = quantizer.products();
    Map<String, TrainedWeight> byConstant = byConstant();
    Map<String, String> nodes = new HashMap<>();
    for (QuantizedProduct p : products) {
      TrainedWeight w = byConstant.get(p.weight());
      w.quantize(p.grid(), p.integers(), p.scales(), quantization().weights().learnScales());
      w.parameter.nodes().forEach(n -> nodes.put(n, p.activation()));
    }
    if (weights.stream().anyMatch(TrainedWeight::isTable)) {
      for (QuantizedTable t : quantizer.tables()) {
        TrainedWeight w = byConstant.get(t.table());
        if (w != null) { // else it is looked up in by branches and bodies alone
          w.quantize(t.grid(), t.integers(), t.scales(), quantization().weights().learnScales());
        }
      }
    }
    if (quantizer instanceof StaticQuantizer s) {
      fixed = new StaticGrid(s.ranges(), device);
      if (quantization().ranges().learned()) {
        fixed.learn();
      }
      activations = new ActivationSimulation(nodes, s.quantizedResults(), fixed);
    } else if (quantizer instanceof DynamicQuantizer) {
      activations = new ActivationSimulation(nodes, Set.of(), new DynamicGrid(device));
    }
    if (activations != null) {
      graph.transformInputs(activations);
    }
    show();
  }

  /** Null where no range is a parameter. */
  private StaticGrid learnedRanges() {
    return fixed == null || fixed.learned() == null ? null : fixed;
  }

  private Map<String, TrainedWeight> byConstant() {
    Map<String, TrainedWeight> result = new LinkedHashMap<>();
    weights.forEach(w -> result.put(graph.constantOf(w.name()), w));
    return result;
  }

  /** A copy of all that training moves, to be closed before this. */
  Snapshot snapshot() {
    return new Snapshot(weights, fixed);
  }

  /** Writes what {@link #restore} reads. */
  void save(DataOutputStream out) throws IOException {
    out.writeInt(lowRank == null ? -1 : adapting);
    if (lowRank != null && adapting > 0) {
      ModelStream.write(lowRank.plain(), out);
    }
    out.writeBoolean(quantizer != null);
    if (quantizer != null) {
      ModelStream.write(form, out);
    }
    if (quantizer instanceof BlockQuantizer b) {
      Set<String> wide = new TreeSet<>(b.wide());
      out.writeInt(wide.size());
      for (String name : wide) {
        SavedRun.writeText(name, out);
      }
    }
    if (fixed != null) {
      for (ActivationRange range : new TreeMap<>(fixed.ranges()).values()) {
        SavedRun.write(range, out);
      }
      if (fixed.learned() != null) {
        fixed.learned().writeUnits(out);
      }
    }
    for (TrainedWeight w : weights) {
      SavedRun.writeText(w.name(), out);
      w.save(out);
    }
  }

  /**
   * Takes what was saved of a model of the same plan and job.
   *
   * @throws InputException where it is damaged
   */
  void restore(DataInputStream in) throws IOException {
    int adapted = in.readInt();
    if (adapted >= plan.stages().size() || adapted >= 0 && rank(plan.stages().get(adapted)) == 0) {
      throw new InputException("the saved run is damaged: stage " + adapted + " adapts nothing");
    }
    if (adapted >= 0) {
      OnnxModel plain = adapted == 0 ? given.floats() : ModelStream.read(in, job.model().name());
      close();
      adapt(adapted, plain);
    }
    if (in.readBoolean()) {
      OnnxModel prepared = ModelStream.read(in, job.model().name());
      quantizer = quantization().quantizer(prepared);
      if (quantizer instanceof StaticQuantizer s) {
        Map<String, ActivationRange> ranges = new HashMap<>();
        for (String activation : new TreeSet<>(s.activations())) {
          ranges.put(activation, SavedRun.readRange(in));
        }
        s.setRanges(ranges);
      }
      if (quantizer instanceof BlockQuantizer b) {
        Set<String> wide = new HashSet<>();
        for (int left = in.readInt(); left > 0; left--) {
          wide.add(SavedRun.readText(in));
        }
        b.setWide(wide);
      }
      reload(prepared);
      if (learnedRanges() != null) {
        fixed.learned().readUnits(in);
      }
    }
    for (TrainedWeight w : weights) {
      String name = SavedRun.readText(in);
      if (!name.equals(w.name())) {
        throw new InputException(
            "the saved run is damaged: the weight " + name + " instead of " + w.name());
      }
      w.restore(in);
    }
  }

  private Quantization quantization() {
    for (Stage stage : plan.stages()) {
      if (stage instanceof Stage.Quantize q) {
        return q.quantization();
      }
    }
    throw new InputException("the saved run is quantized, and the plan has no such stage");
  }

  /** See {@link Compression#layers}. */
  List<LayerReport> layers() {
    List<LayerReport> result = new ArrayList<>();
    if (lowRank != null) {
      OnnxModel now = floatModel();
      OnnxModel then = given.floats();
      for (OnnxWeight weight : OnnxWeights.of(then)) {
        OnnxInitializer began = then.constant(weight.value());
        OnnxInitializer is = now.constant(weight.value());
        if (lowRank.changes(weight.value()) || !is.data().equals(began.data())) {
          result.add(LayerReport.ofFloats(weight.name(), began, is));
        }
      }
      return result;
    }
    byConstant()
        .forEach(
            (constant, w) -> {
              if (w.parameter.isWeight() || w.isTable()) {
                result.add(w.report(form.constant(constant).floats()));
              }
            });
    return result;
  }

  /** See {@link Compression#floatModel}. */
  OnnxModel floatModel() {
    if (lowRank != null) {
      return lowRank.merged(latents());
    }
    OnnxModel model = form.copy();
    putConstants(model);
    if (given.isInt8()) {
      RoundedActivations.takeDynamicOut(model);
    }
    return model;
  }

  private void putConstants(OnnxModel model) {
    putConstants(model, TrainedWeight::latent);
  }

  /** What the optimizer moves, as constants of the form. */
  private List<OnnxInitializer> latents() {
    List<OnnxInitializer> latents = new ArrayList<>();
    byConstant()
        .forEach(
            (constant, w) ->
                latents.add(w.latent().constant(constant, form.constant(constant).dims())));
    return latents;
  }

  /** The constants that are others than when the model was given, by whichever stage. */
  private List<OnnxInitializer> changed() {
    if (lowRank == null) {
      return latents();
    }
    OnnxModel now = floatModel();
    OnnxModel then = given.floats();
    return Stream.concat(
            now.initializers().stream().map(OnnxInitializer::name),
            now.nodes().stream()
                .filter(n -> n.getOpType().equals("Constant"))
                .map(n -> n.getOutput(0)))
        .map(now::constant)
        .filter(c -> c != null && !c.data().equals(then.constant(c.name()).data()))
        .toList();
  }

  private void putConstants(OnnxModel model, Function<TrainedWeight, TrainingBuffer> values) {
    byConstant()
        .forEach(
            (constant, w) ->
                model.replaceConstant(
                    values.apply(w).constant(constant, model.constant(constant).dims())));
  }

  /** See {@link Compression#roundedModel}. */
  OnnxModel roundedModel() {
    if (lowRank != null) {
      return floatModel().withAnyBatch();
    }
    OnnxModel model = form.withAnyBatch();
    putConstants(model, w -> w.working);
    return model;
  }

  /** See {@link Compression#export}. */
  OnnxModel export() {
    if (given.isInt8()) {
      Map<String, float[]> values = new HashMap<>();
      byConstant().forEach((constant, w) -> values.put(constant, w.working.values()));
      return asGiven(given.integers().constants(values));
    }
    if (quantizer == null) {
      OnnxModel model = HalfPrecision.isIn(job.model()) ? asGiven(changed()) : floatModel();
      SumShapes.say(model);
      return model;
    }
    if (quantizer instanceof StaticQuantizer s) {
      s.setRanges(fixed.ranges());
    }
    Map<String, TrainedWeight> byConstant = byConstant();
    for (QuantizedProduct p : products) {
      TrainedWeight w = byConstant.get(p.weight());
      quantizer.setWeights(p.output(), w.integers(), w.gridScales());
    }
    byConstant.forEach(
        (constant, w) -> {
          if (w.isTable() && w.isQuantized()) {
            quantizer.setTable(constant, w.integers(), w.gridScales());
          }
        });
    OnnxModel quantized = quantizer.quantizedCopy(this::putConstants);
    if (HalfPrecision.isIn(job.model())) {
      HalfPrecision.castOutputs(quantized, job.model());
      HalfPrecision.narrow(quantized);
    }
    return quantized;
  }

  /** The model as it was given, with other constants in the types that it has for them. */
  private OnnxModel asGiven(List<OnnxInitializer> constants) {
    OnnxModel model = job.model().copy();
    ActiveDropout.evaluate(model);
    for (OnnxInitializer now : constants) {
      DataType type = model.constant(now.name()).type();
      model.replaceConstant(now.type() == type ? now : now.rounded(type));
    }
    return model;
  }

  @Override
  public void close() {
    weights.forEach(TrainedWeight::close);
    weights = List.of();
    passes.release();
    graph.close();
    if (activations != null) {
      activations.close();
      activations = null;
      fixed = null;
    }
  }
}

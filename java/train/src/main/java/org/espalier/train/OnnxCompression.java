package org.espalier.train;

import ai.onnx.proto.OnnxMl.TensorProto.DataType;
import java.io.DataInputStream;
import java.io.DataOutputStream;
import java.io.EOFException;
import java.io.IOException;
import java.io.InputStream;
import java.io.OutputStream;
import java.nio.ByteBuffer;
import java.util.ArrayList;
import java.util.HashMap;
import java.util.HashSet;
import java.util.HexFormat;
import java.util.Iterator;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.TreeMap;
import java.util.TreeSet;
import java.util.function.Function;
import java.util.function.Predicate;
import org.bytedeco.javacpp.PointerScope;
import org.espalier.InputException;
import org.espalier.compress.onnx.ActivationRange;
import org.espalier.compress.onnx.DynamicQuantizer;
import org.espalier.compress.onnx.OpsetUpgrade;
import org.espalier.compress.onnx.QuantizedProduct;
import org.espalier.compress.onnx.QuantizedTable;
import org.espalier.compress.onnx.StaticQuantizer;
import org.espalier.compress.onnx.TrainableQuantizer;
import org.espalier.format.onnx.ClassifierOutput;
import org.espalier.format.onnx.HalfPrecision;
import org.espalier.format.onnx.OnnxInitializer;
import org.espalier.format.onnx.OnnxModel;
import org.espalier.format.onnx.OnnxWeight;
import org.espalier.op.MagnitudePrune;
import org.espalier.op.StepResult;
import org.espalier.torch.OnnxGraph;
import org.espalier.torch.Parameter;
import org.espalier.torch.TorchDevice;
import org.espalier.train.TrainingListener.StageReport;
import org.espalier.train.TrainingListener.StepReport;
import org.espalier.train.TrainingListener.Validation;

/** The compression of an ONNX model. */
public final class OnnxCompression implements Compression {
  /** What is older is raised first. */
  private static final int OLDEST_OPSET = 11;

  private final CompressionPlan plan;
  private final Job job;
  private final TorchDevice device;
  private final List<StageReport> reports = new ArrayList<>();
  private final byte[] modelDigest;

  /** The float model that the trainable graph was made from, with the weights that it had then. */
  private OnnxModel form;

  /** Null until a stage quantizes. */
  private TrainableQuantizer quantizer;

  private List<QuantizedProduct> products = List.of();
  private OnnxGraph graph;
  private List<TrainedWeight> weights = List.of();
  private ActivationSimulation activations;

  /** Null where ranges of activations are not fixed. */
  private StaticGrid fixed;

  private final Passes passes;
  private final PlanCheck check;

  private int stageIndex;

  /** The stage that is under way; null between stages. */
  private Progress progress;

  private volatile boolean stopping;

  /** What a stage knows while it runs. */
  private static final class Progress implements AutoCloseable {
    Validation before;
    Validation changed;
    Validation best;
    List<float[]> kept;
    long step;
    double startSparsity;
    double seconds;
    Update update;

    @Override
    public void close() {
      if (update != null) {
        update.close();
      }
    }
  }

  /** Prepares a plan that runs on the CPU. */
  public OnnxCompression(CompressionPlan plan, Job job) {
    this(plan, job, TorchDevice.CPU);
  }

  /**
   * Prepares a plan; nothing heavy runs yet.
   *
   * @param device where the model trains: forward, backward, losses and steps; what it is exported as does not
   *     depend on it, the last bits of what is trained do
   * @throws InputException where the model uses what training does not know, or model, examples and
   *     objectives do not fit each other
   */
  public OnnxCompression(CompressionPlan plan, Job job, TorchDevice device) {
    this.plan = plan;
    this.job = job;
    this.device = device;
    this.passes = new Passes(job, device);
    this.check = new PlanCheck(plan, job);
    StageCheck stages = new StageCheck(job);
    plan.stages().forEach(stages::check);
    modelDigest = TeacherOutputs.digest(job.model());
    form = trainable(job.model());
    load();
    try {
      checkStages(stages);
    } catch (RuntimeException e) {
      close();
      throw e;
    }
  }

  /**
   * Checks examples that the result will be measured on, before anything is trained.
   *
   * @throws InputException where their labels are none of what the plan learns, or the model's output for one
   *     of them is not finite
   */
  public void checkMeasured(Examples.Labelled examples) {
    check.measures(graph, examples);
  }

  /** What a later stage would stumble over is found before the first one trains. */
  private void checkStages(StageCheck stages) {
    check.run(graph);
    passes.read(check.logitRows());
    for (Stage stage : plan.stages()) {
      stages.checkTables(stage, graph);
      if (stage.training().isAny() && trained(stage).isEmpty()) {
        throw new InputException(
            "stage "
                + stage.name()
                + ": "
                + job.model().name()
                + " has nothing to train here: embedding tables learn from labels or another"
                + " teacher, or with train-embeddings: always, and what lies in branches of If and"
                + " bodies of Loop stays as it is; steps: 0 trains nothing");
      }
      if (stage instanceof Stage.Prune p) {
        check.prunes(stage.name(), p.pruning(), weightPruning(p.pruning()).candidates());
      } else if (stage instanceof Stage.Quantize q) {
        try {
          quantizer(q.quantization(), form.copy());
        } catch (InputException e) {
          throw new InputException("stage " + stage.name() + ": " + e.getMessage(), e);
        }
      }
    }
  }

  /**
   * A copy with operators that training knows: those of sets before 11 are raised to set 13, and what computes in 16
   * bits does so in 32.
   */
  public static OnnxModel trainable(OnnxModel model) {
    OnnxModel copy = model.copy();
    HalfPrecision.widenOutputsToo(copy);
    if (copy.opset("") < OLDEST_OPSET) {
      OpsetUpgrade.raise(copy, OpsetUpgrade.TARGET);
    }
    return copy;
  }

  /** Makes the trainable graph of the present form; a classifier's logits are an output of it too. */
  private void load() {
    String logits = ClassifierOutput.of(form).logits();
    boolean asked =
        plan.stages().stream().anyMatch(s -> s.training().objective().isForLogits(job.labels()));
    List<String> added = asked && logits != null ? List.of(logits) : List.of();
    graph = new OnnxGraph(job.opened(form).withOutputs(added), device);
    weights = new ArrayList<>();
    for (Parameter p : graph.parameters()) {
      boolean changed =
          p.kind() == Parameter.Kind.EMBEDDING
              ? changesTable(p.name())
              : !StaticQuantizer.isChannelwise(graph.constantOf(p.name()));
      p.tensor().requires_grad_(changed);
      if (changed) {
        weights.add(new TrainedWeight(p, device));
      }
    }
    passes.use(graph, null, null, logits);
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
    return stage.training().trainsEmbedding(name, job.teacher() == null);
  }

  /** What a stage trains of the {@link #weights}. */
  private List<TrainedWeight> trained(Stage stage) {
    return weights.stream().filter(w -> !w.isTable() || trainsTable(stage, w.name())).toList();
  }

  /** The optimizer of a stage; tables that it leaves as they are get no gradients. */
  private Update update(Stage stage) {
    weights.stream()
        .filter(TrainedWeight::isTable)
        .forEach(w -> w.parameter.tensor().requires_grad_(trainsTable(stage, w.name())));
    return new Update(trained(stage), learnedRanges(), stage.training().optimizer(), device);
  }

  private void unload() {
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

  @Override
  public boolean run(TrainingListener listener) {
    stopping = false;
    while (stageIndex < plan.stages().size()) {
      if (!run(plan.stages().get(stageIndex), listener)) {
        return false;
      }
    }
    return true;
  }

  private boolean run(Stage stage, TrainingListener listener) {
    long start = System.nanoTime();
    Training training = stage.training();
    long steps = training.steps(job.training().size());
    listener.stageStarted(stage, stageIndex, steps);
    passes.openTargets(training.objective(), listener);
    if (progress == null) {
      begin(stage, listener);
    }
    double earlier = progress.seconds;
    Batches batches = new Batches(job.training(), training.batch(), 31 * plan.seed() + stageIndex);
    while (progress.step < steps) {
      boolean goOn = step(stage, batches, steps, listener);
      progress.seconds = earlier + (System.nanoTime() - start) * 1e-9;
      if (!goOn || stopping) {
        return false;
      }
    }
    if (progress.kept != null) {
      restore(progress.kept);
    }
    progress.seconds = earlier + (System.nanoTime() - start) * 1e-9;
    StageReport report =
        new StageReport(
            stage,
            progress.before,
            progress.changed,
            progress.best,
            progress.step,
            progress.seconds);
    progress.close();
    progress = null;
    reports.add(report);
    stageIndex++;
    listener.stageFinished(report);
    return !stopping;
  }

  /** What a stage does before its first step. */
  private void begin(Stage stage, TrainingListener listener) {
    Progress made = new Progress();
    Training training = stage.training();
    made.before = passes.validate(training.objective(), 0, Double.POSITIVE_INFINITY);
    if (stageIndex == 0 && !Double.isFinite(made.before.loss())) {
      throw new InputException(
          job.model().name()
              + ": the loss on the validation examples is "
              + made.before.loss()
              + " before anything is changed; its output or the teacher's is not finite, or too"
              + " large to square, for one of them");
    }
    listener.validated(stage, made.before);
    made.changed = made.before;
    if (stage instanceof Stage.Quantize q) {
      quantize(q.quantization(), listener);
    } else if (stage instanceof Stage.Prune p) {
      WeightPruning pruning = weightPruning(p.pruning());
      made.startSparsity = pruning.sparsity();
      pruning.candidates().forEach(TrainedWeight::makeMask);
      if (p.pruning().schedule() == Pruning.Schedule.ONE_SHOT) {
        pruning.prune(p.pruning().sparsity());
      }
    }
    if (!(stage instanceof Stage.Train)) {
      made.changed = passes.validate(training.objective(), 0, Double.POSITIVE_INFINITY);
      listener.validated(stage, made.changed);
    }
    made.best = made.changed;
    if (training.isAny()) {
      made.kept = snapshot();
      made.update = update(stage);
    }
    progress = made;
  }

  /** One step with what belongs to it; false where the listener wants no other. */
  private boolean step(Stage stage, Batches batches, long steps, TrainingListener listener) {
    Training training = stage.training();
    long start = System.nanoTime();
    long step = progress.step;
    int[] indices = batches.step(step);
    double rate = training.optimizer().learningRate() * training.schedule().factor(step, steps);
    Loss loss;
    StepResult result;
    long added;
    try (PointerScope scope = new PointerScope()) {
      if (fixed != null && stage instanceof Stage.Quantize q) {
        Quantization settings = q.quantization();
        boolean moving = step < settings.freezeObserversAt() * steps;
        fixed.momentum(moving ? settings.observerMomentum() : 0);
      }
      try {
        loss = passes.addGradients(training.objective(), indices);
      } catch (NonFiniteLossException e) {
        check.trains(indices);
        throw new NonFiniteLossException(
            "stage "
                + stage.name()
                + ", step "
                + (step + 1)
                + ": "
                + e.getMessage()
                + ", from "
                + culprit());
      }
      long update = System.nanoTime();
      try {
        result = progress.update.step(rate);
      } catch (NonFiniteLossException e) {
        throw new NonFiniteLossException(
            "stage " + stage.name() + ", step " + (step + 1) + ": " + e.getMessage());
      }
      added = System.nanoTime() - update;
      progress.update.zeroGradients();
    }
    added += passes.simulationNanoseconds();
    progress.step++;
    double sparsity = 0;
    if (stage instanceof Stage.Prune p) {
      sparsity = followSchedule(p.pruning(), steps);
    }
    double seconds = (System.nanoTime() - start) * 1e-9;
    boolean last = progress.step == steps;
    if (last || training.validateEvery() > 0 && progress.step % training.validateEvery() == 0) {
      double toBeat = progress.kept == null ? Double.POSITIVE_INFINITY : progress.best.loss();
      Validation v = passes.validate(training.objective(), progress.step, toBeat);
      if (v.best()) {
        progress.best = v;
        progress.kept = snapshot();
      }
      listener.validated(stage, v);
    }
    return listener.step(
        new StepReport(
            stage,
            progress.step,
            steps,
            loss.value(),
            loss.parts(),
            rate,
            result.norm(),
            sparsity,
            indices.length,
            seconds,
            added * 1e-9));
  }

  /** Which parameter holds what is not finite, or that none does. */
  private String culprit() {
    for (TrainedWeight w : weights) {
      for (float value : w.latent().values()) {
        if (!Float.isFinite(value)) {
          return w.name();
        }
      }
    }
    return "the output " + graph.outputNames().get(0) + " (all parameters are finite)";
  }

  /** Prunes where a cubic schedule says so; returns the sparsity. */
  private double followSchedule(Pruning pruning, long steps) {
    if (pruning.schedule() == Pruning.Schedule.ONE_SHOT) {
      return pruning.sparsity();
    }
    long end = Math.max(1, (long) (pruning.until() * steps));
    long step = Math.min(progress.step, end);
    boolean now =
        progress.step <= end && (step % pruning.updateEvery() == 0 || progress.step == end);
    if (now) {
      weightPruning(pruning).prune(pruning.sparsityAt(progress.startSparsity, (double) step / end));
      // What was best before had more weights.
      progress.kept = null;
    }
    long updated = step == end ? end : step - step % pruning.updateEvery();
    return pruning.sparsityAt(progress.startSparsity, (double) updated / end);
  }

  private WeightPruning weightPruning(Pruning pruning) {
    return new WeightPruning(pruning, weights, device);
  }

  private void quantize(Quantization q, TrainingListener listener) {
    OnnxModel model = floatModel();
    Set<String> pruned = new HashSet<>();
    byConstant()
        .forEach(
            (constant, w) -> {
              if (w.mask() != null) {
                pruned.add(constant);
              }
            });
    quantizer = quantizer(q, model);
    if (quantizer instanceof StaticQuantizer s) {
      listener.note("calibrating");
      s.setRanges(
          q.fit()
              ? s.calibrate(job.calibration(), q.clipping())
              : s.ranges(job.calibration(), q.clipping()));
    } else if (q.fit()) {
      listener.note("calibrating");
      ((DynamicQuantizer) quantizer).calibrate(job.calibration());
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
                w.makeMask();
                device.prune(
                    List.of(
                        MagnitudePrune.Weights.of(w.name(), w.latent().tensor())
                            .maskOut(w.maskBits())),
                    new MagnitudePrune.Threshold(Float.MIN_VALUE));
              }
            });
  }

  private static TrainableQuantizer quantizer(Quantization q, OnnxModel model) {
    // A model that was prepared before has names of its own for the weights.
    Predicate<OnnxWeight> include =
        w -> q.include().test(w.name().replaceFirst(TrainableQuantizer.LATENT + "(_\\d+)?$", ""));
    return q.form() == Quantization.Form.STATIC
        ? new StaticQuantizer(
            model, new StaticQuantizer.Options(q.reduceRange(), q.embeddings(), include))
        : new DynamicQuantizer(
            model, new DynamicQuantizer.Options(q.reduceRange(), q.embeddings(), include));
  }

  /** Makes the graph of a model that the quantizer has prepared, weights and activations on grids. */
  private void reload(OnnxModel prepared) {
    unload();
    form = prepared;
    load();
    products = quantizer.products();
    Map<String, TrainedWeight> byConstant = byConstant();
    Map<String, String> nodes = new HashMap<>();
    for (QuantizedProduct p : products) {
      TrainedWeight w = byConstant.get(p.weight());
      w.quantize(p.channelAxis(), p.qmax(), p.integers(), p.scales(), quantization().learnScales());
      w.parameter.nodes().forEach(n -> nodes.put(n, p.activation()));
    }
    if (weights.stream().anyMatch(TrainedWeight::isTable)) {
      for (QuantizedTable t : quantizer.tables()) {
        TrainedWeight w = byConstant.get(t.table());
        if (w != null) { // else it is looked up in by branches and bodies alone
          w.quantize(0, t.qmax(), t.integers(), t.scales(), quantization().learnScales());
        }
      }
    }
    if (quantizer instanceof StaticQuantizer s) {
      fixed = new StaticGrid(s.ranges(), device);
      if (quantization().learnRanges()) {
        fixed.learn();
      }
      activations = new ActivationSimulation(nodes, s.quantizedResults(), fixed);
    } else {
      activations = new ActivationSimulation(nodes, Set.of(), new DynamicGrid(device));
    }
    graph.transformInputs(activations);
    passes.use(graph, activations, fixed, ClassifierOutput.of(form).logits());
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

  /** The latent weights, and after them what else training moves. */
  private List<float[]> snapshot() {
    List<float[]> result = new ArrayList<>();
    for (TrainedWeight w : weights) {
      result.add(w.latent().values());
      if (w.ends() != null) {
        result.add(w.ends().values());
      }
    }
    if (fixed != null) {
      result.add(fixed.values());
    }
    return result;
  }

  private void restore(List<float[]> snapshot) {
    Iterator<float[]> parts = snapshot.iterator();
    for (TrainedWeight w : weights) {
      w.latent().set(parts.next());
      if (w.ends() != null) {
        w.ends().set(parts.next());
        w.takeEnds();
      }
      w.renew();
    }
    if (fixed != null) {
      fixed.values(parts.next());
    }
  }

  @Override
  public void stop() {
    stopping = true;
  }

  @Override
  public void save(OutputStream stream) throws IOException {
    DataOutputStream out = new DataOutputStream(stream);
    SavedRun.writeMagic(out);
    SavedRun.writeText(key(), out);
    out.writeInt(stageIndex);
    out.writeInt(reports.size());
    for (StageReport r : reports) {
      SavedRun.write(r.before(), out);
      SavedRun.write(r.changed(), out);
      SavedRun.write(r.after(), out);
      out.writeLong(r.steps());
      out.writeDouble(r.seconds());
    }
    out.writeBoolean(quantizer != null);
    if (quantizer != null) {
      SavedRun.write(form, out);
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
    out.writeBoolean(progress != null);
    if (progress != null) {
      SavedRun.write(progress.before, out);
      SavedRun.write(progress.changed, out);
      SavedRun.write(progress.best, out);
      out.writeLong(progress.step);
      out.writeDouble(progress.startSparsity);
      out.writeDouble(progress.seconds);
      progress.update.save(out);
      out.writeBoolean(progress.kept != null);
      if (progress.kept != null) {
        for (float[] values : progress.kept) {
          ByteBuffer bytes = ByteBuffer.allocate(4 * values.length);
          bytes.asFloatBuffer().put(values);
          out.write(bytes.array());
        }
      }
    }
    SavedRun.writeMagic(out);
    out.flush();
  }

  /** What a saved run must have been made from. */
  private String key() {
    List<String> stages = plan.stages().stream().map(s -> s.name() + "/" + s.training()).toList();
    return HexFormat.of().formatHex(modelDigest) + " " + plan.seed() + " " + stages;
  }

  @Override
  public void restore(InputStream stream) throws IOException {
    DataInputStream in = new DataInputStream(stream);
    try {
      restore(in);
    } catch (EOFException e) {
      throw new InputException("the saved run ends early; it is damaged", e);
    }
  }

  private void restore(DataInputStream in) throws IOException {
    SavedRun.requireMagic(in);
    String key = SavedRun.readText(in);
    if (!key.equals(key())) {
      throw new InputException(
          "the saved run is of another model or plan: it is of " + key + ", this is " + key());
    }
    stageIndex = in.readInt();
    reports.clear();
    int count = in.readInt();
    if (stageIndex < 0 || stageIndex > plan.stages().size() || count != stageIndex) {
      throw new InputException(
          "the saved run is damaged: stage " + stageIndex + " of " + plan.stages().size());
    }
    for (int i = 0; i < count; i++) {
      reports.add(
          new StageReport(
              plan.stages().get(i),
              SavedRun.readValidation(in),
              SavedRun.readValidation(in),
              SavedRun.readValidation(in),
              in.readLong(),
              in.readDouble()));
    }
    if (in.readBoolean()) {
      OnnxModel prepared = SavedRun.readModel(in, job.model().name());
      quantizer = quantizer(quantization(), prepared);
      if (quantizer instanceof StaticQuantizer s) {
        Map<String, ActivationRange> ranges = new HashMap<>();
        for (String activation : new TreeSet<>(s.activations())) {
          ranges.put(activation, SavedRun.readRange(in));
        }
        s.setRanges(ranges);
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
    if (in.readBoolean()) {
      Progress saved = new Progress();
      saved.before = SavedRun.readValidation(in);
      saved.changed = SavedRun.readValidation(in);
      saved.best = SavedRun.readValidation(in);
      saved.step = in.readLong();
      saved.startSparsity = in.readDouble();
      saved.seconds = in.readDouble();
      saved.update = update(plan.stages().get(stageIndex));
      progress = saved;
      saved.update.restore(in);
      if (in.readBoolean()) {
        saved.kept = snapshot();
        for (float[] values : saved.kept) {
          byte[] bytes = new byte[4 * values.length];
          in.readFully(bytes);
          ByteBuffer.wrap(bytes).asFloatBuffer().get(values);
        }
      }
    }
    SavedRun.requireMagic(in);
  }

  private Quantization quantization() {
    for (Stage stage : plan.stages()) {
      if (stage instanceof Stage.Quantize q) {
        return q.quantization();
      }
    }
    throw new InputException("the saved run is quantized, and the plan has no such stage");
  }

  @Override
  public List<StageReport> stages() {
    return List.copyOf(reports);
  }

  @Override
  public List<LayerReport> layers() {
    List<LayerReport> result = new ArrayList<>();
    byConstant()
        .forEach(
            (constant, w) -> {
              if (w.parameter.isWeight() || w.isTable()) {
                result.add(w.report(form.constant(constant).floats()));
              }
            });
    return result;
  }

  @Override
  public OnnxModel floatModel() {
    OnnxModel model = form.copy();
    putConstants(model);
    return model;
  }

  private void putConstants(OnnxModel model) {
    putConstants(model, TrainedWeight::latent);
  }

  private void putConstants(OnnxModel model, Function<TrainedWeight, TrainingBuffer> values) {
    byConstant()
        .forEach(
            (constant, w) ->
                model.replaceConstant(
                    OnnxInitializer.floats(
                        constant, model.constant(constant).dims(), values.apply(w).values())));
  }

  @Override
  public OnnxModel roundedModel() {
    OnnxModel model = form.withAnyBatch();
    putConstants(model, w -> w.working);
    return model;
  }

  @Override
  public OnnxModel export() {
    if (quantizer == null) {
      return HalfPrecision.isIn(job.model()) ? givenPrecision() : floatModel();
    }
    if (quantizer instanceof StaticQuantizer s) {
      s.setRanges(fixed.ranges());
    }
    Map<String, TrainedWeight> byConstant = byConstant();
    for (QuantizedProduct p : products) {
      TrainedWeight w = byConstant.get(p.weight());
      quantizer.setWeights(p.output(), w.integers(), w.scales().values());
    }
    byConstant.forEach(
        (constant, w) -> {
          if (w.isTable() && w.isQuantized()) {
            quantizer.setTable(constant, w.integers(), w.scales().values());
          }
        });
    OnnxModel quantized = quantizer.quantizedCopy(this::putConstants);
    if (HalfPrecision.isIn(job.model())) {
      HalfPrecision.castOutputs(quantized, job.model());
      HalfPrecision.narrow(quantized);
    }
    return quantized;
  }

  /** The model as it was given, with the present weights in the types that it has for them. */
  private OnnxModel givenPrecision() {
    OnnxModel model = job.model().copy();
    byConstant()
        .forEach(
            (constant, w) -> {
              OnnxInitializer old = model.constant(constant);
              OnnxInitializer now =
                  OnnxInitializer.floats(constant, old.dims(), w.latent().values());
              model.replaceConstant(old.type() == DataType.FLOAT ? now : now.rounded(old.type()));
            });
    return model;
  }

  @Override
  public void close() {
    if (progress != null) {
      progress.close();
      progress = null;
    }
    passes.close();
    unload();
  }
}

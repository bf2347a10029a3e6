package org.espalier.train;

import java.io.DataInputStream;
import java.io.DataOutputStream;
import java.io.EOFException;
import java.io.IOException;
import java.io.InputStream;
import java.io.OutputStream;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.HexFormat;
import java.util.List;
import java.util.Objects;
import java.util.stream.IntStream;
import org.bytedeco.javacpp.PointerScope;
import org.espalier.InputException;
import org.espalier.format.NearNames;
import org.espalier.format.onnx.ModelStream;
import org.espalier.format.onnx.OnnxModel;
import org.espalier.op.StepResult;
import org.espalier.torch.TorchDevice;
import org.espalier.train.TrainingListener.StageReport;
import org.espalier.train.TrainingListener.StepReport;
import org.espalier.train.TrainingListener.Validation;

/** The compression of an ONNX model. */
public final class OnnxCompression implements Compression {
  private final CompressionPlan plan;
  private final Job job;
  private final List<StageReport> reports = new ArrayList<>();
  private final byte[] modelDigest;
  private final TrainedForm form;
  private final List<String> resting = new ArrayList<>();

  private final Passes passes;
  private final PlanCheck check;
  private final BreakdownCheck breakdown;
  private final TrainedModel model;

  private int stageIndex;

  /** The stage that is under way; null between stages. */
  private Progress progress;

  /** What a stage left that teaches others which are not complete; null where none did. */
  private StageTeacher learned;

  private volatile boolean stopping;

  /** What a stage knows while it runs. */
  private static final class Progress implements AutoCloseable {
    Validation before;
    Validation changed;
    Validation best;

    /** The state that {@link #best} is of; null where there is none yet that counts. */
    Snapshot kept;

    long step;
    double startSparsity;
    double seconds;
    Update update;

    /** Writes the progress. A stage without training has none to write: it is over once it has begun. */
    void save(DataOutputStream out) throws IOException {
      SavedRun.write(before, out);
      SavedRun.write(changed, out);
      SavedRun.write(best, out);
      out.writeLong(step);
      out.writeDouble(startSparsity);
      out.writeDouble(seconds);
      update.save(out);
      out.writeBoolean(kept != null);
      if (kept != null) {
        kept.write(out);
      }
    }

    /** Takes what was saved where the optimizer is that of the same stage. */
    void restore(DataInputStream in, TrainedModel model) throws IOException {
      before = SavedRun.readValidation(in);
      changed = SavedRun.readValidation(in);
      best = SavedRun.readValidation(in);
      step = in.readLong();
      startSparsity = in.readDouble();
      seconds = in.readDouble();
      update.restore(in);
      if (in.readBoolean()) {
        kept = model.snapshot();
        kept.read(in);
      }
    }

    /** Keeps the present state. */
    void keep(TrainedModel model) {
      if (kept == null) {
        kept = model.snapshot();
      } else {
        kept.take();
      }
    }

    void forget() {
      if (kept != null) {
        kept.close();
        kept = null;
      }
    }

    @Override
    public void close() {
      forget();
      if (update != null) {
        update.close();
      }
    }
  }

  /** Prepares a plan that runs on the CPU. */
  public OnnxCompression(CompressionPlan plan, Job job) {
    this(plan, job, TrainedForm.of(job.model()), TorchDevice.CPU);
  }

  /**
   * Prepares a plan; nothing heavy runs yet.
   *
   * @param form of the job's model
   * @param device where the model trains: forward, backward, losses and steps; what it is exported as does not
   *     depend on it, the last bits of what is trained do
   * @throws InputException where the model uses what training does not know, or model, examples and
   *     objectives do not fit each other
   * @throws Augmentation.Refused where the examples, or labels that are learned, cannot be augmented as the job says
   * @throws IllegalArgumentException where the form is another model's
   */
  public OnnxCompression(CompressionPlan plan, Job job, TrainedForm form, TorchDevice device) {
    if (!form.isOf(job.model())) {
      throw new IllegalArgumentException("the form is not that of " + job.model().name());
    }
    this.plan = plan;
    this.job = job;
    this.form = form;
    this.passes = new Passes(job, device);
    this.check = new PlanCheck(plan, job, form);
    this.breakdown = new BreakdownCheck(job, form);
    StageCheck stages = new StageCheck(job, form);
    resting.addAll(form.resting());
    for (Stage stage : plan.stages()) {
      List<String> names = stages.check(stage);
      if (!names.isEmpty()) {
        resting.add(
            "stage "
                + stage.name()
                + ": low-rank leaves as they are: "
                + NearNames.list("", names));
      }
    }
    modelDigest = TeacherOutputs.digest(job.model());
    model = new TrainedModel(plan, job, form, device, passes);
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
    check.measures(model.lane(), examples);
  }

  /** Finds what would stop a later stage before the first one trains. */
  private void checkStages(StageCheck stages) {
    check.run(model.lane());
    passes.read(check.logitRows(), check.isPerToken());
    for (Stage stage : plan.stages()) {
      stages.checkTables(stage, model.lane().graph());
      if (stage.training().isAny() && model.trained(stage).isEmpty()) {
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
        stages.checkPruned(p, model.pruning(p.pruning()).candidates());
      }
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
    passes.openTargets(training.objective(), taught(), listener);
    if (progress == null) {
      begin(stage, listener);
    }
    double earlier = progress.seconds;
    Batches batches = batches(stageIndex);
    while (progress.step < steps) {
      boolean goOn = step(stage, batches, steps, listener);
      progress.seconds = earlier + (System.nanoTime() - start) * 1e-9;
      if (!goOn || stopping) {
        return false;
      }
    }
    if (progress.kept != null) {
      progress.kept.restore();
    }
    if (stage instanceof Stage.Train train && train.teaches()) {
      learnFrom(stage);
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

  private Batches batches(int stage) {
    Training training = plan.stages().get(stage).training();
    return new Batches(job.training(), training.batch(), seed(stage));
  }

  /** Of the batches of a stage, and of what happens to them. */
  private long seed(int stage) {
    return 31 * plan.seed() + stage;
  }

  /** The stage that teaches another by what it left; null where the job's teacher does or its model as it is given. */
  private Stage teacherOf(int stage) {
    return job.teacher() == null ? plan.teacherOf(stage) : null;
  }

  /** Whether a stage has this teacher, by what {@link #teacherOf} says. */
  private boolean isTaughtBy(Stage teacher, int stage) {
    return plan.stages().get(stage).training().objective().needsTeacher()
        && Objects.equals(teacher, teacherOf(stage));
  }

  /** Keeps what a stage that is complete left, if it teaches any other. */
  private void learnFrom(Stage stage) {
    closeLearned();
    if (IntStream.range(0, plan.stages().size()).anyMatch(other -> isTaughtBy(stage, other))) {
      learnFrom(model.roundedModel());
    }
  }

  private void learnFrom(OnnxModel left) {
    learned = StageTeacher.of(left, job.cache());
    passes.learnFrom(learned.model());
  }

  private void closeLearned() {
    if (learned != null) {
      learned.close();
      learned = null;
    }
  }

  /** The training examples of which the teacher of the present stage is asked, in this stage or another. */
  private int[] taught() {
    if (job.training() == job.validation()) { // all of which are looked at
      return IntStream.range(0, job.training().size()).toArray();
    }
    IntStream all = IntStream.empty();
    Stage teacher = teacherOf(stageIndex);
    for (int stage = 0; stage < plan.stages().size(); stage++) {
      Training training = plan.stages().get(stage).training();
      if (isTaughtBy(teacher, stage)) {
        long steps = training.steps(job.training().size());
        all = IntStream.concat(all, Arrays.stream(batches(stage).used(steps)));
      }
    }
    return all.sorted().distinct().toArray();
  }

  /** What a stage does before its first step. */
  private void begin(Stage stage, TrainingListener listener) {
    Progress made = new Progress();
    Training training = stage.training();
    model.take(stageIndex);
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
      model.quantize(q.quantization(), listener);
    } else if (stage instanceof Stage.Prune p) {
      WeightPruning pruning = model.pruning(p.pruning());
      made.startSparsity = pruning.sparsity();
      pruning.candidates().forEach(TrainedWeight::makeMask);
      if (p.pruning().refit()) {
        model.refit(p.pruning(), listener);
      } else if (p.pruning().schedule() == Pruning.Schedule.ONE_SHOT) {
        pruning.prune(p.pruning().sparsity());
      }
    }
    if (!(stage instanceof Stage.Train)) {
      made.changed = passes.validate(training.objective(), 0, Double.POSITIVE_INFINITY);
      listener.validated(stage, made.changed);
    }
    made.best = made.changed;
    progress = made;
    if (training.isAny()) {
      made.keep(model);
      made.update = model.update(stage);
    }
  }

  /** One step with what belongs to it; false where the listener wants no other. */
  private boolean step(Stage stage, Batches batches, long steps, TrainingListener listener) {
    Training training = stage.training();
    long start = System.nanoTime();
    int[] indices = batches.step(progress.step);
    if (stage instanceof Stage.Quantize q) {
      Quantization.Ranges ranges = q.quantization().ranges();
      boolean moving = progress.step < ranges.freezeAt() * steps;
      model.moveRanges(moving ? ranges.momentum() : 0);
    }
    double rate =
        training.optimizer().learningRate() * training.schedule().factor(progress.step, steps);
    Descent descent = descend(stage, indices, rate);
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
        progress.keep(model);
      }
      listener.validated(stage, v);
    }
    return listener.step(
        new StepReport(
            stage,
            progress.step,
            steps,
            descent.loss().value(),
            descent.loss().parts(),
            rate,
            descent.result().norm(),
            sparsity,
            indices.length,
            seconds,
            descent.addedNanoseconds() * 1e-9));
  }

  /**
   * What the optimizer did with a batch.
   *
   * @param addedNanoseconds what compression added: its time and that of activations on grids
   */
  private record Descent(Loss loss, StepResult result, long addedNanoseconds) {}

  /** Gradients of a batch and the optimizer's step. */
  private Descent descend(Stage stage, int[] indices, double rate) {
    String where = "stage " + stage.name() + ", step " + (progress.step + 1) + ": ";
    try (PointerScope scope = new PointerScope()) {
      Loss loss;
      try {
        loss =
            passes.addGradients(
                stage.training().objective(), indices, seed(stageIndex), progress.step);
      } catch (NonFiniteLossException e) {
        breakdown.run(indices);
        throw new NonFiniteLossException(where + e.getMessage() + ", from " + model.culprit());
      }
      long start = System.nanoTime();
      StepResult result;
      try {
        result = progress.update.step(rate);
      } catch (NonFiniteLossException e) {
        breakdown.run(indices);
        throw new NonFiniteLossException(where + e.getMessage());
      }
      long updated = System.nanoTime() - start;
      progress.update.zeroGradients();
      return new Descent(loss, result, updated + passes.simulationNanoseconds());
    }
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
      model.pruning(pruning).prune(pruning.sparsityAt(progress.startSparsity, (double) step / end));
      // What was best before had more weights.
      progress.forget();
    }
    long updated = step == end ? end : step - step % pruning.updateEvery();
    return pruning.sparsityAt(progress.startSparsity, (double) updated / end);
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
    model.save(out);
    out.writeBoolean(learned != null);
    if (learned != null) {
      learned.write(out);
    }
    out.writeBoolean(progress != null);
    if (progress != null) {
      progress.save(out);
    }
    SavedRun.writeMagic(out);
    out.flush();
  }

  /** What a saved run must have been made from. */
  private String key() {
    List<String> stages = plan.stages().stream().map(OnnxCompression::key).toList();
    String augmented = job.augmentation().isAny() ? " " + job.augmentation() : "";
    return HexFormat.of().formatHex(modelDigest) + " " + plan.seed() + " " + stages + augmented;
  }

  private static String key(Stage stage) {
    String key = stage.name() + "/" + stage.training();
    return stage instanceof Stage.Train train
        ? key + (train.teaches() ? "/teaches" : "") + (train.rank() > 0 ? "/" + train.rank() : "")
        : key;
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
    model.restore(in);
    if (in.readBoolean()) {
      learnFrom(ModelStream.read(in, job.model().name()));
    }
    if (in.readBoolean()) {
      progress = new Progress();
      progress.update = model.update(plan.stages().get(stageIndex));
      progress.restore(in, model);
    }
    SavedRun.requireMagic(in);
  }

  @Override
  public List<StageReport> stages() {
    return List.copyOf(reports);
  }

  @Override
  public List<LayerReport> layers() {
    return model.layers();
  }

  @Override
  public TrainedForm form() {
    return form;
  }

  @Override
  public List<String> resting() {
    return resting;
  }

  @Override
  public OnnxModel floatModel() {
    return model.floatModel();
  }

  @Override
  public OnnxModel roundedModel() {
    return model.roundedModel();
  }

  @Override
  public OnnxModel export() {
    return model.export();
  }

  @Override
  public void close() {
    if (progress != null) {
      progress.close();
      progress = null;
    }
    passes.close();
    closeLearned();
    model.close();
  }
}

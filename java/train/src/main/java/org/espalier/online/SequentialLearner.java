package org.espalier.online;

import java.io.BufferedInputStream;
import java.io.DataInput;
import java.io.DataInputStream;
import java.io.DataOutput;
import java.io.EOFException;
import java.io.IOException;
import java.io.InputStream;
import java.security.SecureRandom;
import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.LinkedHashSet;
import java.util.List;
import java.util.Map;
import java.util.Objects;
import java.util.Set;
import org.espalier.InputException;
import org.espalier.online.OnlineLearner.Report;
import org.espalier.op.GradientNorm;

/**
 * What an {@link OnlineLearner} does with examples, one step after the other, and everything that decides its future. For
 * one thread: who calls holds the learner's locks, and has seen that learner and model are open.
 */
final class SequentialLearner implements AutoCloseable {
  private static final int MAGIC = 0x65736f6c; // "esol"
  private static final int FORMAT = 3;

  /** The most features or outputs that the examples of a step have together: more fill no buffer. */
  private static final int MOST_VALUES = Integer.MAX_VALUE / Float.BYTES;

  /** The name of the model's identity among the lines that describe a learner. */
  private static final String IDENTITY = "model";

  private final Learnable model;
  private final OnlineSettings settings;
  private final LearnerEvents events;
  private final WeightState state;
  private final LossGradient loss;
  private final Versions<Predictor> versions;
  private Prequential metrics;
  private DriftDetector[] detectors;
  private final Predictor teacher;
  private StateMemory.Checkpoint beginning;
  private String identity;
  private final float[] outputs;
  private final float[] gradient;
  private final float[] taught;

  private CounterRandom random;
  private long steps;
  private long rateStart;
  private long seen;
  private long learned;
  private long removed;
  private volatile long version;
  private final UsualSteps usual;
  private final List<Example> reservoir = new ArrayList<>();
  private final LastGood lastGood;

  /** What the examples of private learning have told. */
  private final PrivacyLedger ledger;

  /** Whether features that are not finite make outputs that are not. */
  private final boolean outputsTell;

  /** Whether NaN in features is a value that is missing. */
  private final boolean knowsMissing;

  /** Does this step, on one example, without a gradient in memory; null where there is one. */
  private OuterProduct single;

  /** Of this step's gradient, NaN where nobody asks. */
  private double norm;

  SequentialLearner(Learnable model, OnlineSettings settings, Long noiseKey, LearnerEvents events) {
    this.model = model;
    this.settings = settings;
    this.events = events;
    this.outputsTell = model instanceof OuterProduct product && product.outputsTell();
    this.knowsMissing = model.knowsMissing();
    int rows = rows(model, settings);
    outputs = new float[rows * model.outputs()];
    gradient = new float[rows * model.outputs()];
    loss = new LossGradient(settings.loss(), settings.constraint(), model.outputs(), rows);
    try {
      boolean draws = settings.privacy() != null && noiseKey == null;
      long key = draws ? new SecureRandom().nextLong() : noiseKey == null ? 0 : noiseKey;
      state = new WeightState(model, settings, key);
    } catch (RuntimeException e) {
      loss.close();
      throw e;
    }
    ledger = new PrivacyLedger(settings.privacy());
    usual = new UsualSteps(settings.guard());
    lastGood = new LastGood(settings.guard().quality(), state);
    versions = new Versions<>(model::predictor);
    metrics = freshMetrics();
    detectors = freshDetectors();
    random = new CounterRandom(settings.seed(), 0);
    boolean distils = settings.loss() instanceof Loss.Distillation;
    teacher = distils ? model.predictor() : null;
    taught = distils ? new float[rows * model.outputs()] : null;
    if (distils) {
      teacher.load(state.weights());
    }
    identity = state.identity(model);
    beginning = state.checkpoint();
    lastGood.begin(beginning);
    publish();
  }

  /**
   * The most examples of a step, replayed ones counted.
   *
   * @throws IllegalArgumentException where their features or outputs are too many for memory
   */
  private static int rows(Learnable model, OnlineSettings settings) {
    int replayed = settings.replay() == null ? 0 : settings.replay().perStep();
    int most = MOST_VALUES / model.width();
    if ((long) settings.batch() + replayed > most) {
      throw new IllegalArgumentException(
          "a step is of up to "
              + settings.batch()
              + " examples and "
              + replayed
              + " replayed ones; with "
              + model.features()
              + " features and "
              + model.outputs()
              + " outputs "
              + most
              + " together are possible");
    }
    return settings.batch() + replayed;
  }

  private Prequential freshMetrics() {
    boolean classes = settings.loss().isForClasses();
    return new Prequential(
        classes, classes && model.outputs() <= 2, settings.window(), settings.fade());
  }

  private DriftDetector[] freshDetectors() {
    OnlineSettings.Drift drift = settings.drift();
    return drift == null
        ? new DriftDetector[0]
        : new DriftDetector[] {
          new Adwin(drift.delta()), new PageHinkley(drift.slack(), drift.threshold())
        };
  }

  OnlineSettings settings() {
    return settings;
  }

  /** What those who predict read. */
  Versions<Predictor> versions() {
    return versions;
  }

  /** The newest version that readers get; may be asked by any thread. */
  long version() {
    return version;
  }

  /** See {@link OnlineLearner#check}; any thread may. */
  void check(Example example) {
    checkLength(example.features());
    int columns = model.outputs();
    if (settings.loss().isForClasses()) {
      int classes = Math.max(2, columns);
      if (example.label() < 0 || example.label() >= classes) {
        throw new InputException(
            example.label() < 0
                ? "the outcome is values; this model learns classes, 0 to " + (classes - 1)
                : "the label "
                    + example.label()
                    + " is unknown; 0 to "
                    + (classes - 1)
                    + " are right");
      }
    } else if (example.values() == null || example.values().length != columns) {
      throw new InputException(
          "the outcome is "
              + (example.values() == null ? "a class" : example.values().length + " values")
              + "; this model learns "
              + columns
              + " values");
    }
  }

  /**
   * Checks the number of features; any thread may.
   *
   * @throws InputException where it is not the model's
   */
  void checkLength(float[] features) {
    if (features.length != model.features()) {
      throw new InputException(
          "an example has " + features.length + " features; the model takes " + model.features());
    }
  }

  /** See {@link OnlineLearner#learn}. */
  Report learn(List<Example> examples) {
    examples.forEach(this::check);
    ledger.checkBudget();
    try {
      return learnBatches(examples);
    } finally {
      state.settle();
    }
  }

  private Report learnBatches(List<Example> examples) {
    Report report = new Report(0, 0, Double.NaN, Double.NaN, version);
    for (int at = 0; at < examples.size(); at += settings.batch()) {
      int end = Math.min(examples.size(), at + settings.batch());
      Report part = learnBatch(examples.subList(at, end));
      report =
          new Report(
              report.steps() + part.steps(),
              report.learned() + part.learned(),
              part.loss(),
              part.gradientNorm(),
              version);
    }
    return report;
  }

  private Report learnBatch(List<Example> fresh) {
    Guard.Quality quality = settings.guard().quality();
    List<Example> batch = new ArrayList<>(fresh.size() + 8);
    List<Example> held = List.of();
    if (quality == null) {
      batch.addAll(fresh);
    } else {
      held = new ArrayList<>();
      for (int i = 0; i < fresh.size(); i++) {
        (lastGood.holdsOut(seen + i) ? held : batch).add(fresh.get(i));
      }
    }
    long before = seen;
    seen += fresh.size();
    if (!held.isEmpty()) {
      held = finite(held);
      measure(held);
      lastGood.hold(held);
    }
    Report report =
        batch.isEmpty() ? new Report(0, 0, Double.NaN, Double.NaN, version) : update(batch);
    if (quality != null && before / quality.checkEvery() != seen / quality.checkEvery()) {
      checkQuality();
    }
    return report;
  }

  /**
   * Runs the model and takes examples out that it refuses.
   *
   * @return those that are left; {@link #outputs} belongs to them where these are all
   */
  private List<Example> taken(List<Example> batch) {
    try {
      forward(batch);
      return batch;
    } catch (InputException e) {
      List<Example> ok = new ArrayList<>();
      List<Example> bad = new ArrayList<>();
      String reason = "";
      for (Example example : batch) {
        try {
          forward(List.of(example));
          ok.add(example);
        } catch (InputException refusal) {
          bad.add(example);
          reason = refusal.getMessage();
        }
      }
      if (bad.isEmpty()) {
        throw e;
      }
      fire(Event.Kind.REFUSED, bad.size() + " of " + batch.size() + " examples: " + reason, bad);
      return ok;
    }
  }

  /**
   * Runs the model and takes examples out that it refuses or whose outputs are not finite. Afterwards {@link #outputs}
   * belongs to what is left.
   */
  private List<Example> finite(List<Example> batch) {
    List<Example> left = batch;
    while (!left.isEmpty()) {
      List<Example> taken = taken(left);
      if (taken.size() < left.size()) {
        left = taken;
        continue;
      }
      int columns = model.outputs();
      List<Example> ok = new ArrayList<>(left.size());
      List<Example> bad = new ArrayList<>();
      for (int i = 0; i < left.size(); i++) {
        boolean isFinite = true;
        for (int c = 0; c < columns; c++) {
          isFinite &= Float.isFinite(outputs[i * columns + c]);
        }
        isFinite &= outputsTell || areUsable(left.get(i).features());
        float[] values = left.get(i).values();
        for (int c = 0; values != null && c < columns; c++) {
          isFinite &= Float.isFinite(values[c]);
        }
        (isFinite ? ok : bad).add(left.get(i));
      }
      if (ok.size() == left.size()) {
        return left;
      }
      fire(
          Event.Kind.NON_FINITE,
          bad.size()
              + " of "
              + left.size()
              + " examples have features, outputs or outcomes that are not"
              + " finite",
          bad);
      left = ok;
    }
    return left;
  }

  private boolean areUsable(float[] features) {
    for (float value : features) {
      if (!Float.isFinite(value) && !(knowsMissing && Float.isNaN(value))) {
        return false;
      }
    }
    return true;
  }

  private void forward(List<Example> batch) {
    float[][] rows = new float[batch.size()][];
    for (int i = 0; i < rows.length; i++) {
      rows[i] = batch.get(i).features();
    }
    model.forward(rows, rows.length, outputs);
    if (teacher != null) {
      teacher.predict(rows, rows.length, taught);
    }
  }

  /**
   * Measures predictions in {@link #outputs}.
   *
   * @return an error in [0, 1] for each
   */
  private double[] measure(List<Example> batch) {
    double[] errors = new double[batch.size()];
    for (int i = 0; i < batch.size(); i++) {
      int at = i * model.outputs();
      errors[i] = metrics.add(batch.get(i), outputs, at, model.outputs());
    }
    return errors;
  }

  private boolean detect(double[] errors) {
    boolean drifted = false;
    for (double error : errors) {
      for (DriftDetector detector : detectors) {
        if (detector.add(error)) {
          drifted = true;
          fire(Event.Kind.DRIFT, detector.evidence(), List.of());
        }
      }
    }
    return drifted;
  }

  private Report update(List<Example> fresh) {
    Report none = new Report(0, 0, Double.NaN, Double.NaN, version);
    List<Example> batch = finite(fresh);
    if (batch.isEmpty()) {
      return none;
    }
    double[] errors = measure(batch);
    int own = batch.size();
    if (settings.replay() != null && !reservoir.isEmpty()) {
      batch = new ArrayList<>(batch);
      for (int i = 0; i < settings.replay().perStep(); i++) {
        batch.add(reservoir.get((int) random.below(reservoir.size())));
      }
      forward(batch);
    }
    Example[] outcomes = batch.toArray(Example[]::new);
    double value = loss.compute(outputs, outcomes.length, outcomes, taught, gradient);
    List<Example> mine = batch.subList(0, own);
    if (!Double.isFinite(value)) {
      fire(Event.Kind.NON_FINITE, "the loss is " + value, mine);
      return none;
    }
    if (isSpike(value, mine)) {
      return new Report(0, 0, value, Double.NaN, version);
    }
    if (!differentiate(outcomes.length, mine)) {
      return new Report(0, 0, value, norm, version);
    }
    double rate = settings.rate().at(steps - rateStart);
    if (single != null) {
      single.descend(gradient, rate);
    } else {
      state.step(rate);
    }
    loss.stepped(rate);
    steps++;
    ledger.learned();
    learned += own;
    if (settings.replay() != null) {
      mine.forEach(this::keep);
    }
    lastGood.learned(mine);
    // Only of what was learned: what the guard takes out is no sign of a changed world.
    if (detect(errors) && settings.drift().action() != OnlineSettings.Drift.Action.REPORT) {
      restart(value);
    }
    if (steps % settings.publishEvery() == 0) {
      publish();
    }
    return new Report(1, own, value, norm, version);
  }

  private boolean isSpike(double value, List<Example> batch) {
    String evidence = usual.spike(value);
    if (evidence != null) {
      fire(Event.Kind.LOSS_SPIKE, evidence, batch);
    }
    return evidence != null;
  }

  /** Sets {@link #norm} and {@link #single}; false where the step is not to be done. */
  private boolean differentiate(int rows, List<Example> batch) {
    Guard.Norm rule = settings.guard().norm();
    single = rows == 1 && rule == null ? state.single() : null;
    if (single != null && single.isFinite(gradient)) {
      norm = Double.NaN; // nobody asks
      return true;
    }
    single = null;
    GradientNorm.Result result = writeGradients(rows);
    norm = result.norm();
    if (result.nonFinite() > 0 || !Double.isFinite(norm)) {
      fire(Event.Kind.NON_FINITE, result.nonFinite() + " entries of the gradient", batch);
      return false;
    }
    if (rule == null) {
      if (settings.privacy() != null) {
        norm = Double.NaN; // that of the sum without noise, which nobody may see
      }
      return true;
    }
    double limit = usual.normLimit();
    if (norm > limit) {
      String evidence = usual.largeNorm(norm);
      if (!rule.clip()) {
        fire(Event.Kind.NORM_SKIPPED, evidence, batch);
        // It counts, cut down, so that a world that has changed is followed in the end.
        usual.addNorm(limit);
        return false;
      }
      fire(Event.Kind.NORM_CLIPPED, evidence, List.of());
      state.scaleGradients(limit / norm);
      norm = limit;
    }
    usual.addNorm(norm);
    return true;
  }

  /** Backward; with privacy the sum of clipped gradients, which the step adds noise to. */
  private GradientNorm.Result writeGradients(int rows) {
    Privacy privacy = settings.privacy();
    if (privacy == null) {
      model.backward(gradient, rows);
    } else {
      for (int i = 0; i < rows * model.outputs(); i++) {
        gradient[i] *= rows;
      }
      model.backwardClipped(gradient, rows, privacy.clip());
    }
    return state.gradientNorm(model.weights());
  }

  private void keep(Example example) {
    int capacity = settings.replay().capacity();
    // learned counts the whole batch already; its order within does not matter for the sample.
    if (reservoir.size() < capacity) {
      reservoir.add(example);
    } else {
      long at = random.below(learned);
      if (at < capacity) {
        reservoir.set((int) at, example);
      }
    }
  }

  /**
   * @param value the loss of the batch that was learned last
   */
  private void restart(double value) {
    if (settings.drift().action() == OnlineSettings.Drift.Action.RESET) {
      state.restore(beginning);
      reservoir.clear();
      detectors = freshDetectors(); // the errors to come are of other weights
    }
    state.forgetMomentum();
    forgetWorld();
    usual.raise(value, norm);
    publish();
  }

  /** What was good is of another world. */
  private void forgetWorld() {
    rateStart = steps;
    usual.forgetSpikes();
    lastGood.begin(state.checkpoint());
  }

  private void checkQuality() {
    LastGood.Rollback rollback = lastGood.check(this::error);
    if (rollback != null) {
      state.forgetMomentum();
      publish();
      fire(Event.Kind.ROLLBACK, rollback.evidence(), rollback.suspects());
    }
  }

  /** The share of wrong classes, or m / (1 + m) of the mean absolute error m, of examples. */
  private double error(List<Example> all) {
    int columns = model.outputs();
    double sum = 0;
    for (int at = 0; at < all.size(); at += settings.batch()) {
      List<Example> part = all.subList(at, Math.min(all.size(), at + settings.batch()));
      forward(part);
      for (int i = 0; i < part.size(); i++) {
        Example example = part.get(i);
        if (settings.loss().isForClasses()) {
          float[] own = java.util.Arrays.copyOfRange(outputs, i * columns, (i + 1) * columns);
          sum += new Prediction(own, version).label() == example.label() ? 0 : 1;
        } else {
          for (int c = 0; c < columns; c++) {
            sum += Math.abs(outputs[i * columns + c] - example.values()[c]) / columns;
          }
        }
      }
    }
    double mean = sum / all.size();
    return settings.loss().isForClasses() ? mean : Double.isFinite(mean) ? mean / (1 + mean) : 1;
  }

  private void publish() {
    publish(version + 1);
  }

  /** Publishes the weights under a number that none has had. */
  void publish(long number) {
    Versions.Slot<Predictor> slot = versions.free();
    slot.content().load(state.served());
    versions.publish(slot, number);
    version = number;
  }

  private void fire(Event.Kind kind, String evidence, List<Example> suspects) {
    removed += suspects.size();
    events.tell(new Event(kind, steps, seen, version, evidence), suspects);
  }

  /** See {@link OnlineLearner#metrics}. */
  Map<String, Double> metrics() {
    Map<String, Double> map = metrics.metrics();
    if (settings.constraint() != null) {
      map.put("distance", loss.distance());
    }
    return map;
  }

  long steps() {
    return steps;
  }

  long seen() {
    return seen;
  }

  long learned() {
    return learned;
  }

  long removed() {
    return removed;
  }

  PrivacyLedger ledger() {
    return ledger;
  }

  /** See {@link OnlineLearner#weights}. */
  Map<String, float[]> weights() {
    Map<String, float[]> map = new LinkedHashMap<>();
    for (Weight w : state.served()) {
      float[] copy = new float[Math.toIntExact(w.working().elements())];
      LinearHead.buffer(w.working()).get(0, copy);
      map.put(w.name(), copy);
    }
    return map;
  }

  /** See {@link OnlineLearner#adopt}. */
  void adopt(Learnable other) {
    if (other.isClosed()) {
      throw new IllegalStateException("the model to be adopted is closed");
    }
    if (other.features() != model.features() || other.outputs() != model.outputs()) {
      throw new InputException(
          "it takes "
              + other.features()
              + " features and has "
              + other.outputs()
              + " outputs; this learner's model has "
              + model.features()
              + " and "
              + model.outputs());
    }
    if (!other.identity().equals(model.identity())) {
      throw new InputException("it is another model than the one that is learned");
    }
    try {
      state.begin(other.weights());
    } catch (IllegalArgumentException e) {
      throw new InputException("it is another model: " + e.getMessage(), e);
    }
    identity = state.identity(model);
    beginning = state.checkpoint();
    if (teacher != null) {
      teacher.load(state.weights());
    }
    forgetWorld();
    usual.forget();
    publish();
  }

  private String described() {
    return identity.isEmpty() ? settings.describe() : settings.describe() + identity;
  }

  /** Where a saved description differs from this learner's: settings by their names, and the model's identity. */
  private String difference(String saved) {
    Map<String, String> then = named(saved);
    Map<String, String> now = named(described());
    Set<String> names = new LinkedHashSet<>(then.keySet());
    names.addAll(now.keySet());
    names.removeIf(name -> Objects.equals(then.get(name), now.get(name)));
    List<String> told = new ArrayList<>();
    for (String name : names) {
      told.add(
          name.equals(IDENTITY)
              ? "what of the model is not learned, its graph or frozen weights, differs"
              : name + ": " + then.get(name) + ", here " + now.get(name));
    }
    return String.join("\n  ", told);
  }

  private static Map<String, String> named(String description) {
    Map<String, String> values = new LinkedHashMap<>();
    for (String line : description.lines().toList()) {
      String[] parts = line.split(": ", 2);
      values.put(parts[0], parts[parts.length - 1]);
    }
    return values;
  }

  /** Writes what {@link #read} reads. */
  void write(DataOutput out) throws IOException {
    out.writeInt(MAGIC);
    out.writeInt(FORMAT);
    SavedState.write(out, described());
    ledger.write(out);
    out.writeInt(model.features());
    out.writeInt(model.outputs());
    for (long v :
        new long[] {
          steps,
          rateStart,
          seen,
          learned,
          removed,
          version,
          usual.lossesSeen(),
          usual.normsSeen(),
          random.counter()
        }) {
      out.writeLong(v);
    }
    out.writeDouble(usual.meanLoss());
    out.writeDouble(usual.meanNorm());
    out.writeInt(usual.spikesInARow());
    for (double multiplier : loss.multipliers()) {
      out.writeDouble(multiplier);
    }
    StateMemory.write(out, state.checkpoint());
    StateMemory.write(out, lastGood.weights());
    StateMemory.write(out, beginning);
    metrics.save(out);
    for (DriftDetector detector : detectors) {
      detector.save(out);
    }
    for (List<Example> list : List.of(reservoir, lastGood.heldOut(), lastGood.learnedSince())) {
      out.writeInt(list.size());
      for (Example example : list) {
        SavedState.write(out, example);
      }
    }
    out.writeInt(MAGIC);
  }

  /** The settings that a state was saved with. */
  private static String readHead(DataInput in) throws IOException {
    if (in.readInt() != MAGIC) {
      throw SavedState.damaged("it does not begin as one");
    }
    int format = in.readInt();
    if (format != FORMAT) {
      throw new InputException(
          "the learner's saved state is of format " + format + "; this espalier knows " + FORMAT);
    }
    return SavedState.text(in);
  }

  /**
   * The passes of private learning of which a saved state tells.
   *
   * @throws InputException if it is damaged or of a newer format
   */
  static List<PrivacyPass> passes(InputStream stream) throws IOException {
    DataInputStream in = new DataInputStream(new BufferedInputStream(stream));
    try {
      readHead(in);
      return PrivacyLedger.read(in);
    } catch (EOFException e) {
      throw new InputException("the learner's saved state is damaged: it ends too early", e);
    }
  }

  /** See {@link OnlineLearner#load}. */
  void read(DataInput in) throws IOException {
    String described = readHead(in);
    if (!described().equals(described)) {
      throw new InputException(
          "the learner was saved with other settings:\n  " + difference(described));
    }
    List<PrivacyPass> savedPasses = PrivacyLedger.read(in);
    SavedState.count(in, model.features(), model.features());
    SavedState.count(in, model.outputs(), model.outputs());
    long[] counts = new long[9];
    for (int i = 0; i < counts.length; i++) {
      counts[i] = in.readLong();
      if (counts[i] < 0) {
        throw SavedState.damaged("a count is negative");
      }
    }
    if (counts[1] > counts[0] || counts[5] < 1) {
      throw SavedState.damaged("its counts contradict each other");
    }
    double savedLoss = in.readDouble();
    double savedNorm = in.readDouble();
    int savedSpikes = in.readInt();
    double[] multipliers = new double[loss.multipliers().length];
    for (int c = 0; c < multipliers.length; c++) {
      multipliers[c] = in.readDouble();
    }
    StateMemory.Checkpoint now = state.read(in);
    StateMemory.Checkpoint good = state.read(in);
    StateMemory.Checkpoint first = state.read(in);
    Prequential savedMetrics = freshMetrics();
    savedMetrics.load(in);
    DriftDetector[] savedDetectors = freshDetectors();
    for (DriftDetector detector : savedDetectors) {
      detector.load(in);
    }
    int replayed = settings.replay() == null ? 0 : settings.replay().capacity();
    Guard.Quality quality = settings.guard().quality();
    List<Example> kept = examples(in, replayed);
    List<Example> held = examples(in, quality == null ? 0 : quality.window());
    List<Example> suspects = examples(in, 1 << 24);
    if (in.readInt() != MAGIC) {
      throw SavedState.damaged("it does not end as one");
    }

    // It is whole: from here on nothing can fail.
    ledger.account(savedPasses); // beside those of this learner, whose versions were seen
    steps = counts[0];
    rateStart = counts[1];
    seen = counts[2];
    learned = counts[3];
    removed = counts[4];
    version = counts[5];
    random = new CounterRandom(settings.seed(), counts[8]);
    usual.set(savedLoss, counts[6], savedNorm, counts[7], savedSpikes);
    System.arraycopy(multipliers, 0, loss.multipliers(), 0, multipliers.length);
    lastGood.set(good, held, suspects);
    beginning = first;
    if (teacher != null) {
      state.restore(first);
      teacher.load(state.weights());
    }
    state.restore(now);
    metrics = savedMetrics;
    detectors = savedDetectors;
    reservoir.clear();
    reservoir.addAll(kept);
    publish(version);
  }

  private List<Example> examples(DataInput in, int most) throws IOException {
    int n = SavedState.count(in, 0, most);
    List<Example> list = new ArrayList<>();
    for (int i = 0; i < n; i++) {
      Example example = SavedState.example(in, model.features(), model.outputs());
      check(example);
      list.add(example);
    }
    return list;
  }

  @Override
  public void close() {
    versions.close();
    if (teacher != null) {
      teacher.close();
    }
    loss.close();
    state.close();
  }
}

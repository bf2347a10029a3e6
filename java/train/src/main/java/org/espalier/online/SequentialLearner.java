package org.espalier.online;

import java.io.IOException;
import java.io.InputStream;
import java.io.OutputStream;
import java.security.SecureRandom;
import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import org.espalier.InputException;
import org.espalier.online.OnlineLearner.Report;
import org.espalier.online.drift.DriftDetectors;
import org.espalier.online.memory.Floats;
import org.espalier.online.memory.Opened;
import org.espalier.online.privacy.Privacy;
import org.espalier.online.privacy.PrivacyLedger;
import org.espalier.op.GradientNorm;

/**
 * What an {@link OnlineLearner} does with examples, one step after the other, and everything that decides its future. For
 * one thread: who calls holds the learner's locks, and has seen that learner and model are open.
 */
final class SequentialLearner implements AutoCloseable {
  /** The most features or outputs that the examples of a step have together: more fill no buffer. */
  private static final int MOST_VALUES = Integer.MAX_VALUE / Float.BYTES;

  private final Learnable model;
  private final OnlineSettings settings;
  private final LearnerEvents events;
  private final Opened opened = new Opened();
  private final WeightState state;
  private final LossGradient loss;
  private final Versions<Predictor> versions;
  private final ExampleForm form;
  private final BatchOutputs answers;
  private Prequential metrics;
  private DriftDetectors drift;
  private StateMemory.Checkpoint beginning;
  private String identity;
  private final float[] gradient;

  private long steps;
  private long rateStart;
  private long seen;
  private long learned;
  private long removed;
  private volatile long version;
  private final UsualSteps usual;
  private final Replay replay;
  private final LastGood lastGood;

  /** What the examples of private learning have told. */
  private final PrivacyLedger ledger;

  /** Does this step, on one example, without a gradient in memory; null where there is one. */
  private OuterProduct single;

  /** Of this step's gradient, NaN where nobody asks. */
  private double norm;

  SequentialLearner(Learnable model, OnlineSettings settings, Long noiseKey, LearnerEvents events) {
    this.model = model;
    this.settings = settings;
    this.events = events;
    form = new ExampleForm(model.features(), model.outputs(), settings.loss().isForClasses());
    if (settings.privacy() != null && settings.batch() > 1 && model.mixesExamples()) {
      throw new IllegalArgumentException(
          "the model finds ranges for a batch, so what one example says reaches the gradients of"
              + " the others: no privacy, unless the batch is 1 or the ranges are fixed"
              + " (onnx-qdq)");
    }
    int rows = rows(model, settings);
    gradient = new float[rows * model.outputs()];
    replay = new Replay(settings);
    ledger = new PrivacyLedger(settings.privacy());
    usual = new UsualSteps(settings.guard());
    metrics = Prequential.of(settings, model.outputs());
    drift = settings.detectors();
    try {
      loss =
          opened.add(
              new LossGradient(settings.loss(), settings.constraint(), model.outputs(), rows));
      boolean draws = settings.privacy() != null && noiseKey == null;
      long key = draws ? new SecureRandom().nextLong() : noiseKey == null ? 0 : noiseKey;
      state = opened.add(new WeightState(model, settings, key));
      answers = opened.add(new BatchOutputs(model, settings, rows, this::fire));
      versions = opened.add(new Versions<>(model::predictor));
      lastGood = new LastGood(settings.guard().quality(), state);
      answers.teach(state.weights());
      identity = state.identity(model);
      beginning = state.checkpoint();
      lastGood.begin(beginning);
      publish();
    } catch (RuntimeException | Error e) {
      opened.close();
      throw e;
    }
  }

  /**
   * The most examples of a step, replayed ones counted.
   *
   * @throws IllegalArgumentException where their features or outputs are too many for memory
   */
  private static int rows(Learnable model, OnlineSettings settings) {
    int replayed = Replay.perStep(settings);
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

  OnlineSettings settings() {
    return settings;
  }

  /** What examples it takes; any thread may ask. */
  ExampleForm form() {
    return form;
  }

  /** What those who predict read. */
  Versions<Predictor> versions() {
    return versions;
  }

  /** The newest version that readers get; may be asked by any thread. */
  long version() {
    return version;
  }

  /** See {@link OnlineLearner#learn}. */
  Report learn(List<Example> examples) {
    examples.forEach(form::check);
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
      held = answers.finite(held);
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
   * Measures the predictions that were made last.
   *
   * @return an error in [0, 1] for each
   */
  private double[] measure(List<Example> batch) {
    double[] errors = new double[batch.size()];
    float[] outputs = answers.outputs();
    for (int i = 0; i < batch.size(); i++) {
      int at = i * model.outputs();
      errors[i] = metrics.add(batch.get(i), outputs, at, model.outputs());
    }
    return errors;
  }

  private Report update(List<Example> fresh) {
    Report none = new Report(0, 0, Double.NaN, Double.NaN, version);
    List<Example> batch = answers.finite(fresh);
    if (batch.isEmpty()) {
      return none;
    }
    double[] errors = measure(batch);
    int own = batch.size();
    List<Example> again = replay.draw();
    if (!again.isEmpty()) {
      batch = new ArrayList<>(batch);
      batch.addAll(again);
      answers.forward(batch);
    }
    Example[] outcomes = batch.toArray(Example[]::new);
    double value =
        loss.compute(answers.outputs(), outcomes.length, outcomes, answers.taught(), gradient);
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
    replay.learned(mine, learned);
    lastGood.learned(mine);
    // Only of what was learned: what the guard takes out is no sign of a changed world.
    boolean drifted = drift.add(errors, evidence -> fire(Event.Kind.DRIFT, evidence, List.of()));
    if (drifted && settings.drift().action() != OnlineSettings.Drift.Action.REPORT) {
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

  /**
   * @param value the loss of the batch that was learned last
   */
  private void restart(double value) {
    if (settings.drift().action() == OnlineSettings.Drift.Action.RESET) {
      state.restore(beginning);
      replay.clear();
      drift = settings.detectors(); // the errors to come are of other weights
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
    LastGood.Rollback rollback = lastGood.check(answers::error);
    if (rollback != null) {
      state.forgetMomentum();
      publish();
      fire(Event.Kind.ROLLBACK, rollback.evidence(), rollback.suspects());
    }
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
      map.put(w.name(), Floats.copy(w.working()));
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
    answers.teach(state.weights());
    forgetWorld();
    usual.forget();
    publish();
  }

  private String described() {
    return identity.isEmpty() ? settings.describe() : settings.describe() + identity;
  }

  /** Writes what {@link #read} reads. */
  void write(OutputStream out) throws IOException {
    new LearnerState(
            ledger.passes(),
            new LearnerState.Counts(steps, rateStart, seen, learned, removed, version),
            usual.seen(),
            replay.drawn(),
            loss.multipliers(),
            state.checkpoint(),
            settings.guard().quality() == null ? beginning : lastGood.weights(),
            beginning,
            metrics,
            drift,
            replay.kept(),
            lastGood.heldOut(),
            lastGood.learnedSince())
        .write(out, described(), form);
  }

  /** See {@link OnlineLearner#load}. */
  void read(InputStream in) throws IOException {
    LearnerState saved = LearnerState.read(in, described(), form, settings, state);
    // It is whole: from here on nothing can fail.
    ledger.account(saved.passes()); // beside those of this learner, whose versions were seen
    steps = saved.counts().steps();
    rateStart = saved.counts().rateStart();
    seen = saved.counts().seen();
    learned = saved.counts().learned();
    removed = saved.counts().removed();
    version = saved.counts().version();
    usual.set(saved.usual());
    loss.multipliers(saved.multipliers());
    lastGood.set(saved.good(), saved.heldOut(), saved.learnedSince());
    beginning = saved.beginning();
    state.restoreBeginning(beginning);
    if (answers.hasTeacher()) {
      answers.teach(state.weights());
    }
    state.restore(saved.now());
    metrics = saved.metrics();
    drift = saved.drift();
    replay.set(saved.replayed(), saved.drawn());
    publish(version);
  }

  @Override
  public void close() {
    opened.close();
  }
}

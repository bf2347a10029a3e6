package org.espalier.online;

import java.io.BufferedInputStream;
import java.io.BufferedOutputStream;
import java.io.DataInput;
import java.io.DataInputStream;
import java.io.DataOutput;
import java.io.DataOutputStream;
import java.io.EOFException;
import java.io.IOException;
import java.io.InputStream;
import java.io.OutputStream;
import java.util.ArrayDeque;
import java.util.ArrayList;
import java.util.Deque;
import java.util.EnumMap;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Locale;
import java.util.Map;
import java.util.function.Consumer;
import org.espalier.InputException;
import org.espalier.format.onnx.OnnxModel;
import org.espalier.op.GradientNorm;
import org.slf4j.Logger;
import org.slf4j.LoggerFactory;

/**
 * Predicts and learns in one process. Any number of threads {@link #predict}, without a lock and on
 * whole versions of the model; one thread at a time {@link #learn learns}, others wait for it. {@link
 * OnlineStream} puts a queue in front.
 *
 * <p>An example is first predicted and measured, then learned. A guard takes out what would harm the
 * model, see {@link Guard}. Everything that decides the future is in the state that {@link #save}
 * writes: a learner that {@link #load loads} it goes on with the same bits as one that was never
 * stopped; the noise of private learning alone is drawn anew.
 *
 * <p>The model belongs to the learner, which does not close it. Learner and model may be closed at any time, in any
 * thread and in either order: who closes waits for what is under way, whatever is called later throws an {@link
 * IllegalStateException}.
 */
public final class OnlineLearner implements AutoCloseable {
  private static final Logger LOG = LoggerFactory.getLogger(OnlineLearner.class);
  private static final int MAGIC = 0x65736f6c; // "esol"
  private static final int FORMAT = 3;

  /** So many events of a kind are warnings; later ones are where their number is a power of two. */
  private static final int LOGGED = 10;

  private final Learnable model;
  private final OnlineSettings settings;
  private final WeightState state;
  private final LossGradient loss;
  private final Versions<Predictor> versions;
  private Prequential metrics;
  private DriftDetector[] detectors;
  private final Predictor teacher;
  private WeightState.Checkpoint beginning;
  private final List<Consumer<Event>> listeners = new ArrayList<>();
  private final Map<Event.Kind, Long> fired = new EnumMap<>(Event.Kind.class);
  private String identity;
  private final float[] outputs;
  private final float[] gradient;
  private final float[] taught;

  private Quarantine quarantine;
  private CounterRandom random;
  private long steps;
  private long rateStart;
  private long seen;
  private long learned;
  private long removed;
  private volatile long version;
  private final UsualSteps usual;
  private final List<Example> reservoir = new ArrayList<>();
  private final Deque<Example> heldOut = new ArrayDeque<>();
  private final List<Example> sinceGood = new ArrayList<>();
  private WeightState.Checkpoint good;
  private boolean closed;

  /** Whether a listener is being told of what a step has met. */
  private boolean telling;

  /** What the examples of private learning have told. */
  private final PrivacyLedger ledger;

  /**
   * Whether features that are not finite make outputs that are not. A saturated layer hides them, and then
   * they would spoil the gradient of the whole batch.
   */
  private final boolean outputsTell;

  /** Does this step, on one example, without a gradient in memory; null where there is one. */
  private OuterProduct single;

  /** Of this step's gradient, NaN where nobody asks. */
  private double norm;

  /**
   * What a call of {@link #learn} did.
   *
   * @param steps steps that were done
   * @param learned examples that were learned
   * @param loss the mean loss of the last step's batch, NaN where none was computed
   * @param gradientNorm of the last step, NaN where none was needed, and with privacy
   * @param version the newest version
   */
  public record Report(int steps, int learned, double loss, double gradientNorm, long version) {}

  /** A learner of a model as it is now. Its first version, 1, is published at once. */
  public OnlineLearner(Learnable model, OnlineSettings settings) {
    this(model, settings, null);
  }

  /**
   * A learner of a model as it is now.
   *
   * @param noiseKey the key of the noise of private learning, which must stay secret; null for a
   *     new one from the system's source
   */
  public OnlineLearner(Learnable model, OnlineSettings settings, Long noiseKey) {
    this.model = model;
    this.settings = settings;
    this.outputsTell = model instanceof OuterProduct;
    int rows = settings.batch() + (settings.replay() == null ? 0 : settings.replay().perStep());
    outputs = new float[rows * model.outputs()];
    gradient = new float[rows * model.outputs()];
    loss = new LossGradient(settings.loss(), settings.constraint(), model.outputs(), rows);
    try {
      boolean draws = settings.privacy() != null && noiseKey == null;
      long key =
          draws ? new java.security.SecureRandom().nextLong() : noiseKey == null ? 0 : noiseKey;
      state = new WeightState(model, settings, key);
    } catch (RuntimeException e) {
      loss.close();
      throw e;
    }
    ledger = new PrivacyLedger(settings.privacy());
    usual = new UsualSteps(settings.guard());
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
    good = beginning;
    publish();
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

  /** Where examples go that the guard takes out; null for nowhere. The learner does not close it. */
  public synchronized void quarantine(Quarantine file) {
    quarantine = file;
  }

  /**
   * Is told of every event, in the learning thread and amid a step: it may look at the learner, and has another
   * thread do what changes or closes it. Events are then logged too: as warnings, and as debug messages when there
   * are many of a kind.
   */
  public synchronized void onEvent(Consumer<Event> listener) {
    listeners.add(listener);
  }

  public OnlineSettings settings() {
    return settings;
  }

  /** How many features an example has. */
  public int features() {
    return model.features();
  }

  /** How many outputs a prediction has. */
  public int outputs() {
    return model.outputs();
  }

  // ---- reading

  /** Predicts one case with the newest version. Never waits. */
  public Prediction predict(float[] features) {
    float[] result = new float[model.outputs()];
    long number = predict(new float[][] {features}, 1, result);
    return new Prediction(result, number);
  }

  /**
   * Predicts several cases with one version. Never waits.
   *
   * @param features {@code rows} arrays, or more
   * @param result receives rows · outputs values
   * @return the version that answered
   * @throws InputException if an array has another length than the model takes
   */
  public long predict(float[][] features, int rows, float[] result) {
    // Native code reads as much as the model takes, whatever is there.
    if (rows < 0 || rows > features.length || (long) rows * model.outputs() > result.length) {
      throw new IllegalArgumentException(
          rows + " rows of " + features.length + " with room for " + result.length + " outputs");
    }
    for (int i = 0; i < rows; i++) {
      checkLength(features[i]);
    }
    int stripe = Versions.stripe();
    Versions.Slot<Predictor> slot = versions.enter(stripe);
    try {
      slot.content().predict(features, rows, result);
      return slot.number();
    } finally {
      versions.leave(slot, stripe);
    }
  }

  /** The newest version that readers get. */
  public long version() {
    return version;
  }

  // ---- learning

  /**
   * Checks that an example fits the model.
   *
   * @throws InputException that says what does not fit
   */
  public void check(Example example) {
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

  private void checkOpen() {
    if (closed || model.isClosed()) {
      throw new IllegalStateException(
          closed ? "the learner is closed" : "the model is closed, which its learner still has");
    }
  }

  /** Something that is done with learner and model. */
  private interface Work<T, E extends Exception> {
    T run() throws E;
  }

  /**
   * Works while nobody else does and neither learner nor model is closed. This is the order in which the two locks are
   * taken.
   */
  private synchronized <T, E extends Exception> T whileOpen(Work<T, E> work) throws E {
    synchronized (model) {
      checkOpen();
      return work.run();
    }
  }

  /** The same for what changes the learner. */
  private <T, E extends Exception> T changing(Work<T, E> work) throws E {
    return whileOpen(
        () -> {
          checkOutsideListener();
          return work.run();
        });
  }

  /** The step that a listener is told of goes on afterwards, with the memory and the weights that it had. */
  private void checkOutsideListener() {
    if (telling) {
      throw new IllegalStateException(
          "a listener cannot change or close the learner that tells it of an event; another thread"
              + " can, once the step is done");
    }
  }

  private void checkLength(float[] features) {
    if (features.length != model.features()) {
      throw new InputException(
          "an example has " + features.length + " features; the model takes " + model.features());
    }
  }

  /**
   * Measures and learns examples, in batches of the settings' size.
   *
   * @throws InputException if one does not {@linkplain #check fit}; nothing was learned then
   * @throws PrivacyBudgetException if epsilon would be above the settings' limit; nothing was learned then
   */
  public Report learn(List<Example> examples) {
    return changing(
        () -> {
          examples.forEach(this::check);
          checkBudget();
          try {
            return learnBatches(examples);
          } finally {
            state.settle();
          }
        });
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
        boolean hold = (seen + i) % quality.holdEvery() == quality.holdEvery() - 1;
        (hold ? held : batch).add(fresh.get(i));
      }
    }
    long before = seen;
    seen += fresh.size();
    if (!held.isEmpty()) {
      held = finite(held);
      measure(held);
      for (Example example : held) {
        heldOut.addLast(example);
        if (heldOut.size() > quality.window()) {
          heldOut.removeFirst();
        }
      }
    }
    Report report =
        batch.isEmpty() ? new Report(0, 0, Double.NaN, Double.NaN, version) : update(batch);
    if (quality != null && before / quality.checkEvery() != seen / quality.checkEvery()) {
      checkQuality(quality);
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
        isFinite &= outputsTell || isFinite(left.get(i).features());
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

  private static boolean isFinite(float[] values) {
    for (float value : values) {
      if (!Float.isFinite(value)) {
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
    int columns = model.outputs();
    double[] errors = new double[batch.size()];
    for (int i = 0; i < batch.size(); i++) {
      Example example = batch.get(i);
      if (settings.loss().isForClasses()) {
        int y = example.label();
        int at = i * columns;
        double logLoss;
        double score;
        int best = 0;
        if (columns == 1) {
          double z = outputs[at];
          score = z;
          best = z > 0 ? 1 : 0;
          logLoss = Math.max(z, 0) - y * z + StrictMath.log1p(StrictMath.exp(-Math.abs(z)));
        } else {
          for (int c = 1; c < columns; c++) {
            best = outputs[at + c] > outputs[at + best] ? c : best;
          }
          double sum = 0;
          for (int c = 0; c < columns; c++) {
            sum += StrictMath.exp(outputs[at + c] - outputs[at + best]);
          }
          logLoss = StrictMath.log(sum) + outputs[at + best] - outputs[at + y];
          score = outputs[at + 1] - outputs[at];
        }
        metrics.add(logLoss, best == y, score, y == 1);
        errors[i] = best == y ? 0 : 1;
      } else {
        double sum = 0;
        for (int c = 0; c < columns; c++) {
          sum += Math.abs(outputs[i * columns + c] - example.values()[c]);
        }
        metrics.add(sum / columns, false, 0, false);
        errors[i] = sum / columns / (1 + sum / columns);
      }
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
    if (settings.guard().quality() != null) {
      sinceGood.addAll(mine);
    }
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
    good = state.checkpoint();
    heldOut.clear();
    sinceGood.clear();
  }

  private void checkQuality(Guard.Quality rule) {
    if (heldOut.size() < rule.window()) {
      good = state.checkpoint();
      sinceGood.clear();
      return;
    }
    WeightState.Checkpoint now = state.checkpoint();
    double live = heldOutError();
    state.restore(good);
    double before = heldOutError();
    if (live - before <= rule.tolerance()) {
      state.restore(now);
      good = now;
      sinceGood.clear();
      return;
    }
    String evidence =
        String.format(
            Locale.ROOT,
            "the error of the newest %d held-out examples is %.4f, that of the last good version is"
                + " %.4f; %d examples are taken back",
            heldOut.size(),
            live,
            before,
            sinceGood.size());
    List<Example> suspects = List.copyOf(sinceGood);
    sinceGood.clear();
    state.forgetMomentum();
    publish();
    fire(Event.Kind.ROLLBACK, evidence, suspects);
  }

  /** The share of wrong classes, or m / (1 + m) of the mean absolute error m, of the held-out. */
  private double heldOutError() {
    List<Example> all = new ArrayList<>(heldOut);
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

  private void publish(long number) {
    Versions.Slot<Predictor> slot = versions.free();
    slot.content().load(state.served());
    versions.publish(slot, number);
    version = number;
  }

  /**
   * Gives the newest version a number of at least {@code least}: where a learner that has answered takes over
   * an older state, no number shall name two versions.
   */
  public synchronized void numberFrom(long least) {
    if (version < least) {
      changing(
          () -> {
            publish(least);
            return null;
          });
    }
  }

  private void fire(Event.Kind kind, String evidence, List<Example> suspects) {
    removed += suspects.size();
    Event event = new Event(kind, steps, seen, version, evidence);
    long count = fired.merge(kind, 1L, Long::sum);
    telling = true;
    try {
      listeners.forEach(listener -> listener.accept(event));
    } finally {
      telling = false;
      // A flood would hide the rest of a log.
      if (count <= LOGGED || Long.bitCount(count) == 1) {
        LOG.warn("{} {} at step {}, example {}: {}", kind, count, steps, seen, evidence);
      } else {
        LOG.debug("{} {} at step {}, example {}: {}", kind, count, steps, seen, evidence);
      }
    }
    if (quarantine != null) {
      boolean written = true;
      for (Example example : suspects) {
        written &= quarantine.add(kind, steps, example);
      }
      if (!written && kind != Event.Kind.QUARANTINE_FULL) {
        fire(Event.Kind.QUARANTINE_FULL, quarantine.lost() + " examples are not kept", List.of());
      }
    }
  }

  // ---- numbers

  /** Prequential metrics, and the distance of the constraint, by name. */
  public synchronized Map<String, Double> metrics() {
    Map<String, Double> map = metrics.metrics();
    if (settings.constraint() != null) {
      map.put("distance", loss.distance());
    }
    return map;
  }

  /** Steps that were done. */
  public synchronized long steps() {
    return steps;
  }

  /** Examples that came. */
  public synchronized long seen() {
    return seen;
  }

  /** Examples that were learned. */
  public synchronized long learned() {
    return learned;
  }

  /** Examples that the guard took out or took back. */
  public synchronized long removed() {
    return removed;
  }

  /** How many versions have memory: two, and more while readers are slow. */
  public synchronized int slots() {
    return versions.slots();
  }

  /**
   * The privacy loss of all that was learned, in this learner's pass and in those that it {@linkplain #account
   * knows of}, for the example of which most was told; null without privacy.
   */
  public synchronized Double epsilon() {
    return ledger.epsilon();
  }

  /**
   * Says where the examples of this pass are from. Without a word they are taken for ones that no other pass has.
   * Of no effect without privacy.
   *
   * @param stream by what the stream is known again, see {@link PrivacyPass#stream}
   * @param from the number of the pass's first example in it
   * @param to the number after the last that was or is about to be learned
   */
  public synchronized void pass(List<String> stream, long from, long to) {
    ledger.pass(stream, from, to);
  }

  /** The examples that come now are from another stream, or from an earlier place of this one. */
  public synchronized void beginPass() {
    ledger.beginPass();
  }

  /** Takes passes of other learners into account; ones that it knows, and its own, count once. */
  public synchronized void account(List<PrivacyPass> others) {
    ledger.account(others);
  }

  /** The passes that {@link #epsilon} is of; none without privacy. */
  public synchronized List<PrivacyPass> passes() {
    return ledger.passes();
  }

  /**
   * Looks whether the next step would bring {@link #epsilon} above the settings' limit, as {@link #learn}
   * does.
   *
   * @throws PrivacyBudgetException if so
   */
  public synchronized void checkBudget() {
    ledger.checkBudget();
  }

  /** The served weights, by name, in new arrays. */
  public Map<String, float[]> weights() {
    return whileOpen(
        () -> {
          Map<String, float[]> map = new LinkedHashMap<>();
          for (Weight w : state.served()) {
            float[] copy = new float[Math.toIntExact(w.working().elements())];
            LinearHead.buffer(w.working()).get(0, copy);
            map.put(w.name(), copy);
          }
          return map;
        });
  }

  /**
   * The served model as ONNX: inputs, outputs and nodes are those that the model has, or for a linear
   * model {@code features} → {@code outputs}, and {@code probabilities} where it learns classes.
   *
   * @throws InputException if the model cannot be written as ONNX
   */
  public synchronized OnnxModel toOnnx() {
    return model.toOnnx(weights(), settings.loss());
  }

  /**
   * Goes on from the weights of another model of the same kind, which are served at once: with a fresh
   * optimizer, learning rate and guard, and masks and grids of these weights, which are the frozen teacher and what a
   * drift resets to from now on. Counts, metrics and replayed examples go on.
   *
   * @param other is only read; the caller closes it
   * @throws InputException if it has other features, outputs, weights or nodes; nothing was changed then
   */
  public void adopt(Learnable other) {
    changing(
        () -> {
          takeOver(other);
          return null;
        });
  }

  private void takeOver(Learnable other) {
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

  /** What learns. */
  Learnable model() {
    return model;
  }

  /** The shape of a weight. */
  public long[] shape(String name) {
    return model.weights().stream()
        .filter(w -> w.name().equals(name))
        .findFirst()
        .orElseThrow(() -> new IllegalArgumentException("no weight " + name))
        .latent()
        .shape();
  }

  // ---- saving

  private String described() {
    return identity.isEmpty() ? settings.describe() : settings.describe() + identity;
  }

  /**
   * Writes everything that decides the future. Waits for the step that is being done and changes
   * nothing. The key of private noise is not in it.
   */
  public void save(OutputStream stream) throws IOException {
    DataOutputStream out = new DataOutputStream(new BufferedOutputStream(stream));
    whileOpen(
        () -> {
          write(out);
          return null;
        });
    out.flush();
  }

  private void write(DataOutput out) throws IOException {
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
    WeightState.write(out, state.checkpoint());
    WeightState.write(out, good);
    WeightState.write(out, beginning);
    metrics.save(out);
    for (DriftDetector detector : detectors) {
      detector.save(out);
    }
    for (List<Example> list : List.of(reservoir, new ArrayList<>(heldOut), sinceGood)) {
      out.writeInt(list.size());
      for (Example example : list) {
        SavedState.write(out, example);
      }
    }
    out.writeInt(MAGIC);
  }

  /**
   * Goes on where a learner with the same settings and a model of the same shape was saved.
   *
   * @throws InputException if the state is damaged, of a newer format, or of other settings; nothing was
   *     changed then
   */
  public void load(InputStream stream) throws IOException {
    changing(
        () -> {
          DataInputStream in = new DataInputStream(new BufferedInputStream(stream));
          try {
            read(in);
            return null;
          } catch (EOFException e) {
            throw new InputException("the learner's saved state is damaged: it ends too early", e);
          }
        });
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

  private void read(DataInput in) throws IOException {
    String described = readHead(in);
    if (!described().equals(described)) {
      throw new InputException(
          "the learner was saved with other settings:\n" + described + "not\n" + described());
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
    WeightState.Checkpoint now = state.read(in);
    WeightState.Checkpoint lastGood = state.read(in);
    WeightState.Checkpoint first = state.read(in);
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
    account(savedPasses); // beside those of this learner, whose versions were seen
    steps = counts[0];
    rateStart = counts[1];
    seen = counts[2];
    learned = counts[3];
    removed = counts[4];
    version = counts[5];
    random = new CounterRandom(settings.seed(), counts[8]);
    usual.set(savedLoss, counts[6], savedNorm, counts[7], savedSpikes);
    System.arraycopy(multipliers, 0, loss.multipliers(), 0, multipliers.length);
    good = lastGood;
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
    heldOut.clear();
    heldOut.addAll(held);
    sinceGood.clear();
    sinceGood.addAll(suspects);
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

  /**
   * Frees the memory of versions and optimizer, once the predictions that are under way are done; later
   * ones, and learning, throw.
   */
  @Override
  public synchronized void close() {
    if (closed) {
      return;
    }
    checkOutsideListener();
    closed = true;
    versions.close();
    if (teacher != null) {
      teacher.close();
    }
    loss.close();
    state.close();
  }
}

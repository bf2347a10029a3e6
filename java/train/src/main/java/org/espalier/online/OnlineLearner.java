package org.espalier.online;

import java.io.EOFException;
import java.io.IOException;
import java.io.InputStream;
import java.io.OutputStream;
import java.util.Collections;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.WeakHashMap;
import java.util.function.Consumer;
import org.espalier.InputException;
import org.espalier.format.onnx.OnnxModel;
import org.espalier.online.privacy.PrivacyBudgetException;
import org.espalier.online.privacy.PrivacyPass;

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
 * thread and in either order: who closes waits for what is under way; whatever predicts, learns, or reads or writes weights or
 * states later throws an {@link IllegalStateException}. What was counted and measured, versions, passes and shapes are told
 * after that too. A model has one learner at a time: the next one may be made when that one is closed.
 */
public final class OnlineLearner implements AutoCloseable {
  /** The models that learners have which are not closed. Weak: a model that is forgotten with its learner goes. */
  private static final Set<Learnable> TAKEN =
      Collections.synchronizedSet(Collections.newSetFromMap(new WeakHashMap<>()));

  private final Learnable model;
  private final LearnerEvents events = new LearnerEvents();
  private final SequentialLearner learner;
  private final Versions<Predictor> versions;
  private boolean closed;

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

  /**
   * A learner of a model as it is now. Its first version, 1, is published at once.
   *
   * @throws IllegalStateException if another learner has the model and is not closed
   */
  public OnlineLearner(Learnable model, OnlineSettings settings) {
    this(model, settings, null);
  }

  /**
   * A learner of a model as it is now.
   *
   * @param noiseKey the key of the noise of private learning, which must stay secret; null for a
   *     new one from the system's source
   * @throws IllegalStateException if another learner has the model and is not closed
   */
  public OnlineLearner(Learnable model, OnlineSettings settings, Long noiseKey) {
    this.model = model;
    if (!TAKEN.add(model)) {
      throw new IllegalStateException(
          "another learner has this model, and both would write its weights: close that one first,"
              + " or give this one a model of its own");
    }
    try {
      learner = new SequentialLearner(model, settings, noiseKey, events);
    } catch (RuntimeException | Error e) {
      TAKEN.remove(model);
      throw e;
    }
    this.versions = learner.versions();
  }

  /** Where examples go that the guard takes out; null for nowhere. The learner does not close it. */
  public synchronized void quarantine(Quarantine file) {
    events.quarantine(file);
  }

  /**
   * Is told of every event, in the learning thread and amid a step: it may look at the learner, and has another
   * thread do what changes or closes it. Events are then logged too: as warnings, and as debug messages when there
   * are many of a kind.
   */
  public synchronized void onEvent(Consumer<Event> listener) {
    events.add(listener);
  }

  public OnlineSettings settings() {
    return learner.settings();
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
      learner.form().checkLength(features[i]);
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
    return learner.version();
  }

  // ---- learning

  /**
   * Checks that an example fits the model.
   *
   * @throws InputException that says what does not fit
   */
  public void check(Example example) {
    learner.form().check(example);
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
    if (events.isTelling()) {
      throw new IllegalStateException(
          "a listener cannot change or close the learner that tells it of an event; another thread"
              + " can, once the step is done");
    }
  }

  /**
   * Measures and learns examples, in batches of the settings' size.
   *
   * @throws InputException if one does not {@linkplain #check fit}; nothing was learned then
   * @throws PrivacyBudgetException if epsilon would be above the settings' limit; nothing was learned then
   */
  public Report learn(List<Example> examples) {
    return changing(() -> learner.learn(examples));
  }

  /**
   * Gives the newest version a number of at least {@code least}: where a learner that has answered takes over
   * an older state, no number shall name two versions.
   */
  public synchronized void numberFrom(long least) {
    if (learner.version() < least) {
      changing(
          () -> {
            learner.publish(least);
            return null;
          });
    }
  }

  // ---- numbers

  /** Prequential metrics by name, and, as {@code distance}, how far the last batch was from the constraint's target. */
  public synchronized Map<String, Double> metrics() {
    return learner.metrics();
  }

  /** Steps that were done. */
  public synchronized long steps() {
    return learner.steps();
  }

  /** Examples that came. */
  public synchronized long seen() {
    return learner.seen();
  }

  /** Examples that were learned. */
  public synchronized long learned() {
    return learner.learned();
  }

  /** Examples that the guard took out or took back. */
  public synchronized long removed() {
    return learner.removed();
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
    return learner.ledger().epsilon();
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
    learner.ledger().pass(stream, from, to);
  }

  /** The examples that come now are from another stream, or from an earlier place of this one. */
  public synchronized void beginPass() {
    learner.ledger().beginPass();
  }

  /** Takes passes of other learners into account; ones that it knows, and its own, count once. */
  public synchronized void account(List<PrivacyPass> others) {
    learner.ledger().account(others);
  }

  /** The passes that {@link #epsilon} is of; none without privacy. */
  public synchronized List<PrivacyPass> passes() {
    return learner.ledger().passes();
  }

  /**
   * Looks whether the next step would bring {@link #epsilon} above the settings' limit, as {@link #learn}
   * does.
   *
   * @throws PrivacyBudgetException if so
   */
  public synchronized void checkBudget() {
    learner.ledger().checkBudget();
  }

  /** The served weights, by name, in new arrays. */
  public Map<String, float[]> weights() {
    return whileOpen(learner::weights);
  }

  /**
   * The served model as ONNX: inputs, outputs and nodes are those that the model has, or for a linear
   * model {@code features} → {@code outputs}, and {@code probabilities} where it learns classes.
   *
   * @throws InputException if the model cannot be written as ONNX
   */
  public synchronized OnnxModel toOnnx() {
    return model.toOnnx(weights(), settings().loss());
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
          learner.adopt(other);
          return null;
        });
  }

  /** What learns, to be looked at: its weights change as it learns. */
  public Learnable model() {
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

  /**
   * Writes everything that decides the future. Waits for the step that is being done and changes
   * nothing. The key of private noise is not in it.
   */
  public void save(OutputStream stream) throws IOException {
    whileOpen(
        () -> {
          learner.write(stream);
          return null;
        });
  }

  /**
   * Goes on where a learner with the same settings and a model of the same shape was saved. A checksum tells of damage,
   * not of who has made a state; states of the formats 3 and 4 have none, and of theirs only what cannot be is noticed.
   *
   * @throws InputException if the state is damaged, of a newer format, or of other settings; nothing was
   *     changed then
   */
  public void load(InputStream stream) throws IOException {
    changing(
        () -> {
          try {
            learner.read(stream);
            return null;
          } catch (EOFException e) {
            throw new InputException("the learner's saved state is damaged: it ends too early", e);
          }
        });
  }

  /**
   * The passes of private learning of which a saved state tells.
   *
   * @throws InputException if it is damaged or of a newer format
   */
  public static List<PrivacyPass> passes(InputStream stream) throws IOException {
    return LearnerState.passes(stream);
  }

  /**
   * Frees the memory of versions and optimizer, once the predictions that are under way are done; later
   * ones, and learning, throw. Another learner may have the model then.
   */
  @Override
  public synchronized void close() {
    if (closed) {
      return;
    }
    checkOutsideListener();
    closed = true;
    try {
      learner.close();
    } finally {
      TAKEN.remove(model);
    }
  }
}

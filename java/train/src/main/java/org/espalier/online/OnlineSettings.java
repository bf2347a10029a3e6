package org.espalier.online;

import java.util.Objects;
import java.util.Set;
import java.util.TreeSet;
import org.espalier.online.drift.DriftDetectors;
import org.espalier.online.privacy.Privacy;
import org.espalier.op.FusedAdamW;

/**
 * How an {@link OnlineLearner} learns. Immutable; {@link #builder} has defaults for all but the loss
 * and the learning rate.
 *
 * @param loss what is minimised
 * @param constraint ties the outputs to a target of the outcome, or null
 * @param rate the learning rate
 * @param momentum at least 0
 * @param weightDecay at least 0; decoupled with AdamW
 * @param adamW instead of gradient descent with momentum, or null
 * @param batch the most examples of a step, replayed ones not counted
 * @param publishEvery readers get a new version every so many steps
 * @param replay how old examples are mixed in, or null
 * @param averaging readers get the fading mean of the weights, w̄ ← averaging · w̄ + (1 − averaging) · w;
 *     0 for the weights themselves
 * @param only the weights that are learned, by name; empty for all
 * @param keepZeros weights of matrices that are zero at the beginning stay zero: what was pruned
 * @param int8 readers and forward see matrices on the int8 grid, one scale an output
 * @param sparseRows how tables are learned that rows are looked up in
 * @param guard which rules watch
 * @param drift what is done about a change of the world, or null
 * @param privacy differentially private learning, or null
 * @param window how many predictions the windowed metrics cover
 * @param fade of the fading metrics, in (0, 1)
 * @param seed of the replay's random choices
 */
public record OnlineSettings(
    Loss loss,
    ZeroDistance constraint,
    LearningRate rate,
    double momentum,
    double weightDecay,
    AdamW adamW,
    int batch,
    int publishEvery,
    Replay replay,
    double averaging,
    Set<String> only,
    boolean keepZeros,
    boolean int8,
    SparseRows sparseRows,
    Guard guard,
    Drift drift,
    Privacy privacy,
    int window,
    double fade,
    long seed) {
  static final int MOST_BATCH = 1 << 20;

  static final int MOST_WINDOW = 1 << 24;

  /**
   * Loshchilov and Hutter, "Decoupled weight decay regularization" (2019).
   *
   * @param beta1 of the first moment, in [0, 1)
   * @param beta2 of the second moment, in [0, 1)
   * @param epsilon above 0
   */
  public record AdamW(double beta1, double beta2, double epsilon) {
    /** What PyTorch takes where nothing is said. */
    public static final AdamW DEFAULTS = new AdamW(0.9, 0.999, 1e-8);

    public AdamW {
      FusedAdamW.Options.of(0).withBetas(beta1, beta2).withEpsilon(epsilon); // checks
    }
  }

  /**
   * A uniform sample of all examples so far (Vitter, "Random sampling with a reservoir", 1985).
   *
   * @param capacity examples that are kept
   * @param perStep examples of it that are learned with each batch
   */
  public record Replay(int capacity, int perStep) {
    public Replay {
      if (capacity < 1 || perStep < 1 || perStep > capacity) {
        throw new IllegalArgumentException("capacity " + capacity + ", per step " + perStep);
      }
    }
  }

  /**
   * Detection of a rise of the error's mean by ADWIN and by the test of Page and Hinkley. Errors that become fewer are no
   * drift.
   *
   * @param delta ADWIN's chance of a false alarm, in (0, 1)
   * @param slack of Page and Hinkley: rises below it do not count
   * @param threshold of Page and Hinkley: how far the sum rises before it alarms
   * @param action what an alarm does
   */
  public record Drift(double delta, double slack, double threshold, Action action) {
    /** What an alarm does. */
    public enum Action {
      /** It is logged. */
      REPORT,
      /** Momentum is forgotten and the schedule of the learning rate begins anew. */
      RESTART,
      /** The weights go back to the beginning too, and detection begins anew. */
      RESET
    }

    public Drift {
      DriftDetectors.of(delta, slack, threshold); // checks
      Objects.requireNonNull(action, "action");
    }

    /** ADWIN with 0.002, Page-Hinkley with 0.005 and 50: what the field uses. */
    public static Drift of(Action action) {
      return new Drift(0.002, 0.005, 50, action);
    }
  }

  /**
   * Whether a step changes only the rows of a table that its batch has looked up, and costs what these do, or goes through
   * the whole of it. It can be by rows where the model is of ONNX, looks rows up in the table, and reads it in no other
   * way; all else is learned as a whole. By rows, momentum, the moments of Adam and weight decay of a row move in the
   * steps that read it and in no others, which is the lazy Adam of the field (torch.optim.SparseAdam of PyTorch). The norm
   * that the guard looks at is of all other gradients and of the rows that were read: the same but for the order of the
   * sum, so that a step that the guard scales down may differ in the last bit from one on whole tables.
   */
  public enum SparseRows {
    /** By rows where that leaves the weights that a step on whole tables would: descent without momentum and decay. */
    AUTO,
    /** By rows whatever the optimizer is. */
    ALWAYS,
    /** As a whole. */
    NEVER
  }

  public OnlineSettings {
    Objects.requireNonNull(loss, "loss");
    Objects.requireNonNull(rate, "rate");
    Objects.requireNonNull(sparseRows, "sparse rows");
    Objects.requireNonNull(guard, "guard");
    only = Set.copyOf(only);
    check(momentum >= 0 && momentum < 1, "momentum " + momentum + "; [0, 1) is right");
    check(
        weightDecay >= 0 && weightDecay <= Float.MAX_VALUE,
        "weight decay " + weightDecay + "; 0 or more is right");
    check(adamW == null || momentum == 0, "AdamW has moments of its own: no momentum beside it");
    check(
        batch >= 1 && batch <= MOST_BATCH, "batch " + batch + "; 1 to " + MOST_BATCH + " is right");
    check(publishEvery >= 1, "publish every " + publishEvery + " steps; 1 or more is right");
    check(averaging >= 0 && averaging < 1, "averaging " + averaging + "; [0, 1) is right");
    check(averaging == 0 || !int8, "averaged weights are not on the int8 grid: not both");
    check(
        averaging == 0 || sparseRows != SparseRows.ALWAYS,
        "the mean of the weights moves in all rows at each step: no averaging with sparse rows");
    check(
        privacy == null || sparseRows != SparseRows.ALWAYS,
        "private learning adds noise to all rows, or it would tell which were read: no sparse rows"
            + " with privacy");
    check(
        window >= 1 && window <= MOST_WINDOW,
        "window " + window + "; 1 to " + MOST_WINDOW + " is right");
    check(fade > 0 && fade < 1, "fade " + fade + "; (0, 1) is right");
    if (constraint != null) {
      constraint.check(loss);
    }
    if (privacy != null) {
      check(replay == null, "replay learns an example twice, which private learning cannot");
      check(
          constraint == null, "the distance of a batch is not private: no constraint with privacy");
      check(
          guard.equals(Guard.MINIMAL) && (drift == null || drift.action() == Drift.Action.REPORT),
          "rules that look at losses and then change the weights would tell about examples: only"
              + " Guard.MINIMAL and reported drift with privacy");
    }
  }

  private static void check(boolean right, String message) {
    if (!right) {
      throw new IllegalArgumentException(message);
    }
  }

  /** What detects drift, at its beginning. */
  DriftDetectors detectors() {
    return drift == null
        ? DriftDetectors.none()
        : DriftDetectors.of(drift.delta(), drift.slack(), drift.threshold());
  }

  /** Whether tables that can be are learned by rows. */
  boolean learnsByRows() {
    return switch (sparseRows) {
      case ALWAYS -> true;
      case NEVER -> false;
      case AUTO ->
          adamW == null && momentum == 0 && weightDecay == 0 && averaging == 0 && privacy == null;
    };
  }

  /** Whether tables are learned as a whole only because nobody asked for lazy momentum, moments and decay. */
  boolean couldLearnByRows() {
    return sparseRows == SparseRows.AUTO && !learnsByRows() && averaging == 0 && privacy == null;
  }

  /** Everything that decides what is learned, as text: kept with versions, compared on resume. */
  public String describe() {
    String tie =
        constraint == null
            ? "none"
            : (constraint.augmented() ? "augmented " : "penalty ")
                + constraint.rho()
                + (constraint.target().name().isEmpty() ? "" : " to " + constraint.target().name());
    return String.join(
        "\n",
        "loss: " + loss,
        "constraint: " + tie,
        "rate: " + rate,
        "momentum: " + momentum,
        "weight decay: " + weightDecay,
        "adamw: " + adamW,
        "batch: " + batch,
        "publish every: " + publishEvery,
        "replay: " + replay,
        "averaging: " + averaging,
        "only: " + new TreeSet<>(only),
        "keep zeros: " + keepZeros,
        "int8: " + int8 + (sparseRows == SparseRows.ALWAYS ? "\nsparse rows: always" : ""),
        "guard: " + guard,
        "drift: " + drift,
        "privacy: " + (privacy == null ? null : privacy.withMaxEpsilon(Double.POSITIVE_INFINITY)),
        "window: " + window + ", fade " + fade,
        "seed: " + seed,
        "");
  }

  public static Builder builder(Loss loss, LearningRate rate) {
    return new Builder(loss, rate);
  }

  /** Collects settings. */
  public static final class Builder {
    private final Loss loss;
    private final LearningRate rate;
    private ZeroDistance constraint;
    private double momentum;
    private double weightDecay;
    private AdamW adamW;
    private int batch = 32;
    private int publishEvery = 1;
    private Replay replay;
    private double averaging;
    private Set<String> only = Set.of();
    private boolean keepZeros;
    private boolean int8;
    private SparseRows sparseRows = SparseRows.AUTO;
    private Guard guard = Guard.MINIMAL;
    private Drift drift;
    private Privacy privacy;
    private int window = 1000;
    private double fade = 0.995;
    private long seed = 1;

    private Builder(Loss loss, LearningRate rate) {
      this.loss = loss;
      this.rate = rate;
    }

    public Builder constraint(ZeroDistance value) {
      constraint = value;
      return this;
    }

    public Builder momentum(double value) {
      momentum = value;
      return this;
    }

    public Builder weightDecay(double value) {
      weightDecay = value;
      return this;
    }

    public Builder adamW(AdamW value) {
      adamW = value;
      return this;
    }

    public Builder batch(int value) {
      batch = value;
      return this;
    }

    public Builder publishEvery(int steps) {
      publishEvery = steps;
      return this;
    }

    public Builder replay(Replay value) {
      replay = value;
      return this;
    }

    public Builder averaging(double value) {
      averaging = value;
      return this;
    }

    public Builder only(Set<String> names) {
      only = names;
      return this;
    }

    public Builder keepZeros(boolean value) {
      keepZeros = value;
      return this;
    }

    public Builder int8(boolean value) {
      int8 = value;
      return this;
    }

    public Builder sparseRows(SparseRows value) {
      sparseRows = value;
      return this;
    }

    public Builder guard(Guard value) {
      guard = value;
      return this;
    }

    public Builder drift(Drift value) {
      drift = value;
      return this;
    }

    public Builder privacy(Privacy value) {
      privacy = value;
      return this;
    }

    public Builder window(int value) {
      window = value;
      return this;
    }

    public Builder fade(double value) {
      fade = value;
      return this;
    }

    public Builder seed(long value) {
      seed = value;
      return this;
    }

    public OnlineSettings build() {
      return new OnlineSettings(
          loss,
          constraint,
          rate,
          momentum,
          weightDecay,
          adamW,
          batch,
          publishEvery,
          replay,
          averaging,
          only,
          keepZeros,
          int8,
          sparseRows,
          guard,
          drift,
          privacy,
          window,
          fade,
          seed);
    }
  }
}

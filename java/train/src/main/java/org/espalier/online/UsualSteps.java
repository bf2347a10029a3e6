package org.espalier.online;

import java.util.Locale;

/** What losses and gradients of steps usually are, by which the {@link Guard} knows one that would harm the model. */
final class UsualSteps {
  /** The weight of the past in the means. */
  private static final double MEMORY = 0.98;

  private final Guard guard;
  private double meanLoss;
  private long lossesSeen;
  private double meanNorm;
  private long normsSeen;
  private int spikesInARow;

  /**
   * What was seen of losses and norms.
   *
   * @param losses how many
   * @param norms how many
   */
  record Seen(double meanLoss, long losses, double meanNorm, long norms, int spikesInARow) {}

  UsualSteps(Guard guard) {
    this.guard = guard;
  }

  /**
   * Adds a loss, unless it is a spike: there the step is not to be done. Of too many in a row the next counts.
   *
   * @return how it is one; null where it is none, or nobody asks
   */
  String spike(double loss) {
    Guard.Spike rule = guard.spike();
    if (rule == null) {
      return null;
    }
    // Multipliers can make a loss negative, and a multiple of that would be below it.
    double limit = meanLoss >= 0 ? rule.factor() * meanLoss : (2 - rule.factor()) * meanLoss;
    boolean spike = lossesSeen >= rule.warmup() && loss > limit;
    if (spike && spikesInARow < rule.inARow()) {
      spikesInARow++;
      return String.format(
          Locale.ROOT,
          "the loss %.4g is more than %.3g times the mean %.4g; %d in a row",
          loss,
          rule.factor(),
          meanLoss,
          spikesInARow);
    }
    if (!spike) {
      spikesInARow = 0;
    }
    meanLoss = lossesSeen++ == 0 ? loss : MEMORY * meanLoss + (1 - MEMORY) * loss;
    return null;
  }

  /** The largest norm of a gradient that is let through; only where there is a rule for norms. */
  double normLimit() {
    Guard.Norm rule = guard.norm();
    double usual = normsSeen >= rule.warmup() ? rule.factor() * meanNorm : Double.MAX_VALUE;
    return Math.min(usual, rule.limit());
  }

  /** How a norm is above {@link #normLimit}. */
  String largeNorm(double norm) {
    Guard.Norm rule = guard.norm();
    return normLimit() == rule.limit()
        ? String.format(
            Locale.ROOT, "the gradient's norm %.4g is more than the limit %.4g", norm, rule.limit())
        : String.format(
            Locale.ROOT,
            "the gradient's norm %.4g is more than %.3g times the mean %.4g",
            norm,
            rule.factor(),
            meanNorm);
  }

  /** Adds a norm to what is usual. */
  void addNorm(double norm) {
    meanNorm = normsSeen++ == 0 ? norm : MEMORY * meanNorm + (1 - MEMORY) * norm;
  }

  /**
   * In a world that has changed the rules stay awake, because what explodes meanwhile is learned otherwise: what is
   * usual there is what came last, where that is more than before.
   */
  void raise(double loss, double norm) {
    meanLoss = Math.max(meanLoss, loss);
    if (guard.norm() != null) {
      meanNorm = Math.max(meanNorm, norm);
    }
  }

  /** The next spike is the first in a row. */
  void forgetSpikes() {
    spikesInARow = 0;
  }

  /** What comes next is usual. */
  void forget() {
    lossesSeen = 0;
    normsSeen = 0;
  }

  /** What was seen so far. */
  Seen seen() {
    return new Seen(meanLoss, lossesSeen, meanNorm, normsSeen, spikesInARow);
  }

  /** Takes what was saved. */
  void set(Seen saved) {
    meanLoss = saved.meanLoss();
    lossesSeen = saved.losses();
    meanNorm = saved.meanNorm();
    normsSeen = saved.norms();
    spikesInARow = saved.spikesInARow();
  }
}

package org.espalier.online;

/**
 * Which rules watch the learning. Non-finite numbers are always caught: an example whose outputs are
 * not finite is taken out of its batch, a step with a gradient that is not finite is not done. The
 * other rules are on where they are not null.
 *
 * @param norm on gradients that are much longer than usual
 * @param spike on batches whose loss is much larger than usual
 * @param quality on versions that are worse than the last good one
 */
public record Guard(Norm norm, Spike spike, Quality quality) {
  /** Only non-finite numbers. */
  public static final Guard MINIMAL = new Guard(null, null, null);

  /**
   * A gradient is an outlier where its norm is more than {@code factor} times the fading mean of the
   * norms, after {@code warmup} steps, or, from the first step on, more than {@code limit}.
   *
   * @param clip scale it down to that; else skip the step
   * @param limit above 0; {@link Double#MAX_VALUE} for none
   */
  public record Norm(double factor, int warmup, boolean clip, double limit) {
    public Norm {
      above(1, "factor", factor);
      atLeast(1, "warmup", warmup);
      above(0, "limit", limit);
    }

    /** Without a limit. */
    public Norm(double factor, int warmup, boolean clip) {
      this(factor, warmup, clip, Double.MAX_VALUE);
    }
  }

  /**
   * A batch is a spike where its loss is more than {@code factor} times the fading mean of the losses,
   * after {@code warmup} steps (where multipliers make the mean negative, where it is above the mean by
   * {@code factor} − 1 times the mean's size); it is not learned. After {@code inARow} of them the world has changed
   * and they are learned. It is for batches: of single examples, a model that is sure of most finds
   * every surprise a spike, and would not learn from what it does not know yet.
   */
  public record Spike(double factor, int warmup, int inARow) {
    public Spike {
      above(1, "factor", factor);
      atLeast(1, "warmup", warmup);
      atLeast(1, "in a row", inARow);
    }
  }

  /**
   * Every {@code holdEvery}-th example is held out: measured, not learned. Every {@code checkEvery}
   * examples the weights and the last good ones are compared on the newest {@code window} held-out
   * examples, by the share of wrong classes, or by m / (1 + m) of the mean absolute error m. Where the
   * weights are worse by more than {@code tolerance}, in [0, 1], the last good ones are taken back, and
   * what was learned since is quarantined. The window should be longer than the burst that it is to
   * see through.
   */
  public record Quality(int holdEvery, int window, int checkEvery, double tolerance) {
    public Quality {
      atLeast(2, "hold every", holdEvery);
      atLeast(1, "window", window);
      atLeast(1, "check every", checkEvery);
      if (!(tolerance >= 0 && tolerance <= 1)) {
        throw new IllegalArgumentException("tolerance " + tolerance + "; [0, 1] is right");
      }
    }
  }

  private static void above(double least, String name, double value) {
    if (!(value > least && value <= Double.MAX_VALUE)) {
      throw new IllegalArgumentException(name + " " + value + "; a number above " + least);
    }
  }

  private static void atLeast(int least, String name, int value) {
    if (value < least) {
      throw new IllegalArgumentException(name + " " + value + "; at least " + least + " is right");
    }
  }
}

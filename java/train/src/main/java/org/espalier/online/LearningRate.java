package org.espalier.online;

/** The learning rate of a step; steps count from 0 at the beginning or at a restart. */
public sealed interface LearningRate {
  double at(long step);

  /** Always the same. */
  record Constant(double rate) implements LearningRate {
    public Constant {
      positive("rate", rate);
    }

    @Override
    public double at(long step) {
      return rate;
    }
  }

  /** rate / (1 + step / halfLife)^power. */
  record Inverse(double rate, double halfLife, double power) implements LearningRate {
    public Inverse {
      positive("rate", rate);
      positive("half life", halfLife);
      positive("power", power);
    }

    @Override
    public double at(long step) {
      return rate / StrictMath.pow(1 + step / halfLife, power);
    }
  }

  /** Grows from 0 over {@code warmup} steps, falls as a cosine to {@code end}, and begins anew. */
  record Cosine(double rate, double end, long warmup, long period) implements LearningRate {
    public Cosine {
      positive("rate", rate);
      if (!(end >= 0 && end <= rate) || warmup < 0 || period <= warmup) {
        throw new IllegalArgumentException(
            "end " + end + ", warmup " + warmup + ", period " + period);
      }
    }

    @Override
    public double at(long step) {
      long at = step % period;
      if (at < warmup) {
        return rate * (at + 1) / warmup;
      }
      double done = (double) (at - warmup) / (period - warmup);
      return end + (rate - end) * 0.5 * (1 + StrictMath.cos(Math.PI * done));
    }
  }

  private static void positive(String name, double value) {
    if (!(value > 0 && value <= Float.MAX_VALUE)) {
      throw new IllegalArgumentException(name + " " + value + "; a number above 0 is right");
    }
  }
}

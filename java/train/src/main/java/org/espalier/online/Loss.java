package org.espalier.online;

import org.espalier.op.KdSoftmaxLoss;

/** What learning minimises, for outputs f and an outcome y; each is a mean over the examples. */
public sealed interface Loss {
  /** Whether the outcome is a class. */
  boolean isForClasses();

  /** −log softmax(f)_y; two outputs or more, y a class. */
  record CrossEntropy() implements Loss {
    @Override
    public boolean isForClasses() {
      return true;
    }
  }

  /** −log of the probability that the sigmoid of the one output gives y, which is 0 or 1. */
  record Binary() implements Loss {
    @Override
    public boolean isForClasses() {
      return true;
    }
  }

  /** (f − y)², the mean over the outputs too. */
  record Squared() implements Loss {
    @Override
    public boolean isForClasses() {
      return false;
    }
  }

  /**
   * d²/2 where |d| ≤ delta, else delta · (|d| − delta/2), with d = f − y; the mean over the outputs too.
   * Huber, "Robust estimation of a location parameter" (1964).
   */
  record Huber(double delta) implements Loss {
    public Huber {
      if (!(delta > 0 && delta <= Float.MAX_VALUE)) {
        throw new IllegalArgumentException("delta " + delta + "; a number above 0 is right");
      }
    }

    @Override
    public boolean isForClasses() {
      return false;
    }
  }

  /**
   * alpha · cross entropy + (1 − alpha) · T² · KL(teacher ‖ f) at temperature T + beta · Σ max(0, f −
   * teacher)²: learning that does not forget what the teacher, the model at the beginning, knows.
   */
  record Distillation(double alpha, double temperature, double beta) implements Loss {
    public Distillation {
      new KdSoftmaxLoss.Settings(alpha, temperature, beta, KdSoftmaxLoss.NO_LABEL); // checks
    }

    @Override
    public boolean isForClasses() {
      return true;
    }
  }
}

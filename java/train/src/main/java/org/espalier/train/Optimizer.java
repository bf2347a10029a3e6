package org.espalier.train;

/** The update rule, with the names and the formulas of PyTorch. */
public sealed interface Optimizer {
  /** At least 0; a {@link Training.Schedule} multiplies it. */
  double learningRate();

  /** The largest norm of the gradients of all parameters, to which larger ones are scaled; 0 for no limit. */
  double maxNorm();

  /**
   * torch.optim.SGD.
   *
   * @param momentum at least 0
   * @param nesterov needs momentum above 0
   */
  record Sgd(
      double learningRate, double momentum, double weightDecay, boolean nesterov, double maxNorm)
      implements Optimizer {
    public Sgd {
      atLeastZero("learning rate", learningRate);
      atLeastZero("momentum", momentum);
      atLeastZero("weight decay", weightDecay);
      atLeastZero("max norm", maxNorm);
      if (nesterov && momentum == 0) {
        throw new IllegalArgumentException("Nesterov needs momentum above 0");
      }
    }

    /** Momentum 0.9 and nothing else. */
    public static Sgd of(double learningRate) {
      return new Sgd(learningRate, 0.9, 0, false, 0);
    }
  }

  /**
   * torch.optim.AdamW.
   *
   * @param beta1 in [0, 1)
   * @param beta2 in [0, 1)
   * @param epsilon above 0
   */
  record AdamW(
      double learningRate,
      double beta1,
      double beta2,
      double epsilon,
      double weightDecay,
      double maxNorm)
      implements Optimizer {
    public AdamW {
      atLeastZero("learning rate", learningRate);
      atLeastZero("weight decay", weightDecay);
      atLeastZero("max norm", maxNorm);
      if (!(beta1 >= 0 && beta1 < 1) || !(beta2 >= 0 && beta2 < 1)) {
        throw new IllegalArgumentException(
            "betas " + beta1 + " and " + beta2 + "; both are in [0, 1)");
      }
      if (!(epsilon > 0 && Float.isFinite((float) epsilon))) {
        throw new IllegalArgumentException("epsilon " + epsilon + "; it is above 0");
      }
    }

    /** Betas 0.9 and 0.999, epsilon 1e-8, no weight decay, no clipping. */
    public static AdamW of(double learningRate) {
      return new AdamW(learningRate, 0.9, 0.999, 1e-8, 0, 0);
    }
  }

  private static void atLeastZero(String name, double value) {
    if (!(value >= 0 && Float.isFinite((float) value))) {
      throw new IllegalArgumentException(name + " " + value + "; finite and 0 or more is needed");
    }
  }
}

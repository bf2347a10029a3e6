package org.espalier.train;

import java.util.Objects;

/** One step of a {@link CompressionPlan}: a change of the model, and training under it. */
public sealed interface Stage {
  /** Unique in the plan; reports and checkpoints use it. */
  String name();

  /** How the model is trained in this stage; {@link Training#none()} where it is not. */
  Training training();

  /** The same, trained otherwise. */
  Stage with(Training training);

  /** Removes weights of small magnitude, at once or on a schedule, and holds the mask from then on. */
  record Prune(String name, Pruning pruning, Training training) implements Stage {
    public Prune {
      check(name, training);
      Objects.requireNonNull(pruning, "pruning");
      if (pruning.schedule() == Pruning.Schedule.CUBIC && !training.isAny()) {
        throw new IllegalArgumentException(
            "stage " + name + ": a cubic schedule needs steps of training to run over");
      }
    }

    @Override
    public Stage with(Training other) {
      return new Prune(name, pruning, other);
    }
  }

  /**
   * Puts weights and activations on integer grids. The stage begins with quantization after training
   * (equalization and compensated rounding on calibration examples); its training starts there.
   */
  record Quantize(String name, Quantization quantization, Training training) implements Stage {
    public Quantize {
      check(name, training);
      Objects.requireNonNull(quantization, "quantization");
    }

    @Override
    public Stage with(Training other) {
      return new Quantize(name, quantization, other);
    }
  }

  /**
   * Trains what there is: against labels, the teacher, or both, as its {@link Objective} says.
   *
   * @param teaches whether the model as this stage leaves it is the teacher of those that follow, where the {@link
   *     Compression.Job} names none: they keep what was learned, which the model as it was given would take back
   * @param rank of the product of two matrices that is learned for the weight of each matrix product while the weight
   *     itself rests, and added to it where the stage ends: training takes the memory of these and not of gradients
   *     and moments of all weights. 0 where weights are trained themselves
   */
  record Train(String name, Training training, boolean teaches, int rank) implements Stage {
    /** One that trains weights themselves and is not the teacher of others. */
    public Train(String name, Training training) {
      this(name, training, false);
    }

    /** One that trains weights themselves. */
    public Train(String name, Training training, boolean teaches) {
      this(name, training, teaches, 0);
    }

    public Train {
      check(name, training);
      if (!training.isAny()) {
        throw new IllegalArgumentException("stage " + name + " trains for 0 steps");
      }
      if (rank < 0) {
        throw new IllegalArgumentException("stage " + name + " has the rank " + rank);
      }
    }

    @Override
    public Stage with(Training other) {
      return new Train(name, other, teaches, rank);
    }
  }

  private static void check(String name, Training training) {
    if (name.isBlank()) {
      throw new IllegalArgumentException("a stage needs a name");
    }
    Objects.requireNonNull(training, "training");
  }
}

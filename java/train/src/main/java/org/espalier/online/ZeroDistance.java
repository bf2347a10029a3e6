package org.espalier.online;

import java.util.Arrays;
import java.util.Objects;

/**
 * Zero-distance supervision: the outputs are tied to a target function of the real outcome. Minimise
 * L(f(x), y) subject to f(x) = target(f(x), y), where the target counts as a constant.
 *
 * <p>By penalty, what is minimised is L + rho/2 · mean ‖f − t‖². By augmented Lagrangian it is L + Σ_c
 * λ_c · mean(f_c − t_c) + rho/2 · mean ‖f − t‖², and after each step λ_c grows by learning rate · rho
 * · mean(f_c − t_c): a multiplier an output, because a stream shows an example once, so that one an
 * example would never be used again. (Hestenes, "Multiplier and gradient methods", 1969.)
 *
 * @param target what the outputs shall be
 * @param rho the weight of the distance, above 0
 * @param augmented whether there are multipliers
 */
public record ZeroDistance(Target target, double rho, boolean augmented) {
  /** The outputs' target. */
  public interface Target {
    /**
     * Writes the target of a batch.
     *
     * @param outputs rows · columns values that the model gave, row by row
     * @param outcomes one a row
     * @param target receives rows · columns values
     */
    void write(float[] outputs, int rows, int columns, Example[] outcomes, float[] target);

    /**
     * What to call it, the same in every run: a saved state goes on only with a target of the same name.
     * Empty where nobody gave it one.
     */
    default String name() {
      return "";
    }

    /** Whether it can be used with a loss on classes. */
    default boolean allowsClasses() {
      return true;
    }

    /** Whether it can be used with a loss on values. */
    default boolean allowsValues() {
      return true;
    }
  }

  /** The outcome itself; for losses on values. */
  public static final Target IDENTITY =
      new Target() {
        @Override
        public void write(float[] out, int rows, int columns, Example[] outcomes, float[] target) {
          for (int i = 0; i < rows; i++) {
            System.arraycopy(outcomes[i].values(), 0, target, i * columns, columns);
          }
        }

        @Override
        public String name() {
          return "identity";
        }

        @Override
        public boolean allowsClasses() {
          return false;
        }
      };

  /** 1 for the class of the outcome and 0 for the others; for losses on classes. */
  public static final Target ONE_HOT =
      new Target() {
        @Override
        public void write(float[] out, int rows, int columns, Example[] outcomes, float[] target) {
          Arrays.fill(target, 0, rows * columns, 0);
          for (int i = 0; i < rows; i++) {
            if (columns == 1) {
              target[i] = outcomes[i].label();
            } else {
              target[i * columns + outcomes[i].label()] = 1;
            }
          }
        }

        @Override
        public String name() {
          return "one-hot";
        }

        @Override
        public boolean allowsValues() {
          return false;
        }
      };

  /**
   * The literal form of the idea: every output is to be the largest output of the whole batch, which
   * counts as a constant. For losses on values only: with class indices it would make all classes
   * alike.
   */
  public static final Target BATCH_MAXIMUM =
      new Target() {
        @Override
        public void write(float[] out, int rows, int columns, Example[] outcomes, float[] target) {
          float largest = Float.NEGATIVE_INFINITY;
          for (int i = 0; i < rows * columns; i++) {
            largest = Math.max(largest, out[i]);
          }
          Arrays.fill(target, 0, rows * columns, largest);
        }

        @Override
        public String name() {
          return "batch-maximum";
        }

        @Override
        public boolean allowsClasses() {
          return false;
        }
      };

  /** factor · target + offset. */
  public static Target scaled(Target target, float factor, float offset) {
    if (!Float.isFinite(factor) || !Float.isFinite(offset)) {
      throw new IllegalArgumentException(factor + " and " + offset + " are not both finite");
    }
    return new Target() {
      @Override
      public void write(float[] out, int rows, int columns, Example[] outcomes, float[] scaled) {
        target.write(out, rows, columns, outcomes, scaled);
        for (int i = 0; i < rows * columns; i++) {
          scaled[i] = factor * scaled[i] + offset;
        }
      }

      @Override
      public String name() {
        String name = target.name();
        return name.isEmpty() ? "" : factor + " * " + name + " + " + offset;
      }

      @Override
      public boolean allowsClasses() {
        return target.allowsClasses();
      }

      @Override
      public boolean allowsValues() {
        return target.allowsValues();
      }
    };
  }

  public ZeroDistance {
    Objects.requireNonNull(target, "target");
    if (!(rho > 0 && rho <= Float.MAX_VALUE)) {
      throw new IllegalArgumentException("rho " + rho + "; a number above 0 is right");
    }
  }

  /** Refuses losses that the target makes no sense with. */
  void check(Loss loss) {
    if (loss.isForClasses() ? !target.allowsClasses() : !target.allowsValues()) {
      throw new IllegalArgumentException(
          "this target is not for the loss "
              + loss
              + ": it is for losses on "
              + (loss.isForClasses() ? "values" : "classes"));
    }
  }
}

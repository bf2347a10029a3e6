package org.espalier.op;

import java.util.List;

/**
 * Scale, integers and gate that an optimizer's step leaves beside the weights, one element after the
 * other: in double precision, or with every rounding to float where the kernel rounds.
 */
final class WorkingCopyReference {
  /** One tensor; what is null is absent. Values are floats in double where the rounding is exact. */
  abstract static class State {
    int rows;
    int cols;
    Channel channel = Channel.TENSOR;
    double[] weight;
    float[] gradient;
    boolean[] mask;
    boolean[] gate;
    double[] scale;
    boolean scaleGiven;

    /** The integers of the grid, where there is a scale. */
    int[] integers;

    int channelOf(int i) {
      return switch (channel) {
        case TENSOR -> 0;
        case FIRST_AXIS -> i / cols;
        case LAST_AXIS -> i % cols;
      };
    }

    boolean keeps(int i) {
      return mask == null || mask[i];
    }

    boolean passes(int i) {
      return keeps(i) && (gate == null || gate[i]);
    }
  }

  /** An optimizer's update of one tensor; factor: the clip factor, negative where maximize. */
  interface Update<S extends State> {
    void update(S state, double factor);
  }

  private WorkingCopyReference() {}

  /** The order of a step: norm and finiteness, every update, every working copy. */
  static <S extends State> StepResult step(
      List<S> states,
      double maxNorm,
      boolean skipNonFinite,
      boolean maximize,
      boolean exact,
      Update<S> update) {
    double norm = Double.NaN;
    double clip = 1;
    if (maxNorm > 0 || skipNonFinite) {
      GradientNorm.Result found =
          GradientNormReference.compute(
              states.stream().map(s -> s.gradient).toArray(float[][]::new),
              states.stream().map(s -> s.mask).toArray(boolean[][]::new),
              states.stream().map(s -> s.gate).toArray(boolean[][]::new));
      norm = found.norm();
      if (found.nonFinite() > 0) {
        return new StepResult(norm, 1, true, found.nonFinite(), 0);
      }
      if (maxNorm > 0) {
        clip = Math.min(1, maxNorm / (norm + 1e-6));
      }
    }
    long channels = 0;
    for (S state : states) {
      update.update(state, maximize ? -clip : clip);
      channels += quantize(state, exact);
    }
    return new StepResult(norm, clip, false, 0, channels);
  }

  private static long quantize(State s, boolean exact) {
    if (s.scale == null || s.weight.length == 0) {
      return 0;
    }
    long nonFinite = 0;
    if (!s.scaleGiven) {
      double[] absmax = new double[s.scale.length];
      for (int i = 0; i < s.weight.length; i++) {
        int c = s.channelOf(i);
        absmax[c] = Math.max(absmax[c], Math.abs(s.weight[i])); // NaN wins
      }
      for (int c = 0; c < s.scale.length; c++) {
        double scale = exact ? (float) absmax[c] / 127f : absmax[c] / 127;
        if (!Double.isFinite(absmax[c])) {
          nonFinite++;
          scale = Double.NaN;
        } else if (Float.isInfinite(1f / (float) scale)) {
          scale = 1;
        }
        s.scale[c] = scale;
      }
    }
    for (int i = 0; i < s.weight.length; i++) {
      double scale = s.scale[s.channelOf(i)];
      double q = Math.rint(times(s.weight[i], exact ? 1f / (float) scale : 1 / scale, exact));
      boolean inRange = q >= -127 && q <= 127;
      s.integers[i] = Double.isNaN(q) ? -127 : (int) Math.max(-127, Math.min(127, q));
      if (s.gate != null) {
        s.gate[i] = inRange;
      }
    }
    return nonFinite;
  }

  /** a · b + c, rounded once. */
  static double plus(double a, double b, double c, boolean exact) {
    return exact ? Math.fma((float) a, (float) b, (float) c) : a * b + c;
  }

  static double times(double a, double b, boolean exact) {
    return exact ? (float) a * (float) b : a * b;
  }
}

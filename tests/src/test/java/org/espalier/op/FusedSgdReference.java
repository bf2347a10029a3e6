package org.espalier.op;

import java.util.List;
import org.espalier.op.FusedSgd.Channel;
import org.espalier.op.FusedSgd.Options;

/**
 * fused_sgd, one element after the other: in double precision, or with every rounding to float where
 * the kernel rounds.
 */
final class FusedSgdReference {
  /** One tensor; what is null is absent. Values are floats in double where the rounding is exact. */
  static final class State {
    int rows;
    int cols;
    Channel channel = Channel.TENSOR;
    double[] weight;
    float[] gradient;
    double[] momentum;
    boolean first = true;
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
  }

  private final boolean exact;

  private FusedSgdReference(boolean exact) {
    this.exact = exact;
  }

  /** Every operation rounded to float. */
  static FusedSgd.Result exact(List<State> states, Options options) {
    return new FusedSgdReference(true).step(states, options);
  }

  /** No operation rounded. */
  static FusedSgd.Result inDouble(List<State> states, Options options) {
    return new FusedSgdReference(false).step(states, options);
  }

  private FusedSgd.Result step(List<State> states, Options options) {
    double norm = Double.NaN;
    double clip = 1;
    long nonFinite = 0;
    if (options.maxNorm() > 0 || options.skipNonFinite()) {
      GradientNorm.Result found =
          GradientNormReference.compute(
              states.stream().map(s -> s.gradient).toArray(float[][]::new),
              states.stream().map(s -> s.mask).toArray(boolean[][]::new),
              states.stream().map(s -> s.gate).toArray(boolean[][]::new));
      norm = found.norm();
      nonFinite = found.nonFinite();
      if (nonFinite > 0) {
        return new FusedSgd.Result(norm, 1, true, nonFinite, 0);
      }
      if (options.maxNorm() > 0) {
        clip = Math.min(1, options.maxNorm() / (norm + 1e-6));
      }
    }
    long channels = 0;
    for (State state : states) {
      update(state, options, options.maximize() ? -clip : clip);
      channels += quantize(state);
    }
    return new FusedSgd.Result(norm, clip, false, nonFinite, channels);
  }

  private void update(State s, Options o, double factor) {
    for (int i = 0; i < s.weight.length; i++) {
      boolean kept = s.mask == null || s.mask[i];
      boolean passes = kept && (s.gate == null || s.gate[i]);
      double d = times(passes ? s.gradient[i] : 0, factor);
      if (o.weightDecay() != 0) {
        d = plus(o.weightDecay(), s.weight[i], d);
      }
      if (o.momentum() != 0) {
        double b =
            s.first ? d : plus(1 - o.dampening(), d, times(s.momentum[i], o.momentum()));
        d = o.nesterov() ? plus(o.momentum(), b, d) : b;
        s.momentum[i] = kept ? b : 0;
      }
      s.weight[i] = kept ? plus(-o.learningRate(), d, s.weight[i]) : 0;
    }
    if (o.momentum() != 0) {
      s.first = false;
    }
  }

  private long quantize(State s) {
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
      double q = Math.rint(times(s.weight[i], exact ? 1f / (float) scale : 1 / scale));
      boolean inRange = q >= -127 && q <= 127;
      s.integers[i] = Double.isNaN(q) ? -127 : (int) Math.max(-127, Math.min(127, q));
      if (s.gate != null) {
        s.gate[i] = inRange;
      }
    }
    return nonFinite;
  }

  /** a · b + c. */
  private double plus(double a, double b, double c) {
    return exact ? Math.fma((float) a, (float) b, (float) c) : a * b + c;
  }

  private double times(double a, double b) {
    return exact ? (float) a * (float) b : a * b;
  }
}

package org.espalier.op;

import java.util.List;
import org.espalier.op.FusedAdamW.Options;

/**
 * fused_adamw, one element after the other: in double precision, or with every rounding to float where
 * the kernel rounds.
 */
final class FusedAdamWReference {
  static final class State extends WorkingCopyReference.State {
    double[] firstMoment;
    double[] secondMoment;
    long steps;
  }

  private final boolean exact;

  private FusedAdamWReference(boolean exact) {
    this.exact = exact;
  }

  /** Every operation rounded to float. */
  static StepResult exact(List<State> states, Options options) {
    return new FusedAdamWReference(true).step(states, options);
  }

  /** No operation rounded. */
  static StepResult inDouble(List<State> states, Options options) {
    return new FusedAdamWReference(false).step(states, options);
  }

  private StepResult step(List<State> states, Options o) {
    return WorkingCopyReference.step(
        states,
        o.maxNorm(),
        o.skipNonFinite(),
        o.maximize(),
        exact,
        (state, factor) -> update(state, o, factor));
  }

  private void update(State s, Options o, double factor) {
    s.steps++;
    double rate = -o.learningRate() / (1 - Math.pow(o.beta1(), s.steps));
    double root = 1 / Math.sqrt(1 - Math.pow(o.beta2(), s.steps));
    double decay = 1 - o.learningRate() * o.weightDecay();
    for (int i = 0; i < s.weight.length; i++) {
      double g = times(s.passes(i) ? s.gradient[i] : 0, factor);
      double m = s.steps == 1 ? 0 : times(s.firstMoment[i], o.beta1());
      double v = s.steps == 1 ? 0 : times(s.secondMoment[i], o.beta2());
      m = plus(g, 1 - o.beta1(), m);
      v = plus(times(g, 1 - o.beta2()), g, v);
      double denominator = plus(rounded(Math.sqrt(v)), root, o.epsilon());
      double w = plus(rounded(m / denominator), rate, times(s.weight[i], decay));
      s.weight[i] = s.keeps(i) ? w : 0;
      s.firstMoment[i] = s.keeps(i) ? normal(m) : 0;
      s.secondMoment[i] = s.keeps(i) ? normal(v) : 0;
    }
  }

  private static double normal(double moment) {
    return Math.abs(moment) < Float.MIN_NORMAL ? 0 : moment;
  }

  /** A root or quotient of two floats: rounded to double first, which changes nothing. */
  private double rounded(double x) {
    return exact ? (float) x : x;
  }

  private double plus(double a, double b, double c) {
    return WorkingCopyReference.plus(a, b, c, exact);
  }

  private double times(double a, double b) {
    return WorkingCopyReference.times(a, b, exact);
  }
}

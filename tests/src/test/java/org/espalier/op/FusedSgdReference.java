package org.espalier.op;

import java.util.List;
import org.espalier.op.FusedSgd.Options;

/**
 * fused_sgd, one element after the other: in double precision, or with every rounding to float where
 * the kernel rounds.
 */
final class FusedSgdReference {
  static final class State extends WorkingCopyReference.State {
    double[] momentum;
    boolean first = true;
  }

  private final boolean exact;

  private FusedSgdReference(boolean exact) {
    this.exact = exact;
  }

  /** Every operation rounded to float. */
  static StepResult exact(List<State> states, Options options) {
    return new FusedSgdReference(true).step(states, options);
  }

  /** No operation rounded. */
  static StepResult inDouble(List<State> states, Options options) {
    return new FusedSgdReference(false).step(states, options);
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
    for (int i = 0; i < s.weight.length; i++) {
      double d = times(s.passes(i) ? s.gradient[i] : 0, factor);
      if (o.weightDecay() != 0) {
        d = plus(o.weightDecay(), s.weight[i], d);
      }
      if (o.momentum() != 0) {
        double b = s.first ? d : plus(1 - o.dampening(), d, times(s.momentum[i], o.momentum()));
        d = o.nesterov() ? plus(o.momentum(), b, d) : b;
        s.momentum[i] = s.keeps(i) ? b : 0;
      }
      s.weight[i] = s.keeps(i) ? plus(-o.learningRate(), d, s.weight[i]) : 0;
    }
    if (o.momentum() != 0) {
      s.first = false;
    }
  }

  private double plus(double a, double b, double c) {
    return WorkingCopyReference.plus(a, b, c, exact);
  }

  private double times(double a, double b) {
    return WorkingCopyReference.times(a, b, exact);
  }
}

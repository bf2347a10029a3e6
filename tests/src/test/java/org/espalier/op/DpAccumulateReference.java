package org.espalier.op;

/** The formulas of {@link DpAccumulate} in double. */
final class DpAccumulateReference {
  private DpAccumulateReference() {}

  /** min(1, bound / norm of a list). */
  static double factor(float[][] gradients, double bound) {
    double squares = 0;
    for (float[] gradient : gradients) {
      for (float g : gradient) {
        squares += (double) g * g;
      }
    }
    return Math.min(1, bound / Math.sqrt(squares));
  }
}

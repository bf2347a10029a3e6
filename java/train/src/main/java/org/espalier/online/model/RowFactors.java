package org.espalier.online.model;

import java.nio.FloatBuffer;

/**
 * By what the gradients of single rows are multiplied, so that none is longer than a bound: what differentially private
 * learning adds up. A gradient is linear in the slopes of the outputs, so slopes are what is scaled.
 *
 * @param of 1, or less where a row was longer
 * @param clipped how many are less
 */
record RowFactors(float[] of, int clipped) {
  /** For the roundings of factor, slope and products, so that they cannot exceed the bound. */
  private static final double MARGIN = 1 - 0x1p-21;

  /**
   * @param squares of the norms; NaN gives NaN
   * @param bound above 0
   */
  static RowFactors of(double[] squares, double bound) {
    float[] factors = new float[squares.length];
    int clipped = 0;
    for (int i = 0; i < factors.length; i++) {
      double norm = Math.sqrt(squares[i]);
      factors[i] = 1;
      if (!(norm <= bound)) {
        factors[i] = (float) (bound / norm * MARGIN);
        clipped++;
      }
    }
    return new RowFactors(factors, clipped);
  }

  /** Multiplies the slopes of each row. */
  void scale(FloatBuffer slopes, int columns) {
    for (int i = 0; i < of.length; i++) {
      for (int at = i * columns; of[i] != 1 && at < (i + 1) * columns; at++) {
        slopes.put(at, of[i] * slopes.get(at));
      }
    }
  }
}

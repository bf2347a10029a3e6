package org.espalier.compress.onnx.fitting;

import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;

/**
 * A block on the diagonal of the second moments H of an activation, of which nothing else is known.
 *
 * @param from the first channel
 * @param lower its lower triangle, row i holding the entries from the block's first to (i, i)
 */
record MomentBlock(int from, double[][] lower) {
  /** Share of the mean of H's diagonal that is added to it: fewer rows than channels stay solvable. */
  static final double DAMPING = 0.01;

  /**
   * The blocks of H.
   *
   * @param lower lower triangle of H, row i holding the entries from the first of its block to (i, i), so that a row
   *     of one entry starts a block
   */
  static List<MomentBlock> of(double[][] lower) {
    List<MomentBlock> blocks = new ArrayList<>();
    for (int from = 0, to; from < lower.length; from = to) {
      to = from + 1;
      while (to < lower.length && lower[to].length > 1) {
        to++;
      }
      blocks.add(new MomentBlock(from, Arrays.copyOfRange(lower, from, to)));
    }
    return blocks;
  }

  int size() {
    return lower.length;
  }

  /** The sum of the diagonal. */
  double trace() {
    double trace = 0;
    for (int i = 0; i < lower.length; i++) {
      trace += lower[i][i];
    }
    return trace;
  }

  /** An entry of the block, counted from its first channel. */
  double get(int row, int column) {
    return lower[Math.max(row, column)][Math.min(row, column)];
  }
}

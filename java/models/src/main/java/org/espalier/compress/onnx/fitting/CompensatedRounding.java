package org.espalier.compress.onnx.fitting;

import java.util.Arrays;
import java.util.Comparator;
import java.util.List;
import java.util.stream.IntStream;
import org.espalier.format.Float8;

/**
 * Rounds a matrix W [K, N] to integers with one scale a column so that the products x·W keep their values for
 * the activations x of calibration: rows are rounded one after the other, and the error of each is taken
 * up by the rows not yet rounded in the proportion that the second moments H of x give. This is OPTQ
 * (Frantar et al. 2023, arXiv 2210.17323) with its order of rows by descending H_kk, by the factor of H in place of that of its inverse,
 * which takes half the time: conditional on what is rounded, the best of the others is the same. Where H is known in
 * blocks on its diagonal, only rows of one block take up each other's errors.
 *
 * <p>An instance holds the factors of one H and serves all matrices that the same activation feeds. Immutable
 * and safe for several threads.
 */
public final class CompensatedRounding {
  /** The factor by which damping grows where it is not enough. */
  private static final double MORE_DAMPING = 10;

  private static final int COLUMNS = 128;

  /** Rows whose errors later ones take up together, as they lie in the first-level cache with a row's columns. */
  private static final int LAZY = 32;

  /**
   * Rows of W that take up each other's errors.
   *
   * @param order the rows as they are rounded
   * @param shares what of the error of row i the rows behind it in that order take up, from row i + 1 on
   */
  private record Block(int[] order, float[][] shares) {}

  private final List<Block> blocks;

  /**
   * Factors the second moments of an activation.
   *
   * @param moments lower triangle of H, row i holding the entries from the first of its block to (i, i), so that a row of
   *     one entry starts a block; finite
   */
  public CompensatedRounding(double[][] moments) {
    blocks = MomentBlock.of(moments).stream().map(CompensatedRounding::block).toList();
  }

  private static Block block(MomentBlock moments) {
    int k = moments.size();
    double trace = moments.trace();
    double damping = trace > 0 ? MomentBlock.DAMPING * trace / k : 1;
    int[] order =
        IntStream.range(0, k)
            .boxed()
            .sorted(Comparator.comparingDouble((Integer i) -> -moments.get(i, i)))
            .mapToInt(Integer::intValue)
            .toArray();
    double[][] l = factor(moments, order, damping);
    float[][] shares = new float[k][];
    for (int i = 0; i < k; i++) {
      double[] row = l[k - 1 - i];
      shares[i] = new float[k - 1 - i];
      for (int j = i + 1; j < k; j++) {
        int at = k - 1 - j;
        shares[i][j - i - 1] = (float) (row[at] / l[at][at]);
      }
    }
    return new Block(Arrays.stream(order).map(i -> moments.from() + i).toArray(), shares);
  }

  /**
   * The Cholesky factor L of H + damping, read from the last row and column to the first. The sum of squares that is
   * least is |Lᵀ·(w − v)|², v being what W becomes: row by row from the last one on, each v is nearest to what makes its entry 0.
   */
  private static double[][] factor(MomentBlock moments, int[] order, double damping) {
    int k = order.length;
    double[][] reversed = new double[k][];
    for (int i = 0; i < k; i++) {
      reversed[i] = new double[i + 1];
      for (int j = 0; j <= i; j++) {
        reversed[i][j] = moments.get(order[k - 1 - i], order[k - 1 - j]);
      }
      reversed[i][i] += damping;
    }
    try {
      return Cholesky.factor(reversed);
    } catch (ArithmeticException e) {
      // Few examples, far from 0 and near each other: the moments are mostly rounding.
      if (damping > Double.MAX_VALUE / MORE_DAMPING) {
        throw e;
      }
      return factor(moments, order, MORE_DAMPING * damping);
    }
  }

  /**
   * Rounds a matrix. A weight that is 0 stays 0, so that what was pruned remains so; its neighbours take up
   * what it could not.
   *
   * @param weights W [K, N], row-major, finite
   * @param scales one positive scale a column
   * @param qmax largest integer; the smallest is −qmax
   * @return integers [K, N], row-major
   */
  public byte[] round(float[] weights, float[] scales, int qmax) {
    int n = scales.length;
    return round(weights, new Grid(n, scales, null, weights.length / n, -qmax, qmax, false));
  }

  /**
   * The same on another grid.
   *
   * @param grid of as many columns as W has
   * @return what is stored of each weight: an integer, or the bits of a float
   */
  public byte[] round(float[] weights, Grid grid) {
    int n = grid.columns();
    byte[] result = new byte[weights.length];
    IntStream.range(0, (n + COLUMNS - 1) / COLUMNS)
        .parallel()
        .forEach(
            p -> {
              int to = Math.min(n, (p + 1) * COLUMNS);
              blocks.forEach(b -> round(b, weights, grid, p * COLUMNS, to, result));
            });
    return result;
  }

  /**
   * What weights are rounded to: w ≈ scale · (q − zero point), with a scale for each block of rows of a column.
   *
   * @param scales [blocks, columns], none of them 0
   * @param zeroPoints [blocks, columns]; null: all 0
   * @param rows of a block; the last one may have fewer
   * @param least smallest q
   * @param largest largest q
   * @param floats whether a q is a {@link Float8}, of which least and largest say nothing; else an integer
   */
  public record Grid(
      int columns,
      float[] scales,
      byte[] zeroPoints,
      int rows,
      int least,
      int largest,
      boolean floats) {
    /** What is stored of a weight over its scale. */
    private int nearest(float value, int zero) {
      return floats
          ? Float8.of(value)
          : (int) Math.max(least, Math.min(largest, Math.rint(value) + zero));
    }

    /** What was stored, over the scale. */
    private float value(int stored, int zero) {
      return floats ? Float8.value((byte) stored) : stored - zero;
    }
  }

  private static void round(
      Block block, float[] weights, Grid grid, int from, int to, byte[] result) {
    int[] order = block.order();
    float[][] shares = block.shares();
    int k = order.length;
    int n = grid.columns();
    float[] scales = grid.scales();
    byte[] zeros = grid.zeroPoints();
    int width = to - from;
    float[][] w = new float[k][];
    for (int i = 0; i < k; i++) {
      w[i] = Arrays.copyOfRange(weights, order[i] * n + from, order[i] * n + to);
    }
    float[][] errors = new float[LAZY][width];
    for (int first = 0; first < k; first += LAZY) {
      int last = Math.min(k, first + LAZY);
      for (int i = first; i < last; i++) {
        float[] row = w[i];
        float[] share = shares[i];
        float[] error = errors[i - first];
        int at = order[i] * n + from;
        int scale = order[i] / grid.rows() * n + from;
        for (int c = 0; c < width; c++) {
          float s = scales[scale + c];
          int zero = zeros == null ? 0 : zeros[scale + c];
          int q = weights[at + c] == 0 ? zero : grid.nearest(row[c] / s, zero);
          result[at + c] = (byte) q;
          error[c] = weights[at + c] - grid.value(q, zero) * s;
        }
        for (int j = i + 1; j < last; j++) {
          add(w[j], error, share[j - i - 1]);
        }
      }
      for (int j = last; j < k; j++) {
        int i = first;
        for (; i + 4 <= last; i += 4) {
          add(
              w[j],
              errors[i - first],
              shares[i][j - i - 1],
              errors[i + 1 - first],
              shares[i + 1][j - i - 2],
              errors[i + 2 - first],
              shares[i + 2][j - i - 3],
              errors[i + 3 - first],
              shares[i + 3][j - i - 4]);
        }
        for (; i < last; i++) {
          add(w[j], errors[i - first], shares[i][j - i - 1]);
        }
      }
    }
  }

  private static void add(float[] to, float[] error, float factor) {
    for (int c = 0; c < to.length; c++) {
      to[c] += error[c] * factor;
    }
  }

  /** Four at once: what is added to is read and written a fourth as often. */
  private static void add(
      float[] to,
      float[] error0,
      float factor0,
      float[] error1,
      float factor1,
      float[] error2,
      float factor2,
      float[] error3,
      float factor3) {
    for (int c = 0; c < to.length; c++) {
      to[c] +=
          (error0[c] * factor0 + error1[c] * factor1) + (error2[c] * factor2 + error3[c] * factor3);
    }
  }
}

package org.espalier.compress.onnx.fitting;

import java.util.Arrays;
import java.util.Comparator;
import java.util.List;
import java.util.stream.IntStream;

/**
 * Rounds a matrix W [K, N] to integers with one scale a column so that the products x·W keep their values for
 * the activations x of calibration: rows are rounded one after the other, and the error of each is taken
 * up by the rows not yet rounded in the proportion that the second moments H of x give. This is OPTQ
 * (Frantar et al. 2023, arXiv 2210.17323) with its order of rows by descending H_kk. Where H is known in
 * blocks on its diagonal, only rows of one block take up each other's errors.
 *
 * <p>An instance holds the factors of one H and serves all matrices that the same activation feeds. Immutable
 * and safe for several threads.
 */
public final class CompensatedRounding {
  /** The factor by which damping grows where it is not enough. */
  private static final double MORE_DAMPING = 10;

  private static final int COLUMNS = 128;

  /** Columns that are eliminated together; a multiple of four. */
  private static final int PANEL = 32;

  /** Rows whose errors later ones take up together, as they lie in the first-level cache with a row's columns. */
  private static final int LAZY = 32;

  /**
   * Rows of W that take up each other's errors.
   *
   * @param order the rows as they are rounded
   * @param factor U with H⁻¹ = UᵀU in that order; row i holds the entries from (i, i) on
   */
  private record Block(int[] order, float[][] factor) {}

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
    double[][] inverse = invert(damped(moments, order, damping));
    float[][] factor = new float[k][];
    for (int i = 0; i < k; i++) {
      factor[i] = new float[k - i];
      for (int j = i; j < k; j++) {
        factor[i][j - i] = (float) inverse[k - 1 - i][k - 1 - j];
      }
    }
    return new Block(Arrays.stream(order).map(i -> moments.from() + i).toArray(), factor);
  }

  /**
   * The Cholesky factor of H + damping. H = R·Rᵀ with R upper triangular gives H⁻¹ = R⁻ᵀ·R⁻¹, so U = R⁻¹. R is
   * the factor of H read from the last row and column to the first.
   */
  private static double[][] damped(MomentBlock moments, int[] order, double damping) {
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
      return cholesky(reversed);
    } catch (ArithmeticException e) {
      // Few examples, far from 0 and near each other: the moments are mostly rounding.
      if (damping > Double.MAX_VALUE / MORE_DAMPING) {
        throw e;
      }
      return damped(moments, order, MORE_DAMPING * damping);
    }
  }

  /**
   * The lower Cholesky factor of a positive definite matrix, in place of it. Some columns at a time: the
   * rows below are updated in parallel, each by one thread.
   */
  static double[][] cholesky(double[][] a) {
    int n = a.length;
    double[][] columns = new double[PANEL][n];
    for (int from = 0; from < n; from += PANEL) {
      int b0 = from;
      int b1 = Math.min(n, from + PANEL);
      for (int i = b0; i < b1; i++) {
        eliminate(a, i, b0);
      }
      rows(b1, n).forEach(i -> eliminate(a, i, b0));
      for (int i = b1; i < n; i++) {
        for (int c = b0; c < b1; c++) {
          columns[c - b0][i] = a[i][c];
        }
      }
      // What these columns contribute to the rest of each row below.
      rows(b1, n)
          .forEach(
              i -> {
                for (int c = b0; c < b1; c += 4) { // there is a row below, so the panel is whole
                  subtract(a[i], b1, i + 1, a[i], c, columns, c - b0);
                }
              });
    }
    return a;
  }

  /** from[j] -= sum of factors[at + m] · rows[first + m][j] over four m, which is read and written once for the four. */
  private static void subtract(
      double[] from, int begin, int end, double[] factors, int at, double[][] rows, int first) {
    subtract(
        from,
        begin,
        end,
        factors[at],
        rows[first],
        factors[at + 1],
        rows[first + 1],
        factors[at + 2],
        rows[first + 2],
        factors[at + 3],
        rows[first + 3]);
  }

  private static void subtract(
      double[] from,
      int begin,
      int end,
      double f0,
      double[] row0,
      double f1,
      double[] row1,
      double f2,
      double[] row2,
      double f3,
      double[] row3) {
    for (int j = begin; j < end; j++) {
      from[j] -= (f0 * row0[j] + f1 * row1[j]) + (f2 * row2[j] + f3 * row3[j]);
    }
  }

  private static IntStream rows(int from, int to) {
    IntStream range = IntStream.range(from, to);
    return to - from > 64 ? range.parallel() : range;
  }

  /** Completes the entries of row i in the columns of the block that starts at b0. */
  private static void eliminate(double[][] a, int i, int b0) {
    int b1 = Math.min(b0 + PANEL, i + 1);
    double[] row = a[i];
    for (int j = b0; j < b1; j++) {
      double[] other = a[j];
      double sum = row[j];
      for (int c = b0; c < j; c++) {
        sum -= row[c] * other[c];
      }
      if (j == i) {
        if (!(sum > 0)) {
          throw new ArithmeticException("second moments are not positive definite in row " + i);
        }
        row[j] = Math.sqrt(sum);
      } else {
        row[j] = sum / other[j];
      }
    }
  }

  /** The inverse of a lower triangular matrix, lower triangular. */
  static double[][] invert(double[][] l) {
    int n = l.length;
    double[][] result = new double[n][];
    // Row i of the inverse needs the rows above it; columns are independent, so threads take
    // columns.
    for (int i = 0; i < n; i++) {
      result[i] = new double[i + 1];
    }
    int chunk = 64;
    IntStream.range(0, (n + chunk - 1) / chunk)
        .parallel()
        .forEach(
            p -> {
              int c0 = p * chunk;
              int c1 = Math.min(n, c0 + chunk);
              for (int i = c0; i < n; i++) {
                double[] row = l[i];
                double[] out = result[i];
                int end = Math.min(c1, i + 1);
                int m = c0;
                for (; m < Math.min(c1, i); m++) { // rows that begin within the chunk
                  double f = row[m];
                  double[] above = result[m];
                  int to = Math.min(end, m + 1);
                  for (int c = c0; c < to; c++) {
                    out[c] -= f * above[c];
                  }
                }
                for (; m + 4 <= i; m += 4) {
                  subtract(out, c0, end, row, m, result, m);
                }
                for (; m < i; m++) {
                  for (int c = c0; c < end; c++) {
                    out[c] -= row[m] * result[m][c];
                  }
                }
                if (i < c1) {
                  out[i] += 1;
                }
                double d = 1 / row[i];
                for (int c = c0; c < end; c++) {
                  out[c] *= d;
                }
              }
            });
    return result;
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
    return round(weights, new Grid(n, scales, null, weights.length / n, -qmax, qmax));
  }

  /**
   * The same on another grid.
   *
   * @param grid of as many columns as W has
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
   * @param least smallest integer
   * @param largest largest integer
   */
  public record Grid(
      int columns, float[] scales, byte[] zeroPoints, int rows, int least, int largest) {}

  private static void round(
      Block block, float[] weights, Grid grid, int from, int to, byte[] result) {
    int[] order = block.order();
    float[][] factor = block.factor();
    int k = order.length;
    int n = grid.columns();
    int least = grid.least();
    int largest = grid.largest();
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
        float[] u = factor[i];
        float[] error = errors[i - first];
        int at = order[i] * n + from;
        int scale = order[i] / grid.rows() * n + from;
        for (int c = 0; c < width; c++) {
          float s = scales[scale + c];
          int zero = zeros == null ? 0 : zeros[scale + c];
          int q =
              weights[at + c] == 0
                  ? zero
                  : (int) Math.max(least, Math.min(largest, Math.rint(row[c] / s) + zero));
          result[at + c] = (byte) q;
          error[c] = (row[c] - (q - zero) * s) / u[0];
        }
        for (int j = i + 1; j < last; j++) {
          subtract(w[j], error, u[j - i]);
        }
      }
      for (int j = last; j < k; j++) {
        int i = first;
        for (; i + 4 <= last; i += 4) {
          subtract(
              w[j],
              errors[i - first],
              factor[i][j - i],
              errors[i + 1 - first],
              factor[i + 1][j - i - 1],
              errors[i + 2 - first],
              factor[i + 2][j - i - 2],
              errors[i + 3 - first],
              factor[i + 3][j - i - 3]);
        }
        for (; i < last; i++) {
          subtract(w[j], errors[i - first], factor[i][j - i]);
        }
      }
    }
  }

  private static void subtract(float[] from, float[] error, float factor) {
    for (int c = 0; c < from.length; c++) {
      from[c] -= error[c] * factor;
    }
  }

  /** Four at once: what is subtracted from is read and written a fourth as often. */
  private static void subtract(
      float[] from,
      float[] error0,
      float factor0,
      float[] error1,
      float factor1,
      float[] error2,
      float factor2,
      float[] error3,
      float factor3) {
    for (int c = 0; c < from.length; c++) {
      from[c] -=
          (error0[c] * factor0 + error1[c] * factor1) + (error2[c] * factor2 + error3[c] * factor3);
    }
  }
}

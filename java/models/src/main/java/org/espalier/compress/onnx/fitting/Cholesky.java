package org.espalier.compress.onnx.fitting;

import java.nio.FloatBuffer;
import java.util.stream.IntStream;
import org.bytedeco.javacpp.FloatPointer;
import org.espalier.device.DType;
import org.espalier.device.Tensor;
import org.espalier.op.Linear;

/** Factors of positive definite matrices, in double. Results have the same bits on every machine and any number of threads. */
final class Cholesky {
  /** Columns that are eliminated together; a multiple of four. */
  private static final int PANEL = 32;

  /** Columns after which the rest of the matrix learns of them; a multiple of {@link #PANEL}. */
  private static final int BLOCK = 256;

  private Cholesky() {}

  /**
   * The lower factor L of A = L·Lᵀ, in place of A. Of large matrices most of the work, what the first {@value #BLOCK}
   * columns of L take from all that is right of them, is the kernel's of {@link Linear}: its sums over these columns are
   * float32, so an entry (i, j) may be off by some 1e-6·√(A_ii·A_jj).
   *
   * @param a lower triangle, row i holding the entries from (i, 0) to (i, i)
   * @throws ArithmeticException if A is not positive definite
   */
  static double[][] factor(double[][] a) {
    int n = a.length;
    double[][] columns = new double[PANEL][n];
    try (Trailing trailing = n > 2 * BLOCK ? new Trailing(n) : null) {
      int size = trailing == null ? n : BLOCK;
      for (int block = 0; block < n; block += size) {
        int end = Math.min(n, block + size);
        for (int from = block; from < end; from += PANEL) {
          eliminate(a, columns, from, Math.min(end, from + PANEL), end);
        }
        if (end < n) {
          trailing.update(a, block, end);
        }
      }
    }
    return a;
  }

  /**
   * Completes columns of the factor, and takes what they contribute from those behind them up to a last one.
   *
   * @param b0 the first column
   * @param b1 the end of the columns
   * @param end of the columns behind them
   */
  private static void eliminate(double[][] a, double[][] columns, int b0, int b1, int end) {
    int n = a.length;
    for (int i = b0; i < b1; i++) {
      complete(a, i, b0);
    }
    rows(b1, n).forEach(i -> complete(a, i, b0));
    for (int i = b1; i < end; i++) {
      for (int c = b0; c < b1; c++) {
        columns[c - b0][i] = a[i][c];
      }
    }
    rows(b1, n)
        .forEach(
            i -> {
              for (int c = b0; c + 4 <= b1; c += 4) { // the panel is whole where a column follows
                subtract(a[i], b1, Math.min(end, i + 1), a[i], c, columns, c - b0);
              }
            });
  }

  /** What columns that are complete take from the rest of the matrix. */
  private static final class Trailing implements AutoCloseable {
    /** Columns of the rest that are computed together. */
    private static final int WIDTH = 64;

    private final int n;

    /** The complete columns of the rows below, the last row first. */
    private final FloatPointer rows;

    /** The same of some of these rows, as columns. */
    private final FloatPointer panel;

    /** Products of both. */
    private final FloatPointer products;

    private final Linear product;

    Trailing(int n) {
      this.n = n;
      rows = Scratch.floats((long) n * BLOCK);
      panel = Scratch.floats((long) BLOCK * WIDTH);
      products = Scratch.floats((long) n * WIDTH);
      product =
          new Linear(
              Tensor.of(panel, DType.F32, BLOCK, WIDTH),
              null,
              Tensor.of(products, DType.F32, n, WIDTH),
              Tensor.of(rows, DType.F32, n, BLOCK));
    }

    /** Takes the products of the columns from {@code begin} to {@code end} from all behind them. */
    void update(double[][] a, int begin, int end) {
      FloatBuffer x = rows.asBuffer();
      rows(end, n)
          .forEach(
              i -> {
                float[] row = new float[BLOCK];
                for (int c = begin; c < end; c++) {
                  row[c - begin] = (float) a[i][c];
                }
                x.put((n - 1 - i) * BLOCK, row);
              });
      FloatBuffer w = panel.asBuffer();
      FloatBuffer y = products.asBuffer();
      for (int from = end; from < n; from += WIDTH) {
        int first = from;
        int width = Math.min(WIDTH, n - first);
        for (int j = 0; j < width; j++) {
          for (int c = begin; c < end; c++) {
            w.put((c - begin) * WIDTH + j, (float) a[first + j][c]);
          }
        }
        product.backwardRows(n - first);
        rows(first, n)
            .forEach(
                i -> {
                  int count = Math.min(width, i + 1 - first);
                  float[] row = new float[count];
                  y.get((n - 1 - i) * WIDTH, row);
                  double[] to = a[i];
                  for (int j = 0; j < count; j++) {
                    to[first + j] -= row[j];
                  }
                });
      }
    }

    @Override
    public void close() {
      product.close();
      products.close();
      panel.close();
      rows.close();
    }
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
  private static void complete(double[][] a, int i, int b0) {
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
  static double[][] inverse(double[][] l) {
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
}

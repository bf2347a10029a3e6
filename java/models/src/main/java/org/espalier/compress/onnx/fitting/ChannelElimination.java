package org.espalier.compress.onnx.fitting;

import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.stream.IntStream;

/**
 * Takes channels a of products Σ a·W away one by one, each time the one whose loss changes the products least once
 * the channels that stay have taken over what can be told of it from them. With H the second moments of a, the loss of
 * channel j costs ‖W_j‖² / (H⁻¹)_jj, and row k of W becomes W_k − (H⁻¹)_kj / (H⁻¹)_jj · W_j: optimal brain surgeon
 * (Hassibi and Stork 1993) on rows of weights in place of single ones. What a channel of several numbers loses is what
 * they lose one after the other. Not safe for several threads.
 */
public final class ChannelElimination {
  /** Share of the mean of H's diagonal that is added to it: fewer rows than channels stay solvable. */
  private static final double DAMPING = 0.01;

  /** How much more of it where that is not enough. */
  private static final double MORE_DAMPING = 10;

  /** Below so many numbers a thread does all. */
  private static final int ALONE = 1 << 14;

  /** One product that sums over the numbers of the channels. */
  private static final class Sum {
    /** Row k: (H⁻¹)_kj for the numbers j of its block. */
    final double[][] inverse;

    /** The first number of the block of a number. */
    final int[] first;

    /** Row k: what number k is multiplied with. */
    final double[][] rows;

    /** How many numbers a channel is. */
    final int group;

    final double[] squares;

    /** Of the errors of several sums each is a share of its own size. */
    final double weight;

    Sum(double[][] moments, double[][] rows, int group) {
      this.rows = rows;
      this.group = group;
      int n = moments.length;
      inverse = new double[n][];
      first = new int[n];
      squares = new double[n];
      double size = 0;
      for (int from = 0, to; from < n; from = to) {
        to = from + 1;
        while (to < n && moments[to].length > 1) {
          to++;
        }
        double[][] block = inverse(Arrays.copyOfRange(moments, from, to));
        for (int i = from; i < to; i++) {
          first[i] = from;
          inverse[i] = block[i - from];
        }
      }
      for (int k = 0; k < n; k++) {
        squares[k] = square(rows[k]);
        size += squares[k] * moments[k][moments[k].length - 1];
      }
      weight = size > 0 ? 1 / size : 0;
    }

    double cost(int channel) {
      return weight * (group == 1 ? loss(channel) : losses(channel));
    }

    private double loss(int number) {
      return squares[number] / inverse[number][number - first[number]];
    }

    /** The loss of all numbers of a channel, one after the other, each where those before it have gone. */
    private double losses(int channel) {
      double[][] own = new double[group][group];
      double[][] left = new double[group][];
      for (int i = 0; i < group; i++) {
        int k = channel * group + i;
        left[i] = rows[k].clone();
        for (int j = 0; j < group; j++) {
          int at = channel * group + j - first[k];
          own[i][j] = at < 0 || at >= inverse[k].length ? 0 : inverse[k][at];
        }
      }
      double sum = 0;
      for (int gone = 0; gone < group; gone++) {
        sum += square(left[gone]) / own[gone][gone];
        for (int k = gone + 1; k < group; k++) {
          double factor = own[k][gone] / own[gone][gone];
          subtract(own[k], own[gone], factor);
          subtract(left[k], left[gone], factor);
        }
      }
      return sum;
    }

    /**
     * Takes a channel away.
     *
     * @param left the channels that stay
     */
    void eliminate(int channel, boolean[] left) {
      int end = (channel + 1) * group;
      for (int gone = channel * group; gone < end; gone++) {
        eliminate(gone, end, left);
      }
    }

    /** Takes a number away, of a channel that ends before another number. */
    private void eliminate(int gone, int end, boolean[] left) {
      int from = first[gone];
      double[] column = inverse[gone].clone();
      double pivot = column[gone - from];
      double[] row = rows[gone].clone();
      IntStream others = IntStream.range(from, from + column.length);
      if ((long) column.length * (column.length + row.length) > ALONE) {
        others = others.parallel();
      }
      others
          .filter(k -> left[k / group] || k > gone && k < end)
          .forEach(
              k -> {
                double factor = column[k - from] / pivot;
                subtract(inverse[k], column, factor);
                subtract(rows[k], row, factor);
                squares[k] = square(rows[k]);
              });
    }

    private static void subtract(double[] from, double[] what, double factor) {
      for (int i = 0; i < from.length; i++) {
        from[i] -= factor * what[i];
      }
    }

    private static double square(double[] row) {
      double sum = 0;
      for (double v : row) {
        sum += v * v;
      }
      return sum;
    }

    /** The lower Cholesky factor of damped moments. */
    private static double[][] factor(double[][] moments, double damping) {
      double[][] lower = new double[moments.length][];
      for (int i = 0; i < lower.length; i++) {
        lower[i] = moments[i].clone();
        lower[i][i] += damping;
      }
      try {
        return Cholesky.factor(lower);
      } catch (ArithmeticException e) {
        // Few examples, far from 0 and near each other: the moments are mostly rounding.
        if (damping > Double.MAX_VALUE / MORE_DAMPING) {
          throw e;
        }
        return factor(moments, MORE_DAMPING * damping);
      }
    }

    /** The inverse of damped moments, of which the lower triangle is given; all entries. */
    private static double[][] inverse(double[][] moments) {
      int n = moments.length;
      double trace = 0;
      for (int i = 0; i < n; i++) {
        trace += moments[i][i];
      }
      double[][] factor = Cholesky.inverse(factor(moments, trace > 0 ? DAMPING * trace / n : 1));
      double[][] inverse = new double[n][n];
      IntStream.range(0, n)
          .parallel()
          .forEach(
              i -> {
                for (int k = i; k < n; k++) {
                  double f = factor[k][i];
                  for (int j = 0; j <= i; j++) {
                    inverse[i][j] += f * factor[k][j];
                  }
                }
              });
      for (int i = 0; i < n; i++) {
        for (int j = i + 1; j < n; j++) {
          inverse[i][j] = inverse[j][i];
        }
      }
      return inverse;
    }
  }

  private final int size;
  private final List<Sum> sums = new ArrayList<>();
  private final boolean[] left;
  private int count;

  public ChannelElimination(int size) {
    this.size = size;
    count = size;
    left = new boolean[size];
    Arrays.fill(left, true);
  }

  /**
   * Adds a product that sums over the channels, or over the numbers that each of them is.
   *
   * @param moments lower triangle of H, row i holding the entries from the first of its block to (i, i), so that a
   *     row of one entry starts a block; finite
   * @param rows what each number is multiplied with; afterwards, of the channels that stay, what is right then
   * @param group how many numbers a channel is, one after the other
   */
  public void add(double[][] moments, double[][] rows, int group) {
    sums.add(new Sum(moments, rows, group));
  }

  /**
   * Takes channels away. May be called again, for fewer.
   *
   * @param wanted how many stay, at most as many as the last time
   * @return the channels that stay, ascending
   */
  public int[] keep(int wanted) {
    for (; count > wanted; count--) {
      int least = -1;
      double cost = Double.POSITIVE_INFINITY;
      for (int c = 0; c < size; c++) {
        double here = 0;
        for (Sum sum : left[c] ? sums : List.<Sum>of()) {
          here += sum.cost(c);
        }
        if (left[c] && (least < 0 || here < cost)) {
          least = c;
          cost = here;
        }
      }
      left[least] = false;
      for (Sum sum : sums) {
        sum.eliminate(least, left);
      }
    }
    return IntStream.range(0, size).filter(c -> left[c]).toArray();
  }
}

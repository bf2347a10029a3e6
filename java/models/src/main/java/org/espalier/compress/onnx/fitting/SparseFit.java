package org.espalier.compress.onnx.fitting;

import java.util.Arrays;
import java.util.List;
import java.util.function.Consumer;
import java.util.function.IntBinaryOperator;
import java.util.stream.IntStream;

/**
 * Prunes a matrix W [K, N] so that the sums x·W keep their values for the inputs x of calibration. Of each output n the
 * weights with the least |w_kn|·√H_kk go (Wanda, Sun et al. 2024, arXiv 2306.11695), H being the second moments of x,
 * and those that stay become what minimizes (w'_n − w_n)ᵀ·H·(w'_n − w_n) among all columns with these zeros. That is a
 * system of linear equations for each output, which conjugate gradients solve with H's diagonal as preconditioner. Weights go
 * in {@value #STEPS} steps of one size, so that later choices know what earlier refits made of the others.
 *
 * <p>An instance holds one H and serves all matrices that the same inputs feed. Where H is known in blocks on its
 * diagonal, rows of different blocks do not know of each other. Immutable and safe for several threads; results do
 * not depend on their number.
 */
public final class SparseFit {
  private static final int STEPS = 4;

  /** So many outputs are solved for together at most, of many inputs as many as make up so many numbers. */
  private static final int TOGETHER = 512;

  private static final int NUMBERS = 1 << 22;

  /** The most turns of the solver behind a step, and behind the last one. */
  private static final int SOME_TURNS = 4;

  private static final int MOST_TURNS = 15;

  /** The squared residual, as a share of that of the zeros alone, at which it is solved. */
  private static final double SOLVED = 1e-6;

  /** Row k: the damped moments of input k with those of its block, as shares of the mean of their diagonal. */
  private final float[][] moments;

  /** √H_kk of each input as it was given, or 1 where H is nothing but zeros; and 1 / H_kk of those. */
  private final float[] size;

  private final float[] inverse;

  /**
   * @param lower lower triangle of H, row i holding the entries from the first of its block to (i, i), so that a row of
   *     one entry starts a block; finite
   */
  public SparseFit(double[][] lower) {
    int n = lower.length;
    moments = new float[n][];
    size = new float[n];
    inverse = new float[n];
    boolean unknown = Arrays.stream(lower).allMatch(row -> row[row.length - 1] == 0);
    for (MomentBlock block : MomentBlock.of(lower)) {
      double trace = block.trace();
      // Each block counts for itself, so that its scale is free: the mean of its diagonal is 1.
      double scale = trace > 0 ? block.size() / trace : 0;
      for (int i = 0; i < block.size(); i++) {
        int k = block.from() + i;
        moments[k] = new float[block.size()];
        for (int j = 0; j < block.size(); j++) {
          moments[k][j] = (float) (scale * block.get(i, j));
        }
        moments[k][i] += (float) MomentBlock.DAMPING;
        size[k] = unknown ? 1 : (float) Math.sqrt(Math.max(0, block.get(i, i)));
        inverse[k] = 1 / moments[k][i];
      }
    }
  }

  /**
   * Prunes and refits.
   *
   * @param weights W, row-major, finite; afterwards what it is then
   * @param kept which weights are not pruned yet; afterwards which are left. Others count as 0, whatever
   *     they are
   * @param groups the inputs in groups of which each loses its own share, in the order in which ties are
   *     broken; all inputs are in one
   * @param goal how many weights of an output are pruned in a group afterwards, given the size of the group and
   *     how many are already
   */
  public void prune(float[] weights, boolean[] kept, int[][] groups, IntBinaryOperator goal) {
    int outputs = weights.length / moments.length;
    int together = Math.max(1, Math.min(Math.min(TOGETHER, outputs), NUMBERS / moments.length));
    try (MomentProduct product = new MomentProduct(moments, together)) {
      for (int from = 0; from < outputs; from += together) {
        List<Column> columns =
            IntStream.range(from, Math.min(from + together, outputs))
                .parallel()
                .mapToObj(n -> new Column(weights, kept, outputs, n, groups, goal))
                .toList();
        for (int step = 1; step <= STEPS; step++) {
          int now = step;
          columns.parallelStream().forEach(column -> column.prune(now));
          solve(columns, product, step == STEPS ? MOST_TURNS : SOME_TURNS);
        }
        columns.parallelStream().forEach(column -> column.store(weights, kept, outputs));
      }
    }
  }

  /** Moves what is kept of some columns towards the least error. */
  private static void solve(List<Column> columns, MomentProduct product, int turns) {
    columns.forEach(Column::aim);
    multiply(columns, product, Column::start);
    List<Column> open = columns;
    for (int turn = 0; turn < turns && !open.isEmpty(); turn++) {
      open = open.stream().filter(column -> !column.isSolved()).toList();
      multiply(open, product, Column::move);
    }
  }

  /** Sets the product of each column to H · its direction, and goes on with it. */
  private static void multiply(List<Column> columns, MomentProduct product, Consumer<Column> then) {
    int n = columns.size();
    IntStream.range(0, n).parallel().forEach(i -> product.put(i, columns.get(i).direction));
    product.multiply(n);
    IntStream.range(0, n)
        .parallel()
        .forEach(
            i -> {
              Column column = columns.get(i);
              product.get(i, column.direction, column.product);
              then.accept(column);
            });
  }

  /**
   * Brings the least so many of the first {@code n} numbers, which differ, to the front.
   *
   * @param count at most n
   */
  static void select(long[] numbers, int n, int count) {
    int from = 0;
    int to = n - 1;
    while (from < to) {
      // What lies in the middle of three is no extreme of numbers that come sorted.
      long first = numbers[from];
      long last = numbers[to];
      long middle = numbers[(from + to) >>> 1];
      long pivot = Math.max(Math.min(first, last), Math.min(Math.max(first, last), middle));
      int i = from;
      int j = to;
      while (i <= j) {
        while (numbers[i] < pivot) {
          i++;
        }
        while (numbers[j] > pivot) {
          j--;
        }
        if (i <= j) {
          long swap = numbers[i];
          numbers[i++] = numbers[j];
          numbers[j--] = swap;
        }
      }
      if (count - 1 <= j) {
        to = j;
      } else if (count - 1 >= i) {
        from = i;
      } else {
        return;
      }
    }
  }

  private static double dot(float[] a, float[] b) {
    double s0 = 0;
    double s1 = 0;
    double s2 = 0;
    double s3 = 0;
    int k = 0;
    for (; k + 4 <= a.length; k += 4) {
      s0 += a[k] * b[k];
      s1 += a[k + 1] * b[k + 1];
      s2 += a[k + 2] * b[k + 2];
      s3 += a[k + 3] * b[k + 3];
    }
    for (; k < a.length; k++) {
      s0 += a[k] * b[k];
    }
    return s0 + s1 + (s2 + s3);
  }

  /** One column of W while it is pruned. */
  private final class Column {
    private final int output;
    private final int[][] groups;

    /** How many weights go in all steps, by group. */
    private final int[] going;

    /** What the weights were, and what they are. */
    private final float[] w = new float[moments.length];

    private final float[] x;

    /** 1 where a weight is kept, else 0. */
    private final float[] kept = new float[moments.length];

    /** H · (w − x) where something is kept, else 0. */
    private final float[] residual = new float[moments.length];

    private final float[] direction = new float[moments.length];

    /** H · the direction. */
    private final float[] product = new float[moments.length];

    /** The residual's square, by the inverse of H's diagonal: what it is, and the most that it was. */
    private double square;

    private double largest;

    Column(
        float[] weights,
        boolean[] stay,
        int outputs,
        int output,
        int[][] groups,
        IntBinaryOperator goal) {
      this.output = output;
      this.groups = groups;
      for (int k = 0; k < w.length; k++) {
        kept[k] = stay[k * outputs + output] ? 1 : 0;
        w[k] = stay[k * outputs + output] ? weights[k * outputs + output] : 0;
      }
      x = w.clone();
      going = new int[groups.length];
      for (int g = 0; g < groups.length; g++) {
        int gone = (int) Arrays.stream(groups[g]).filter(k -> kept[k] == 0).count();
        going[g] = goal.applyAsInt(groups[g].length, gone) - gone;
      }
    }

    void store(float[] weights, boolean[] stay, int outputs) {
      for (int k = 0; k < w.length; k++) {
        weights[k * outputs + output] = x[k];
        stay[k * outputs + output] = kept[k] != 0;
      }
    }

    /** Zeroes what goes in a step. */
    void prune(int step) {
      for (int g = 0; g < groups.length; g++) {
        int now = (int) Math.rint((double) going[g] * step / STEPS);
        int before = (int) Math.rint((double) going[g] * (step - 1) / STEPS);
        if (now > before) {
          zero(groups[g], now - before);
        }
      }
    }

    private void zero(int[] group, int count) {
      long[] order = new long[group.length];
      int n = 0;
      for (int i = 0; i < group.length; i++) {
        int k = group[i];
        if (kept[k] != 0) {
          float score = Math.abs(x[k]) * size[k];
          // The bits of numbers that are not negative are in the order of the numbers.
          order[n++] = (long) Float.floatToRawIntBits(score) << 32 | i;
        }
      }
      select(order, n, count);
      for (int i = 0; i < count; i++) {
        int k = group[(int) order[i]];
        kept[k] = 0;
        x[k] = 0;
      }
    }

    /** Sets the direction of each column: back to the weights that it had. */
    void aim() {
      for (int k = 0; k < w.length; k++) {
        direction[k] = w[k] - x[k];
      }
    }

    /** Takes the first direction, where the product is that of {@link #aim}. */
    void start() {
      System.arraycopy(product, 0, residual, 0, residual.length);
      turn(0);
      largest = Math.max(largest, square);
    }

    boolean isSolved() {
      return square <= SOLVED * largest;
    }

    /** Goes along the direction as far as the error falls, and turns. */
    void move() {
      double dot = dot(direction, product);
      float length = dot > 0 ? (float) (square / dot) : 0;
      for (int k = 0; k < w.length; k++) {
        x[k] += length * direction[k];
        residual[k] -= length * product[k];
      }
      turn(square);
    }

    /**
     * @param before the square before; 0 for the first direction
     */
    private void turn(double before) {
      // The product is not needed any more: it holds the residual by the inverse of H's diagonal.
      for (int k = 0; k < w.length; k++) {
        residual[k] *= kept[k];
        product[k] = residual[k] * inverse[k];
      }
      square = dot(residual, product);
      float share = before > 0 ? (float) (square / before) : 0;
      for (int k = 0; k < w.length; k++) {
        direction[k] = product[k] + share * direction[k];
      }
    }
  }
}

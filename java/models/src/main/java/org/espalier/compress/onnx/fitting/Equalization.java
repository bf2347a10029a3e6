package org.espalier.compress.onnx.fitting;

import java.util.Arrays;
import java.util.List;
import java.util.stream.IntStream;

/**
 * A shift z and a scale s for each channel of an activation x [rows, K] that feeds matrices W [K, N]:
 * x·W = ((x − z)/s)·(s·W) + z·W. The right side is the same in exact arithmetic and has less rounding error in
 * int8, where all channels of x share one step and each column of W has one.
 *
 * <p>Moving scale between activations and weights is SmoothQuant (Xiao et al. 2023, arXiv 2211.10438),
 * shifting is Outlier Suppression+ (Wei et al. 2023, arXiv 2304.09145). Both set the scale by a formula of
 * channel maxima. Here the scale minimises the expected squared error of the product under rounding noise,
 * which is uniform and independent (Widrow), so a step Δ gives the variance Δ²/12:
 *
 * <pre>
 *   activations:  Σ_k s_k² |W_k|² · mean over examples of (range of (x − z)/s in the example / 255)² / 12
 *   weights:      ρ · Σ_n (max_k |s_k W_kn| / qmax)² / 12 · Σ_k mean of ((x_k − z_k)/s_k)²
 * </pre>
 *
 * <p>The range is that of one example, because the runtime takes a new one at every run; it includes 0. ρ is
 * the share of the weights' rounding error that error-compensated rounding leaves.
 *
 * @param shift z, K values
 * @param scale s, K positive values
 * @param noiseBefore expected squared error of a row of all products with s = 1
 * @param noiseAfter the same with s
 * @param signal the variance of a row of all products, taking the channels as independent
 */
public record Equalization(
    float[] shift, float[] scale, double noiseBefore, double noiseAfter, double signal) {

  private static final double COMPENSATED_SHARE = 0.3;
  private static final int STEPS = 200;
  private static final double FIRST_RATE = 0.05;

  /**
   * A channel that calibration hardly saw must not scale up what it never saw: s ≥ this · median of the channels that
   * it saw, which may be few, as of the words of a vocabulary. One that it did not see at all has that median.
   */
  private static final double SMALLEST_SCALE = 0.2;

  /** The same shift without the scale. */
  public Equalization withoutScale() {
    float[] ones = new float[scale.length];
    Arrays.fill(ones, 1);
    return new Equalization(shift, ones, noiseBefore, noiseBefore, signal);
  }

  /** The noise that the scale takes away, as a share of the signal. */
  public double gain() {
    return signal > 0 ? (noiseBefore - noiseAfter) / signal : 0;
  }

  /** Whether a channel has another shift than 0. */
  public boolean isShifted() {
    return hasOtherThan(shift, 0);
  }

  /** Whether a channel has another scale than 1. */
  public boolean isScaled() {
    return hasOtherThan(scale, 1);
  }

  private static boolean hasOtherThan(float[] values, float neutral) {
    for (float v : values) {
      if (v != neutral) {
        return true;
      }
    }
    return false;
  }

  /**
   * Finds shift and scale. Deterministic.
   *
   * @param x statistics of the activation with at least one example
   * @param weights the matrices [K, N] that it feeds, row-major
   * @param shifted whether a shift is wanted: the middle of a channel's range, mean over examples
   * @param qmax largest integer of the weights
   */
  public static Equalization search(
      ActivationStatistics x, List<float[]> weights, boolean shifted, int qmax) {
    return new Search(x, weights, shifted, qmax).run();
  }

  /** Adam (Kingma and Ba 2015) on log s, whose objective is scale-free and piecewise smooth. */
  private static final class Search {
    private final int k;
    private final int examples;
    private final List<float[]> weights;
    private final int qmax;
    private final float[] shift;
    private final float[][] low;
    private final float[][] high;
    private final double[] rowSquares;
    private final double[] meanSquares;
    private final double signal;
    private final boolean[] seen;
    private final double[] start;
    private final double[] gradient;
    private final List<LargestOfColumns> large;

    Search(ActivationStatistics x, List<float[]> weights, boolean shifted, int qmax) {
      this.k = x.channels();
      this.examples = x.examples();
      this.weights = weights;
      this.qmax = qmax;
      shift = new float[k];
      if (shifted) {
        for (int c = 0; c < k; c++) {
          double middle = 0;
          for (int e = 0; e < examples; e++) {
            middle += ((double) x.minimum(e)[c] + x.maximum(e)[c]) / 2;
          }
          shift[c] = (float) (middle / examples);
        }
      }
      low = new float[examples][k];
      high = new float[examples][k];
      double[] reach = new double[k];
      for (int e = 0; e < examples; e++) {
        float[] min = x.minimum(e);
        float[] max = x.maximum(e);
        for (int c = 0; c < k; c++) {
          low[e][c] = min[c] - shift[c];
          high[e][c] = max[c] - shift[c];
          reach[c] += Math.max(Math.abs(low[e][c]), Math.abs(high[e][c])) / examples;
        }
      }
      seen = new boolean[k];
      for (int c = 0; c < k; c++) {
        seen[c] = reach[c] > 0;
      }
      rowSquares = new double[k];
      double[] largest = new double[k];
      for (float[] w : weights) {
        int n = w.length / k;
        for (int c = 0; c < k; c++) {
          for (int j = 0; j < n; j++) {
            double v = w[c * n + j];
            rowSquares[c] += v * v;
            largest[c] = Math.max(largest[c], Math.abs(v));
          }
        }
      }
      meanSquares = new double[k];
      double s = 0;
      for (int c = 0; c < k; c++) {
        meanSquares[c] = Math.max(1e-12, x.meanSquare(c, shift[c]));
        s += rowSquares[c] * x.meanSquare(c, x.mean(c));
      }
      signal = s;
      double floor = Math.max(1e-6, SMALLEST_SCALE * medianOfSeen(reach));
      start = new double[k];
      for (int c = 0; c < k; c++) {
        start[c] = 0.5 * Math.log(Math.max(reach[c], floor) / Math.max(largest[c], 1e-4));
      }
      gradient = new double[k];
      large = weights.stream().map(w -> new LargestOfColumns(w, k)).toList();
    }

    Equalization run() {
      double[] u = start.clone();
      double[] first = new double[k];
      double[] second = new double[k];
      double[] best = u.clone();
      double lowest = Double.POSITIVE_INFINITY;
      for (int step = 0; step <= STEPS; step++) {
        centre(u);
        double noise = noise(u);
        if (noise < lowest) {
          lowest = noise;
          best = u.clone();
        }
        double rate = FIRST_RATE * (1 - (double) step / (STEPS + 1));
        for (int c = 0; c < k; c++) {
          double g = noise > 0 ? gradient[c] / noise : 0;
          first[c] = 0.9 * first[c] + 0.1 * g;
          second[c] = 0.99 * second[c] + 0.01 * g * g;
          double m = first[c] / (1 - Math.pow(0.9, step + 1));
          double v = second[c] / (1 - Math.pow(0.99, step + 1));
          u[c] -= rate * m / (Math.sqrt(v) + 1e-8);
        }
      }
      double middle = medianOfSeen(best);
      double floor = middle + Math.log(SMALLEST_SCALE);
      float[] scale = new float[k];
      for (int c = 0; c < k; c++) {
        best[c] = seen[c] ? Math.max(best[c], floor) : middle;
        scale[c] = (float) Math.exp(best[c]);
      }
      return new Equalization(shift, scale, noise(new double[k]), noise(best), signal);
    }

    private static void centre(double[] u) {
      double mean = 0;
      for (double v : u) {
        mean += v / u.length;
      }
      for (int c = 0; c < u.length; c++) {
        u[c] -= mean;
      }
    }

    /** The expected squared error at s = exp(u); its gradient in u goes to {@link #gradient}. */
    private double noise(double[] u) {
      double[] s = new double[k];
      float[] inverse = new float[k];
      double gain = 0;
      double power = 0;
      for (int c = 0; c < k; c++) {
        s[c] = Math.exp(u[c]);
        inverse[c] = (float) (1 / s[c]);
        gain += s[c] * s[c] * rowSquares[c];
        power += meanSquares[c] / (s[c] * s[c]);
      }
      double[] rangeGradient = new double[k];
      double rangeSquare = rangeSquare(inverse, rangeGradient);
      double perStep = 1 / (12.0 * 255 * 255);
      double steps = 0;
      double[] stepsGradient = new double[k];
      for (int i = 0; i < weights.size(); i++) {
        int n = weights.get(i).length / k;
        large.get(i).find(u, s);
        float[] largest = large.get(i).value;
        int[] at = large.get(i).row;
        for (int j = 0; j < n; j++) {
          double square = (double) largest[j] * largest[j] / (12.0 * qmax * qmax);
          steps += square;
          stepsGradient[at[j]] += 2 * square;
        }
      }
      for (int c = 0; c < k; c++) {
        double s2 = s[c] * s[c];
        gradient[c] =
            perStep * (2 * s2 * rowSquares[c] * rangeSquare + gain * rangeGradient[c])
                + COMPENSATED_SHARE * (stepsGradient[c] * power - 2 * steps * meanSquares[c] / s2);
      }
      return perStep * gain * rangeSquare + COMPENSATED_SHARE * steps * power;
    }

    /**
     * The mean square of the examples' ranges.
     *
     * @param inverse what each channel is multiplied with
     * @param gradient receives its gradient in u
     */
    private double rangeSquare(float[] inverse, double[] gradient) {
      double rangeSquare = 0;
      for (int e = 0; e < examples; e++) {
        float max = 0;
        float min = 0;
        int atMax = -1;
        int atMin = -1;
        float[] l = low[e];
        float[] h = high[e];
        for (int c = 0; c < k; c++) {
          float a = h[c] * inverse[c];
          float b = l[c] * inverse[c];
          if (a > max) {
            max = a;
            atMax = c;
          }
          if (b < min) {
            min = b;
            atMin = c;
          }
        }
        double range = (double) max - min;
        rangeSquare += range * range / examples;
        if (atMax >= 0) {
          gradient[atMax] -= 2 * range * max / examples;
        }
        if (atMin >= 0) {
          gradient[atMin] += 2 * range * min / examples;
        }
      }
      return rangeSquare;
    }

    /** Of the channels that calibration saw; of all where it saw none. */
    private double medianOfSeen(double[] values) {
      double[] sorted =
          IntStream.range(0, k).filter(c -> seen[c]).mapToDouble(c -> values[c]).toArray();
      if (sorted.length == 0) {
        sorted = values.clone();
      }
      Arrays.sort(sorted);
      return sorted[sorted.length / 2];
    }
  }

  /**
   * The largest |s_k W_kn| of each column n of a matrix, for one s after the other. As s changes little from step to step, few
   * elements can become a column's largest: those that were not far below it. They are found anew only when the factors have
   * moved apart as far as that.
   */
  private static final class LargestOfColumns {
    /** Of a column's largest; below it is far. */
    private static final double NEAR = 0.65;

    /** How far the logarithms of two factors may move apart, less what rounding to float32 moves them. */
    private static final double REACH = -Math.log(NEAR) - 1e-5;

    private final float[] w;
    private final int k;
    private final int n;

    /** By column: the value, and the row that it is in, the first of several. */
    final float[] value;

    final int[] row;

    /** The logarithms of the factors when the elements below were found; null at first. */
    private double[] found;

    // Elements near their column's largest, row by row: row c has those from start[c] to start[c +
    // 1].
    private final int[] start;
    private int[] column = {};
    private float[] size = {};

    /**
     * @param w [k, n], row by row
     */
    LargestOfColumns(float[] w, int k) {
      this.w = w;
      this.k = k;
      n = w.length / k;
      value = new float[n];
      row = new int[n];
      start = new int[k + 1];
    }

    /**
     * Finds {@link #value} and {@link #row}.
     *
     * @param u the logarithms of s
     */
    void find(double[] u, double[] s) {
      Arrays.fill(value, 0);
      Arrays.fill(row, 0);
      if (found == null || spread(u) > REACH) {
        findAmongAll(s);
        keepNear(s);
        found = u.clone();
        return;
      }
      for (int c = 0; c < k; c++) {
        float factor = (float) s[c];
        for (int i = start[c]; i < start[c + 1]; i++) {
          take(c, column[i], size[i] * factor);
        }
      }
    }

    private void take(int c, int j, float v) {
      if (v > value[j]) {
        value[j] = v;
        row[j] = c;
      }
    }

    private double spread(double[] u) {
      double most = Double.NEGATIVE_INFINITY;
      double least = Double.POSITIVE_INFINITY;
      for (int c = 0; c < k; c++) {
        most = Math.max(most, u[c] - found[c]);
        least = Math.min(least, u[c] - found[c]);
      }
      return most - least;
    }

    private void findAmongAll(double[] s) {
      for (int c = 0; c < k; c++) {
        float factor = (float) s[c];
        for (int j = 0; j < n; j++) {
          take(c, j, Math.abs(w[c * n + j] * factor));
        }
      }
    }

    private void keepNear(double[] s) {
      int kept = 0;
      for (int c = 0; c < k; c++) {
        float factor = (float) s[c];
        for (int j = 0; j < n; j++) {
          float v = Math.abs(w[c * n + j] * factor);
          if (v > 0 && v >= NEAR * value[j]) {
            if (kept == column.length) {
              column = Arrays.copyOf(column, Math.max(n, 2 * kept));
              size = Arrays.copyOf(size, column.length);
            }
            column[kept] = j;
            size[kept++] = Math.abs(w[c * n + j]);
          }
        }
        start[c + 1] = kept;
      }
    }
  }
}

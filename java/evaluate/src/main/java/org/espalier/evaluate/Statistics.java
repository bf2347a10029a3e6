package org.espalier.evaluate;

import java.nio.FloatBuffer;
import java.util.Arrays;
import java.util.stream.IntStream;

/** The few statistics that a fidelity report needs. All functions are pure. */
final class Statistics {
  private Statistics() {}

  /** The cosine of two vectors of one length; 0 when either is all zeros. */
  static double cosine(float[] a, float[] b) {
    double ab = 0;
    double aa = 0;
    double bb = 0;
    for (int i = 0; i < a.length; i++) {
      ab += (double) a[i] * b[i];
      aa += (double) a[i] * a[i];
      bb += (double) b[i] * b[i];
    }
    return aa == 0 || bb == 0 ? 0 : ab / Math.sqrt(aa * bb);
  }

  /**
   * The quantile q in [0, 1] with linear interpolation between order statistics (Hyndman and Fan 1996,
   * type 7).
   *
   * @throws IllegalArgumentException when there is no value
   */
  static double quantile(double[] values, double q) {
    if (values.length == 0) {
      throw new IllegalArgumentException("a quantile needs at least one value");
    }
    double[] sorted = values.clone();
    Arrays.sort(sorted);
    double position = q * (sorted.length - 1);
    int low = (int) Math.floor(position);
    int high = Math.min(low + 1, sorted.length - 1);
    return sorted[low] + (position - low) * (sorted[high] - sorted[low]);
  }

  /** The median. */
  static double median(double[] values) {
    return quantile(values, 0.5);
  }

  /**
   * Spearman's rank correlation: Pearson's on ranks, ties given their mean rank.
   *
   * @return a value in [−1, 1]; NaN when either side is constant or has fewer than two values
   */
  static double spearman(double[] x, double[] y) {
    if (x.length != y.length) {
      throw new IllegalArgumentException("lengths differ: " + x.length + " and " + y.length);
    }
    double[] a = ranks(x);
    double[] b = ranks(y);
    double mean = (a.length - 1) / 2.0;
    double ab = 0;
    double aa = 0;
    double bb = 0;
    for (int i = 0; i < a.length; i++) {
      ab += (a[i] - mean) * (b[i] - mean);
      aa += (a[i] - mean) * (a[i] - mean);
      bb += (b[i] - mean) * (b[i] - mean);
    }
    return ab / Math.sqrt(aa * bb);
  }

  /**
   * The area under the ROC curve: the share of pairs of a positive and a negative that the scores order, ties
   * counting half (Mann and Whitney 1947).
   *
   * @param labels 1 for a positive, 0 for a negative; all others are left out
   * @return NaN where there is no such pair or a score is NaN
   */
  static double auc(double[] scores, long[] labels) {
    int[] known =
        IntStream.range(0, labels.length).filter(i -> labels[i] == 0 || labels[i] == 1).toArray();
    double[] ranks = ranks(IntStream.of(known).mapToDouble(i -> scores[i]).toArray());
    double sum = 0;
    long positives = 0;
    for (int k = 0; k < known.length; k++) {
      if (Double.isNaN(scores[known[k]])) {
        return Double.NaN;
      }
      positives += labels[known[k]];
      sum += labels[known[k]] * ranks[k];
    }
    double pairs = (double) positives * (known.length - positives);
    return (sum - positives * (positives - 1) / 2.0) / pairs;
  }

  /** Zero-based ranks; tied values share the mean of their ranks. */
  static double[] ranks(double[] values) {
    Integer[] order = new Integer[values.length];
    Arrays.setAll(order, i -> i);
    Arrays.sort(order, (i, j) -> Double.compare(values[i], values[j]));
    double[] ranks = new double[values.length];
    for (int i = 0; i < order.length; ) {
      int j = i + 1;
      while (j < order.length && values[order[j]] == values[order[i]]) {
        j++;
      }
      for (int k = i; k < j; k++) {
        ranks[order[k]] = (i + j - 1) / 2.0;
      }
      i = j;
    }
    return ranks;
  }

  /** Which of {@code count} values from {@code start} on is the largest, the first of equal ones; −1 where one is NaN. */
  static int largest(FloatBuffer values, int start, int count) {
    int best = 0;
    for (int i = 0; i < count; i++) {
      float value = values.get(start + i);
      if (Float.isNaN(value)) {
        return -1;
      }
      best = value > values.get(start + best) ? i : best;
    }
    return best;
  }

  /** For each unit vector the index of the other one with the largest dot product; ties to the lowest. */
  static int[] nearestNeighbours(float[][] unit) {
    int[] nearest = new int[unit.length];
    for (int i = 0; i < unit.length; i++) {
      double best = Double.NEGATIVE_INFINITY;
      nearest[i] = -1;
      for (int j = 0; j < unit.length; j++) {
        if (j != i) {
          double similarity = dot(unit[i], unit[j]);
          if (similarity > best) {
            best = similarity;
            nearest[i] = j;
          }
        }
      }
    }
    return nearest;
  }

  /** The dot products of all pairs i &lt; j in row order. */
  static double[] pairSimilarities(float[][] unit) {
    int n = unit.length;
    double[] result = new double[n * (n - 1) / 2];
    int k = 0;
    for (int i = 0; i < n; i++) {
      for (int j = i + 1; j < n; j++) {
        result[k++] = dot(unit[i], unit[j]);
      }
    }
    return result;
  }

  private static double dot(float[] a, float[] b) {
    double sum = 0;
    for (int i = 0; i < a.length; i++) {
      sum += (double) a[i] * b[i];
    }
    return sum;
  }

  /**
   * Wilson's 95 % score interval of a proportion (Wilson 1927).
   *
   * @return low and high, both in [0, 1]
   */
  static double[] proportionInterval(int successes, int trials) {
    if (trials < 1 || successes < 0 || successes > trials) {
      throw new IllegalArgumentException(successes + " successes of " + trials + " trials");
    }
    double z = 1.959963984540054;
    double p = (double) successes / trials;
    double z2n = z * z / trials;
    double centre = (p + z2n / 2) / (1 + z2n);
    double half = z / (1 + z2n) * Math.sqrt(p * (1 - p) / trials + z2n / (4 * trials));
    return new double[] {Math.max(0, centre - half), Math.min(1, centre + half)};
  }
}

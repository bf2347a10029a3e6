package org.espalier.compress.onnx;

import java.nio.FloatBuffer;
import java.util.Arrays;

/**
 * The distribution of one activation over any number of runs, in one pass: when a value lies beyond
 * the bins, neighbours are merged until they reach it. Minimum and maximum are exact. Not safe for
 * several threads.
 */
public final class ActivationHistogram {
  /** The number of bins, half of them on each side of zero. After a merge at least a quarter of each half is in use. */
  private static final int BINS = 1 << 14;

  private final long[] counts = new long[BINS];

  /**
   * The values of bin b are in [(b − BINS/2)·width, (b + 1 − BINS/2)·width); 0 before the first.
   */
  private double width;

  private long count;
  private long zeros;
  private float min = Float.POSITIVE_INFINITY;
  private float max = Float.NEGATIVE_INFINITY;

  /**
   * Adds the values from position to limit, which do not change.
   *
   * @return how many were NaN or infinite; those are not counted in the distribution
   */
  public long add(FloatBuffer values) {
    float low = 0;
    float high = 0;
    long bad = 0;
    for (int i = values.position(); i < values.limit(); i++) {
      float v = values.get(i);
      if (Math.abs(v) <= Float.MAX_VALUE) {
        low = Math.min(low, v);
        high = Math.max(high, v);
        min = Math.min(min, v);
        max = Math.max(max, v);
      } else {
        bad++;
      }
    }
    widen(Math.max(high, -low));
    double inverse = width == 0 ? 0 : 1 / width;
    for (int i = values.position(); i < values.limit(); i++) {
      float v = values.get(i);
      if (v == 0) {
        zeros++;
      } else if (Math.abs(v) <= Float.MAX_VALUE) {
        int bin = (int) Math.floor(v * inverse) + BINS / 2;
        counts[Math.max(0, Math.min(BINS - 1, bin))]++;
      }
    }
    count += values.remaining() - bad;
    return bad;
  }

  private void widen(double reach) {
    if (reach == 0) {
      return;
    }
    if (width == 0) {
      width = Math.max(reach / (BINS / 2), Double.MIN_NORMAL);
    }
    while (width * (BINS / 2) < reach) {
      // Pairs merge around zero: bins h+2k and h+2k+1 become h+k on both sides of h = BINS/2.
      int h = BINS / 2;
      for (int k = 0; k < h / 2; k++) {
        counts[h + k] = counts[h + 2 * k] + counts[h + 2 * k + 1];
      }
      for (int k = 1; k <= h / 2; k++) {
        counts[h - k] = counts[h - 2 * k] + counts[h - 2 * k + 1];
      }
      Arrays.fill(counts, h + h / 2, BINS, 0);
      Arrays.fill(counts, 0, h / 2, 0);
      width *= 2;
    }
  }

  /** How many finite values were added. */
  public long count() {
    return count;
  }

  /** All values that were seen; [0, 0] if there were none. */
  public ActivationRange minMax() {
    return new ActivationRange(Math.min(0, min), Math.max(0, max));
  }

  /**
   * The range that holds {@code percent} of the values, with the same number outside at each end.
   *
   * @param percent in (50, 100]
   */
  public ActivationRange percentile(double percent) {
    if (!(percent > 50 && percent <= 100)) {
      throw new IllegalArgumentException("percentile " + percent + " is not in (50, 100]");
    }
    long outside = (long) (count * (100 - percent) / 200);
    int low = 0;
    for (long sum = at(low); sum <= outside && low < BINS / 2; sum += at(low)) {
      low++;
    }
    int high = BINS - 1;
    for (long sum = at(high); sum <= outside && high > BINS / 2 - 1; sum += at(high)) {
      high--;
    }
    return range((low - BINS / 2) * width, (high + 1 - BINS / 2) * width);
  }

  private long at(int bin) {
    return counts[bin] + (bin == BINS / 2 ? zeros : 0);
  }

  private ActivationRange range(double low, double high) {
    ActivationRange all = minMax();
    return new ActivationRange(
        (float) Math.max(all.min(), Math.min(0, low)),
        (float) Math.min(all.max(), Math.max(0, high)));
  }

  /**
   * The range of the least mean squared error of 8-bit values: (clipped part)² for what lies
   * outside and scale²/12, the error of rounding, for what lies inside. Both ends are searched in
   * steps of a hundredth of the full range, one after the other until nothing improves. Exact zeros
   * have no rounding error and do not count.
   */
  public ActivationRange meanSquaredError() {
    ActivationRange all = minMax();
    int low = 100;
    int high = 100;
    double best = error(all);
    for (boolean better = true; better; ) {
      better = false;
      for (int candidate = 1; candidate <= 100; candidate++) {
        double e = error(part(all, candidate, high));
        if (e < best) {
          best = e;
          low = candidate;
          better = true;
        }
      }
      for (int candidate = 1; candidate <= 100; candidate++) {
        double e = error(part(all, low, candidate));
        if (e < best) {
          best = e;
          high = candidate;
          better = true;
        }
      }
    }
    return part(all, low, high);
  }

  private static ActivationRange part(ActivationRange all, int low, int high) {
    return new ActivationRange(all.min() * (low / 100f), all.max() * (high / 100f));
  }

  private double error(ActivationRange range) {
    double rounding = (double) range.scale() * range.scale() / 12;
    double sum = 0;
    for (int b = 0; b < BINS; b++) {
      if (counts[b] > 0) {
        double center = (b - BINS / 2 + 0.5) * width;
        double beyond = Math.max(center - range.max(), range.min() - center);
        sum += counts[b] * (beyond > 0 ? beyond * beyond : rounding);
      }
    }
    return sum;
  }
}

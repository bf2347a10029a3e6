package org.espalier.online.drift;

import java.io.DataInput;
import java.io.DataOutput;
import java.io.IOException;
import java.util.Locale;

/**
 * The test of Page and Hinkley for a rise of the mean: Page, "Continuous inspection schemes" (1954).
 * Alarms when Σ(x − mean − slack) has risen by more than {@code threshold} above its least value.
 */
final class PageHinkley implements DriftDetector {
  private static final int LEAST = 30;

  private final double slack;
  private final double threshold;
  private long n;
  private double mean;
  private double sum;
  private double least;
  private double risen;
  private double meanThen;

  PageHinkley(double slack, double threshold) {
    if (!(slack >= 0) || !(threshold > 0)) {
      throw new IllegalArgumentException("slack " + slack + ", threshold " + threshold);
    }
    this.slack = slack;
    this.threshold = threshold;
  }

  @Override
  public boolean add(double error) {
    n++;
    mean += (error - mean) / n;
    sum += error - mean - slack;
    least = Math.min(least, sum);
    if (n >= LEAST && sum - least > threshold) {
      risen = sum - least;
      meanThen = mean;
      n = 0;
      mean = 0;
      sum = 0;
      least = 0;
      return true;
    }
    return false;
  }

  @Override
  public String evidence() {
    return String.format(
        Locale.ROOT,
        "Page-Hinkley: the sum rose by %.2f, more than %.2f; mean error %.4f",
        risen,
        threshold,
        meanThen);
  }

  @Override
  public void save(DataOutput out) throws IOException {
    out.writeLong(n);
    out.writeDouble(mean);
    out.writeDouble(sum);
    out.writeDouble(least);
    out.writeDouble(risen);
    out.writeDouble(meanThen);
  }

  @Override
  public void load(DataInput in) throws IOException {
    n = in.readLong();
    mean = in.readDouble();
    sum = in.readDouble();
    least = in.readDouble();
    risen = in.readDouble();
    meanThen = in.readDouble();
  }
}

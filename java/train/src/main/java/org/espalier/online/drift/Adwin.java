package org.espalier.online.drift;

import java.io.DataInput;
import java.io.DataOutput;
import java.io.IOException;
import java.util.Locale;
import org.espalier.online.memory.SavedState;

/**
 * Adaptive windowing: Bifet and Gavaldà, "Learning from time-changing data with adaptive windowing"
 * (2007), the version ADWIN2. The window grows while its mean is stable; where two parts of it differ
 * by more than chance allows with confidence 1 − delta, the older part is dropped. Errors that become fewer shorten the
 * window too, and are no alarm: that is a model that learns.
 *
 * <p>Keeps at most {@value #PER_ROW} buckets of each power of two, so memory and time a number are
 * logarithmic in the window.
 */
final class Adwin implements DriftDetector {
  private static final int PER_ROW = 5;
  private static final int ROWS = 60;

  /** Cuts are looked for every so many numbers, as the authors do. */
  private static final int CLOCK = 32;

  private static final int SHORTEST = 5;
  private static final int LEAST = 10;

  private final double delta;

  /** The newest bucket of row r is at count[r] − 1; a bucket of row r holds 2^r numbers. */
  private final double[][] totals = new double[ROWS][PER_ROW + 1];

  private final double[][] variances = new double[ROWS][PER_ROW + 1];
  private final int[] count = new int[ROWS];
  private int rows = 1;
  private long width;
  private double total;
  private double variance;
  private long seen;
  private double before;
  private double after;
  private long dropped;

  /**
   * @param delta the chance of a false alarm, in (0, 1)
   */
  Adwin(double delta) {
    if (!(delta > 0 && delta < 1)) {
      throw new IllegalArgumentException("delta " + delta + "; a number in (0, 1) is right");
    }
    this.delta = delta;
  }

  long width() {
    return width;
  }

  double mean() {
    return width == 0 ? 0 : total / width;
  }

  @Override
  public boolean add(double error) {
    if (width > 0) {
      double d = error - total / width;
      variance += width * d * d / (width + 1);
    }
    width++;
    total += error;
    push(0, error, 0);
    compress();
    seen++;
    return seen % CLOCK == 0 && width > LEAST && cut();
  }

  private void push(int row, double sum, double spread) {
    totals[row][count[row]] = sum;
    variances[row][count[row]] = spread;
    count[row]++;
  }

  /** Two oldest buckets of a full row become one of the next. */
  private void compress() {
    for (int row = 0; count[row] > PER_ROW; row++) {
      double n = Math.scalb(1.0, row);
      double d = (totals[row][0] - totals[row][1]) / n;
      push(
          row + 1,
          totals[row][0] + totals[row][1],
          variances[row][0] + variances[row][1] + n * d * d / 2);
      rows = Math.max(rows, row + 2);
      count[row] -= 2;
      System.arraycopy(totals[row], 2, totals[row], 0, count[row]);
      System.arraycopy(variances[row], 2, variances[row], 0, count[row]);
    }
  }

  /** Drops what is of another time than the newest numbers; true where the mean has risen since. */
  private boolean cut() {
    boolean risen = false;
    boolean again = true;
    while (again && width > LEAST) {
      again = false;
      double n0 = 0;
      double n1 = width;
      double u0 = 0;
      double u1 = total;
      search:
      for (int row = rows - 1; row >= 0; row--) {
        for (int k = 0; k < count[row]; k++) {
          double n = Math.scalb(1.0, row);
          n0 += n;
          n1 -= n;
          u0 += totals[row][k];
          u1 -= totals[row][k];
          if (n1 < SHORTEST) {
            break search;
          }
          if (n0 >= SHORTEST && differ(n0, n1, u0 / n0, u1 / n1)) {
            if (u1 / n1 > u0 / n0) {
              before = u0 / n0;
              after = u1 / n1;
              risen = true;
            }
            dropOldest();
            again = true;
            break search;
          }
        }
      }
    }
    return risen;
  }

  private boolean differ(double n0, double n1, double mean0, double mean1) {
    double m = 1 / (n0 - SHORTEST + 1) + 1 / (n1 - SHORTEST + 1);
    double confidence = StrictMath.log(2 * StrictMath.log(width) / delta);
    double spread = variance / width;
    double bound = Math.sqrt(2 * m * spread * confidence) + 2.0 / 3 * confidence * m;
    return Math.abs(mean0 - mean1) > bound;
  }

  private void dropOldest() {
    int row = rows - 1;
    double n = Math.scalb(1.0, row);
    double sum = totals[row][0];
    double mean = sum / n;
    width -= (long) n;
    total -= sum;
    double d = mean - total / width;
    variance = Math.max(0, variance - variances[row][0] - n * width * d * d / (n + width));
    count[row]--;
    dropped += (long) n;
    System.arraycopy(totals[row], 1, totals[row], 0, count[row]);
    System.arraycopy(variances[row], 1, variances[row], 0, count[row]);
    while (rows > 1 && count[rows - 1] == 0) {
      rows--;
    }
  }

  @Override
  public String evidence() {
    return String.format(
        Locale.ROOT,
        "ADWIN: mean error %.4f before, %.4f since; window now %d",
        before,
        after,
        width);
  }

  @Override
  public void save(DataOutput out) throws IOException {
    out.writeInt(rows);
    out.writeLong(width);
    out.writeDouble(total);
    out.writeDouble(variance);
    out.writeLong(seen);
    out.writeLong(dropped);
    out.writeDouble(before);
    out.writeDouble(after);
    for (int r = 0; r < rows; r++) {
      out.writeInt(count[r]);
      for (int k = 0; k < count[r]; k++) {
        out.writeDouble(totals[r][k]);
        out.writeDouble(variances[r][k]);
      }
    }
  }

  @Override
  public void load(DataInput in) throws IOException {
    rows = SavedState.count(in, 1, ROWS);
    width = in.readLong();
    total = in.readDouble();
    variance = in.readDouble();
    seen = in.readLong();
    dropped = in.readLong();
    before = in.readDouble();
    after = in.readDouble();
    for (int r = 0; r < rows; r++) {
      count[r] = SavedState.count(in, 0, PER_ROW);
      for (int k = 0; k < count[r]; k++) {
        totals[r][k] = in.readDouble();
        variances[r][k] = in.readDouble();
      }
    }
  }
}

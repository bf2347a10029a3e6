package org.espalier.transformers;

import java.nio.FloatBuffer;
import java.util.Arrays;
import org.espalier.InputException;
import org.espalier.format.onnx.OnnxInitializer;

/**
 * Positions of the squares of an image behind that of one more token, [1, 1 + row · row, width], resampled by cubic
 * interpolation as {@code torch.nn.functional.interpolate} does it without aligned corners.
 */
final class PositionTable {
  private static final long MOST_VALUES = 1 << 28;

  private final OnnxInitializer table;
  private final int row;
  private final int width;

  /**
   * @param row squares to a side
   */
  PositionTable(OnnxInitializer table, long row) {
    this.table = table;
    this.row = Math.toIntExact(row);
    width = Math.toIntExact(table.dims()[2]);
  }

  /**
   * Which places along a side make a new one.
   *
   * @param weights as many, of a sum of 1
   */
  private record Taps(int[] places, double[] weights) {
    /** Four neighbours; beyond the ends the last place repeats. */
    static Taps near(int to, int count, int made) {
      double center = (to + 0.5) * count / made - 0.5;
      int floor = (int) Math.floor(center);
      Taps taps = new Taps(new int[4], new double[4]);
      for (int i = 0; i < 4; i++) {
        int place = floor - 1 + i;
        taps.places[i] = Math.max(0, Math.min(count - 1, place));
        taps.weights[i] = cubic(place - center, -0.75);
      }
      return taps;
    }

    /** All that a new place covers where there are fewer of them. */
    static Taps covered(int to, int count, int made) {
      double scale = (double) count / made;
      double stretch = Math.max(1, scale);
      double center = (to + 0.5) * scale;
      int from = Math.max(0, (int) (center - 2 * stretch + 0.5));
      int end = Math.min(count, (int) (center + 2 * stretch + 0.5));
      Taps taps = new Taps(new int[end - from], new double[end - from]);
      double sum = 0;
      for (int i = 0; i < end - from; i++) {
        taps.places[i] = from + i;
        taps.weights[i] = cubic((from + i + 0.5 - center) / stretch, -0.5);
        sum += taps.weights[i];
      }
      for (int i = 0; i < end - from; i++) {
        taps.weights[i] /= sum;
      }
      return taps;
    }

    /** The cubic of Keys. */
    private static double cubic(double distance, double a) {
      double x = Math.abs(distance);
      if (x < 1) {
        return ((a + 2) * x - (a + 3)) * x * x + 1;
      }
      return x < 2 ? ((x - 5) * x + 8) * x * a - 4 * a : 0;
    }
  }

  private static Taps[] taps(int count, long made, boolean smooth) {
    Taps[] taps = new Taps[(int) made];
    for (int i = 0; i < taps.length; i++) {
      taps[i] = smooth ? Taps.covered(i, count, taps.length) : Taps.near(i, count, taps.length);
    }
    return taps;
  }

  /**
   * The same positions for another number of squares.
   *
   * @param smooth whether a place that stands for several sees them all ({@code antialias})
   * @throws InputException if the table would be larger than any model's
   */
  OnnxInitializer resampled(long rows, long columns, boolean smooth) {
    if (rows > MOST_VALUES / columns / width - 1) {
      throw new InputException(
          "images of "
              + rows
              + " x "
              + columns
              + " squares ask for more positions than any model has; fewer pixels are right");
    }
    FloatBuffer from = table.floats();
    float[] made = new float[(int) (1 + rows * columns) * width];
    from.get(0, made, 0, width);
    Taps[] down = taps(row, rows, smooth);
    Taps[] across = taps(row, columns, smooth);
    double[] sums = new double[width];
    int at = width;
    for (Taps y : down) {
      for (Taps x : across) {
        Arrays.fill(sums, 0);
        add(from, y, x, sums);
        for (double sum : sums) {
          made[at++] = (float) sum;
        }
      }
    }
    return OnnxInitializer.floats(table.name(), new long[] {1, 1 + rows * columns, width}, made);
  }

  private void add(FloatBuffer from, Taps y, Taps x, double[] sums) {
    for (int i = 0; i < y.places.length; i++) {
      for (int j = 0; j < x.places.length; j++) {
        double weight = y.weights[i] * x.weights[j];
        int place = (1 + y.places[i] * row + x.places[j]) * width;
        for (int c = 0; c < width; c++) {
          sums[c] += weight * from.get(place + c);
        }
      }
    }
  }
}

package org.espalier.op;

import java.util.Arrays;

/**
 * fake_quantize in plain Java. Places on the grid come from one float multiplication or division, as
 * the definition says; everything after it is exact in double.
 */
final class FakeQuantizeReference {
  /** A tensor [outer, channels, inner]. */
  record Shape(int outer, int channels, int inner) {
    static Shape of(long[] shape, Integer axis) {
      if (axis == null) {
        return new Shape(1, 1, product(shape, 0, shape.length));
      }
      return new Shape(
          product(shape, 0, axis), (int) shape[axis], product(shape, axis + 1, shape.length));
    }

    private static int product(long[] shape, int from, int to) {
      int product = 1;
      for (int i = from; i < to; i++) {
        product *= (int) shape[i];
      }
      return product;
    }

    int elements() {
      return outer * channels * inner;
    }

    int channelOf(int i) {
      return i / inner % channels;
    }
  }

  /** A grid. */
  record Grid(int min, int max, boolean symmetric, float divisor, boolean divide) {}

  private FakeQuantizeReference() {}

  /** rint(x / s) + z before clamping; NaN where x is. */
  static double position(float x, float scale, int zeroPoint, boolean divide) {
    float v = divide ? x / scale : x * (1f / scale);
    return Math.rint((double) v) + zeroPoint;
  }

  static int quantized(Grid grid, float x, float scale, int zeroPoint) {
    double position = position(x, scale, zeroPoint, grid.divide());
    if (Double.isNaN(position)) {
      return grid.min();
    }
    return (int) Math.max(grid.min(), Math.min(grid.max(), position));
  }

  static boolean passes(Grid grid, float x, float scale, int zeroPoint) {
    double position = position(x, scale, zeroPoint, grid.divide());
    return grid.min() <= position && position <= grid.max();
  }

  static float value(int quantized, float scale, int zeroPoint) {
    return (float) ((double) (quantized - zeroPoint) * scale);
  }

  /** Minima and maxima of the finite values of each channel; +inf and -inf where there are none. */
  static float[][] ranges(float[] x, Shape shape) {
    float[][] ranges = new float[2][shape.channels()];
    Arrays.fill(ranges[0], Float.POSITIVE_INFINITY);
    Arrays.fill(ranges[1], Float.NEGATIVE_INFINITY);
    for (int i = 0; i < x.length; i++) {
      if (Float.isFinite(x[i])) {
        int c = shape.channelOf(i);
        ranges[0][c] = Math.min(ranges[0][c], x[i]);
        ranges[1][c] = Math.max(ranges[1][c], x[i]);
      }
    }
    return ranges;
  }

  static float scale(Grid grid, float minimum, float maximum) {
    float low = Math.min(0f, minimum);
    float high = Math.max(0f, maximum);
    if (low == 0 && high == 0) {
      return 1f;
    }
    return grid.symmetric()
        ? (float) (Math.max(-(double) low, high) / grid.divisor())
        : (float) ((double) (float) ((double) high - low) / (grid.max() - grid.min()));
  }

  static int zeroPoint(Grid grid, float minimum, float scale) {
    if (grid.symmetric()) {
      return 0;
    }
    float steps = Math.min(0f, minimum) / scale;
    double zero =
        grid.divide() ? Math.rint((double) (grid.min() - steps)) : grid.min() - Math.rint(steps);
    return (int) Math.max(grid.min(), Math.min(grid.max(), zero));
  }

  /** The sum of (y - x)^2 over the finite values of a channel. */
  static double error(Grid grid, float[] x, Shape shape, int channel, float scale, int zeroPoint) {
    double sum = 0;
    for (int i = 0; i < x.length; i++) {
      if (shape.channelOf(i) == channel && Float.isFinite(x[i])) {
        float e = value(quantized(grid, x[i], scale, zeroPoint), scale, zeroPoint) - x[i];
        sum += (double) e * e;
      }
    }
    return sum;
  }

  /** Sums of gradY * dy/ds and gradY * dy/dz of each channel, from exact quotients. */
  static double[][] scaleGradient(
      Grid grid, float[] x, float[] gradY, Shape shape, float[] scale, int[] zeroPoint) {
    double[][] sums = new double[2][shape.channels()];
    for (int i = 0; i < x.length; i++) {
      int c = shape.channelOf(i);
      double position = position(x[i], scale[c], zeroPoint[c], grid.divide());
      if (grid.min() <= position && position <= grid.max()) {
        double v = (double) x[i] / scale[c];
        sums[0][c] += gradY[i] * (position - zeroPoint[c] - v);
      } else {
        int clamped = quantized(grid, x[i], scale[c], zeroPoint[c]);
        sums[0][c] += (double) gradY[i] * (clamped - zeroPoint[c]);
        sums[1][c] -= (double) gradY[i] * scale[c];
      }
    }
    return sums;
  }
}

package org.espalier.train;

import org.espalier.op.KdSoftmaxLoss;

/** What is right for each example; in memory and immutable. */
public sealed interface Labels {
  /** Of how many examples. */
  int size();

  /**
   * How many values of it are known.
   *
   * @param counted for each whether it is looked at; null: all are
   */
  int known(boolean[] counted);

  /** How many values of it are known. */
  default int known() {
    return known(null);
  }

  /** How many values an example has. */
  int width();

  /** Those of some examples, in this order. */
  Labels of(int... examples);

  private static void checkWidth(int values, int width) {
    if (width < 1 || values % width != 0) {
      throw new IllegalArgumentException(values + " labels in rows of " + width);
    }
  }

  /**
   * Classes: one an example, or one for each of its tokens or pixels, or 0 and 1 for each of several classes that
   * do not exclude each other.
   *
   * @param values from 0; {@link #NO_LABEL} where it is unknown
   * @param width how many an example has, at least 1
   */
  record Classes(long[] values, int width) implements Labels {
    /** The label that says that there is none. */
    public static final long NO_LABEL = KdSoftmaxLoss.NO_LABEL;

    public Classes {
      checkWidth(values.length, width);
    }

    /** One an example. */
    public Classes(long... values) {
      this(values, 1);
    }

    @Override
    public int size() {
      return values.length / width;
    }

    @Override
    public int known(boolean[] counted) {
      int known = 0;
      for (int i = 0; i < values.length; i++) {
        known += values[i] != NO_LABEL && (counted == null || counted[i]) ? 1 : 0;
      }
      return known;
    }

    @Override
    public Classes of(int... examples) {
      long[] some = new long[examples.length * width];
      for (int i = 0; i < examples.length; i++) {
        System.arraycopy(values, examples[i] * width, some, i * width, width);
      }
      return new Classes(some, width);
    }
  }

  /**
   * Numbers, which regression learns.
   *
   * @param values finite, {@code width} an example; NaN where it is unknown
   * @param width how many an example has, at least 1
   */
  record Numbers(float[] values, int width) implements Labels {
    public Numbers {
      checkWidth(values.length, width);
    }

    @Override
    public int size() {
      return values.length / width;
    }

    @Override
    public Numbers of(int... examples) {
      float[] some = new float[examples.length * width];
      for (int i = 0; i < examples.length; i++) {
        System.arraycopy(values, examples[i] * width, some, i * width, width);
      }
      return new Numbers(some, width);
    }

    @Override
    public int known(boolean[] counted) {
      int known = 0;
      for (int i = 0; i < values.length; i++) {
        known += !Float.isNaN(values[i]) && (counted == null || counted[i]) ? 1 : 0;
      }
      return known;
    }

    /** The mean squared distance of the known values to the mean of their column; 0 without any. */
    public double variance() {
      double squares = 0;
      for (int column = 0; column < width; column++) {
        double sum = 0;
        int n = 0;
        for (int i = column; i < values.length; i += width) {
          sum += Float.isNaN(values[i]) ? 0 : values[i];
          n += Float.isNaN(values[i]) ? 0 : 1;
        }
        for (int i = column; i < values.length; i += width) {
          double d = values[i] - sum / n;
          squares += Float.isNaN(values[i]) ? 0 : d * d;
        }
      }
      return squares / Math.max(1, known());
    }
  }
}

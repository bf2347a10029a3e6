package org.espalier.train;

/** What is right for each example; in memory and immutable. */
public sealed interface Labels {
  /** Of how many examples. */
  int size();

  /** How many values of it are known. */
  int known();

  /** Whether all of it is known for an example. */
  boolean isKnown(int example);

  /** Those of some examples, in this order. */
  Labels of(int... examples);

  /**
   * Classes.
   *
   * @param values one an example, from 0; {@link #NO_LABEL} where nobody knows
   */
  record Classes(long[] values) implements Labels {
    /** The label of an example that has none. */
    public static final long NO_LABEL = -100;

    @Override
    public int size() {
      return values.length;
    }

    @Override
    public int known() {
      int known = 0;
      for (long value : values) {
        known += value == NO_LABEL ? 0 : 1;
      }
      return known;
    }

    @Override
    public boolean isKnown(int example) {
      return values[example] != NO_LABEL;
    }

    @Override
    public Classes of(int... examples) {
      long[] some = new long[examples.length];
      for (int i = 0; i < some.length; i++) {
        some[i] = values[examples[i]];
      }
      return new Classes(some);
    }
  }

  /**
   * Numbers, which regression learns.
   *
   * @param values finite, {@code width} an example; NaN where nobody knows
   * @param width how many an example has, at least 1
   */
  record Numbers(float[] values, int width) implements Labels {
    public Numbers {
      if (width < 1 || values.length % width != 0) {
        throw new IllegalArgumentException(values.length + " numbers in rows of " + width);
      }
    }

    @Override
    public int size() {
      return values.length / width;
    }

    @Override
    public boolean isKnown(int example) {
      for (int i = example * width; i < (example + 1) * width; i++) {
        if (Float.isNaN(values[i])) {
          return false;
        }
      }
      return true;
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
    public int known() {
      int known = 0;
      for (float value : values) {
        known += Float.isNaN(value) ? 0 : 1;
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

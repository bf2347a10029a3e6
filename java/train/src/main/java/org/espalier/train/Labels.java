package org.espalier.train;

import java.util.Arrays;
import java.util.List;
import java.util.stream.IntStream;
import java.util.stream.LongStream;
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

  /** How many values an example has; {@link Examples.Input#OPEN} where it is as many as its tokens. */
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

    /** Those of each example. */
    public List<long[]> rows() {
      return IntStream.range(0, size())
          .mapToObj(i -> Arrays.copyOfRange(values, i * width, (i + 1) * width))
          .toList();
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
   * Classes of the tokens of texts, each of which has its own number of them: for inputs that are open.
   *
   * @param rows for each token of each text, from 0; {@link Classes#NO_LABEL} where it is unknown
   */
  record TokenClasses(List<long[]> rows) implements Labels {
    public TokenClasses {
      rows = List.copyOf(rows);
    }

    @Override
    public int size() {
      return rows.size();
    }

    @Override
    public int known(boolean[] counted) {
      return inTurn().known(counted);
    }

    @Override
    public int width() {
      return (int) Examples.Input.OPEN;
    }

    @Override
    public TokenClasses of(int... examples) {
      return new TokenClasses(IntStream.of(examples).mapToObj(rows::get).toList());
    }

    /** Those of all tokens, one text after the other. */
    Classes inTurn() {
      return new Classes(rows.stream().flatMapToLong(LongStream::of).toArray());
    }

    /** The rows with unknown ones behind their ends. */
    Classes padded(int longest) {
      long[] values = new long[rows.size() * longest];
      Arrays.fill(values, Classes.NO_LABEL);
      for (int i = 0; i < rows.size(); i++) {
        System.arraycopy(rows.get(i), 0, values, i * longest, rows.get(i).length);
      }
      return new Classes(values, longest);
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

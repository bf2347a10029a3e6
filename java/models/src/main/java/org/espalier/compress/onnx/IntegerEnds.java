package org.espalier.compress.onnx;

import java.nio.FloatBuffer;
import java.util.List;

/**
 * The least and the largest integer that a weight on a given grid may have. What weights began as tells: those with −128 may go
 * there again. Where the largest of each weight is 63 or 64, they were made for processors whose 8-bit products saturate, and stay
 * within that. All others stay within {@link #USUAL}. Immutable and safe for several threads.
 */
public record IntegerEnds(int least, int largest) {
  private static final int LEAST_REDUCED = 63;
  private static final int MOST_REDUCED = 64;

  /** What an optimizer rounds to in its step. */
  public static final IntegerEnds USUAL = new IntegerEnds(-Byte.MAX_VALUE, Byte.MAX_VALUE);

  /**
   * The steps between the integers of a weight.
   *
   * @param scales one for each index of the axis, positive
   * @param inner how many elements lie behind each other for each index of the axis
   */
  public record Steps(float[] scales, int inner) {
    /** The steps of a weight of so many elements whose scales lie along its first axis or, where that is not 0, its last. */
    public static Steps along(int axis, float[] scales, int elements) {
      return new Steps(scales, axis == 0 ? elements / scales.length : 1);
    }

    /** The step of an element. */
    public float of(int element) {
      return scales[element / inner % scales.length];
    }
  }

  /** The least and the largest integer that a weight has now, each at least 0 away from it. */
  public static IntegerEnds reached(FloatBuffer values, Steps steps) {
    int least = 0;
    int largest = 0;
    for (int i = 0; i < values.capacity(); i++) {
      int nearest = Math.round(values.get(i) / steps.of(i));
      least = Math.min(least, nearest);
      largest = Math.max(largest, nearest);
    }
    return new IntegerEnds(least, largest);
  }

  /**
   * What the weights of a model may reach.
   *
   * @param began what each has {@linkplain #reached} at its beginning
   */
  public static List<IntegerEnds> of(List<IntegerEnds> began) {
    boolean reduced = began.stream().allMatch(IntegerEnds::areReduced);
    return began.stream()
        .map(
            ends ->
                reduced
                    ? new IntegerEnds(-ends.magnitude(), ends.magnitude())
                    : ends.least == Byte.MIN_VALUE
                        ? new IntegerEnds(Byte.MIN_VALUE, Byte.MAX_VALUE)
                        : USUAL)
        .toList();
  }

  private int magnitude() {
    return Math.max(-least, largest);
  }

  private boolean areReduced() {
    return magnitude() >= LEAST_REDUCED && magnitude() <= MOST_REDUCED;
  }

  /**
   * Whether no weight lies beyond the ends.
   *
   * @param passes one bit a weight, 0 where it lies beyond; becomes 1 behind the last weight
   */
  public static boolean allPass(long[] passes, int weights) {
    passes[passes.length - 1] |= weights % Long.SIZE == 0 ? 0 : -1L << weights;
    long all = -1;
    for (long word : passes) {
      all &= word;
    }
    return all == -1;
  }

  /**
   * Brings weights that a step has moved beyond an end back to it: beyond, no gradient would pass the rounding, and they would
   * stay there whatever comes. What they are rounded to is the end already.
   *
   * @param passes as {@link #allPass} left them; becomes 1 where a weight came back
   * @param values the weights before they are rounded
   */
  public void bringBack(long[] passes, FloatBuffer values, Steps steps) {
    for (int word = 0; word < passes.length; word++) {
      for (long bits = ~passes[word]; bits != 0; bits &= bits - 1) {
        int i = word * Long.SIZE + Long.numberOfTrailingZeros(bits);
        float value = values.get(i);
        if (!Float.isNaN(value)) { // which the guard takes out
          values.put(i, (value < 0 ? least : largest) * steps.of(i));
          passes[word] |= 1L << i;
        }
      }
    }
  }
}

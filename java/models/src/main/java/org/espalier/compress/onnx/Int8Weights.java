package org.espalier.compress.onnx;

import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.FloatBuffer;
import org.espalier.InputException;

/**
 * Weights as signed integers with one scale an output channel: w ≈ scale·q, scale = absmax/qmax, q
 * = rint(w·(1/scale)) in [−qmax, qmax], and scale 1 for a channel of zeros.
 *
 * @param values the integers in the layout of the weights, direct
 * @param scales one a channel, positive
 */
public record Int8Weights(ByteBuffer values, float[] scales) {
  /** The largest integer of 8 bits: the grid is symmetric, −128 is not used. */
  public static final int MAX_8_BIT = 127;

  /** The largest integer of 7 bits, for processors whose 8-bit products saturate. */
  public static final int MAX_7_BIT = 63;

  /**
   * Quantizes weights.
   *
   * @param name what an error calls them
   * @param weights all elements, row-major
   * @param dims their dimensions
   * @param axis the axis of the output channels
   * @param qmax the largest integer
   * @param minimumScales the scale of each channel is at least this; null for no such bound
   * @throws InputException if a weight is NaN or infinite, or a channel so small that the
   *     reciprocal of its scale is infinite
   */
  public static Int8Weights of(
      String name, FloatBuffer weights, long[] dims, int axis, int qmax, float[] minimumScales) {
    int channels = Math.toIntExact(dims[axis]);
    int inner = 1;
    for (int i = axis + 1; i < dims.length; i++) {
      inner = Math.toIntExact(inner * dims[i]);
    }
    int n = weights.remaining();
    float[] scales = new float[channels];
    for (int i = 0; i < n; i++) {
      float w = Math.abs(weights.get(i));
      if (!(w <= Float.MAX_VALUE)) {
        throw new InputException(
            "the weights "
                + name
                + " hold "
                + weights.get(i)
                + " at element "
                + i
                + ": no scale can be found; repair or exclude them");
      }
      int c = i / inner % channels;
      scales[c] = Math.max(scales[c], w);
    }
    float[] inverse = new float[channels];
    for (int c = 0; c < channels; c++) {
      scales[c] = scales[c] == 0 ? 1f : scales[c] / qmax;
      if (minimumScales != null) {
        scales[c] = Math.max(scales[c], minimumScales[c]);
      }
      inverse[c] = 1f / scales[c];
      if (Float.isInfinite(inverse[c])) {
        throw new InputException(
            "the weights "
                + name
                + " are at most "
                + scales[c] * qmax
                + " in channel "
                + c
                + ", too small for a float32 scale; set them to zero or exclude them");
      }
    }
    ByteBuffer values = ByteBuffer.allocateDirect(n).order(ByteOrder.LITTLE_ENDIAN);
    for (int i = 0; i < n; i++) {
      double q = Math.rint(weights.get(i) * inverse[i / inner % channels]);
      values.put(i, (byte) Math.max(-qmax, Math.min(qmax, q)));
    }
    return new Int8Weights(values, scales);
  }
}

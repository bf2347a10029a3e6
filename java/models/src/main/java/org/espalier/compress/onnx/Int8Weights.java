package org.espalier.compress.onnx;

import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.FloatBuffer;
import org.bytedeco.javacpp.BytePointer;
import org.bytedeco.javacpp.FloatPointer;
import org.espalier.InputException;
import org.espalier.device.Tensor;
import org.espalier.op.FakeQuantize;

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
    FloatBuffer direct = weights.isDirect() ? weights.slice() : copy(weights);
    ByteBuffer values =
        ByteBuffer.allocateDirect(direct.remaining()).order(ByteOrder.nativeOrder());
    float[] scales = new float[Math.toIntExact(dims[axis])];
    FakeQuantize grid = FakeQuantize.symmetric(-qmax, qmax, qmax).perChannel(axis);
    try (FloatPointer scale = new FloatPointer((long) scales.length);
        BytePointer quantized = new BytePointer(values)) {
      Tensor x = Tensor.of(direct, dims);
      FakeQuantize.Job job = FakeQuantize.Job.real(x, quantized, scale, null);
      if (grid.run(job).total() > 0) {
        throw notFinite(direct);
      }
      scale.get(scales);
      boolean raised = false;
      for (int c = 0; minimumScales != null && c < scales.length; c++) {
        raised |= scales[c] < minimumScales[c];
        scales[c] = Math.max(scales[c], minimumScales[c]);
      }
      if (raised) {
        scale.put(scales);
        grid.given().run(job);
      }
    } catch (InputException e) {
      throw new InputException("the weights " + name + ": " + e.getMessage(), e);
    }
    return new Int8Weights(values.order(ByteOrder.LITTLE_ENDIAN), scales);
  }

  private static FloatBuffer copy(FloatBuffer weights) {
    return ByteBuffer.allocateDirect(Math.multiplyExact(4, weights.remaining()))
        .order(ByteOrder.nativeOrder())
        .asFloatBuffer()
        .put(weights.duplicate())
        .flip();
  }

  private static InputException notFinite(FloatBuffer weights) {
    int i = 0;
    while (Math.abs(weights.get(i)) <= Float.MAX_VALUE) {
      i++;
    }
    return new InputException(
        "element "
            + i
            + " is "
            + weights.get(i)
            + "; no scale can be found: repair or exclude them");
  }
}

package org.espalier.compress.onnx;

import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.FloatBuffer;
import java.util.Arrays;
import org.bytedeco.javacpp.BytePointer;
import org.bytedeco.javacpp.FloatPointer;
import org.espalier.InputException;
import org.espalier.device.Tensor;
import org.espalier.op.FakeQuantize;

/**
 * Weights as signed integers with one scale an output channel: w ≈ scale·q, scale = absmax/qmax, q
 * = rint(w·(1/scale)) in [−qmax, qmax]. A channel of zeros, or of values that are nothing beside the
 * smallest normal float, has the largest scale of the others: a bias in steps of the product's scale is as
 * fine there as elsewhere. Where all are zeros it is 1.
 *
 * @param values the integers in the layout of the weights, direct
 * @param scales one a channel, positive
 */
record Int8Weights(ByteBuffer values, float[] scales) {
  /** The largest integer of 8 bits: the grid is symmetric, −128 is not used. */
  static final int MAX_8_BIT = 127;

  /**
   * Quantizes weights.
   *
   * @param name what an error calls them
   * @param weights all elements, row-major
   * @param dims their dimensions
   * @param axis the axis of the output channels
   * @param qmax the largest integer
   * @param minimumScales the scale of each channel is at least this; null for no such bound
   * @throws InputException if a weight is NaN or infinite
   */
  static Int8Weights of(
      String name, FloatBuffer weights, long[] dims, int axis, int qmax, float[] minimumScales) {
    boolean[] dead = dead(weights.slice(), dims, axis, qmax);
    boolean anyDead = any(dead);
    FloatBuffer direct = weights.isDirect() && !anyDead ? weights.slice() : copy(weights);
    if (anyDead) {
      clear(direct, dims, axis, dead);
    }
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
      boolean raised = anyDead;
      revive(scales, dead);
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

  /** A copy of the integers. */
  byte[] integers() {
    byte[] integers = new byte[values.remaining()];
    values.duplicate().get(integers);
    return integers;
  }

  /** Which channels have no scale whose reciprocal is finite. */
  private static boolean[] dead(FloatBuffer weights, long[] dims, int axis, int qmax) {
    boolean[] dead = new boolean[Math.toIntExact(dims[axis])];
    Arrays.fill(dead, true);
    float least = qmax * Float.MIN_NORMAL;
    int inner = inner(dims, axis);
    int n = weights.remaining();
    for (int start = 0, c = 0; start < n; start += inner, c = c + 1 == dead.length ? 0 : c + 1) {
      boolean small = true;
      for (int i = start; i < start + inner; i++) {
        small &= Math.abs(weights.get(i)) < least;
      }
      dead[c] &= small;
    }
    return dead;
  }

  private static int inner(long[] dims, int axis) {
    return (int) Arrays.stream(dims, axis + 1, dims.length).reduce(1, (a, b) -> a * b);
  }

  private static boolean any(boolean[] flags) {
    boolean any = false;
    for (boolean flag : flags) {
      any |= flag;
    }
    return any;
  }

  private static void clear(FloatBuffer weights, long[] dims, int axis, boolean[] dead) {
    int inner = inner(dims, axis);
    for (int i = 0; i < weights.remaining(); i++) {
      if (dead[i / inner % dead.length]) {
        weights.put(i, 0);
      }
    }
  }

  /** Gives dead channels the largest scale of the others. */
  private static void revive(float[] scales, boolean[] dead) {
    float largest = 0;
    for (int c = 0; c < scales.length; c++) {
      largest = dead[c] ? largest : Math.max(largest, scales[c]);
    }
    for (int c = 0; c < scales.length; c++) {
      scales[c] = dead[c] && largest > 0 ? largest : scales[c];
    }
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

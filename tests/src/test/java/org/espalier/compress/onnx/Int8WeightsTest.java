package org.espalier.compress.onnx;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.nio.FloatBuffer;
import java.util.Random;
import org.espalier.InputException;
import org.junit.jupiter.api.Test;

class Int8WeightsTest {
  private static byte[] bytes(Int8Weights w) {
    byte[] values = new byte[w.values().remaining()];
    w.values().duplicate().get(values);
    return values;
  }

  @Test
  void eachChannelOfAnyAxisHasTheScaleOfItsLargestWeight() {
    Random random = new Random(1);
    long[] dims = {3, 5, 4};
    float[] w = new float[60];
    for (int i = 0; i < w.length; i++) {
      w[i] = (float) random.nextGaussian();
    }
    for (int axis = 0; axis < 3; axis++) {
      int inner = axis == 0 ? 20 : axis == 1 ? 4 : 1;
      int channels = (int) dims[axis];
      Int8Weights q =
          Int8Weights.of("w", FloatBuffer.wrap(w), dims, axis, Int8Weights.MAX_8_BIT, null);
      float[] largest = new float[channels];
      for (int i = 0; i < w.length; i++) {
        int c = i / inner % channels;
        largest[c] = Math.max(largest[c], Math.abs(w[i]));
      }
      byte[] expected = new byte[60];
      for (int c = 0; c < channels; c++) {
        largest[c] /= 127;
      }
      for (int i = 0; i < w.length; i++) {
        expected[i] = (byte) Math.rint(w[i] * (1f / largest[i / inner % channels]));
      }
      assertArrayEquals(largest, q.scales());
      assertArrayEquals(expected, bytes(q));
    }
  }

  @Test
  void zerosHaveAScaleAndMinimumScalesAreKept() {
    float[] w = {0, 0, -0f, 3, -4, 1};
    long[] dims = {2, 3};
    Int8Weights q = Int8Weights.of("w", FloatBuffer.wrap(w), dims, 0, 63, null);
    assertArrayEquals(new float[] {4f / 63, 4f / 63}, q.scales());
    assertArrayEquals(new byte[] {0, 0, 0, 47, -63, 16}, bytes(q));
    float[] minimum = {2, 1};
    Int8Weights wide = Int8Weights.of("w", FloatBuffer.wrap(w), dims, 0, 63, minimum);
    assertArrayEquals(minimum, wide.scales());
    assertArrayEquals(new byte[] {0, 0, 0, 3, -4, 1}, bytes(wide));
  }

  @Test
  void weightsWithoutAScaleAreNamed() {
    for (float bad : new float[] {Float.NaN, Float.NEGATIVE_INFINITY}) {
      float[] w = {1, 2, bad, 3};
      InputException e =
          assertThrows(
              InputException.class,
              () ->
                  Int8Weights.of("layer.w", FloatBuffer.wrap(w), new long[] {2, 2}, 0, 127, null));
      assertTrue(e.getMessage().contains("layer.w: element 2 is " + bad), e.getMessage());
    }
  }

  /** Denormal weights have no scale with a finite reciprocal; real models have channels of them. */
  @Test
  void deadChannelsTakeTheLargestScaleOfTheOthers() {
    float[] w = {0, 1e-44f, 1, -2, 3e-38f, 1e-40f, 0.5f, 0.25f, 0, 0};
    Int8Weights q = Int8Weights.of("w", FloatBuffer.wrap(w), new long[] {5, 2}, 0, 127, null);
    float large = 2 * (1 / 127f);
    assertArrayEquals(
        new float[] {large, large, large, 0.5f * (1 / 127f), large}, q.scales(), 1e-9f);
    assertArrayEquals(new byte[] {0, 0, 64, -127, 0, 0, 127, 64, 0, 0}, bytes(q));
    float[] columns = {0, 1, 1e-44f, -2};
    q = Int8Weights.of("w", FloatBuffer.wrap(columns), new long[] {2, 2}, 1, 127, null);
    assertArrayEquals(new byte[] {0, 64, 0, -127}, bytes(q));
    q = Int8Weights.of("w", FloatBuffer.wrap(new float[4]), new long[] {2, 2}, 0, 127, null);
    assertArrayEquals(new float[] {1, 1}, q.scales());
  }
}

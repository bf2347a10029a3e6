package org.espalier.format;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.nio.ByteBuffer;
import java.util.Random;
import org.bytedeco.pytorch.Tensor;
import org.bytedeco.pytorch.global.torch;
import org.junit.jupiter.api.Test;

class Float8Test {
  /** Sizes from below half of the smallest number to beyond the largest. */
  private static float[] values() {
    Random random = new Random(3);
    float[] values = new float[1 << 16];
    for (int i = 0; i < values.length; i++) {
      values[i] = (float) (random.nextGaussian() * Math.pow(2, random.nextInt(22) - 12));
    }
    int at = 0;
    for (int bits = 0; bits < 0x7e; bits++) { // what lies in the middle, and next to that
      float middle = (Float8.value((byte) bits) + Float8.value((byte) (bits + 1))) / 2;
      for (float near : new float[] {middle, Math.nextUp(middle), Math.nextDown(middle)}) {
        values[at++] = near;
        values[at++] = -near;
      }
    }
    values[at++] = -0f;
    return values;
  }

  /** PyTorch makes NaN of what is beyond the largest, so that is cut first. */
  @Test
  void numbersAreThoseOfPyTorch() {
    float[] values = values();
    float[] cut = new float[values.length];
    for (int i = 0; i < cut.length; i++) {
      cut[i] = Math.max(-Float8.LARGEST, Math.min(Float8.LARGEST, values[i]));
    }
    try (Tensor floats = torch.tensor(cut);
        Tensor rounded = floats.to(torch.ScalarType.Float8_e4m3fn)) {
      ByteBuffer bits = rounded.data_ptr().capacity(cut.length).asByteBuffer();
      for (int i = 0; i < cut.length; i++) {
        assertEquals(bits.get(i), Float8.of(values[i]), "of " + values[i]);
      }
      try (Tensor back = rounded.to(torch.ScalarType.Float)) {
        for (int i = 0; i < cut.length; i++) {
          assertEquals(back.data_ptr_float().get(i), Float8.value(bits.get(i)));
        }
      }
    }
  }

  @Test
  void eachNumberIsItself() {
    for (int bits = 0; bits < 256; bits++) {
      byte stored = (byte) bits;
      float value = Float8.value(stored);
      if ((bits & 0x7f) == 0x7f) {
        assertTrue(Float.isNaN(value));
      } else {
        assertTrue(Math.abs(value) <= Float8.LARGEST);
      }
      assertEquals(stored, Float8.of(value));
    }
    assertEquals(0x7f, Float8.of(Float.NaN) & 0x7f);
    assertEquals(0x7e, Float8.of(Float.POSITIVE_INFINITY));
    assertEquals((byte) 0xfe, Float8.of(Float.NEGATIVE_INFINITY));
  }
}

package org.espalier.format;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.math.BigDecimal;
import org.junit.jupiter.api.Test;

/** Every float16 and bfloat16, and the float32 between neighbours. */
class HalfFloatsTest {
  private interface Widening {
    float of(short half);
  }

  private interface Rounding {
    short of(float value);
  }

  @Test
  void float16IsNearest() {
    checkAll(HalfFloats::ofFloat16, HalfFloats::toFloat16, 0x7c00);
    assertEquals(65504, HalfFloats.ofFloat16((short) 0x7bff));
    assertEquals(0x7bff, HalfFloats.toFloat16(Math.nextDown(65520f)));
    assertEquals(0x7c00, HalfFloats.toFloat16(65520f));
    assertEquals(0x1p-24f, HalfFloats.ofFloat16((short) 1));
    assertEquals(0x1p-14f, HalfFloats.ofFloat16((short) 0x0400));
  }

  @Test
  void bfloat16IsNearest() {
    checkAll(HalfFloats::ofBfloat16, HalfFloats::toBfloat16, 0x7f80);
    assertEquals(0x7f80, HalfFloats.toBfloat16(Float.MAX_VALUE));
  }

  /** Each value comes back, and what lies between two goes to the nearer one, or to the even one. */
  private static void checkAll(Widening widening, Rounding rounding, int infinite) {
    for (int half = 0; half < infinite; half++) {
      float value = widening.of((short) half);
      assertEquals((short) half, rounding.of(value));
      assertEquals((short) (half | 0x8000), rounding.of(-value));
      if (half + 1 == infinite) {
        break;
      }
      float above = widening.of((short) (half + 1));
      assertTrue(value < above, value + " and " + above);
      float middle =
          new BigDecimal(value).add(new BigDecimal(above)).divide(new BigDecimal(2)).floatValue();
      assertEquals((short) (half % 2 == 0 ? half : half + 1), rounding.of(middle));
      assertEquals((short) half, rounding.of(Math.nextDown(middle)));
      assertEquals((short) (half + 1), rounding.of(Math.nextUp(middle)));
    }
    for (float special : new float[] {Float.POSITIVE_INFINITY, Float.NEGATIVE_INFINITY}) {
      assertEquals(special, widening.of(rounding.of(special)));
    }
    for (int bits : new int[] {0x7fc00000, 0x7f800001, 0xff800001, 0x7fffffff}) {
      assertTrue(Float.isNaN(widening.of(rounding.of(Float.intBitsToFloat(bits)))));
    }
  }
}

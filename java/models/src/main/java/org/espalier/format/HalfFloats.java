package org.espalier.format;

import org.espalier.device.DType;

/** Floats of 16 bits: float16 (IEEE 754 binary16: 5 bits of exponent, 10 of fraction) and bfloat16, the upper half of a float32. */
public final class HalfFloats {
  /** The largest finite float16. */
  public static final float LARGEST_FLOAT16 = 65504;

  /** The smallest float16 of full precision; below lie multiples of 2⁻²⁴. */
  public static final float SMALLEST_FLOAT16 = 0x1p-14f;

  private HalfFloats() {}

  /** A value as it reads back from a type. */
  public static float rounded(float value, DType type) {
    return switch (type) {
      case F32 -> value;
      case BF16 -> ofBfloat16(toBfloat16(value));
      case F16 -> ofFloat16(toFloat16(value));
    };
  }

  /** The nearest float16, of two as near the even one; ±∞ from 65,520 on, NaN for NaN. */
  public static short toFloat16(float value) {
    int bits = Float.floatToRawIntBits(value);
    int sign = bits >>> 16 & 0x8000;
    float magnitude = Math.abs(value);
    if (Float.isNaN(value)) {
      return (short) (sign | 0x7e00);
    } else if (magnitude >= 65520) {
      return (short) (sign | 0x7c00);
    } else if (magnitude < SMALLEST_FLOAT16) {
      return (short) (sign | (int) Math.rint(magnitude * 0x1p24));
    }
    // From 23 bits of fraction to 10, and from a bias of 127 to one of 15.
    int carried = (bits & Integer.MAX_VALUE) + 0xfff + (bits >>> 13 & 1);
    return (short) (sign | carried - (112 << 23) >>> 13);
  }

  /** The value of a float16, exactly. */
  public static float ofFloat16(short half) {
    int exponent = half >> 10 & 31;
    int fraction = half & 1023;
    float magnitude =
        switch (exponent) {
          case 0 -> fraction * 0x1p-24f;
          case 31 -> fraction == 0 ? Float.POSITIVE_INFINITY : Float.NaN;
          default -> Float.intBitsToFloat(exponent + 112 << 23 | fraction << 13);
        };
    return half < 0 ? -magnitude : magnitude;
  }

  /** The nearest bfloat16, of two as near the even one; ±∞ where it is beyond the largest, NaN for NaN. */
  public static short toBfloat16(float value) {
    int bits = Float.floatToRawIntBits(value);
    return (short)
        ((Float.isNaN(value) ? bits | 0x400000 : bits + 0x7fff + (bits >>> 16 & 1)) >>> 16);
  }

  /** The value of a bfloat16, exactly. */
  public static float ofBfloat16(short half) {
    return Float.intBitsToFloat(half << 16);
  }
}

package org.espalier.format;

/**
 * Floats of 8 bits of the kind E4M3FN: 4 bits of exponent with a bias of 7, 3 of fraction, no infinities, and NaN where all
 * but the sign are ones. Source: Micikevicius et al. 2022, arXiv 2209.05433.
 */
public final class Float8 {
  /** The largest. */
  public static final float LARGEST = 448;

  /** The smallest of full precision; below lie multiples of 2⁻⁹. */
  private static final float SMALLEST = 0x1p-6f;

  private static final int NAN = 0x7f;

  private Float8() {}

  /** The nearest, of two as near the even one; that of largest magnitude where a value is beyond it, NaN for NaN. */
  public static byte of(float value) {
    int bits = Float.floatToRawIntBits(value);
    int sign = bits >>> 24 & 0x80;
    float magnitude = Math.abs(value);
    if (Float.isNaN(value)) {
      return (byte) (sign | NAN);
    } else if (magnitude < SMALLEST) {
      return (byte) (sign | (int) Math.rint(magnitude * 0x1p9f));
    }
    // From 23 bits of fraction to 3, and from a bias of 127 to one of 7.
    int carried = Float.floatToRawIntBits(Math.min(magnitude, LARGEST));
    carried += 0x7ffff + (carried >>> 20 & 1);
    return (byte) (sign | carried - (120 << 23) >>> 20);
  }

  /** The value of one, exactly. */
  public static float value(byte bits) {
    int exponent = bits >> 3 & 15;
    int fraction = bits & 7;
    float magnitude =
        (bits & NAN) == NAN
            ? Float.NaN
            : exponent == 0
                ? fraction * 0x1p-9f
                : Float.intBitsToFloat(exponent + 120 << 23 | fraction << 20);
    return bits < 0 ? -magnitude : magnitude;
  }

  /** A value rounded as {@link #of} does. */
  public static float rounded(float value) {
    return value(of(value));
  }
}

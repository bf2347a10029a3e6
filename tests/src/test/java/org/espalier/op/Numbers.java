package org.espalier.op;

import java.util.Iterator;
import java.util.LinkedHashMap;
import java.util.Map;
import java.util.Random;
import org.bytedeco.javacpp.BytePointer;
import org.bytedeco.javacpp.FloatPointer;
import org.bytedeco.javacpp.ShortPointer;
import org.espalier.device.DType;
import org.espalier.device.OwnedTensor;
import org.espalier.device.Tensor;

/** Test data in and out of native memory, and the sizes that hit each path of a kernel. */
public final class Numbers {
  /**
   * Empty; one; around the 16 lanes of a vector; around a cache line of 16-bit floats; around 4096;
   * above the parallel threshold, not a multiple of anything.
   */
  public static final int[] SIZES = {
    0, 1, 15, 16, 17, 31, 32, 33, 63, 64, 65, 1003, 4096, 4099, 131_101
  };

  private Numbers() {}

  private record Sequence(int n, long seed) {}

  /** What {@link #floats} made lately; the tests of all variants ask for the same. */
  private static final Map<Sequence, float[]> MADE = new LinkedHashMap<>(16, 0.75f, true);

  /** As many as three steps of an optimizer's test take. */
  private static final int KEPT = 10_000_000;

  private static int kept;

  /** Every F16, widened. */
  private static final float[] HALVES = new float[1 << 16];

  static {
    for (int bits = 0; bits < HALVES.length; bits++) {
      HALVES[bits] = widened((short) bits);
    }
  }

  /** Normal deviates with zeros of both signs, denormals and large values among them. */
  public static synchronized float[] floats(int n, long seed) {
    float[] made = MADE.get(new Sequence(n, seed));
    if (made == null) {
      made = make(new Sequence(n, seed));
      MADE.put(new Sequence(n, seed), made);
      kept += n;
      for (Iterator<float[]> eldest = MADE.values().iterator(); kept > KEPT && eldest.hasNext(); ) {
        kept -= eldest.next().length;
        eldest.remove();
      }
    }
    return made.clone();
  }

  private static float[] make(Sequence sequence) {
    int n = sequence.n();
    Random random = new Random(sequence.seed());
    float[] x = new float[n];
    for (int i = 0; i < n; i++) {
      switch (random.nextInt(40)) {
        case 0 -> x[i] = 0f;
        case 1 -> x[i] = -0f;
        case 2 -> x[i] = Float.MIN_VALUE * (1 + random.nextInt(1000));
        case 3 -> x[i] = (float) (random.nextGaussian() * 1e4);
        default -> x[i] = (float) random.nextGaussian();
      }
    }
    return x;
  }

  /** A tensor that holds {@code values} rounded to {@code dtype}. Close it. */
  public static OwnedTensor tensor(DType dtype, float[] values, long... shape) {
    OwnedTensor tensor =
        OwnedTensor.allocate(dtype, shape.length == 0 ? new long[] {values.length} : shape);
    write(tensor, values);
    return tensor;
  }

  public static void write(Tensor tensor, float[] values) {
    if (tensor.dtype() == DType.F32) {
      new FloatPointer(tensor.pointer()).put(values, 0, values.length);
    } else {
      short[] bits = new short[values.length];
      for (int i = 0; i < values.length; i++) {
        bits[i] = bits(tensor.dtype(), values[i]);
      }
      new ShortPointer(tensor.pointer()).put(bits, 0, bits.length);
    }
  }

  /** The tensor's values widened to float. */
  public static float[] read(Tensor tensor) {
    int n = Math.toIntExact(tensor.elements());
    float[] values = new float[n];
    if (tensor.dtype() == DType.F32) {
      new FloatPointer(tensor.pointer()).get(values, 0, n);
    } else {
      short[] bits = new short[n];
      new ShortPointer(tensor.pointer()).get(bits, 0, n);
      for (int i = 0; i < n; i++) {
        values[i] = widen(tensor.dtype(), bits[i]);
      }
    }
    return values;
  }

  /** {@code values} rounded to the element type. */
  public static float[] rounded(DType dtype, float[] values) {
    float[] result = values.clone();
    if (dtype != DType.F32) {
      for (int i = 0; i < result.length; i++) {
        result[i] = widen(dtype, bits(dtype, values[i]));
      }
    }
    return result;
  }

  /** A bit field; close it. */
  public static BytePointer bits(boolean[] values) {
    byte[] bytes = new byte[(int) Bits.bytes(values.length)];
    for (int i = 0; i < values.length; i++) {
      if (values[i]) {
        bytes[i >> 3] |= (byte) (1 << (i & 7));
      }
    }
    BytePointer pointer = new BytePointer(Math.max(1, bytes.length));
    pointer.put(bytes, 0, bytes.length);
    return pointer;
  }

  public static boolean[] randomBits(int n, double probability, long seed) {
    Random random = new Random(seed);
    boolean[] values = new boolean[n];
    for (int i = 0; i < n; i++) {
      values[i] = random.nextDouble() < probability;
    }
    return values;
  }

  /** Rounds half to even; a NaN stays one. Independent of the kernels: through double arithmetic. */
  public static short bits(DType dtype, float x) {
    int mantissa = dtype == DType.BF16 ? 7 : 10;
    int maxExponent = dtype == DType.BF16 ? 127 : 15;
    int minExponent = dtype == DType.BF16 ? -126 : -14;
    int sign = Float.floatToRawIntBits(x) >>> 31;
    int infinity = (2 * maxExponent + 1) << mantissa;
    int magnitude;
    if (Float.isNaN(x)) {
      magnitude = infinity | 1 << (mantissa - 1);
    } else if (Float.isInfinite(x)) {
      magnitude = infinity;
    } else {
      double a = Math.abs((double) x);
      int exponent = a == 0 ? minExponent : Math.max(Math.getExponent(a), minExponent);
      // In units of the last place; a carry walks into the exponent by itself. The power of two is
      // made of its bits, for speed.
      double unit = Double.longBitsToDouble((long) (mantissa - exponent + 1023) << 52);
      long units = (long) Math.rint(a * unit);
      magnitude = (int) (units + ((long) (exponent - minExponent) << mantissa));
      magnitude = Math.min(magnitude, infinity);
    }
    return (short) (sign << 15 | magnitude);
  }

  private static float widen(DType dtype, short bits) {
    if (dtype == DType.BF16) {
      return Float.intBitsToFloat((bits & 0xffff) << 16);
    }
    return HALVES[bits & 0xffff];
  }

  private static float widened(short bits) {
    int exponent = bits >> 10 & 31;
    int fraction = bits & 1023;
    float magnitude;
    if (exponent == 31) {
      magnitude = fraction == 0 ? Float.POSITIVE_INFINITY : Float.NaN;
    } else if (exponent == 0) {
      magnitude = Math.scalb((float) fraction, -24);
    } else {
      magnitude = Math.scalb(1024f + fraction, exponent - 25);
    }
    return bits < 0 ? -magnitude : magnitude;
  }
}

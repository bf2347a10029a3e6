package org.espalier.op;

/** The random numbers of {@link StepNoise}, with the logarithm, sine and cosine of the JDK. */
final class StepNoiseReference {
  private StepNoiseReference() {}

  /** Standard normal numbers, from block {@code counter} on. */
  static double[] normal(int n, long key, long counter) {
    double[] z = new double[n];
    for (int i = 0; i < n; i += 2) {
      int[] block = philox(key, counter + i / 2, 1);
      double u = 1 - ((block[0] & 0xffffffffL) << 21 | (block[1] & 0xffffffffL) >>> 11) * 0x1p-53;
      double v = ((block[2] & 0xffffffffL) << 21 | (block[3] & 0xffffffffL) >>> 11) * 0x1p-53;
      double radius = Math.sqrt(-2 * StrictMath.log(u));
      z[i] = radius * StrictMath.cos(2 * Math.PI * v);
      if (i + 1 < n) {
        z[i + 1] = radius * StrictMath.sin(2 * Math.PI * v);
      }
    }
    return z;
  }

  /** Philox 4x32 with 10 rounds, by products of two longs. */
  static int[] philox(long key, long low, long high) {
    long[] c = {low & 0xffffffffL, low >>> 32, high & 0xffffffffL, high >>> 32};
    long k0 = key & 0xffffffffL;
    long k1 = key >>> 32;
    for (int round = 0; round < 10; round++) {
      long a = c[0] * 0xD2511F53L;
      long b = c[2] * 0xCD9E8D57L;
      c = new long[] {b >>> 32 ^ c[1] ^ k0, b & 0xffffffffL, a >>> 32 ^ c[3] ^ k1, a & 0xffffffffL};
      k0 = k0 + 0x9E3779B9L & 0xffffffffL;
      k1 = k1 + 0xBB67AE85L & 0xffffffffL;
    }
    return new int[] {(int) c[0], (int) c[1], (int) c[2], (int) c[3]};
  }
}

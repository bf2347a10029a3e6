package org.espalier;

/**
 * Random numbers by counter: the n-th number of a key is a function of key and n, so the state is
 * one number. Philox 4x32 with 10 rounds: Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as
 * easy as 1, 2, 3" (2011). Not for several threads.
 */
public final class CounterRandom {
  private final long key;
  private long counter;
  private final int[] block = new int[4];

  /** Goes on where {@code counter} blocks of a key were drawn. */
  public CounterRandom(long key, long counter) {
    this.key = key;
    this.counter = counter;
  }

  /** How many blocks were drawn. */
  public long counter() {
    return counter;
  }

  /** The block of a counter and a key; the upper half of the 128-bit counter is {@code stream}. */
  public static void philox(long key, long counter, long stream, int[] block) {
    int c0 = (int) counter;
    int c1 = (int) (counter >>> 32);
    int c2 = (int) stream;
    int c3 = (int) (stream >>> 32);
    int k0 = (int) key;
    int k1 = (int) (key >>> 32);
    for (int round = 0; round < 10; round++) {
      long p0 = (c0 & 0xffffffffL) * 0xD2511F53L;
      long p1 = (c2 & 0xffffffffL) * 0xCD9E8D57L;
      c0 = (int) (p1 >>> 32) ^ c1 ^ k0;
      c1 = (int) p1;
      c2 = (int) (p0 >>> 32) ^ c3 ^ k1;
      c3 = (int) p0;
      k0 += 0x9E3779B9;
      k1 += 0xBB67AE85;
    }
    block[0] = c0;
    block[1] = c1;
    block[2] = c2;
    block[3] = c3;
  }

  /** A number in [0, bound), uniform up to 2^-63 · bound. */
  public long below(long bound) {
    philox(key, counter++, 0, block);
    long bits = (block[0] & 0xffffffffL | (long) block[1] << 32) >>> 1;
    return Math.floorMod(bits, bound);
  }
}

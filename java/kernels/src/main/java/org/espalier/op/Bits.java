package org.espalier.op;

import org.bytedeco.javacpp.BytePointer;

/** Bit fields: one bit an element, least significant bit first, {@code (n + 7) / 8} bytes. */
public final class Bits {
  private Bits() {}

  /** Bytes of a field of {@code n} bits. */
  public static long bytes(long n) {
    return (n + 7) / 8;
  }

  /** Bit {@code i}. */
  public static boolean get(BytePointer bits, long i) {
    return (bits.get(i >> 3) >> (i & 7) & 1) != 0;
  }

  /** How many of the first {@code n} bits are set. */
  static long count(BytePointer bits, long n) {
    long set = 0;
    for (long i = 0; i < n; i++) {
      set += get(bits, i) ? 1 : 0;
    }
    return set;
  }

  /** Refuses a field that is known to be too short; a limit of 0 means that its size is unknown. */
  static void check(String name, BytePointer bits, long n) {
    Lifetimes.requireMemory(name, bits, n);
    if (bits != null && bits.limit() > 0 && bits.limit() - bits.position() < bytes(n)) {
      throw new IllegalArgumentException(
          name
              + " holds "
              + (bits.limit() - bits.position())
              + " bytes, "
              + n
              + " bits need "
              + bytes(n));
    }
  }
}

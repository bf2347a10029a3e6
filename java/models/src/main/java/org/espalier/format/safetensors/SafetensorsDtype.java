package org.espalier.format.safetensors;

import java.util.Locale;
import org.espalier.device.DType;

/**
 * The element types that a safetensors file can hold. All of them are read, checked and written;
 * which of them can be computed on is the operations' affair.
 */
public enum SafetensorsDtype {
  BOOL(8),
  F4(4),
  F6_E2M3(6),
  F6_E3M2(6),
  U8(8),
  I8(8),
  F8_E5M2(8),
  F8_E4M3(8),
  F8_E8M0(8),
  F8_E4M3FNUZ(8),
  F8_E5M2FNUZ(8),
  I16(16),
  U16(16),
  F16(16),
  BF16(16),
  I32(32),
  U32(32),
  F32(32),
  C64(64),
  F64(64),
  I64(64),
  U64(64);

  private final int bits;

  SafetensorsDtype(int bits) {
    this.bits = bits;
  }

  /** Bits of one element; 4 and 6 are packed without padding. */
  public int bits() {
    return bits;
  }

  /** The type in which kernels compute on it, or null where they do not. */
  public DType computable() {
    return switch (this) {
      case F32 -> DType.F32;
      case BF16 -> DType.BF16;
      case F16 -> DType.F16;
      default -> null;
    };
  }

  /** Whether the values are real floating-point numbers of any width. */
  public boolean isFloat() {
    return name().startsWith("F") || this == BF16;
  }

  /**
   * Bytes of {@code elements} elements.
   *
   * @throws ArithmeticException if the count overflows or the elements end inside a byte
   */
  public long bytes(long elements) {
    if (bits % 8 == 0) {
      return Math.multiplyExact(elements, bits / 8);
    }
    long total = Math.multiplyExact(elements, bits);
    if (total % 8 != 0) {
      throw new ArithmeticException(
          String.format(Locale.ROOT, "%d elements of %d bits end inside a byte", elements, bits));
    }
    return total / 8;
  }
}

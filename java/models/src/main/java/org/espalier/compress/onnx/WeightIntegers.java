package org.espalier.compress.onnx;

import ai.onnx.proto.OnnxMl.TensorProto.DataType;
import java.nio.ByteBuffer;

/** The integers of 8 bits that weights of products become, with one scale an output channel. */
public enum WeightIntegers {
  /**
   * int8, −127 to 127. The most readers have products of it; in ONNX Runtime on x86 without VNNI they saturate, see
   * {@link Int8Saturation}.
   */
  INT8(127, DataType.INT8),

  /** int8, −63 to 63, whose products saturate nowhere. */
  INT7(63, DataType.INT8),

  /**
   * uint8, the integers of {@link #INT8} with 128 added and a zero point of 128: products are exact on every processor. On
   * x86 without VNNI ONNX Runtime widens both sides to 16 bits for them, which is slower than what saturates.
   */
  UINT8(127, DataType.UINT8);

  private final int largest;
  private final DataType type;

  WeightIntegers(int largest, DataType type) {
    this.largest = largest;
    this.type = type;
  }

  /** The largest integer about the zero point: the grid is symmetric. */
  int largest() {
    return largest;
  }

  /** What they are in a model. */
  public DataType type() {
    return type;
  }

  /** The integer that 0 is, as a byte of {@link #type}. */
  byte zeroPoint() {
    return type == DataType.UINT8 ? Byte.MIN_VALUE : 0;
  }

  /**
   * Integers as a model holds them.
   *
   * @param signed about 0; it may be given back
   * @return the remaining ones about the {@link #zeroPoint}
   */
  ByteBuffer stored(ByteBuffer signed) {
    byte zero = zeroPoint();
    if (zero == 0) {
      return signed;
    }
    ByteBuffer stored = ByteBuffer.allocateDirect(signed.remaining());
    for (int i = signed.position(); i < signed.limit(); i++) {
      stored.put((byte) (signed.get(i) + zero));
    }
    return stored.flip();
  }

  /** The same of an array. */
  byte[] stored(byte... signed) {
    byte[] stored = signed.clone();
    for (int i = 0; i < stored.length; i++) {
      stored[i] += zeroPoint();
    }
    return stored;
  }
}

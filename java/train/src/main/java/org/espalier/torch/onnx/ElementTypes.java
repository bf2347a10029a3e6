package org.espalier.torch.onnx;

import ai.onnx.proto.OnnxMl.TensorProto.DataType;
import java.nio.ByteBuffer;
import org.bytedeco.javacpp.Pointer;
import org.bytedeco.pytorch.Tensor;
import org.bytedeco.pytorch.TensorOptions;
import org.bytedeco.pytorch.global.torch;
import org.bytedeco.pytorch.global.torch.ScalarType;
import org.espalier.InputException;
import org.espalier.format.onnx.OnnxInitializer;

/** The element types of ONNX as those of libtorch, and constants as tensors. */
final class ElementTypes {
  private ElementTypes() {}

  /** The type of libtorch that holds {@code type}; null where it has none. */
  static ScalarType torch(DataType type) {
    if (type == null) {
      return null;
    }
    return switch (type) {
      case FLOAT -> ScalarType.Float;
      case DOUBLE -> ScalarType.Double;
      case FLOAT16 -> ScalarType.Half;
      case BFLOAT16 -> ScalarType.BFloat16;
      // 4-bit integers are unpacked to one a byte.
      case INT8, INT4 -> ScalarType.Char;
      case UINT8, UINT4 -> ScalarType.Byte;
      case INT16 -> ScalarType.Short;
      case UINT16 -> ScalarType.UInt16;
      case INT32 -> ScalarType.Int;
      case UINT32 -> ScalarType.UInt32;
      case INT64 -> ScalarType.Long;
      case UINT64 -> ScalarType.UInt64;
      case BOOL -> ScalarType.Bool;
      default -> null;
    };
  }

  static ScalarType torch(DataType type, String where) {
    if (type == null) {
      throw new InputException(where + " has elements of no type that ONNX knows");
    }
    ScalarType t = torch(type);
    if (t == null) {
      throw new InputException(where + " has elements of " + type + ", which libtorch cannot hold");
    }
    return t;
  }

  /** A tensor with a copy of the constant's data. */
  static Tensor tensor(OnnxInitializer constant, String where) {
    ScalarType type = torch(constant.type(), where);
    ByteBuffer data =
        switch (constant.type()) {
          case INT4, UINT4 -> unpack(constant);
          default -> constant.data();
        };
    TensorOptions options = new TensorOptions(type);
    if (constant.elements() == 0) {
      return torch.zeros(constant.dims(), options);
    }
    return torch.from_blob(new Pointer(data), constant.dims(), options).clone();
  }

  private static ByteBuffer unpack(OnnxInitializer constant) {
    ByteBuffer packed = constant.data();
    ByteBuffer bytes = ByteBuffer.allocateDirect(Math.toIntExact(constant.elements()));
    boolean signed = constant.type() == DataType.INT4;
    for (int i = 0; i < bytes.capacity(); i++) {
      int nibble = packed.get(i / 2) >> 4 * (i % 2) & 15;
      bytes.put(i, (byte) (signed && nibble > 7 ? nibble - 16 : nibble));
    }
    return bytes;
  }

  static boolean isFloating(ScalarType type) {
    return switch (type) {
      case Float, Double, Half, BFloat16 -> true;
      default -> false;
    };
  }

  static boolean isInteger(ScalarType type) {
    return switch (type) {
      case Byte, Char, Short, Int, Long, UInt16, UInt32, UInt64 -> true;
      default -> false;
    };
  }

  static ScalarType of(Tensor tensor) {
    return tensor.scalar_type().intern();
  }

  /** The smallest value of a floating-point type is -infinity, of an integer its minimum. */
  static double lowest(ScalarType type) {
    return switch (type) {
      case Byte, Bool -> 0;
      case Char -> Byte.MIN_VALUE;
      case Short -> Short.MIN_VALUE;
      case Int -> Integer.MIN_VALUE;
      case Long -> Long.MIN_VALUE;
      default -> Double.NEGATIVE_INFINITY;
    };
  }
}

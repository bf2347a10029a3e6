package org.espalier.format.safetensors;

import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.util.function.IntToDoubleFunction;
import org.espalier.InputException;

/** Examples in a file: tensors whose first dimension counts them. */
public final class ExampleRows {
  /** The tensor for a model with one input, whatever that is called; other inputs have tensors of their names. */
  public static final String INPUTS = "inputs";

  /** The tensor that no model takes. */
  public static final String LABELS = "labels";

  private ExampleRows() {}

  /**
   * Reads one example.
   *
   * @param example counted from 0
   * @param row receives it, from its start to its end; as many bytes as an example has
   * @param missing whether NaN says that a value is missing, which the model knows
   * @throws InputException where a number of it is infinite or, unless it may be missing, NaN
   */
  public static void read(
      SafetensorsFile file, TensorInfo tensor, long example, ByteBuffer row, boolean missing) {
    file.read(tensor, example * row.capacity(), row.clear());
    row.flip();
    IntToDoubleFunction number = numbers(tensor.dtype(), row);
    int count = number == null ? 0 : (int) (8L * row.capacity() / tensor.dtype().bits());
    for (int i = 0; i < count; i++) {
      double value = number.applyAsDouble(i);
      if (!Double.isFinite(value) && !(missing && Double.isNaN(value))) {
        throw new InputException(
            file.path()
                + ": the tensor "
                + tensor.name()
                + " has the value "
                + value
                + " in example "
                + (example + 1)
                + "; finite numbers are right");
      }
    }
  }

  /** The numbers of a row by their place, 16-bit ones but for finite fractions; null where all are finite by their type. */
  private static IntToDoubleFunction numbers(SafetensorsDtype dtype, ByteBuffer row) {
    ByteBuffer bytes = row.duplicate().order(ByteOrder.LITTLE_ENDIAN);
    return switch (dtype) {
      case F64 -> i -> bytes.getDouble(8 * i);
      case F32 -> i -> bytes.getFloat(4 * i);
      case BF16 -> i -> Float.intBitsToFloat(bytes.getShort(2 * i) << 16);
      case F16 -> i -> notFiniteHalf(bytes.getShort(2 * i));
      default -> null;
    };
  }

  /** A half-precision number that is infinite or NaN; 0 for all others. */
  private static float notFiniteHalf(short half) {
    int exponent = 0x7c00;
    int fraction = 0x3ff;
    return (half & exponent) != exponent
        ? 0
        : Float.intBitsToFloat((half & 0x8000) << 16 | 0xff << 23 | (half & fraction) << 13);
  }
}

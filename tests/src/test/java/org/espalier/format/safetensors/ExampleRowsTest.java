package org.espalier.format.safetensors;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.file.Path;
import java.util.Arrays;
import java.util.List;
import java.util.Map;
import org.espalier.InputException;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;

class ExampleRowsTest {
  private static final int EXAMPLES = 3;
  private static final int VALUES = 4;

  @TempDir private Path folder;

  /** Three examples of four values, all zero but one: the last of the second example, with the given bits. */
  private SafetensorsFile file(SafetensorsDtype dtype, String bits) {
    int width = dtype.bits() / 8;
    ByteBuffer data = ByteBuffer.allocate(EXAMPLES * VALUES * width).order(ByteOrder.LITTLE_ENDIAN);
    long value = Long.parseUnsignedLong(bits, 16);
    for (int b = 0; b < width; b++) {
      data.put((2 * VALUES - 1) * width + b, (byte) (value >>> 8 * b));
    }
    TensorSpec spec = new TensorSpec("x", dtype, List.of((long) EXAMPLES, (long) VALUES));
    return SafetensorsFile.open(
        RawSafetensors.write(
            folder.resolve("x.safetensors"), Map.of(), Map.of(spec, data.array())));
  }

  private static ByteBuffer row(SafetensorsDtype dtype) {
    return ByteBuffer.allocateDirect(VALUES * dtype.bits() / 8);
  }

  @ParameterizedTest
  @CsvSource({
    "F64, 7ff0000000000000, Infinity", "F64, fff0000000000000, -Infinity",
    "F64, 7ff8000000000000, NaN", "F32, 7f800000, Infinity",
    "F32, ff800000, -Infinity", "F32, 7fc00000, NaN",
    "BF16, 7f80, Infinity", "BF16, ff80, -Infinity",
    "BF16, ffff, NaN", "F16, 7c00, Infinity",
    "F16, fc00, -Infinity", "F16, 7c01, NaN"
  })
  void anExampleThatIsNotFiniteIsNamed(SafetensorsDtype dtype, String bits, String value) {
    try (SafetensorsFile file = file(dtype, bits)) {
      TensorInfo x = file.tensor("x");
      ByteBuffer row = row(dtype);
      ExampleRows.read(file, x, 0, row, false);
      InputException e =
          assertThrows(InputException.class, () -> ExampleRows.read(file, x, 1, row, false));
      assertEquals(
          file.path()
              + ": the tensor x has the value "
              + value
              + " in example 2; finite numbers are right",
          e.getMessage());
      ExampleRows.read(file, x, 2, row, false);
    }
  }

  /** Infinity is no value that is missing. */
  @ParameterizedTest
  @CsvSource({
    "F64, 7ff8000000000000, true",
    "F32, 7fc00000, true",
    "BF16, ffff, true",
    "F16, 7c01, true",
    "F64, 7ff0000000000000, false",
    "F32, ff800000, false",
    "BF16, 7f80, false",
    "F16, fc00, false"
  })
  void aNumberMayBeMissing(SafetensorsDtype dtype, String bits, boolean right) {
    try (SafetensorsFile file = file(dtype, bits)) {
      ByteBuffer row = row(dtype);
      if (right) {
        ExampleRows.read(file, file.tensor("x"), 1, row, true);
        assertEquals(row.capacity(), row.remaining());
      } else {
        assertThrows(
            InputException.class, () -> ExampleRows.read(file, file.tensor("x"), 1, row, true));
      }
    }
  }

  /** The largest finite number of each type, and whole numbers with the bits of NaN. */
  @ParameterizedTest
  @CsvSource({
    "F64, 7fefffffffffffff",
    "F32, 7f7fffff",
    "BF16, 7f7f",
    "F16, 7bff",
    "I64, ffffffffffffffff",
    "I32, ffffffff",
    "U8, ff"
  })
  void allOthersAreRead(SafetensorsDtype dtype, String bits) {
    try (SafetensorsFile file = file(dtype, bits)) {
      ByteBuffer row = row(dtype);
      ExampleRows.read(file, file.tensor("x"), 1, row, false);
      assertEquals(0, row.position());
      assertEquals(row.capacity(), row.limit());
      byte[] bytes = new byte[row.capacity()];
      row.get(bytes);
      int width = dtype.bits() / 8;
      byte[] last = Arrays.copyOfRange(bytes, bytes.length - width, bytes.length);
      long value = Long.parseUnsignedLong(bits, 16);
      for (int b = 0; b < width; b++) {
        assertEquals((byte) (value >>> 8 * b), last[b]);
      }
    }
  }

  /** A buffer that was read to its end is used again, as it comes. */
  @Test
  void aBufferServesForOneExampleAfterAnother() {
    try (SafetensorsFile file = file(SafetensorsDtype.F32, "3f800000")) {
      ByteBuffer row = row(SafetensorsDtype.F32).order(ByteOrder.LITTLE_ENDIAN);
      float[] sums = new float[EXAMPLES];
      for (int i = 0; i < EXAMPLES; i++) {
        ExampleRows.read(file, file.tensor("x"), i, row, false);
        while (row.hasRemaining()) {
          sums[i] += row.getFloat();
        }
      }
      assertTrue(Arrays.equals(new float[] {0, 1, 0}, sums), Arrays.toString(sums));
    }
  }
}

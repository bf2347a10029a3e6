package org.espalier.compress;

import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.FloatBuffer;
import java.nio.ShortBuffer;
import java.util.stream.IntStream;
import org.bytedeco.javacpp.BytePointer;
import org.bytedeco.javacpp.FloatPointer;
import org.espalier.device.Tensor;
import org.espalier.format.Float8;
import org.espalier.format.HalfFloats;

/** Rounds rows of a matrix to floats of 8 bits. */
final class Float8Rows {
  /** Elements that one thread rounds at once. */
  private static final int PART = 1 << 16;

  private Float8Rows() {}

  /**
   * Rounds w / scale.
   *
   * @param matrix [rows, columns] in the host's memory, finite, of less than 2 GiB
   * @param scales one a row, positive
   * @param rounded receives a byte for each element
   */
  static void round(Tensor matrix, FloatPointer scales, BytePointer rounded) {
    int rows = (int) matrix.dimension(0);
    int columns = (int) matrix.dimension(1);
    ByteBuffer bytes =
        new BytePointer(matrix.pointer())
            .capacity(matrix.bytes())
            .asByteBuffer()
            .order(ByteOrder.nativeOrder());
    ByteBuffer out = rounded.asByteBuffer();
    int parts = (columns + PART - 1) / PART; // of a row
    int together = Math.max(1, PART / columns); // rows
    IntStream.range(0, (rows + together - 1) / together * parts)
        .parallel()
        .forEach(
            i -> {
              int first = i / parts * together;
              int from = i % parts * PART;
              int to = Math.min(columns, from + PART);
              for (int r = first; r < Math.min(rows, first + together); r++) {
                round(matrix, bytes, r * columns + from, r * columns + to, scales.get(r), out);
              }
            });
  }

  private static void round(
      Tensor matrix, ByteBuffer bytes, int from, int to, float scale, ByteBuffer out) {
    switch (matrix.dtype()) {
      case F32 -> {
        FloatBuffer values = bytes.asFloatBuffer();
        for (int i = from; i < to; i++) {
          out.put(i, Float8.of(values.get(i) / scale));
        }
      }
      case BF16 -> {
        ShortBuffer values = bytes.asShortBuffer();
        for (int i = from; i < to; i++) {
          out.put(i, Float8.of(HalfFloats.ofBfloat16(values.get(i)) / scale));
        }
      }
      default -> {
        ShortBuffer values = bytes.asShortBuffer();
        for (int i = from; i < to; i++) {
          out.put(i, Float8.of(HalfFloats.ofFloat16(values.get(i)) / scale));
        }
      }
    }
  }
}

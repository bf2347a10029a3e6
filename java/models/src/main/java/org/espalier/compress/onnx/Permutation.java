package org.espalier.compress.onnx;

import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.FloatBuffer;
import java.util.List;
import java.util.stream.IntStream;
import org.espalier.format.onnx.OnnxInitializer;

/** Row-major tensors with their axes in another order. */
final class Permutation {
  /** Rows and columns of a matrix that are turned together. */
  private static final int TILE = 64;

  private Permutation() {}

  /**
   * Axis i of the result is axis {@code axes[i]} of {@code values}; the result is {@code values}
   * itself where nothing changes place.
   */
  static FloatBuffer apply(FloatBuffer values, long[] dims, List<Integer> axes) {
    boolean same = true;
    for (int i = 0; i < axes.size(); i++) {
      same &= axes.get(i) == i;
    }
    if (same) {
      return values;
    }
    if (dims.length == 2) {
      return turned(values, Math.toIntExact(dims[0]), Math.toIntExact(dims[1])).asFloatBuffer();
    }
    int rank = dims.length;
    int[] strides = new int[rank];
    for (int i = rank - 1, step = 1; i >= 0; i--) {
      strides[i] = step;
      step = Math.toIntExact(step * dims[i]);
    }
    int n = values.remaining();
    FloatBuffer result =
        ByteBuffer.allocateDirect(Math.multiplyExact(4, n))
            .order(ByteOrder.nativeOrder())
            .asFloatBuffer();
    int[] index = new int[rank];
    int from = values.position();
    for (int i = 0; i < n; i++) {
      result.put(i, values.get(from));
      for (int a = rank - 1; a >= 0; a--) {
        from += strides[axes.get(a)];
        if (++index[a] < dims[axes.get(a)]) {
          break;
        }
        from -= index[a] * strides[axes.get(a)];
        index[a] = 0;
      }
    }
    return result;
  }

  /** A float32 matrix by columns, little-endian. */
  static ByteBuffer turned(OnnxInitializer matrix) {
    long[] dims = matrix.dims();
    return turned(matrix.floats(), Math.toIntExact(dims[0]), Math.toIntExact(dims[1]));
  }

  /** Tile by tile, so that what is read and written stays in the cache. */
  private static ByteBuffer turned(FloatBuffer values, int rows, int columns) {
    ByteBuffer memory =
        ByteBuffer.allocateDirect(Math.multiplyExact(4, Math.multiplyExact(rows, columns)))
            .order(ByteOrder.LITTLE_ENDIAN);
    FloatBuffer result = memory.asFloatBuffer();
    int from = values.position();
    IntStream.range(0, (columns + TILE - 1) / TILE)
        .parallel()
        .forEach(
            tile -> {
              int end = Math.min(columns, (tile + 1) * TILE);
              for (int first = 0; first < rows; first += TILE) {
                int last = Math.min(rows, first + TILE);
                for (int c = tile * TILE; c < end; c++) {
                  for (int r = first; r < last; r++) {
                    result.put(c * rows + r, values.get(from + r * columns + c));
                  }
                }
              }
            });
    return memory;
  }
}

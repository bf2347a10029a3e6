package org.espalier.compress.onnx;

import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.FloatBuffer;
import java.util.List;

/** Row-major tensors with their axes in another order. */
final class Permutation {
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
}

package org.espalier.online.model;

import java.util.Arrays;
import java.util.List;
import org.bytedeco.pytorch.Tensor;
import org.espalier.online.RowGradient;
import org.espalier.online.memory.Floats;
import org.espalier.torch.TensorView;
import org.espalier.torch.onnx.LookUps.LookUp;

/** Makes the gradient of a table of what backward has left at its look-ups. */
final class LookUpGradient {
  private LookUpGradient() {}

  /**
   * Adds what backward has left at each look-up, in the order in which libtorch adds it to a gradient of the whole table:
   * of one node's look-ups the first comes first, of several nodes the last one does. So the sums have its bits.
   *
   * @param lookUps of one table, in the order in which they were done
   * @param width values of a row
   */
  static RowGradient of(List<LookUp> lookUps, int width) {
    long[] rows =
        lookUps.stream().flatMapToLong(l -> Arrays.stream(l.rows())).sorted().distinct().toArray();
    float[] sums = new float[Math.multiplyExact(rows.length, width)];
    for (int i = lookUps.size() - 1; i >= 0; i--) {
      Tensor gradient = lookUps.get(i).values().grad();
      if (!gradient.defined()) { // no output depends on it
        continue;
      }
      float[] own = i == lookUps.size() - 1 ? sums : new float[sums.length];
      add(lookUps.get(i).rows(), floats(gradient), width, rows, own);
      for (int k = 0; own != sums && k < sums.length; k++) {
        sums[k] += own[k];
      }
    }
    return new RowGradient(rows, sums);
  }

  private static float[] floats(Tensor gradient) {
    float[] values = new float[Math.toIntExact(gradient.numel())];
    Floats.of(TensorView.of(gradient.contiguous())).get(0, values);
    return values;
  }

  private static void add(long[] read, float[] values, int width, long[] rows, float[] sums) {
    for (int i = 0; i < read.length; i++) {
      int to = Arrays.binarySearch(rows, read[i]) * width;
      for (int c = 0; c < width; c++) {
        sums[to + c] += values[i * width + c];
      }
    }
  }
}

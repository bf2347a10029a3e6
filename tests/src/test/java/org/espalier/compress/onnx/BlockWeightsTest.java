package org.espalier.compress.onnx;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.nio.ByteBuffer;
import java.util.Arrays;
import java.util.List;
import java.util.Random;
import java.util.stream.IntStream;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.ValueSource;

class BlockWeightsTest {
  private static final int BLOCK = 16;

  private static float[] gaussian(int n, long seed) {
    Random random = new Random(seed);
    float[] values = new float[n];
    for (int i = 0; i < n; i++) {
      values[i] = (float) random.nextGaussian();
    }
    return values;
  }

  private static double error(float[] w, BlockWeights q, double[] importance) {
    double sum = 0;
    for (int i = 0; i < w.length; i++) {
      int row = i / q.columns();
      double d = w[i] - q.integers()[i] * (double) q.scale(row, i % q.columns());
      sum += importance[row] * d * d;
    }
    return sum;
  }

  /** What is on a grid comes back, whichever sign the end of the grid has. */
  @ParameterizedTest
  @ValueSource(ints = {4, 8})
  void whatIsOnAGridIsExact(int bits) {
    int all = 1 << bits;
    for (float step : new float[] {0.25f, -0.25f}) {
      float[] w = new float[all];
      for (int i = 0; i < all; i++) {
        w[i] = step * (i - all / 2);
      }
      BlockWeights q = BlockWeights.nearest(bits, w, 1, all);
      assertEquals(step, q.scale(0, 0));
      for (int i = 0; i < all; i++) {
        assertEquals(i - all / 2, q.integers()[i]);
      }
    }
  }

  @Test
  void integersOfEightBitsAreBytes() {
    byte[] integers = new byte[BLOCK + 1];
    integers[0] = -128;
    integers[1] = 127;
    integers[BLOCK] = 1;
    BlockWeights q = new BlockWeights(8, BLOCK + 1, 1, BLOCK, new float[] {1, 2}, integers);
    ByteBuffer packed = q.packed();
    assertEquals(2 * BLOCK, packed.remaining());
    assertEquals(0, packed.get(0));
    assertEquals((byte) 255, packed.get(1));
    assertEquals((byte) 128, packed.get(2));
    assertEquals((byte) 129, packed.get(BLOCK));
    assertEquals((byte) 128, packed.get(2 * BLOCK - 1)); // a block that is not full ends with zeros
  }

  @Test
  void eachBlockOfAColumnHasItsScale() {
    int rows = 2 * BLOCK + 5;
    int columns = 3;
    float[] w = gaussian(rows * columns, 1);
    for (int i = 0; i < w.length; i++) {
      w[i] *= (float) Math.pow(100, i / columns / BLOCK) * (1 + i % columns);
    }
    BlockWeights q = BlockWeights.nearest(4, w, columns, BLOCK);
    assertEquals(3 * columns, q.scales().length);
    for (int i = 0; i < w.length; i++) {
      float scale = q.scale(i / columns, i % columns);
      float size = (float) Math.pow(100, i / columns / BLOCK) * (1 + i % columns);
      assertTrue(Math.abs(scale) > size / 20 && Math.abs(scale) < size, scale + " for " + size);
      boolean clipped = q.integers()[i] == -8 || q.integers()[i] == 7;
      assertTrue(clipped || Math.abs(w[i] - q.integers()[i] * scale) <= Math.abs(scale) * 0.5001f);
    }
  }

  /** Rows that matter more are rounded better, at the cost of the others. */
  @Test
  void scalesFollowTheImportanceOfRows() {
    int columns = 40;
    float[] w = gaussian(BLOCK * columns, 2);
    double[] importance = new double[BLOCK];
    Arrays.setAll(importance, k -> k < 4 ? 100 : 0.01);
    double[] even = new double[BLOCK];
    Arrays.fill(even, 1);
    BlockWeights plain = BlockWeights.nearest(4, w, columns, BLOCK);
    float[] scales = BlockWeights.scales(4, w, columns, BLOCK, importance);
    byte[] integers = new byte[w.length];
    for (int i = 0; i < w.length; i++) {
      integers[i] = (byte) Math.max(-8, Math.min(7, Math.rint(w[i] / scales[i % columns])));
    }
    BlockWeights fitted = new BlockWeights(4, BLOCK, columns, BLOCK, scales, integers);
    assertTrue(error(w, fitted, importance) < 0.8 * error(w, plain, importance));
    assertTrue(error(w, fitted, even) > error(w, plain, even));
  }

  /** A tenth of the error that a grid of the same integers without choice of scale and sign has. */
  @Test
  void theSearchIsBetterThanTheLargestWeight() {
    int columns = 200;
    float[] w = gaussian(2 * BLOCK * columns, 3);
    double[] even = new double[2 * BLOCK];
    Arrays.fill(even, 1);
    BlockWeights found = BlockWeights.nearest(4, w, columns, BLOCK);
    float[] scales = new float[2 * columns];
    byte[] integers = new byte[w.length];
    for (int i = 0; i < w.length; i++) {
      int at = i / columns / BLOCK * columns + i % columns;
      scales[at] = Math.max(scales[at], Math.abs(w[i]) / 7);
    }
    for (int i = 0; i < w.length; i++) {
      integers[i] = (byte) Math.rint(w[i] / scales[i / columns / BLOCK * columns + i % columns]);
    }
    BlockWeights naive = new BlockWeights(4, 2 * BLOCK, columns, BLOCK, scales, integers);
    assertTrue(error(w, found, even) < 0.75 * error(w, naive, even));
  }

  @Test
  void zerosAndWhatIsNothingBesideThemStayZero() {
    float[] w = new float[2 * BLOCK];
    w[3] = Float.MIN_VALUE;
    w[BLOCK + 1] = -0f;
    BlockWeights q = BlockWeights.nearest(4, w, 1, BLOCK);
    assertArrayEquals(new byte[2 * BLOCK], q.integers());
    assertArrayEquals(new float[] {1, 1}, q.scales());
  }

  /** Two integers a byte, the first in its lower half; a block that is not full ends with zeros. */
  @Test
  void packsColumnAfterColumn() {
    int rows = BLOCK + 3;
    byte[] integers = new byte[rows * 2];
    for (int row = 0; row < rows; row++) {
      integers[2 * row] = (byte) (row % 16 - 8);
      integers[2 * row + 1] = 7;
    }
    BlockWeights q = new BlockWeights(4, rows, 2, BLOCK, new float[] {1, 2, 3, 4}, integers);
    ByteBuffer packed = q.packed();
    assertEquals(2 * 2 * BLOCK / 2, packed.remaining());
    assertEquals(0x10, packed.get(0)); // −8 and −7
    assertEquals((byte) 0x32, packed.get(1));
    assertEquals(0x10, packed.get(8)); // the second block begins
    assertEquals((byte) 0x82, packed.get(9)); // −6 and the first zero
    assertEquals((byte) 0x88, packed.get(15));
    assertEquals((byte) 0xff, packed.get(16)); // the second column
    ByteBuffer scales = q.packedScales();
    assertEquals(
        List.of(1f, 3f, 2f, 4f),
        IntStream.range(0, 4).mapToObj(i -> scales.getFloat(4 * i)).toList());
  }
}

package org.espalier.compress.onnx.fitting;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;

import java.util.Arrays;
import java.util.Random;
import org.bytedeco.javacpp.PointerScope;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.ValueSource;

class MomentProductTest {
  private static float[] numbers(Random random, int n) {
    float[] numbers = new float[n];
    for (int i = 0; i < n; i++) {
      numbers[i] = (float) random.nextGaussian();
    }
    return numbers;
  }

  /** Symmetric, in blocks of these sizes. */
  private static float[][] moments(Random random, int... sizes) {
    float[][] moments = new float[0][];
    for (int size : sizes) {
      int from = moments.length;
      moments = Arrays.copyOf(moments, from + size);
      for (int i = 0; i < size; i++) {
        moments[from + i] = numbers(random, size);
        for (int j = 0; j < i; j++) {
          moments[from + i][j] = moments[from + j][i];
        }
      }
    }
    return moments;
  }

  private static void assertProduct(float[][] moments, float[] values, float[] product) {
    for (int from = 0, size; from < moments.length; from += size) {
      size = moments[from].length;
      for (int i = 0; i < size; i++) {
        double right = 0;
        for (int j = 0; j < size; j++) {
          right += (double) moments[from + i][j] * values[from + j];
        }
        assertEquals(right, product[from + i], 1e-6 * size, "input " + (from + i));
      }
    }
  }

  /** A block of one; less than a panel of 64, one, one and a bit, several; rows that fill registers by four and not. */
  @ParameterizedTest
  @ValueSource(ints = {1, 4, 7})
  void eachRowIsMultipliedWithItsBlocks(int rows) {
    Random random = new Random(rows);
    float[][] moments = moments(random, 1, 63, 64, 1, 65, 200);
    int n = moments.length;
    try (MomentProduct product = new MomentProduct(moments, 7)) {
      float[][] values = new float[rows][];
      for (int i = 0; i < rows; i++) {
        values[i] = numbers(random, n);
        product.put(i, values[i]);
      }
      product.multiply(rows);
      for (int i = 0; i < rows; i++) {
        float[] result = new float[n];
        product.get(i, values[i], result);
        assertProduct(moments, values[i], result);
      }
    }
  }

  @Test
  void aRowHasTheSameBitsAmongOthers() {
    Random random = new Random(3);
    float[][] moments = moments(random, 130);
    float[] values = numbers(random, 130);
    float[] among = new float[130];
    float[] alone = new float[130];
    try (MomentProduct product = new MomentProduct(moments, 6)) {
      for (int i = 0; i < 6; i++) {
        product.put(i, i == 2 ? values : numbers(random, 130));
      }
      product.multiply(6);
      product.get(2, values, among);
      product.put(0, values);
      product.multiply(1);
      product.get(0, values, alone);
    }
    assertArrayEquals(among, alone);
  }

  /** A scope that was open when it was made does not end its memory. */
  @Test
  void outlivesAScope() {
    Random random = new Random(4);
    float[][] moments = moments(random, 70);
    MomentProduct product;
    try (PointerScope scope = new PointerScope()) {
      product = new MomentProduct(moments, 1);
    }
    try (product) {
      float[] values = numbers(random, 70);
      float[] result = new float[70];
      product.put(0, values);
      product.multiply(1);
      product.get(0, values, result);
      assertProduct(moments, values, result);
    }
  }
}

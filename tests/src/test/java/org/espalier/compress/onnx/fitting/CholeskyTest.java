package org.espalier.compress.onnx.fitting;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;

import java.util.Arrays;
import java.util.Random;
import org.espalier.backend.CpuThreads;
import org.junit.jupiter.api.Test;

class CholeskyTest {
  /** The lower triangle of the second moments of numbers that go together, with something on the diagonal. */
  private static double[][] moments(int k) {
    Random random = new Random(k);
    double[][] x = new double[k + 40][k];
    for (double[] row : x) {
      double common = random.nextGaussian();
      for (int i = 0; i < k; i++) {
        row[i] = (1 + i % 7) * (random.nextGaussian() + common);
      }
    }
    double[][] h = new double[k][];
    for (int i = 0; i < k; i++) {
      h[i] = new double[i + 1];
    }
    for (double[] row : x) {
      for (int i = 0; i < k; i++) {
        for (int j = 0; j <= i; j++) {
          h[i][j] += row[i] * row[j] / x.length;
        }
      }
    }
    for (int i = 0; i < k; i++) {
      h[i][i] += 0.1;
    }
    return h;
  }

  private static double[][] copy(double[][] lower) {
    return Arrays.stream(lower).map(double[]::clone).toArray(double[][]::new);
  }

  /** Sizes around the panel of 32 columns, and beyond the size from which rows run in parallel. */
  @Test
  void factorAndInverseAreExact() {
    for (int k : new int[] {1, 2, 31, 32, 33, 64, 150}) {
      double[][] h = moments(k);
      double[][] l = Cholesky.factor(copy(h));
      assertFactor(h, l, 1e-13);
      double[][] inverse = Cholesky.inverse(l);
      for (int i = 0; i < k; i++) {
        for (int j = 0; j <= i; j++) {
          double unit = 0;
          for (int m = j; m <= i; m++) {
            unit += l[i][m] * inverse[m][j];
          }
          assertEquals(i == j ? 1 : 0, unit, 1e-9, k + ": " + i + "," + j);
        }
      }
    }
  }

  /** From 512 columns on what blocks of them take from the rest is float32. Neither panels nor blocks are whole. */
  @Test
  void largeFactorsAreOffByRoundingsOfFloats() {
    for (int k : new int[] {512, 513, 600, 797}) {
      double[][] h = moments(k);
      assertFactor(h, Cholesky.factor(copy(h)), k == 512 ? 1e-13 : 5e-6);
    }
  }

  private static void assertFactor(double[][] h, double[][] l, double share) {
    int k = h.length;
    for (int i = 0; i < k; i++) {
      assertEquals(i + 1, l[i].length);
      for (int j = 0; j <= i; j++) {
        double product = 0;
        for (int m = 0; m <= j; m++) {
          product += l[i][m] * l[j][m];
        }
        double most = share * Math.sqrt(h[i][i] * h[j][j]);
        assertEquals(h[i][j], product, most, k + ": " + i + "," + j);
      }
    }
  }

  @Test
  void theNumberOfThreadsDoesNotMatter() {
    double[][] h = moments(600);
    double[][] many = Cholesky.factor(copy(h));
    int threads = CpuThreads.get();
    CpuThreads.set(1);
    try {
      assertArrayEquals(many, Cholesky.factor(copy(h)));
    } finally {
      CpuThreads.set(threads);
    }
  }

  @Test
  void aMatrixThatIsNotPositiveDefiniteIsNamed() {
    double[][] a = {{1}, {2, 1}};
    assertThrows(ArithmeticException.class, () -> Cholesky.factor(a));
    double[][] large = moments(600);
    large[590][590] = -1;
    assertThrows(ArithmeticException.class, () -> Cholesky.factor(large));
  }
}

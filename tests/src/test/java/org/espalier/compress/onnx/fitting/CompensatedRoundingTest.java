package org.espalier.compress.onnx.fitting;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.util.Arrays;
import java.util.Random;
import org.junit.jupiter.api.Test;

class CompensatedRoundingTest {

  private static double[][] lower(double[][] full) {
    double[][] l = new double[full.length][];
    for (int i = 0; i < full.length; i++) {
      l[i] = Arrays.copyOf(full[i], i + 1);
    }
    return l;
  }

  /** Second moments of rows whose channels share a few factors. */
  private static double[][] correlated(int k, long seed) {
    Random random = new Random(seed);
    int rows = 4 * k;
    double[][] mix = new double[5][k];
    for (double[] m : mix) {
      Arrays.setAll(m, i -> random.nextGaussian());
    }
    double[][] h = new double[k][k];
    for (int r = 0; r < rows; r++) {
      double[] x = new double[k];
      for (double[] m : mix) {
        double f = random.nextGaussian();
        for (int i = 0; i < k; i++) {
          x[i] += f * m[i];
        }
      }
      for (int i = 0; i < k; i++) {
        x[i] += 0.3 * random.nextGaussian();
      }
      for (int i = 0; i < k; i++) {
        for (int j = 0; j < k; j++) {
          h[i][j] += x[i] * x[j] / rows;
        }
      }
    }
    return h;
  }

  @Test
  void uncorrelatedChannelsAreRoundedAsTheyAre() {
    double[][] identity = {{1, 0, 0}, {0, 2, 0}, {0, 0, 3}};
    float[] w = {0.4f, -1.6f, 2.5f, 126.4f, 300, -300};
    byte[] q = new CompensatedRounding(lower(identity)).round(w, new float[] {1, 1}, 127);
    assertArrayEquals(new byte[] {0, -2, 2, 126, 127, -127}, q);
  }

  /** Two channels that always have one value: 0.4·x + 0.4·x rounds to 1·x, not to 0. */
  @Test
  void aLaterRowTakesUpTheErrorOfAnEarlierOne() {
    double[][] equal = {{1, 1}, {1, 1}};
    byte[] q =
        new CompensatedRounding(lower(equal)).round(new float[] {0.4f, 0.4f}, new float[] {1}, 127);
    assertEquals(1, q[0] + q[1]);
  }

  @Test
  void theErrorOfTheProductsShrinks() {
    int k = 65;
    int n = 7;
    double[][] h = correlated(k, 3);
    Random random = new Random(4);
    float[] w = new float[k * n];
    for (int i = 0; i < w.length; i++) {
      w[i] = (float) random.nextGaussian();
    }
    float[] scales = new float[n];
    Arrays.fill(scales, 0.05f);
    byte[] fitted = new CompensatedRounding(lower(h)).round(w, scales, 127);
    byte[] plain = new byte[w.length];
    for (int i = 0; i < w.length; i++) {
      plain[i] = (byte) Math.rint(w[i] / 0.05f);
    }
    double ratio = productError(h, w, fitted, n) / productError(h, w, plain, n);
    assertTrue(ratio < 0.5, "error ratio " + ratio);
  }

  /** A row of one entry starts a block: nothing is known of its channel and those before. */
  @Test
  void blocksAreRoundedApart() {
    double[][] first = lower(correlated(40, 5));
    double[][] second = lower(correlated(33, 6));
    double[][] both = Arrays.copyOf(first, 73);
    System.arraycopy(second, 0, both, 40, 33);
    int n = 3;
    Random random = new Random(7);
    float[] w = new float[73 * n];
    for (int i = 0; i < w.length; i++) {
      w[i] = (float) random.nextGaussian();
    }
    float[] scales = {0.05f, 0.04f, 0.06f};
    byte[] q = new CompensatedRounding(both).round(w, scales, 127);
    assertArrayEquals(
        new CompensatedRounding(first).round(Arrays.copyOf(w, 40 * n), scales, 127),
        Arrays.copyOf(q, 40 * n));
    assertArrayEquals(
        new CompensatedRounding(second).round(Arrays.copyOfRange(w, 40 * n, 73 * n), scales, 127),
        Arrays.copyOfRange(q, 40 * n, 73 * n));
  }

  private static double productError(double[][] h, float[] w, byte[] q, int n) {
    double sum = 0;
    for (int c = 0; c < n; c++) {
      for (int i = 0; i < h.length; i++) {
        for (int j = 0; j < h.length; j++) {
          double ei = w[i * n + c] - 0.05f * q[i * n + c];
          double ej = w[j * n + c] - 0.05f * q[j * n + c];
          sum += ei * h[i][j] * ej;
        }
      }
    }
    return sum;
  }

  /** Rounding of sums can leave moments that no numbers have. */
  @Test
  void momentsThatAreMostlyRoundingAreDampedUntilTheyCanBeUsed() {
    double[][] noise = {{-1e-9}, {3e-9, 2e-9}};
    byte[] q = new CompensatedRounding(noise).round(new float[] {0.4f, 1.6f}, new float[] {1}, 127);
    assertEquals(0, q[0], 1);
    assertEquals(2, q[1], 1);
  }

  /** Activations that are always 0 leave nothing to fit: weights are rounded as they are. */
  @Test
  void deadChannelsDoNotMatter() {
    float[] w = {0.6f, -1.2f};
    byte[] q = new CompensatedRounding(new double[][] {{0}, {0, 0}}).round(w, new float[] {1}, 127);
    assertArrayEquals(new byte[] {1, -1}, q);
  }
}

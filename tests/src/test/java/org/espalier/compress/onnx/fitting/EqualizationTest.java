package org.espalier.compress.onnx.fitting;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.nio.FloatBuffer;
import java.util.Arrays;
import java.util.List;
import java.util.Random;
import org.junit.jupiter.api.Test;

class EqualizationTest {

  private static ActivationStatistics statistics(int channels, float[]... examples) {
    ActivationStatistics s = new ActivationStatistics("x", channels);
    for (float[] e : examples) {
      s.add(FloatBuffer.wrap(e));
    }
    return s;
  }

  /** One channel with the ranges [−1, 3] and [−1, 1] and the weight 2, by hand. */
  @Test
  void theNoiseIsThatOfTheFormula() {
    ActivationStatistics x = statistics(1, new float[] {-1, 3}, new float[] {-1, 1});
    Equalization e = Equalization.search(x, List.of(new float[] {2}), false, 127);
    double activations = 4.0 * (16 + 4) / 2 / (255 * 255) / 12;
    double weights = 0.3 * (2.0 / 127) * (2.0 / 127) / 12 * (1 + 9 + 1 + 1) / 4;
    assertEquals(activations + weights, e.noiseBefore(), 1e-9);
    // A single channel cannot gain: only ratios between channels matter.
    assertEquals(e.noiseBefore(), e.noiseAfter(), 1e-9);
    assertFalse(e.isShifted());
  }

  @Test
  void theShiftIsTheMeanMiddleOfTheRanges() {
    ActivationStatistics x = statistics(2, new float[] {1, 10, 3, 20}, new float[] {5, 0});
    Equalization e = Equalization.search(x, List.of(new float[] {1, 1}), true, 127);
    assertArrayEquals(new float[] {3.5f, 7.5f}, e.shift());
  }

  @Test
  void anOutlierChannelIsScaledDown() {
    Random random = new Random(1);
    int k = 16;
    float[][] examples = new float[30][10 * k];
    for (float[] e : examples) {
      for (int i = 0; i < e.length; i++) {
        e[i] = (float) random.nextGaussian() * (i % k == 5 ? 50 : 1);
      }
    }
    float[] w = new float[k * 8];
    for (int i = 0; i < w.length; i++) {
      w[i] = (float) random.nextGaussian();
    }
    Equalization e = Equalization.search(statistics(k, examples), List.of(w), false, 127);
    for (int c = 0; c < k; c++) {
      assertTrue(e.scale()[c] > 0 && Float.isFinite(e.scale()[c]));
      assertTrue(c == 5 || e.scale()[5] > 5 * e.scale()[c], "channel " + c);
    }
    assertTrue(e.noiseAfter() < e.noiseBefore() / 5, e.noiseBefore() + " to " + e.noiseAfter());
    assertTrue(e.gain() > 0 && e.isScaled() && !e.withoutScale().isScaled());
  }

  /** Most words of a vocabulary are in none of the texts of calibration, and yet in others. */
  @Test
  void channelsThatWereNeverSeenAreScaledAsTheOthers() {
    Random random = new Random(3);
    int k = 64;
    int seen = 24;
    float[][] examples = new float[40][k];
    for (float[] e : examples) {
      for (int c = 0; c < seen; c++) {
        e[c] = (float) Math.abs(random.nextGaussian()) * (1 + c);
      }
    }
    float[] w = new float[k * 8];
    for (int i = 0; i < w.length; i++) {
      w[i] = (float) random.nextGaussian();
    }
    float[] scale =
        Equalization.search(statistics(k, examples), List.of(w), false, 127).scale().clone();
    float[] others = Arrays.copyOf(scale, seen);
    Arrays.sort(others);
    assertTrue(others[seen - 1] > 2 * others[0], "those that were seen differ");
    for (int c = seen; c < k; c++) {
      assertEquals(others[seen / 2], scale[c], 1e-6f * others[seen / 2], "channel " + c);
    }
  }

  @Test
  void anActivationOfZerosIsLeftAlone() {
    ActivationStatistics x = statistics(3, new float[6]);
    Equalization e = Equalization.search(x, List.of(new float[] {1, 2, 3}), true, 127);
    assertFalse(e.isShifted());
    assertEquals(0, e.gain());
  }

  /** The moments of 70 rows (more than one block) about any point are those computed directly. */
  @Test
  void momentsFollowShiftAndScale() {
    Random random = new Random(2);
    int k = 5;
    float[] rows = new float[70 * k];
    for (int i = 0; i < rows.length; i++) {
      rows[i] = (float) random.nextGaussian() + i % k;
    }
    float[] z = {0.5f, -1, 2, 0, 3};
    float[] s = {1, 2, 0.5f, 4, 1};
    double[][] about = statistics(k, rows).moments(z, s, false);
    double[][] centred = statistics(k, rows).moments(z, s, true);
    double[] mean = new double[k];
    for (int i = 0; i < rows.length; i++) {
      mean[i % k] += rows[i] / 70.0;
    }
    for (int i = 0; i < k; i++) {
      for (int j = 0; j <= i; j++) {
        double a = 0;
        double c = 0;
        for (int r = 0; r < 70; r++) {
          double xi = rows[r * k + i];
          double xj = rows[r * k + j];
          a += (xi - z[i]) * (xj - z[j]) / (s[i] * s[j]) / 70;
          c += (xi - mean[i]) * (xj - mean[j]) / (s[i] * s[j]) / 70;
        }
        // Blocks are summed in float32.
        assertEquals(a, about[i][j], 1e-4);
        assertEquals(c, centred[i][j], 1e-4);
      }
    }
  }

  /** What a classifier behind convolutions reads: whole, its matrix would have 25088² entries. */
  @Test
  void momentsOfManyChannelsAreBlocks() {
    int k = 25_088;
    assertTrue(ActivationStatistics.bytes(k) < 250L << 20);
    assertTrue(ActivationStatistics.bytesOfRounding(k, 4) < 700L << 20);
    int channels = 2050;
    float[] rows = new float[3 * channels];
    Random random = new Random(3);
    for (int i = 0; i < rows.length; i++) {
      rows[i] = (float) random.nextGaussian();
    }
    float[] ones = new float[channels];
    Arrays.fill(ones, 1);
    double[][] moments = statistics(channels, rows).moments(new float[channels], ones, false);
    for (int i : new int[] {0, 1, 1024, 1025, 1026, 2049}) {
      int from = i < 1025 ? 0 : 1025;
      assertEquals(i - from + 1, moments[i].length);
      for (int j = from; j <= i; j++) {
        double sum = 0;
        for (int r = 0; r < 3; r++) {
          sum += (double) rows[r * channels + i] * rows[r * channels + j];
        }
        assertEquals(sum / 3, moments[i][j - from], 1e-6);
      }
    }
  }
}

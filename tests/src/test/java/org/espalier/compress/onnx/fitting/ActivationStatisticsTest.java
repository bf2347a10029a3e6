package org.espalier.compress.onnx.fitting;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.nio.FloatBuffer;
import java.util.Arrays;
import java.util.List;
import java.util.Optional;
import java.util.Random;
import org.espalier.InputException;
import org.junit.jupiter.api.Test;

class ActivationStatisticsTest {
  private static ActivationStatistics of(String name, int rows, int channels) {
    Random random = new Random(rows);
    ActivationStatistics statistics = new ActivationStatistics(name, channels);
    for (int r = 0; r < rows; r++) {
      FloatBuffer row = FloatBuffer.allocate(channels);
      while (row.hasRemaining()) {
        row.put((float) random.nextGaussian());
      }
      statistics.add(row.flip());
    }
    return statistics;
  }

  /** Ten rows of independent channels say nothing of what goes together, ten thousand all. */
  @Test
  void fewRowsAreDrawnTowardsIndependentChannels() {
    double[][] few = of("few", 10, 40).moments(false);
    double[][] many = of("many", 10_000, 40).moments(false);
    double[][] one = of("one", 10, 1).moments(false);
    assertEquals(1, one.length);
    float[] ones = new float[40];
    Arrays.fill(ones, 1);
    double[][] exact = of("many", 10_000, 40).moments(new float[40], ones, false);
    double[][] raw = of("few", 10, 40).moments(new float[40], ones, false);
    double mean = 0;
    for (int i = 0; i < 40; i++) {
      mean += raw[i][i] / 40;
    }
    // Half of all of it.
    for (int i = 0; i < 40; i++) {
      for (int j = 0; j < i; j++) {
        assertEquals(0.5 * raw[i][j], few[i][j], 0.1 * Math.abs(raw[i][j]));
      }
      assertEquals(0.5 * (raw[i][i] + mean), few[i][i], 0.1 * Math.abs(raw[i][i] - mean));
    }
    // Nothing is to be learned of such channels but that; what is seen is near it.
    for (int i = 0; i < 40; i++) {
      assertEquals(1, many[i][i], 0.1);
      assertEquals(exact[i][i], many[i][i], 0.05);
    }
  }

  /** Channels that go together are trusted after fewer rows than they are. */
  @Test
  void whatGoesTogetherIsSeenSoon() {
    ActivationStatistics statistics = new ActivationStatistics("x", 100);
    Random random = new Random(5);
    for (int r = 0; r < 60; r++) {
      float common = (float) random.nextGaussian();
      FloatBuffer row = FloatBuffer.allocate(100);
      while (row.hasRemaining()) {
        row.put(common + 0.1f * (float) random.nextGaussian());
      }
      statistics.add(row.flip());
    }
    double[][] moments = statistics.moments(false);
    assertTrue(moments[99][3] > 0.95 * moments[99][99]);
    assertEquals(Optional.empty(), ActivationStatistics.few(List.of(statistics)));
  }

  @Test
  void saysWhereRowsAreFew() {
    ActivationStatistics few = of("bag", 10, 40);
    ActivationStatistics fewer = of("words", 1, 30);
    ActivationStatistics many = of("tokens", 2000, 10);
    few.moments(true);
    many.moments(true);
    String line = ActivationStatistics.few(List.of(few, fewer, many)).orElseThrow();
    assertTrue(line.startsWith("calibration saw 10 rows of the 40 inputs bag: "), line);
    assertEquals(Optional.empty(), ActivationStatistics.few(List.of(many)));
    assertEquals(Optional.empty(), ActivationStatistics.few(List.of()));
    fewer.moments(false);
    String both = ActivationStatistics.few(List.of(many, few, fewer)).orElseThrow();
    assertTrue(
        both.startsWith("calibration saw 1 row of the 30 inputs words, and few of 1 more: "), both);
  }

  /** Weights of 4 bits are rounded by what all of a wide layer's inputs have in common, those of 8 bits by blocks. */
  @Test
  void fourBitsSeeMoreChannelsTogether() {
    int channels = 2050;
    for (int bits : new int[] {4, 8}) {
      ActivationStatistics statistics = ActivationStatistics.ofRounding("x", channels, bits);
      FloatBuffer rows = FloatBuffer.allocate(3 * channels);
      for (int i = 0; i < 3 * channels; i++) {
        rows.put((float) Math.sin(i * i));
      }
      statistics.add(rows.flip());
      double[][] moments = statistics.moments(false);
      assertEquals(bits == 4 ? channels : channels / 2, moments[channels - 1].length);
    }
    assertTrue(
        ActivationStatistics.bytesOfRounding(8192, 4)
            > 3 * ActivationStatistics.bytesOfRounding(8192, 8));
  }

  /** Of what no example reaches, channels are equal and independent; without examples nothing is assumed. */
  @Test
  void whatNoExampleReachesIsAssumed() {
    ActivationStatistics seen = of("seen", 10, 40);
    double[][] before = seen.moments(false);
    ActivationStatistics never = new ActivationStatistics("never", 3);
    never.add(FloatBuffer.allocate(0));
    InputException e =
        assertThrows(
            InputException.class, () -> ActivationStatistics.assume(List.of(never), false));
    assertTrue(e.getMessage().contains("calibration of never"), e.getMessage());
    ActivationStatistics.assume(List.of(seen, never), true);
    double[][] after = seen.moments(false);
    for (int i = 0; i < before.length; i++) {
      assertArrayEquals(before[i], after[i]);
    }
    double[][] moments = never.moments(false);
    for (int i = 0; i < 3; i++) {
      assertEquals(0, never.mean(i));
      for (int j = 0; j <= i; j++) {
        assertEquals(i == j ? 1 / 3.0 : 0, moments[i][j], 1e-12);
      }
    }
  }
}

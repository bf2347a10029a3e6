package org.espalier.compress.onnx.fitting;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;

import java.nio.FloatBuffer;
import java.util.Arrays;
import java.util.Random;
import org.bytedeco.javacpp.PointerScope;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;
import org.junit.jupiter.params.provider.ValueSource;

class GramTilesTest {
  private static double[][] lower(int n) {
    double[][] lower = new double[n][];
    for (int i = 0; i < n; i++) {
      lower[i] = new double[i + 1];
    }
    return lower;
  }

  private static float[][] rows(int rows, int channels) {
    Random random = new Random(channels);
    float[][] x = new float[rows][channels];
    for (float[] row : x) {
      for (int c = 0; c < channels; c++) {
        row[c] = (float) random.nextGaussian();
      }
    }
    return x;
  }

  private static double[][] moments(ActivationStatistics statistics, boolean centred) {
    float[] ones = new float[statistics.channels()];
    Arrays.fill(ones, 1);
    return statistics.moments(new float[ones.length], ones, centred);
  }

  private static double sum(float[][] x, int rows, int i, int j) {
    double sum = 0;
    for (int r = 0; r < rows; r++) {
      sum += (double) x[r][i] * x[r][j];
    }
    return sum;
  }

  /** One channel, less than a tile of 64, one, one and a bit, several; a scope that was open ends nothing. */
  @ParameterizedTest
  @ValueSource(ints = {1, 63, 64, 65, 200})
  void addsUpTheRowsOfItsChannels(int n) {
    int from = 3;
    double[][] gram = lower(n);
    float[][] x = rows(64, n + 5);
    GramTiles tiles;
    try (PointerScope scope = new PointerScope()) {
      tiles = new GramTiles(gram, from, 64);
    }
    try (tiles) {
      tiles.add(x, 64);
      tiles.add(x, 9);
    }
    for (int i = 0; i < n; i++) {
      assertEquals(i + 1, gram[i].length);
      for (int j = 0; j <= i; j++) {
        double right = sum(x, 64, from + i, from + j) + sum(x, 9, from + i, from + j);
        assertEquals(right, gram[i][j], 1e-4, i + ", " + j);
      }
    }
  }

  /** Examples that do not fill blocks of rows, and channels in one group, in several, and in more than are seen together. */
  @ParameterizedTest
  @CsvSource({"70, 70, 70", "140, 70, 70", "2100, 2100, 1050"})
  void momentsAreThoseOfAllExamples(int channels, int group, int together) {
    float[][] x = rows(101, channels);
    ActivationStatistics statistics = new ActivationStatistics("x", channels, group);
    for (int r = 0; r < 101; r += 25) {
      int n = Math.min(25, 101 - r);
      FloatBuffer example = FloatBuffer.allocate(n * channels);
      for (int i = 0; i < n; i++) {
        example.put(x[r + i]);
      }
      statistics.add(example.flip());
    }
    double[][] moments = moments(statistics, false);
    for (int i = 0; i < channels; i += 23) {
      int from = i / together * together;
      assertEquals(i - from + 1, moments[i].length);
      for (int j = from; j <= i; j += 7) {
        assertEquals(sum(x, 101, i, j) / 101, moments[i][j - from], 1e-5, i + ", " + j);
      }
    }
    double[][] again = moments(statistics, false);
    for (int i = 0; i < channels; i++) {
      assertArrayEquals(moments[i], again[i]);
    }
  }

  /** 64 equal numbers added up in float32 are off by a millionth, as much as what varies. */
  @Test
  void aChannelThatStaysHasNoMoments() {
    ActivationStatistics statistics = new ActivationStatistics("x", 2);
    Random random = new Random(1);
    FloatBuffer example = FloatBuffer.allocate(2 * 640);
    for (int r = 0; r < 640; r++) {
      example.put(1.1f).put((float) random.nextGaussian());
    }
    statistics.add(example.flip());
    double[][] moments = moments(statistics, true);
    assertArrayEquals(new double[] {0}, moments[0]);
    assertEquals(0, moments[1][0]);
    assertEquals(1, moments[1][1], 0.1);
  }
}

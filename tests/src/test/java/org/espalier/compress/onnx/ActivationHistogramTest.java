package org.espalier.compress.onnx;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.nio.FloatBuffer;
import java.util.Arrays;
import java.util.Random;
import org.junit.jupiter.api.Tag;
import org.junit.jupiter.api.Test;

@Tag("loops")
class ActivationHistogramTest {
  private static float[] normal(int n, long seed) {
    Random random = new Random(seed);
    float[] v = new float[n];
    for (int i = 0; i < n; i++) {
      v[i] = (float) random.nextGaussian();
    }
    return v;
  }

  @Test
  void minimumAndMaximumAreExactAndHoldZero() {
    ActivationHistogram h = new ActivationHistogram();
    assertEquals(new ActivationRange(0, 0), h.minMax());
    h.add(FloatBuffer.wrap(new float[] {2, 3.25f}));
    assertEquals(new ActivationRange(0, 3.25f), h.minMax());
    h.add(FloatBuffer.wrap(new float[] {-1.5f, 1e-30f}));
    assertEquals(new ActivationRange(-1.5f, 3.25f), h.minMax());
    assertEquals(4, h.count());
  }

  @Test
  void nonFiniteValuesAreReportedAndLeftOut() {
    ActivationHistogram h = new ActivationHistogram();
    float[] values = {1, Float.NaN, Float.POSITIVE_INFINITY, -1, Float.NEGATIVE_INFINITY};
    assertEquals(3, h.add(FloatBuffer.wrap(values)));
    assertEquals(new ActivationRange(-1, 1), h.minMax());
    assertEquals(2, h.count());
  }

  @Test
  void valuesInAnyOrderGiveTheSamePercentile() {
    float[] values = normal(200_000, 1);
    Arrays.sort(values);
    // Growing magnitudes merge the bins many times; a single call merges none.
    ActivationHistogram growing = new ActivationHistogram();
    Float[] byMagnitude = new Float[values.length];
    for (int i = 0; i < values.length; i++) {
      byMagnitude[i] = values[i];
    }
    Arrays.sort(byMagnitude, (a, b) -> Float.compare(Math.abs(a), Math.abs(b)));
    for (int i = 0; i < values.length; i += 1000) {
      float[] part = new float[1000];
      for (int k = 0; k < 1000; k++) {
        part[k] = byMagnitude[i + k];
      }
      growing.add(FloatBuffer.wrap(part));
    }
    ActivationRange r = growing.percentile(99);
    // The bins are at most 1/4096 of the reach of about 4.5 wide.
    assertEquals(values[1000], r.min(), 2e-3);
    assertEquals(values[199_000], r.max(), 2e-3);
    assertEquals(growing.minMax(), growing.percentile(100));
    assertThrows(IllegalArgumentException.class, () -> growing.percentile(50));
  }

  /** The mean squared error of values after a round trip through 8 bits. */
  private static double error(float[] values, ActivationRange r) {
    double sum = 0;
    for (float v : values) {
      double q = Math.rint(v / r.scale()) + r.zeroPoint();
      double back = (Math.max(0, Math.min(255, q)) - r.zeroPoint()) * r.scale();
      sum += (v - back) * (v - back);
    }
    return sum / values.length;
  }

  @Test
  void meanSquaredErrorIsTheLeastOfARealRoundTrip() {
    float[] values = normal(400_000, 2);
    values[17] = 20;
    values[18] = -9;
    ActivationHistogram h = new ActivationHistogram();
    h.add(FloatBuffer.wrap(values));
    ActivationRange found = h.meanSquaredError();
    double least = Double.MAX_VALUE;
    for (float low = 2; low <= 9; low += 0.5f) {
      for (float high = 2; high <= 20; high += 0.5f) {
        least = Math.min(least, error(values, new ActivationRange(-low, high)));
      }
    }
    // The estimate of the rounding error and the steps of the search cost little.
    assertTrue(error(values, found) < 1.05 * least, error(values, found) + " of " + least);
    assertTrue(error(values, found) < 0.8 * error(values, h.minMax()));
  }

  @Test
  void meanSquaredErrorKeepsAUniformRange() {
    ActivationHistogram uniform = new ActivationHistogram();
    float[] values = new float[100_000];
    for (int i = 0; i < values.length; i++) {
      values[i] = i / 100_000f;
    }
    uniform.add(FloatBuffer.wrap(values));
    assertEquals(uniform.minMax(), uniform.meanSquaredError());
  }

  @Test
  void scaleAndZeroPointRepresentZeroExactly() {
    ActivationRange r = new ActivationRange(-1, 3);
    assertEquals(4f / 255, r.scale());
    assertEquals(64, r.zeroPoint());
    assertEquals(1f, new ActivationRange(0, 0).scale());
    assertEquals(0, new ActivationRange(0, 5).zeroPoint());
    assertEquals(255, new ActivationRange(-5, 0).zeroPoint());
    assertThrows(IllegalArgumentException.class, () -> new ActivationRange(1, 2));
    assertThrows(IllegalArgumentException.class, () -> new ActivationRange(0, Float.NaN));
  }
}

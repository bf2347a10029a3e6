package org.espalier.compress.onnx.fitting;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertNull;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.util.Arrays;
import java.util.Random;
import org.espalier.compress.LinearForm;
import org.espalier.device.DType;
import org.espalier.format.HalfFloats;
import org.junit.jupiter.api.Test;

class LinearScalesTest {
  private static final int IN = 64;
  private static final int OUT = 300;

  private final float[] weights = new float[IN * OUT];
  private final double[] importance = new double[IN];

  {
    Random random = new Random(4);
    for (int i = 0; i < weights.length; i++) {
      weights[i] = (float) random.nextGaussian();
    }
    for (int k = 0; k < IN; k++) {
      importance[k] = Math.exp(2 * random.nextGaussian());
    }
  }

  private LinearScales find(LinearForm form, DType type) {
    return LinearScales.find(form, type, weights, OUT, importance);
  }

  /** What rounding changes in a block of an output, by squares times importance. */
  private double error(LinearForm form, float scale, int zero, int from, int to, int out) {
    double error = 0;
    for (int k = from; k < to; k++) {
      double w = weights[k * OUT + out];
      double q = Math.rint(w / scale) + zero;
      q = Math.max(form.least(), Math.min(form.largest(), q)) - zero;
      error += importance[k] * (w - q * scale) * (w - q * scale);
    }
    return error;
  }

  @Test
  void noScaleThatWasTriedIsBetter() {
    LinearForm form = LinearForm.int4(32, true);
    LinearScales found = find(form, DType.F32);
    assertEquals(32, found.block());
    assertNull(found.zeroPoints());
    for (int b = 0; b < 2; b++) {
      for (int o = 0; o < OUT; o++) {
        float most = 0;
        for (int k = 32 * b; k < 32 * b + 32; k++) {
          most = Math.max(most, Math.abs(weights[k * OUT + o]));
        }
        double best = Double.MAX_VALUE;
        for (int i = 0; i < 16; i++) {
          float tried = (1 - i * (1 - 17f / 32) / 15) * (most / 7);
          best = Math.min(best, error(form, tried, 0, 32 * b, 32 * b + 32, o));
        }
        double own = error(form, found.scales()[b * OUT + o], 0, 32 * b, 32 * b + 32, o);
        assertTrue(own <= best * (1 + 1e-4), own + " above " + best);
      }
    }
  }

  /** A zero point makes use of a grid of which one side would be empty. */
  @Test
  void zeroPointsSuitOneSidedWeights() {
    for (int i = 0; i < weights.length; i++) {
      weights[i] = 1 + Math.abs(weights[i]);
    }
    LinearForm with = LinearForm.int4(0, false);
    LinearForm without = LinearForm.int4(0, true);
    LinearScales found = find(with, DType.F32);
    LinearScales symmetric = find(without, DType.F32);
    double sum = 0;
    double other = 0;
    for (int o = 0; o < OUT; o++) {
      assertEquals(-8, found.zeroPoints()[o], "0 is the least number");
      sum += error(with, found.scales()[o], -8, 0, IN, o);
      other += error(without, symmetric.scales()[o], 0, 0, IN, o);
    }
    assertTrue(sum < 0.4 * other, sum + " of " + other);
  }

  @Test
  void scalesAreWhatTheTypeHolds() {
    for (DType type : DType.values()) {
      for (LinearForm form : new LinearForm[] {LinearForm.INT8, LinearForm.int4(32, false)}) {
        for (float scale : find(form, type).scales()) {
          assertEquals(HalfFloats.rounded(scale, type), scale);
          assertTrue(scale > 0);
        }
      }
    }
  }

  @Test
  void eightBitsHaveTheScaleOfTheFormat() {
    float[] most = new float[OUT];
    for (int i = 0; i < weights.length; i++) {
      most[i % OUT] = Math.max(most[i % OUT], Math.abs(weights[i]));
    }
    for (int o = 0; o < OUT; o++) {
      most[o] /= 127.5f;
    }
    assertArrayEquals(most, find(LinearForm.INT8, DType.F32).scales());
  }

  /** Blocks of zeros, and those that no example reached. */
  @Test
  void nothingIsNoScaleOfZero() {
    Arrays.fill(weights, 0, 32 * OUT, 0);
    Arrays.fill(importance, 32, IN, 0);
    for (boolean symmetric : new boolean[] {true, false}) {
      for (float scale : find(LinearForm.int4(32, symmetric), DType.BF16).scales()) {
        assertTrue(scale >= 0x1p-23f && scale < 1, "" + scale);
      }
    }
  }
}

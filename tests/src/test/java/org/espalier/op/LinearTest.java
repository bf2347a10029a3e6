package org.espalier.op;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.util.List;
import org.espalier.device.DType;
import org.espalier.device.OwnedTensor;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;

class LinearTest {
  /** A product's error: a sum of n terms in float, each half an ulp of what has been added up. */
  private static final double ROUNDING = 0x1p-24;

  private record Problem(
      OwnedTensor weight, OwnedTensor bias, OwnedTensor rows, OwnedTensor outputs)
      implements AutoCloseable {
    static Problem of(int features, int outputs, int rows) {
      return new Problem(
          Numbers.tensor(DType.F32, Numbers.floats(features * outputs, 1), outputs, features),
          Numbers.tensor(DType.F32, Numbers.floats(outputs, 2), outputs),
          Numbers.tensor(DType.F32, Numbers.floats(rows * features, 3), rows, features),
          Numbers.tensor(DType.F32, Numbers.floats(rows * outputs, 4), rows, outputs));
    }

    @Override
    public void close() {
      List.of(weight, bias, rows, outputs).forEach(OwnedTensor::close);
    }
  }

  // One lane and less, a whole vector, 64 a turn with and without tails; 70 rows are two groups of
  // factors; the
  // last is worth several threads.
  @ParameterizedTest
  @CsvSource({
    "1, 1, 1",
    "15, 2, 3",
    "16, 1, 2",
    "17, 3, 70",
    "63, 1, 4",
    "64, 10, 2",
    "65, 2, 65",
    "384, 2, 32",
    "1003, 5, 8",
    "4099, 40, 3"
  })
  void agreesWithTheReferenceAndHasTheSameBitsEverywhere(int features, int outputs, int rows) {
    try (Problem p = Problem.of(features, outputs, rows);
        Linear linear = new Linear(p.weight, p.bias, p.rows, p.outputs)) {
      float[] w = Numbers.read(p.weight);
      float[] b = Numbers.read(p.bias);
      float[] x = Numbers.read(p.rows);
      float[] slope = Numbers.read(p.outputs);
      double[] z = LinearReference.forward(w, b, x, rows);
      double[] plain =
          LinearReference.backward(x, slope, rows, features, outputs, Double.POSITIVE_INFINITY);
      double bound = LinearReference.norm(x, slope, rows / 2, features, outputs) * 0.999;
      double[] clipped = LinearReference.backward(x, slope, rows, features, outputs, bound);
      double outputError = scale(w, x) * features * ROUNDING;
      double gradientError = scale(slope, x) * rows * ROUNDING;
      float[][] first = new float[4][];
      Variants.each(
          new int[] {1, 2},
          (isa, threads) -> {
            Numbers.write(p.weight, w);
            Numbers.write(p.bias, b);
            linear.forward(rows);
            float[] out = Numbers.read(p.outputs);
            for (int i = 0; i < z.length; i++) {
              assertEquals(z[i], out[i], outputError);
            }
            Numbers.write(p.outputs, slope);
            linear.backward(rows);
            float[] gradient = both(p);
            long count = linear.backwardClipped(rows, bound);
            float[] bounded = both(p);
            for (int k = 0; k < plain.length; k++) {
              assertEquals(plain[k], gradient[k], gradientError);
              // The margin of a factor is 2^-21.
              assertEquals(clipped[k], bounded[k], 16 * gradientError);
            }
            assertTrue(count >= 1 && count <= rows, count + " clipped");
            Numbers.write(p.weight, w);
            Numbers.write(p.bias, b);
            linear.descend(0.25);
            float[] stepped = both(p);
            same(first, 0, out);
            same(first, 1, gradient);
            same(first, 2, bounded);
            same(first, 3, stepped);
          });
      // The bits of the general step: backward on one row, then fused_sgd.
      Numbers.write(p.outputs, slope);
      linear.backward(1);
      try (OwnedTensor weightGradient = Numbers.tensor(DType.F32, Numbers.read(p.weight));
          OwnedTensor biasGradient = Numbers.tensor(DType.F32, Numbers.read(p.bias))) {
        Numbers.write(p.weight, w);
        Numbers.write(p.bias, b);
        try (FusedSgd sgd =
            new FusedSgd(
                List.of(
                    FusedSgd.Parameter.of(p.weight, weightGradient, null),
                    FusedSgd.Parameter.of(p.bias, biasGradient, null)),
                FusedSgd.Options.of(0.25))) {
          sgd.step();
        }
        assertArrayEquals(first[3], both(p));
      }
    }
  }

  private static void same(float[][] first, int index, float[] values) {
    if (first[index] == null) {
      first[index] = values;
    }
    assertArrayEquals(first[index], values);
  }

  private static float[] both(Problem p) {
    float[] w = Numbers.read(p.weight);
    float[] b = Numbers.read(p.bias);
    float[] all = java.util.Arrays.copyOf(w, w.length + b.length);
    System.arraycopy(b, 0, all, w.length, b.length);
    return all;
  }

  /** The largest product of two elements, and one more for what is added to it. */
  private static double scale(float[] a, float[] b) {
    return 1 + largest(a) * Math.max(1, largest(b));
  }

  private static double largest(float[] values) {
    double largest = 0;
    for (float v : values) {
      largest = Math.max(largest, Math.abs(v));
    }
    return largest;
  }

  /** The guarantee of private learning, which must hold for the floats that are written. */
  @Test
  void noClippedRowIsLongerThanTheBound() {
    int features = 37;
    int clipped = 0;
    for (int seed = 0; seed < 200; seed++) {
      try (Problem p = Problem.of(features, 3, 1);
          Linear linear = new Linear(p.weight, p.bias, p.rows, p.outputs)) {
        Numbers.write(p.rows, Numbers.floats(features, 10 + seed));
        Numbers.write(p.outputs, Numbers.floats(3, 1000 + seed));
        double bound = 0.1 + seed * 0.05;
        clipped += (int) linear.backwardClipped(1, bound);
        double squares = 0;
        for (float v : both(p)) {
          squares += (double) v * v;
        }
        assertTrue(Math.sqrt(squares) <= bound, Math.sqrt(squares) + " of " + bound);
      }
    }
    assertTrue(clipped > 50 && clipped <= 200, clipped + " clipped");
  }

  @Test
  void whatIsNotFiniteStaysSo() {
    try (Problem p = Problem.of(20, 2, 2);
        Linear linear = new Linear(p.weight, p.bias, p.rows, p.outputs)) {
      float[] x = Numbers.read(p.rows);
      x[19] = Float.NaN;
      x[39] = Float.POSITIVE_INFINITY;
      Numbers.write(p.rows, x);
      linear.forward(2);
      for (float z : Numbers.read(p.outputs)) {
        assertTrue(!Float.isFinite(z));
      }
      Numbers.write(p.outputs, new float[] {1, 1, 1, 1});
      linear.backwardClipped(2, 1);
      assertTrue(Float.isNaN(both(p)[19]));
    }
  }

  @Test
  void refusesShapesThatDoNotFit() {
    try (Problem p = Problem.of(5, 2, 3);
        Problem q = Problem.of(6, 2, 3);
        Linear linear = new Linear(p.weight, p.bias, p.rows, p.outputs)) {
      assertThrows(
          IllegalArgumentException.class, () -> new Linear(p.weight, p.bias, q.rows, p.outputs));
      assertThrows(
          IllegalArgumentException.class, () -> new Linear(p.weight, p.weight, p.rows, p.outputs));
      assertThrows(IllegalArgumentException.class, () -> linear.forward(4));
      assertThrows(IllegalArgumentException.class, () -> linear.backwardClipped(1, 0));
      assertThrows(IllegalArgumentException.class, () -> linear.descend(Double.NaN));
      assertThrows(IllegalArgumentException.class, () -> linear.descend(-1));
    }
  }
}

package org.espalier.op;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.util.Arrays;
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
      return of(features, outputs, rows, false);
    }

    static Problem of(int features, int outputs, int rows, boolean transposed) {
      return new Problem(
          Numbers.tensor(
              DType.F32,
              Numbers.floats(features * outputs, 1),
              transposed ? features : outputs,
              transposed ? outputs : features),
          Numbers.tensor(DType.F32, Numbers.floats(outputs, 2), outputs),
          Numbers.tensor(DType.F32, Numbers.floats(rows * features, 3), rows, features),
          Numbers.tensor(DType.F32, Numbers.floats(rows * outputs, 4), rows, outputs));
    }

    @Override
    public void close() {
      List.of(weight, bias, rows, outputs).forEach(OwnedTensor::close);
    }
  }

  // One lane and less, a whole vector, 64 a turn with and without tails; 64, 65 and 130 columns are
  // blocks of a row alone, of four, and cut ones; 70 rows are several pieces; the last are worth
  // several threads.
  @ParameterizedTest
  @CsvSource({
    "1, 1, 1",
    "15, 2, 3",
    "16, 1, 2",
    "17, 3, 70",
    "63, 1, 4",
    "64, 10, 2",
    "65, 2, 65",
    "130, 64, 5",
    "64, 130, 7",
    "384, 2, 32",
    "100, 257, 33",
    "1003, 5, 8",
    "4099, 140, 3"
  })
  void agreesWithTheReferenceAndHasTheSameBitsEverywhere(int features, int outputs, int rows) {
    for (boolean transposed : new boolean[] {false, true}) {
      for (boolean hasBias : new boolean[] {true, false}) {
        try (Problem p = Problem.of(features, outputs, rows, transposed);
            Linear linear =
                new Linear(p.weight, hasBias ? p.bias : null, p.rows, p.outputs, transposed)) {
          check(p, linear, features, outputs, rows, transposed, hasBias);
        }
      }
    }
  }

  private static void check(
      Problem p,
      Linear linear,
      int features,
      int outputs,
      int rows,
      boolean transposed,
      boolean hasBias) {
    float[] w = Numbers.read(p.weight);
    float[] b = Numbers.read(p.bias);
    float[] x = Numbers.read(p.rows);
    float[] slope = Numbers.read(p.outputs);
    double[] z = LinearReference.forward(w, hasBias ? b : null, x, rows, outputs, transposed);
    double[] weights = LinearReference.backward(x, slope, rows, features, outputs, transposed);
    double[] back = LinearReference.backwardRows(w, slope, rows, outputs, transposed);
    double outputError = scale(w, x) * features * ROUNDING;
    double gradientError = scale(slope, x) * rows * ROUNDING;
    double rowError = scale(slope, w) * outputs * ROUNDING;
    float[][] first = new float[5][];
    Variants.each(
        new int[] {1, 2},
        (isa, threads) -> {
          linear.forward(rows);
          float[] out = Numbers.read(p.outputs);
          assertNear(z, out, outputError);
          Numbers.write(p.outputs, slope);
          linear.backward(rows);
          float[] gradient = both(p);
          for (int k = 0; k < weights.length; k++) {
            boolean isBias = k >= features * outputs;
            double expected = isBias && !hasBias ? b[k - features * outputs] : weights[k];
            assertEquals(expected, gradient[k], gradientError);
          }
          double[] squares = new double[rows];
          Arrays.fill(squares, 1);
          linear.addSquares(rows, squares);
          for (int i = 0; i < rows; i++) {
            double square = 1 + LinearReference.square(x, slope, i, features, outputs, hasBias);
            assertEquals(square, squares[i], 1e-12 * square);
          }
          Numbers.write(p.weight, w);
          Numbers.write(p.bias, b);
          linear.backwardRows(rows);
          float[] rowGradient = Numbers.read(p.rows);
          assertNear(back, rowGradient, rowError);
          Numbers.write(p.rows, x);
          linear.descend(0.25);
          float[] stepped = both(p);
          Numbers.write(p.weight, w);
          Numbers.write(p.bias, b);
          same(first, 0, out);
          same(first, 1, gradient);
          same(first, 2, rowGradient);
          same(first, 3, stepped);
          linear.forward(1); // a row alone has the bits that it has among others
          same(first, 4, Arrays.copyOf(Numbers.read(p.outputs), outputs));
          assertArrayEquals(Arrays.copyOf(out, outputs), first[4]);
          Numbers.write(p.outputs, slope);
        });
    // The bits of the general step: backward on one row, then fused_sgd.
    linear.backward(1);
    try (OwnedTensor weightGradient = Numbers.tensor(DType.F32, Numbers.read(p.weight));
        OwnedTensor biasGradient =
            Numbers.tensor(DType.F32, hasBias ? Numbers.read(p.bias) : new float[outputs])) {
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

  private static void assertNear(double[] expected, float[] actual, double error) {
    for (int i = 0; i < expected.length; i++) {
      assertEquals(expected[i], actual[i], error);
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
    float[] all = Arrays.copyOf(w, w.length + b.length);
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
      double[] squares = new double[2];
      linear.addSquares(2, squares);
      assertTrue(Double.isNaN(squares[0]) && squares[1] == Double.POSITIVE_INFINITY);
      linear.backward(2);
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
      assertThrows(
          IllegalArgumentException.class,
          () -> new Linear(p.weight, p.bias, p.rows, p.outputs, true));
      assertThrows(IllegalArgumentException.class, () -> linear.forward(4));
      assertThrows(IllegalArgumentException.class, () -> linear.backwardRows(-1));
      assertThrows(IllegalArgumentException.class, () -> linear.addSquares(4, new double[4]));
      assertThrows(IllegalArgumentException.class, () -> linear.addSquares(3, new double[2]));
      assertThrows(IllegalArgumentException.class, () -> linear.descend(Double.NaN));
      assertThrows(IllegalArgumentException.class, () -> linear.descend(-1));
    }
  }
}

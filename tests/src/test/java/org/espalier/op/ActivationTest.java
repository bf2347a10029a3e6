package org.espalier.op;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.util.Random;
import java.util.stream.Stream;
import org.espalier.device.DType;
import org.espalier.device.OwnedTensor;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.MethodSource;

class ActivationTest {
  static Stream<Activation> all() {
    return Stream.of(
        Activation.RELU,
        Activation.SIGMOID,
        Activation.TANH,
        Activation.leakyRelu(0.01f),
        Activation.leakyRelu(0));
  }

  /** Ordinary numbers, those around which formulas change, and the ends of the range. */
  private static float[] inputs(int n) {
    float[] u = Numbers.floats(n, 5);
    Random random = new Random(6);
    float[] special = {
      0f,
      -0f,
      0.625f,
      Math.nextDown(0.625f),
      -0.625f,
      20,
      -20,
      86.9f,
      -87.1f,
      88.5f,
      -88.5f,
      104,
      -104,
      1e30f,
      -1e30f,
      Float.MIN_VALUE,
      -Float.MIN_VALUE
    };
    for (int i = 0; i < n; i++) {
      if (random.nextInt(4) == 0) {
        u[i] = special[random.nextInt(special.length)];
      } else if (random.nextInt(3) == 0) {
        u[i] = (float) (random.nextGaussian() * Math.exp(4 * random.nextGaussian()));
      }
    }
    return u;
  }

  @ParameterizedTest
  @MethodSource("all")
  void agreesWithTheReferenceAndHasTheSameBitsEverywhere(Activation activation) {
    for (int n : Numbers.SIZES) {
      float[] u = inputs(n);
      float[] s = Numbers.floats(n, 7);
      float[][] first = new float[2][];
      try (OwnedTensor values = Numbers.tensor(DType.F32, u, n);
          OwnedTensor slopes = Numbers.tensor(DType.F32, s, n)) {
        Variants.each(
            new int[] {1, 2},
            (isa, threads) -> {
              Numbers.write(values, u);
              activation.forward(values, n);
              float[] y = Numbers.read(values);
              Numbers.write(slopes, s);
              activation.backward(values, slopes, n);
              float[] back = Numbers.read(slopes);
              if (first[0] == null) {
                first[0] = y;
                first[1] = back;
                for (int i = 0; i < n; i++) {
                  double value = ActivationReference.value(activation, u[i]);
                  assertEquals(value, y[i], 3 * Math.ulp((float) value), u[i] + "");
                  double slope = s[i] * ActivationReference.slope(activation, y[i]);
                  // 1 - y and 1 - y² are rounded before they are multiplied.
                  assertEquals(
                      slope, back[i], Math.abs(s[i]) * 0x1p-24 + 2 * Math.ulp((float) slope));
                }
              }
              assertArrayEquals(first[0], y);
              assertArrayEquals(first[1], back);
            });
      }
    }
  }

  @ParameterizedTest
  @MethodSource("all")
  void nanStaysAndOthersBesideTheFirstAreLeftAlone(Activation activation) {
    Variants.each(
        new int[] {1},
        (isa, threads) -> {
          try (OwnedTensor values =
              Numbers.tensor(DType.F32, new float[] {Float.NaN, -2, -3, -4}, 4)) {
            activation.forward(values, 3);
            float[] y = Numbers.read(values);
            assertTrue(Float.isNaN(y[0]));
            assertTrue(y[2] != -3);
            assertEquals(-4, y[3]);
          }
        });
  }

  @Test
  void endsOfTheLine() {
    float[] ends = {Float.POSITIVE_INFINITY, Float.NEGATIVE_INFINITY};
    try (OwnedTensor values = Numbers.tensor(DType.F32, ends, 2)) {
      Variants.each(
          new int[] {1},
          (isa, threads) -> {
            assertArrayEquals(
                new float[] {Float.POSITIVE_INFINITY, 0}, of(Activation.RELU, values, ends));
            assertArrayEquals(ends, of(Activation.leakyRelu(0.5f), values, ends));
            assertArrayEquals(new float[] {1, -1}, of(Activation.TANH, values, ends));
            assertArrayEquals(
                new float[] {1, 6.0546e-39f}, of(Activation.SIGMOID, values, ends), 1e-42f);
          });
    }
  }

  /** A sigmoid is as exact as it says from -88 on, and stays there below. */
  @Test
  void sigmoidsThatAreHardlyMoreThan0() {
    float[] u = new float[2001];
    for (int i = 0; i < u.length; i++) {
      u[i] = -87 - 0.001f * i;
    }
    try (OwnedTensor values = Numbers.tensor(DType.F32, u, u.length)) {
      Variants.each(
          new int[] {1},
          (isa, threads) -> {
            float[] y = of(Activation.SIGMOID, values, u);
            for (int i = 0; i < u.length; i++) {
              double value = ActivationReference.value(Activation.SIGMOID, u[i]);
              assertEquals(value, y[i], 3 * Math.ulp((float) value), u[i] + "");
            }
          });
    }
  }

  private static float[] of(Activation activation, OwnedTensor values, float[] u) {
    Numbers.write(values, u);
    activation.forward(values, u.length);
    return Numbers.read(values);
  }

  @Test
  void refusesWhatDoesNotFit() {
    assertThrows(IllegalArgumentException.class, () -> Activation.leakyRelu(-1));
    assertThrows(IllegalArgumentException.class, () -> Activation.leakyRelu(Float.NaN));
    assertThrows(IllegalArgumentException.class, () -> new Activation(Activation.Kind.TANH, 0.5f));
    try (OwnedTensor values = Numbers.tensor(DType.F32, new float[4], 4);
        OwnedTensor halves = Numbers.tensor(DType.F16, new float[4], 4)) {
      assertThrows(IllegalArgumentException.class, () -> Activation.RELU.forward(values, 5));
      assertThrows(IllegalArgumentException.class, () -> Activation.RELU.forward(values, -1));
      assertThrows(IllegalArgumentException.class, () -> Activation.RELU.forward(halves, 4));
      assertThrows(
          IllegalArgumentException.class, () -> Activation.RELU.backward(values, halves, 4));
    }
    OwnedTensor closed = Numbers.tensor(DType.F32, new float[4], 4);
    closed.close();
    assertThrows(IllegalStateException.class, () -> Activation.RELU.forward(closed, 4));
  }
}

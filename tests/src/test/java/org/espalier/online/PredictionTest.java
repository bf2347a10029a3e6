package org.espalier.online;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertTrue;

import org.junit.jupiter.api.Test;

class PredictionTest {
  private static Prediction of(float... outputs) {
    return new Prediction(outputs, 1);
  }

  @Test
  void theProbabilityIsThatOfTheLabel() {
    assertEquals(0.5, of(0).probability());
    assertEquals(1 / (1 + Math.exp(-2)), of(2).probability(), 1e-15);
    assertEquals(of(2).probability(), of(-2).probability());
    assertEquals(0, of(-2).label());
    assertEquals(0.25, of(7, 7, 7, 7).probability(), 1e-15);
    double e = Math.E;
    assertEquals(e * e / (1 + e + e * e), of(0, 2, 1).probability(), 1e-12);
  }

  @Test
  void largeLogitsOverflowNothing() {
    assertEquals(1, of(1e30f, -1e30f).probability());
    assertEquals(1, of(-3e38f).probability());
    assertTrue(Double.isNaN(of(Float.NaN, 1).probability()));
  }
}

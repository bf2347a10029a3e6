package org.espalier.compress.onnx;

import static org.junit.jupiter.api.Assertions.assertEquals;

/** How far what a model answers is from what it should. */
public final class OutputErrors {
  private OutputErrors() {}

  /** Relative error of the outputs in the 2-norm. */
  public static double error(float[] expected, float[] actual) {
    assertEquals(expected.length, actual.length);
    double difference = 0;
    double norm = 0;
    for (int i = 0; i < expected.length; i++) {
      difference += Math.pow(expected[i] - actual[i], 2);
      norm += Math.pow(expected[i], 2);
    }
    return Math.sqrt(difference / norm);
  }
}

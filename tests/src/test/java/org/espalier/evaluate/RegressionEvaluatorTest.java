package org.espalier.evaluate;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertTrue;

import org.junit.jupiter.api.Test;

class RegressionEvaluatorTest {
  /** Errors 1, −1, 2 in a column of spread 8 and 0, 3 in one of spread 50, a label unknown. */
  @Test
  void errorsByHand() {
    float[] labels = {1, 10, 3, Float.NaN, 5, 20};
    float[] found = {2, 10, 2, 999, 7, 23};
    RegressionFidelity.Errors errors = RegressionEvaluator.errors(found, labels, 2);
    assertEquals(Math.sqrt((1 + 1 + 4 + 0 + 9) / 5.0), errors.rmse(), 1e-12);
    assertEquals((1 + 1 + 2 + 0 + 3) / 5.0, errors.mae(), 1e-12);
    assertEquals((1 - 6 / 8.0 + 1 - 9 / 50.0) / 2, errors.r2(), 1e-12);
  }

  @Test
  void whatIsNotDefinedIsNaNAndWhatIsNoNumberIsInfinitelyWrong() {
    float[] unknown = {Float.NaN, Float.NaN};
    assertTrue(Double.isNaN(RegressionEvaluator.errors(new float[2], unknown, 1).rmse()));
    float[] equal = {3, 3};
    RegressionFidelity.Errors errors = RegressionEvaluator.errors(new float[2], equal, 1);
    assertEquals(3, errors.rmse());
    assertTrue(Double.isNaN(errors.r2()));
    errors = RegressionEvaluator.errors(new float[] {Float.NaN, 1}, new float[] {1, 2}, 1);
    assertEquals(Double.POSITIVE_INFINITY, errors.mae());
    assertEquals(Double.NEGATIVE_INFINITY, errors.r2());
  }
}

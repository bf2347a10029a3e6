package org.espalier.evaluate;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.util.List;
import org.junit.jupiter.api.Test;

class ChangedAnswerTest {
  private static final double[] THIRDS = {0, Math.log(2), 0}; // 1/4, 1/2, 1/4

  @Test
  void isHalfTheSumOfDifferences() {
    ChangedAnswer answer = ChangedAnswer.of(3, 2, THIRDS, new double[] {Math.log(6), 0, 0});
    assertEquals(1, answer.reference());
    assertEquals(0.5, answer.referenceProbability(), 1e-12);
    assertEquals(0, answer.answer());
    assertEquals(0.75, answer.probability(), 1e-12);
    assertEquals(0.5, answer.distance(), 1e-12); // (1/2 + 3/8 + 1/8) / 2
    assertFalse(answer.isSameClass());
    assertEquals(
        List.of(
            "example",
            "label",
            "reference",
            "reference_probability",
            "answer",
            "probability",
            "distance"),
        List.copyOf(answer.toMap().keySet()));
  }

  @Test
  void equalLogitsAreNoChangeWhateverTheirHeight() {
    ChangedAnswer answer =
        ChangedAnswer.of(0, -1, THIRDS, new double[] {1000, 1000 + Math.log(2), 1000});
    assertTrue(answer.isSameClass());
    assertEquals(0, answer.distance(), 1e-12);
    assertFalse(answer.toMap().containsKey("label"));
  }

  @Test
  void notANumberIsTheLargestChange() {
    ChangedAnswer answer = ChangedAnswer.of(0, 1, THIRDS, new double[] {0, Double.NaN, 0});
    assertEquals(-1, answer.answer());
    assertEquals(1, answer.distance());
    assertFalse(answer.isSameClass());
    assertFalse(answer.toMap().containsKey("answer"));
  }

  @Test
  void infinityHasAllOfTheProbability() {
    double[] infinite = {Double.POSITIVE_INFINITY, 0, Double.NEGATIVE_INFINITY};
    ChangedAnswer answer = ChangedAnswer.of(0, 1, THIRDS, infinite);
    assertEquals(0, answer.answer());
    assertEquals(1, answer.probability());
    assertEquals(0.75, answer.distance(), 1e-12);
  }
}

package org.espalier.online;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;

import org.espalier.InputException;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;

class OnlineRecipeTest {
  private static final String LEAST = "loss: cross-entropy\nlearning-rate: 0.1\n\n";

  private static OnlineSettings read(String more) {
    return OnlineRecipe.parse(LEAST + more, "r.yaml").settings();
  }

  private static void assertWrong(String more, String message) {
    assertEquals(
        "r.yaml, line 4: " + message,
        assertThrows(InputException.class, () -> read(more)).getMessage());
  }

  @ParameterizedTest
  @CsvSource(
      delimiter = '|',
      value = {
        "batch|0|0; 1 to 1048576 is right",
        "batch|1048577|1048577; 1 to 1048576 is right",
        "window|-1|-1; 1 to 16777216 is right",
        "publish-every|0|0; 1 to 2147483647 is right",
        "momentum|1|1.0; 0 or more and below 1 is right",
        "averaging|-0.5|-0.5; 0 or more and below 1 is right",
        "fade|1.5|1.5; 0 or more and below 1 is right",
        "fade|0|0; above 0 and below 1 is right",
        "weight-decay|-1|-1.0; 0 or more is right",
      })
  void whatIsOutOfItsRangeIsNamedWithItsLine(String key, String value, String message) {
    assertWrong(key + ": " + value, key + " is " + message);
  }

  @Test
  void theSeedIsALong() {
    assertEquals(5_000_000_000L, read("seed: 5000000000").seed());
    assertEquals(Long.MIN_VALUE, read("seed: " + Long.MIN_VALUE).seed());
    assertEquals(Long.MAX_VALUE, read("seed: " + Long.MAX_VALUE).seed());
    assertEquals(1000, read("seed: 1e3").seed());
    String right = "'; an integer up to 9223372036854775807 is right";
    for (String wrong :
        new String[] {"9223372036854775808", "-9223372036854775809", "1.5", "1e300"}) {
      assertWrong("seed: " + wrong, "seed is '" + wrong + right);
    }
    assertWrong("seed: one", "seed is 'one'; a number is right");
    assertWrong("batch: 5000000000", "batch is '5000000000'; an integer up to 2147483647 is right");
  }

  @Test
  void noiseAndEpsilonAreOfOnePrivacy() {
    assertWrong(
        "privacy: {epsilon: 8, noise: 1, delta: 1e-5, clip: 1}",
        "privacy.noise is beside epsilon, which follows from it; one of the two is right");
  }
}

package org.espalier.format.onnx;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.util.Arrays;
import java.util.HashSet;
import java.util.Set;
import org.espalier.InputException;
import org.espalier.format.onnx.ClassifierOutput.Form;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;

class LogitRowsTest {
  private static long[] shape(String dimensions) {
    return Arrays.stream(dimensions.split(" ")).mapToLong(Long::parseLong).toArray();
  }

  @ParameterizedTest
  @CsvSource({
    "1 10, 1, LOGITS, 1, 10, true",
    "1 10, 0, SOFTMAX, 1, 10, true",
    "1, 1, LOGITS, 1, 1, true",
    "1 1, 1, SIGMOID, 1, 1, true",
    "1 1, 0, LOGITS, 1, 1, true",
    // Classes that do not exclude each other: the labels say so, or the Sigmoid does.
    "1 10, 10, LOGITS, 10, 1, true",
    "1 10, 0, SIGMOID, 10, 1, true",
    "1 10, 1, SIGMOID, 1, 10, true",
    "1 2 5, 10, LOGITS, 10, 1, true",
    // Tokens.
    "1 7 3, 7, LOGITS, 7, 3, true",
    "1 3 7, 7, LOGITS, 7, 3, false",
    "1 7 3, 0, SOFTMAX, 7, 3, true",
    "1 7 7, 7, LOGITS, 7, 7, true",
    // Pixels.
    "1 3 4 5, 20, LOGITS, 20, 3, false",
    "1 4 5 3, 20, LOGITS, 20, 3, true",
    "1 5 4 5, 20, LOGITS, 20, 5, false",
    "1 3 4 5, 0, LOGITS, 20, 3, false",
    "1 10 1 1, 1, LOGITS, 1, 10, false",
  })
  void rowsAreFound(
      String output, int labels, Form form, int perExample, int classes, boolean last) {
    long[] shape = shape(output);
    LogitRows rows = LogitRows.of(shape, labels, form);
    assertEquals(new LogitRows(perExample, classes, last), rows);
    assertEquals(last ? shape.length - 1 : 1, rows.axis(shape.length));
    Set<Integer> places = new HashSet<>();
    for (int row = 0; row < perExample; row++) {
      for (int c = 0; c < classes; c++) {
        places.add(rows.index(row, c));
      }
    }
    assertEquals(perExample * classes, places.size());
    assertEquals(last ? 1 : perExample, classes > 1 ? rows.index(0, 1) : last ? 1 : perExample);
  }

  @ParameterizedTest
  @CsvSource({"1 10, 3", "1 10, 5", "1 4 5, 3", "1, 2", "1 7 3, 8", "1 2 3 4, 8"})
  void asManyLabelsAsTheOutputHasNoRowsAreRefused(String output, int labels) {
    String said =
        assertThrows(InputException.class, () -> LogitRows.of(shape(output), labels, Form.LOGITS))
            .getMessage();
    assertTrue(said.startsWith(Arrays.toString(shape(output)) + " for an example"), said);
    assertTrue(said.contains(labels + " labels"), said);
  }

  @Test
  void pixelsOfAClassLieTogetherWhereClassesAreFirst() {
    LogitRows rows = new LogitRows(20, 3, false);
    assertEquals(2 * 20 + 7, rows.index(7, 2));
    assertEquals(7 * 3 + 2, new LogitRows(20, 3, true).index(7, 2));
  }
}

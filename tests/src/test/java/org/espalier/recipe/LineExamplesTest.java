package org.espalier.recipe;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertNull;

import java.nio.file.Path;
import java.util.Arrays;
import java.util.List;
import java.util.Map;
import org.espalier.evaluate.ExampleLine;
import org.espalier.train.Labels;
import org.junit.jupiter.api.Test;

class LineExamplesTest {
  private static final long NONE = Labels.Classes.NO_LABEL;

  /**
   * @param texts each a text or, with a bar between, a pair of texts
   */
  private static LineExamples of(Labels labels, String... texts) {
    List<ExampleLine> lines =
        Arrays.stream(texts)
            .map(text -> text.split("\\|"))
            .map(
                parts ->
                    new ExampleLine(
                        parts[0],
                        parts.length > 1 ? parts[1] : null,
                        null,
                        null,
                        null,
                        null,
                        Map.of()))
            .toList();
    return new LineExamples(Path.of("texts.jsonl"), lines, labels, List.of());
  }

  private static List<String> texts(LineExamples examples) {
    return examples.lines().stream()
        .map(line -> line.text() + (line.second() == null ? "" : "|" + line.second()))
        .toList();
  }

  @Test
  void keepsOfEachTextTheFirstWithALabel() {
    Labels labels = new Labels.Classes(NONE, 0, 1, 2, 1, 0, NONE, NONE, 1);
    LineExamples all = of(labels, "a", "b", "a", "c", "b", "a", "d", "d", "e");
    LineExamples some = all.distinct(of(null, "e", "x", "x"));
    assertEquals(List.of("a", "b", "c", "d"), texts(some));
    assertArrayEquals(new long[] {1, 0, 2, NONE}, ((Labels.Classes) some.labels()).values());
    LineExamples plain = of(null, "a", "b", "a").distinct(null);
    assertEquals(List.of("a", "b"), texts(plain));
    assertNull(plain.labels());
  }

  @Test
  void pairsAreTheSameWhereBothTextsAre() {
    LineExamples all = of(null, "a|b", "a|c", "a", "a|b", "b|a");
    assertEquals(List.of("a|b", "a|c", "a", "b|a"), texts(all.distinct(null)));
    assertEquals(List.of("a|b", "a", "b|a"), texts(all.distinct(of(null, "a|c", "b"))));
  }
}

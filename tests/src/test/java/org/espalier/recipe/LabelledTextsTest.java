package org.espalier.recipe;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertNull;

import java.util.List;
import org.espalier.train.Labels;
import org.junit.jupiter.api.Test;

class LabelledTextsTest {
  private static final long NONE = Labels.Classes.NO_LABEL;

  @Test
  void keepsOfEachTextTheFirstWithALabel() {
    LabelledTexts all =
        new LabelledTexts(
            List.of("a", "b", "a", "c", "b", "a", "d", "d", "e"),
            new Labels.Classes(NONE, 0, 1, 2, 1, 0, NONE, NONE, 1));
    LabelledTexts some = all.distinct(List.of("e", "x", "x"));
    assertEquals(List.of("a", "b", "c", "d"), some.texts());
    assertArrayEquals(new long[] {1, 0, 2, NONE}, ((Labels.Classes) some.labels()).values());
    LabelledTexts plain = new LabelledTexts(List.of("a", "b", "a"), null).distinct(List.of());
    assertEquals(List.of("a", "b"), plain.texts());
    assertNull(plain.labels());
  }
}

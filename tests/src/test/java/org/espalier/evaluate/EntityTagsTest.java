package org.espalier.evaluate;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertNotNull;
import static org.junit.jupiter.api.Assertions.assertNull;

import java.util.Arrays;
import java.util.Comparator;
import java.util.List;
import java.util.stream.Collectors;
import org.espalier.evaluate.EntityTags.Entity;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;
import org.junit.jupiter.params.provider.ValueSource;

/** What the tags of words say of entities, and how they are counted. */
class EntityTagsTest {
  private static final List<String> CLASSES =
      List.of("O", "B-PER", "I-PER", "B-LOC", "I-LOC", "E-PER", "S-PER", "L-LOC", "U-LOC");

  private static int[] classes(String tags) {
    return Arrays.stream(tags.split(" ")).mapToInt(CLASSES::indexOf).toArray(); // -1 for none
  }

  private static String entities(String tags) {
    return EntityTags.of(CLASSES).entities(classes(tags)).stream()
        .sorted(Comparator.comparingInt(Entity::from))
        .map(e -> e.type() + " " + e.from() + " " + e.to())
        .collect(Collectors.joining(", "));
  }

  @ParameterizedTest
  @CsvSource({
    "O O, ''",
    "B-PER I-PER O B-LOC, 'PER 0 2, LOC 3 4'",
    "B-PER B-PER I-PER, 'PER 0 1, PER 1 3'",
    // I begins an entity after O, at the begin and after another type.
    "O I-PER I-PER O, 'PER 1 3'",
    "I-LOC O, 'LOC 0 1'",
    "B-PER I-LOC I-LOC, 'PER 0 1, LOC 1 3'",
    "I-PER I-LOC I-PER, 'PER 0 1, LOC 1 2, PER 2 3'",
    "I-PER B-PER, 'PER 0 1, PER 1 2'",
    // With the last and the only words told.
    "B-PER I-PER E-PER I-PER, 'PER 0 3, PER 3 4'",
    "S-PER S-PER O E-PER, 'PER 0 1, PER 1 2, PER 3 4'",
    "B-PER S-PER E-PER, 'PER 0 1, PER 1 2, PER 2 3'",
    "B-LOC L-LOC U-LOC I-LOC, 'LOC 0 2, LOC 2 3, LOC 3 4'",
    "E-PER E-PER, 'PER 0 1, PER 1 2'",
    // What a model gives no class for is none.
    "B-PER ? I-PER, 'PER 0 1, PER 2 3'",
  })
  void entitiesAreThoseOfConll(String tags, String entities) {
    assertEquals(entities, entities(tags));
  }

  @Test
  void typesMayBeMissing() {
    EntityTags tags = EntityTags.of(List.of("B", "I", "O"));
    assertEquals(
        List.of(new Entity(0, 2, ""), new Entity(2, 3, "")),
        tags.entities(new int[] {0, 1, 0, 2}).stream()
            .sorted(Comparator.comparingInt(Entity::from))
            .toList());
  }

  @ParameterizedTest
  @ValueSource(
      strings = {
        "",
        "O",
        "B-PER I-PER",
        "O NOUN VERB",
        "O B-PER X-PER",
        "O BPER",
        "O B-",
        "o B-PER"
      })
  void otherClassesAreNoTags(String names) {
    assertNull(EntityTags.of(names.isEmpty() ? List.of() : List.of(names.split(" "))));
    assertNotNull(EntityTags.of(List.of("O", "I-x-y"))); // a type may have hyphens
  }

  /** Exact words and type, of all texts together. */
  @Test
  void countsWhatIsExactlyRight() {
    EntityAnswers answers = new EntityAnswers(EntityTags.of(CLASSES));
    assertEquals(Double.NaN, answers.f1());
    // Right: PER 0 2. Another end: LOC 3 4 for LOC 3 5.
    answers.add(classes("B-PER I-PER O B-LOC O O"), classes("B-PER I-PER O B-LOC I-LOC O"));
    // Of 2 + 2 entities one is right.
    assertEquals(2.0 * 1 / (2 + 2), answers.f1());
    // Another type; one that is not there; one that is missed; one that I begins is right.
    answers.add(classes("B-LOC O B-PER O O I-PER"), classes("B-PER O O O B-LOC B-PER"));
    assertEquals(2.0 * 2 / (5 + 5), answers.f1());
    answers.add(classes("O O"), classes("O O"));
    assertEquals(2.0 * 2 / (5 + 5), answers.f1());
  }
}

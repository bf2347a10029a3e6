package org.espalier.recipe;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertNull;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Arrays;
import java.util.List;
import java.util.Map;
import org.espalier.InputException;
import org.espalier.evaluate.ExampleLine;
import org.espalier.train.Labels;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;

class LineExamplesTest {
  @TempDir Path folder;

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

  private LineExamples csv(List<String> classes, List<String> model, String... lines)
      throws IOException {
    Path file = Files.write(folder.resolve("rows.csv"), List.of(lines));
    return LineExamples.read(
        file, Recipe.Task.CLASSIFICATION, new ClassOrder(classes, () -> model), Map.of());
  }

  private static long[] classes(LineExamples examples) {
    return ((Labels.Classes) examples.labels()).values();
  }

  @Test
  void namesOfClassesComeBeforeNumbers() throws IOException {
    String[] letters = {"1,2,1d", "3,4,0d", "5,6,2d"};
    assertArrayEquals(
        new long[] {2, 0, 1}, classes(csv(List.of("0d", "2d", "1d"), List.of(), letters)));
    assertArrayEquals(
        new long[] {1, 0, 2}, classes(csv(List.of(), List.of("0d", "1d", "2d"), letters)));
    String[] specials = {"1,2,nan", "3,4,inf", "5,6,1e1", "7,8,", "9,8,2"};
    assertArrayEquals(
        new long[] {1, 2, 0, NONE, 2},
        classes(csv(List.of("1e1", "nan", "inf"), List.of(), specials)));
    assertArrayEquals(
        new long[] {NONE, 1, 0}, classes(csv(List.of(), List.of("a", "b"), "1,nan", "2,1", "3,0")));
    InputException infinite =
        assertThrows(
            InputException.class, () -> csv(List.of("a", "b"), List.of(), "1,2,a", "3,4,-inf"));
    assertTrue(
        infinite.getMessage().contains("example 2: label holds '-inf'"), infinite::getMessage);
    InputException word =
        assertThrows(InputException.class, () -> csv(List.of("a", "b"), List.of(), "1,2,0x1p0"));
    assertTrue(word.getMessage().contains("'0x1p0' is none of the classes"), word::getMessage);
  }

  @Test
  void namesOfDigitsAreNoOtherClasses() throws IOException {
    InputException e =
        assertThrows(
            InputException.class, () -> csv(List.of("2", "0", "1"), List.of(), "1,2,2", "3,4,0"));
    assertTrue(
        e.getMessage().contains("the class 0 is called '2', which is no word"), e::getMessage);
    assertArrayEquals(
        new long[] {2, 0}, classes(csv(List.of("0", "1", "2"), List.of(), "1,2,2", "3,4,0")));
    Path json =
        Files.writeString(folder.resolve("a.jsonl"), "{\"features\": [1, 2], \"label\": \"2\"}");
    LineExamples strings =
        LineExamples.read(
            json,
            Recipe.Task.CLASSIFICATION,
            new ClassOrder(List.of("2", "0", "1"), List::of),
            Map.of());
    assertArrayEquals(new long[] {0}, classes(strings));
  }

  @Test
  void featuresAreNumbersAsCAndPythonWriteThem() throws IOException {
    double[] read =
        csv(List.of(), List.of(), "+1,-2.5e-3,.5,5.,007,nan,-inf,1").lines().get(0).features();
    assertArrayEquals(
        new double[] {1, -0.0025, 0.5, 5, 7, Double.NaN, Double.NEGATIVE_INFINITY}, read);
    for (String wrong : List.of("7d", "2f", "1D", "0x1.8p1", "1e", "--1", ".", "1_0", "\u0661")) {
      InputException e =
          assertThrows(
              InputException.class, () -> csv(List.of(), List.of(), "1,2,1", "1," + wrong + ",1"));
      assertTrue(
          e.getMessage().endsWith("example 2: column 2 is no number: '" + wrong + "'"),
          e::getMessage);
    }
  }

  private LineExamples json(String line) throws IOException {
    Path file = Files.writeString(folder.resolve("rows.jsonl"), line);
    return LineExamples.read(file, Recipe.Task.AUTO, new ClassOrder(List.of(), List::of), Map.of());
  }

  /** As in lines that are learned online. */
  @Test
  void numbersThatJsonDoesNotHaveAreStrings() throws IOException {
    LineExamples read =
        json(
            "{\"features\": [\"NaN\", \"Infinity\", \"-Infinity\", NaN], \"values\": [\"NaN\","
                + " 2]}");
    assertArrayEquals(
        new double[] {Double.NaN, Double.POSITIVE_INFINITY, Double.NEGATIVE_INFINITY, Double.NaN},
        read.lines().get(0).features());
    assertArrayEquals(new float[] {Float.NaN, 2}, ((Labels.Numbers) read.labels()).values());
    for (String wrong :
        List.of(
            "{\"features\": [\"nan\"]}",
            "{\"features\": [\"1\"]}",
            "{\"features\": [1], \"values\": [\"Infinity\"]}",
            "{\"features\": [1], \"values\": [\"2\"]}",
            "{\"features\": [1], \"label\": \"NaN\"}")) {
      assertThrows(InputException.class, () -> json(wrong), wrong);
    }
  }
}

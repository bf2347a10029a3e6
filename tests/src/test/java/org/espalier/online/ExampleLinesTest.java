package org.espalier.online;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertNull;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.util.List;
import java.util.Random;
import org.bytedeco.pytorch.global.torch.ScalarType;
import org.espalier.InputException;
import org.espalier.format.CsvLine;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.function.Executable;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;
import org.junit.jupiter.params.provider.ValueSource;

class ExampleLinesTest {
  private static final List<ExampleInput> TWO = List.of(ExampleInput.floats("x", 2));

  private final ExampleLines classes = new ExampleLines(TWO, 3, true, false, ClassNames.NONE, null);
  private final ExampleLines values = new ExampleLines(TWO, 2, false, false, ClassNames.NONE, null);

  @Test
  void readsBothFormats() {
    Example a =
        classes
            .json("{\"x\": {\"y\": []}, \"id\": 7, \"label\": 2.0, \"features\": [1, -2.5e3]}")
            .example();
    assertEquals("7", a.id());
    assertEquals(2, a.label());
    assertArrayEquals(new float[] {1, -2500}, a.features());
    Example b =
        values.json("{\"values\": [1, \"NaN\"], \"features\": [\"-Infinity\", 0]}").example();
    assertArrayEquals(new float[] {1, Float.NaN}, b.values());
    assertArrayEquals(new float[] {Float.NEGATIVE_INFINITY, 0}, b.features());
    // As Python and numpy write them: the guard takes such an example out, and counts it.
    Example bare = values.json("{\"values\": [1, NaN], \"features\": [-Infinity, 0]}").example();
    assertArrayEquals(b.values(), bare.values());
    assertArrayEquals(b.features(), bare.features());
    assertArrayEquals(
        new float[] {Float.NEGATIVE_INFINITY, Float.NaN}, classes.csv("-inf,nan,1").features());
    assertThrows(InputException.class, () -> classes.csv("1,2,nan"));
    assertThrows(InputException.class, () -> classes.csv("1,7d,1"));
    assertThrows(InputException.class, () -> classes.csv("1,0x1p1,1"));
    assertEquals(1, classes.csv("0.5, 2 ,1").label());
    assertArrayEquals(new float[] {3, 4}, values.csv("1,2,3,4").values());
  }

  /** A reader of lines has no use for what the parser says of its source. */
  @Test
  void saysWhereJsonIsWrongAndNothingOfTheParser() {
    String said =
        assertThrows(InputException.class, () -> classes.json("{\"features\": [1, 2]"))
            .getMessage();
    assertTrue(said.endsWith("(start marker at line: 1, column: 1)"), said);
    assertFalse(said.contains("Source"), said);
  }

  @ParameterizedTest
  @ValueSource(
      strings = {
        "",
        "[]",
        "1",
        "{",
        "{\"features\": [1, 2]} x",
        "{\"features\": [1, 2]",
        "{\"features\": [1]}",
        "{\"features\": [1, 2, 3]}",
        "{\"features\": 1}",
        "{\"features\": [1, null]}",
        "{\"features\": [1, \"one\"]}",
        "{\"features\": [1, [2]]}",
        "{\"features\": [1, 2], \"label\": -1}",
        "{\"features\": [1, 2], \"label\": 1.5}",
        "{\"features\": [1, 2], \"label\": \"1\"}",
        "{\"features\": [1, 2], \"label\": 99999999999999999999}",
        "{\"features\": [1, 2], \"label\": 1, \"values\": [1, 2, 3]}",
        "{\"features\": [1, 2], \"id\": {}}",
        "{\"features\": [1, 2], \"features\": [1, 2]}",
        "{\"a\": [[[[[[[[[[[]]]]]]]]]]]}",
        "{\"features\": [1, nan]}",
        "{\"features\": [1, 2], \"label\": NaN}",
      })
  void refusesWhatIsNoExample(String line) {
    InputException e = assertThrows(InputException.class, () -> classes.json(line).example());
    assertFalse(e.getMessage().contains("`"), e.getMessage());
  }

  @Test
  void anOutcomeMayComeLater() {
    InputException e =
        assertThrows(InputException.class, () -> classes.json("{\"features\": [1, 2]}").example());
    assertTrue(e.getMessage().contains("neither label nor values"), e.getMessage());
    assertArrayEquals(new float[] {1, 2}, classes.json("{\"features\": [1, 2]}").features());
  }

  @ParameterizedTest
  @ValueSource(strings = {"1,2", "1,2,3,4", "1,b,1", "1,2,-1", "1,2,0.5", ",,", "1,2,NaN"})
  void refusesWhatIsNoRow(String line) {
    assertThrows(InputException.class, () -> classes.csv(line));
  }

  @Test
  void aNullIsAsIfItWereNotThere() {
    ExampleLines.Parsed parsed =
        classes.part("{\"id\": \"a\", \"features\": [1, 2], \"label\": null, \"values\": null}");
    assertNull(parsed.label());
    assertNull(parsed.values());
    assertThrows(InputException.class, () -> classes.json("{\"features\": null}"));
  }

  @Test
  void cellsMayHoldCommasAndQuotes() {
    ClassNames names = new ClassNames(List.of("no", "a \"b\", c"));
    ExampleLines named = new ExampleLines(TWO, 2, true, false, names, null);
    assertEquals(1, named.csv("1, \"2\" ,\"a \"\"b\"\", c\"").label());
    assertEquals(0, named.csv("1,2,no").label());
    assertThrows(InputException.class, () -> named.csv("1,2,\"no"));
  }

  @Test
  void whatIsMissingIsNaNWhereTheModelKnowsIt() {
    ExampleLines knowing = new ExampleLines(TWO, 1, false, true, ClassNames.NONE, null);
    float[] missing = {Float.NaN, 2};
    assertArrayEquals(missing, knowing.csv(",2,3").features());
    assertArrayEquals(missing, knowing.csv("\"\", 2,3").features());
    assertArrayEquals(missing, knowing.csv(" ,2,3").features());
    assertArrayEquals(missing, knowing.json("{\"features\": [null, 2]}").features());
    refused("column 3 is empty, which no outcome is", () -> knowing.csv("1,2,"));
    refused(
        "values holds null, which no outcome is",
        () -> knowing.json("{\"features\": [1, 2], \"values\": [null]}"));
    String unknown = ", and this model knows no missing values; a number is right";
    refused("column 1 is empty" + unknown, () -> classes.csv(",2,1"));
    refused("features holds null" + unknown, () -> classes.json("{\"features\": [null, 2]}"));
  }

  private static void refused(String said, Executable call) {
    String message = assertThrows(InputException.class, call).getMessage();
    assertTrue(message.startsWith(said), message);
  }

  @Test
  void rowsMayBeQuotedAndTheFirstMayNameColumns() {
    assertArrayEquals(new float[] {3, 4}, values.csv("\"1\", 2 ,\" 3\",\"4\"").values());
    for (String header : new String[] {"a,b,label", "\"e1\",\"x\",y", "f1,,y"}) {
      assertTrue(CsvLine.isHeader(header), header);
    }
    // A row that is wrong is no header.
    for (String row : new String[] {"1e5,x,1", "NaN,b,c", "", ",,", "1,2,3"}) {
      assertFalse(CsvLine.isHeader(row), row);
    }
  }

  private static final List<ExampleInput> THREE =
      List.of(
          new ExampleInput("user", ScalarType.Long),
          new ExampleInput("items", ScalarType.Int, 2),
          ExampleInput.floats("dense", 1, 3));

  /** In any order; a number is as good as a list of one. */
  @Test
  void inputsHaveTheirValuesByName() {
    ExampleLines lines = new ExampleLines(THREE, 1, true, true, ClassNames.NONE, null);
    float[] expected = {17, 4, -5, 0.5f, Float.NaN, 2};
    for (String inputs :
        List.of(
            "{\"user\": [17], \"items\": [4, -5], \"dense\": [0.5, NaN, 2]}",
            "{\"dense\": [0.5, null, 2], \"user\": 17, \"items\": [4, -5]}")) {
      Example example = lines.json("{\"label\": 1, \"inputs\": " + inputs + "}").example();
      assertArrayEquals(expected, example.features());
    }
    assertArrayEquals(
        expected, lines.json("{\"features\": [17, 4, -5, 0.5, \"NaN\", 2]}").features());
    assertArrayEquals(expected, lines.csv("17,4,-5,0.5,,2,1").features());
    assertArrayEquals(new float[] {1, 2}, classes.json("{\"inputs\": {\"x\": [1, 2]}}").features());
    // Whoever sends the outcome alone names no inputs.
    assertNull(lines.part("{\"id\": \"a\", \"inputs\": null, \"label\": 1}").features());
  }

  @ParameterizedTest
  @CsvSource(
      delimiter = '|',
      quoteCharacter = '`',
      value = {
        "'inputs': [17, 4, 5]|inputs is not an object",
        "'inputs': {}|the input user is missing",
        "'inputs': {'user': 1, 'items': [4, 5]}|the input dense is missing",
        "'inputs': {'user': 1, 'item': [4, 5]}|there is no input 'item'; there are 'items',",
        "'inputs': {'user': 1, 'user': 1}|Duplicate field 'user'",
        "'inputs': {'user': [1, 2]}|the input user holds 2 numbers; 1 are right",
        "'inputs': {'user': []}|the input user holds 0 numbers; 1 are right",
        "'inputs': {'items': [1, 2, 3]}|the input items holds 3 numbers; 2 are right",
        "'inputs': {'items': 1}|the input items is not a list of numbers",
        "'inputs': {'items': null}|the input items is not a list of numbers",
        "'inputs': {'items': [1, [2]]}|the input items holds something that is no number",
        "'inputs': {'user': 'x'}|the input user holds something that is no number",
        "'inputs': {'user': null}|the input user holds null, and this model knows no missing",
        "'inputs': {'dense': [1, null, 3]}|the input dense holds null, and this model knows no",
        "'inputs': {'user' 1}|it is not JSON",
        "'features': [1, 2, 3]|features holds 3 numbers; 6 are right",
        "'label': 1|inputs are missing",
        "'inputs': {'user': 1, 'items': [1, 2], 'dense': [1, 2, 3]}, 'features': [1, 2, 3, 4, 5, 6]"
            + "|there are both features and inputs",
      })
  void refusesInputsThatTheModelHasNot(String line, String said) {
    ExampleLines lines = new ExampleLines(THREE, 1, true, false, ClassNames.NONE, null);
    String json = "{" + line.replace('\'', '"') + "}";
    String message = assertThrows(InputException.class, () -> lines.json(json)).getMessage();
    assertTrue(message.contains(said), message);
  }

  /** Whatever the bytes are, the answer is an example or a refusal. */
  @ParameterizedTest
  @ValueSource(strings = {"\"features\": [1.5, -2e3]", "\"inputs\": {\"x\": [1.5, -2e3]}"})
  void survivesFuzzing(String features) {
    Random random = new Random(1);
    String good = "{\"id\": \"a\", " + features + ", \"label\": 2, \"x\": {\"y\": [1]}}";
    int read = 0;
    for (int i = 0; i < 20_000; i++) {
      StringBuilder text = new StringBuilder(good);
      for (int k = random.nextInt(4); k >= 0; k--) {
        int at = random.nextInt(text.length());
        switch (random.nextInt(3)) {
          case 0 -> text.setCharAt(at, (char) random.nextInt(i % 2 == 0 ? 128 : 0xffff));
          case 1 -> text.deleteCharAt(at);
          default -> text.insert(at, "{}[],:\"0".charAt(random.nextInt(8)));
        }
      }
      try {
        classes.json(text.toString()).example();
        read++;
      } catch (InputException e) {
        // refused
      }
    }
    assertTrue(read > 100 && read < 15_000, read + " read");
  }
}

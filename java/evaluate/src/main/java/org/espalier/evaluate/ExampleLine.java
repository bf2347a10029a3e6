package org.espalier.evaluate;

import com.fasterxml.jackson.core.JsonFactory;
import com.fasterxml.jackson.core.JsonParser;
import com.fasterxml.jackson.core.JsonProcessingException;
import com.fasterxml.jackson.core.JsonToken;
import com.fasterxml.jackson.core.StreamReadConstraints;
import com.fasterxml.jackson.core.StreamReadFeature;
import com.fasterxml.jackson.core.json.JsonReadFeature;
import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.json.JsonMapper;
import com.fasterxml.jackson.databind.node.ArrayNode;
import com.fasterxml.jackson.databind.node.IntNode;
import com.fasterxml.jackson.databind.node.NullNode;
import com.fasterxml.jackson.databind.node.TextNode;
import java.io.IOException;
import java.nio.charset.CharacterCodingException;
import java.nio.file.NoSuchFileException;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.HashMap;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Locale;
import java.util.Map;
import java.util.Objects;
import java.util.stream.Stream;
import org.espalier.InputException;
import org.espalier.format.CsvLine;
import org.espalier.format.InputFile;
import org.espalier.format.JsonNumbers;
import org.espalier.format.JsonReason;
import org.espalier.format.Names;

/**
 * An example of a file of lines, as those that are learned online: of JSON, {@code {"text": "…", "label": 1}}, {@code
 * {"tokens": ["Angela", "spoke"], "tags": ["B-PER", "O"]}}, {@code {"image": "cats/1.jpg", "label": "cat"}}, {@code
 * {"features": [0.5, 2], "label": 1}} or {@code {"inputs": {"user": 17, "dense": [0.5, 2]}, "values": [0.5]}}. Other keys are
 * ignored; null is as if the key were not there, among numbers it is NaN. Numbers may be NaN, Infinity and -Infinity, bare or as strings. Or of CSV, or of CoNLL's columns.
 *
 * @param text null where there is none
 * @param second a text that is read together with it, {@code "text_pair"}; null where there is none
 * @param words a text that is cut into words, {@code "tokens"}; null where there is none
 * @param image a path, relative to the file's folder, of an image; null where there is none
 * @param features the values of all inputs, one after the other; null where there are none
 * @param inputs values by input; null where there are none
 * @param outcomes what is to be learned, by its key, one of {@link #OUTCOMES}; a label of CSV is a string, which may be that
 *     of a number
 */
public record ExampleLine(
    String text,
    String second,
    List<String> words,
    String image,
    double[] features,
    Map<String, double[]> inputs,
    Map<String, JsonNode> outcomes) {
  /**
   * The keys of what is to be learned: {@code label}, one class or number; {@code labels}, several classes that do not
   * exclude each other, 0 or 1 each; {@code values}, several numbers; {@code tags}, a class for each word.
   */
  public static final List<String> OUTCOMES = List.of("label", "labels", "values", "tags");

  /** What CoNLL's files have in place of a word between two documents. */
  private static final String DOCUMENT = "-DOCSTART-";

  private static final JsonMapper JSON =
      JsonMapper.builder(
              JsonFactory.builder()
                  .enable(StreamReadFeature.STRICT_DUPLICATE_DETECTION)
                  .enable(JsonReadFeature.ALLOW_NON_NUMERIC_NUMBERS)
                  .disable(JsonFactory.Feature.CANONICALIZE_FIELD_NAMES) // names come from outside
                  .disable(JsonFactory.Feature.INTERN_FIELD_NAMES)
                  .streamReadConstraints(
                      StreamReadConstraints.builder()
                          .maxNestingDepth(8)
                          .maxNumberLength(100)
                          .build())
                  .build())
          .build();

  /**
   * An example that is an image.
   *
   * @param label null where it is not known
   */
  public static ExampleLine ofImage(String image, JsonNode label) {
    return new ExampleLine(
        null, null, null, image, null, null, label == null ? Map.of() : Map.of("label", label));
  }

  /** Whether a file is one of lines: of JSON, of numbers with commas between, or of CoNLL's columns, by its name. */
  public static boolean areIn(Path file) {
    return areIn(file.toString());
  }

  /** The same of a file that may have no path, as one in an artefact. */
  public static boolean areIn(String name) {
    return mayBeTexts(name) || areCells(name);
  }

  /** Whether a file is one of lines that may be texts, by its name, which ends with .jsonl or .conll. */
  public static boolean mayBeTexts(String name) {
    return areJson(name) || areColumns(name);
  }

  /** Whether a file is one of JSON lines, by its name, which ends with .jsonl. */
  static boolean areJson(String name) {
    return ends(name, ".jsonl");
  }

  /** Whether a file is one of numbers with commas between, by its name, which ends with .csv. */
  public static boolean areCells(String name) {
    return ends(name, ".csv");
  }

  /** Whether a file is one of CoNLL's columns, by its name, which ends with .conll. */
  public static boolean areColumns(String name) {
    return ends(name, ".conll");
  }

  private static boolean ends(String name, String ending) {
    return name.toLowerCase(Locale.ROOT).endsWith(ending);
  }

  /**
   * Reads a file.
   *
   * @param features how many columns of CSV are features; −1 for all but the last
   * @throws InputException that names the example, counted from 1
   */
  public static List<ExampleLine> read(Path file, long features) {
    String name = file.toString();
    return areJson(name)
        ? readJson(file)
        : areColumns(name) ? readColumns(file) : readCells(file, features);
  }

  /**
   * Numbers with commas between, an example a line: the features, then its label or values, if any. A first line of names
   * is left out; an empty feature is NaN, an empty label none.
   */
  private static List<ExampleLine> readCells(Path file, long features) {
    List<String> lines = lines(file);
    List<ExampleLine> examples = new ArrayList<>(lines.size());
    int columns = -1;
    for (int i = 0; i < lines.size(); i++) {
      try {
        if (i > 0 || !CsvLine.isHeader(lines.get(i))) {
          String[] cells = CsvLine.cells(lines.get(i));
          columns = sameColumns(columns, cells);
          examples.add(ofCells(cells, features < 0 ? cells.length - 1 : features));
        }
      } catch (InputException e) {
        throw wrong(file, examples, e);
      }
    }
    return examples;
  }

  private static int sameColumns(int before, String[] cells) {
    if (before >= 0 && cells.length != before) {
      throw new InputException("there are " + cells.length + " columns, and " + before + " before");
    }
    return cells.length;
  }

  /** What is wrong with the example behind some others. */
  private static InputException wrong(Path file, List<ExampleLine> before, InputException what) {
    return new InputException(
        file + ": example " + (before.size() + 1) + ": " + what.getMessage(), what);
  }

  /**
   * CoNLL's columns: a word a line, in the first of its columns, with its tag in the last, if there are several; blank
   * lines between the sentences. Between columns are tabs or, where there is none, spaces.
   */
  private static List<ExampleLine> readColumns(Path file) {
    List<ExampleLine> examples = new ArrayList<>();
    List<String> words = new ArrayList<>();
    ArrayNode tags = JSON.createArrayNode();
    int columns = -1;
    for (String line : reading(file, InputFile::linesWithBlank)) {
      if (line.isBlank() || line.startsWith(DOCUMENT)) {
        addSentence(examples, words, tags);
        words = new ArrayList<>();
        tags = JSON.createArrayNode();
        continue;
      }
      String[] cells = line.indexOf('\t') < 0 ? line.strip().split("\\s+") : line.split("\t", -1);
      try {
        columns = sameColumns(columns, cells);
      } catch (InputException e) {
        throw wrong(file, examples, e);
      }
      words.add(cells[0]);
      if (cells.length > 1) {
        tags.add(tag(cells[cells.length - 1].strip()));
      }
    }
    addSentence(examples, words, tags);
    return examples;
  }

  private static void addSentence(List<ExampleLine> examples, List<String> words, ArrayNode tags) {
    if (!words.isEmpty()) {
      Map<String, JsonNode> outcomes = tags.isEmpty() ? Map.of() : Map.of("tags", tags);
      examples.add(new ExampleLine(null, null, words, null, null, null, outcomes));
    }
  }

  private static JsonNode tag(String cell) {
    if (cell.isEmpty()) {
      return NullNode.getInstance();
    }
    return cell.matches("-?\\d{1,9}")
        ? IntNode.valueOf(Integer.parseInt(cell))
        : TextNode.valueOf(cell);
  }

  private static ExampleLine ofCells(String[] cells, long wanted) {
    if (wanted < 1 || cells.length < wanted) {
      throw new InputException(
          "there are "
              + cells.length
              + " columns; "
              + (wanted < 1 ? "features and a label" : wanted + " features, and a label or values,")
              + " are right");
    }
    double[] features = new double[(int) wanted];
    for (int i = 0; i < features.length; i++) {
      features[i] = cells[i].isEmpty() ? Double.NaN : number(cells[i], i);
    }
    Map<String, JsonNode> outcomes = new HashMap<>();
    if (cells.length == wanted + 1) {
      String cell = cells[features.length];
      if (!cell.isEmpty()) {
        outcomes.put("label", TextNode.valueOf(cell));
      }
    } else if (cells.length > wanted) {
      ArrayNode values = JSON.createArrayNode();
      for (int i = features.length; i < cells.length; i++) {
        values.add(cells[i].isEmpty() ? Double.NaN : number(cells[i], i));
      }
      outcomes.put("values", values);
    }
    return new ExampleLine(null, null, null, null, features, null, outcomes);
  }

  private static double number(String cell, int column) {
    try {
      return Double.parseDouble(CsvLine.number(cell));
    } catch (NumberFormatException e) {
      throw new InputException("column " + (column + 1) + " is no number: " + Names.quote(cell), e);
    }
  }

  private static List<ExampleLine> readJson(Path file) {
    List<String> lines = lines(file);
    List<ExampleLine> examples = new ArrayList<>(lines.size());
    for (String line : lines) {
      try {
        examples.add(parse(line));
      } catch (InputException e) {
        throw wrong(file, examples, e);
      }
    }
    return examples;
  }

  private static ExampleLine parse(String line) {
    String text = null;
    String second = null;
    List<String> words = null;
    String image = null;
    double[] features = null;
    Map<String, double[]> inputs = null;
    Map<String, JsonNode> outcomes = new HashMap<>();
    try (JsonParser parser = JSON.createParser(line)) {
      if (parser.nextToken() != JsonToken.START_OBJECT) {
        throw new InputException("it is not a JSON object");
      }
      while (parser.nextToken() == JsonToken.FIELD_NAME) {
        String key = parser.currentName();
        JsonToken token = parser.nextToken();
        if (token == JsonToken.VALUE_NULL) {
          continue;
        }
        switch (key) {
          case "text" -> text = string(parser, key);
          case "text_pair" -> second = string(parser, key);
          case "tokens" -> words = words(parser);
          case "image" -> image = string(parser, key);
          case "features" -> features = numbers(parser, "features");
          case "inputs" -> inputs = inputs(parser);
          default -> {
            if (OUTCOMES.contains(key)) {
              outcomes.put(key, JSON.readTree(parser));
            } else {
              parser.skipChildren();
            }
          }
        }
      }
      if (parser.nextToken() != null) {
        throw new InputException("it goes on after its JSON object");
      }
    } catch (JsonProcessingException e) {
      throw new InputException("it is not JSON: " + JsonReason.of(e), e);
    } catch (IOException e) {
      throw new InputException("it cannot be read: " + e.getMessage(), e);
    }
    long given = Stream.of(text, words, image, features, inputs).filter(Objects::nonNull).count();
    if (given != 1) {
      throw new InputException(
          given == 0
              ? "there is none of text, tokens, image, features and inputs"
              : "there are several of text, tokens, image, features and inputs; one of them is"
                  + " right");
    }
    if (second != null && text == null) {
      throw new InputException("there is a text_pair and no text");
    }
    if (outcomes.containsKey("tags") && words == null) {
      throw new InputException("there are tags and no tokens, the words that they are of");
    }
    return new ExampleLine(text, second, words, image, features, inputs, outcomes);
  }

  private static String string(JsonParser parser, String key) throws IOException {
    if (parser.currentToken() != JsonToken.VALUE_STRING) {
      throw new InputException(key + " is not a string");
    }
    return parser.getText();
  }

  private static List<String> words(JsonParser parser) throws IOException {
    if (parser.currentToken() != JsonToken.START_ARRAY) {
      throw new InputException("tokens is not a list of words");
    }
    List<String> words = new ArrayList<>();
    while (parser.nextToken() != JsonToken.END_ARRAY) {
      if (parser.currentToken() != JsonToken.VALUE_STRING) {
        throw new InputException("tokens holds something that is no string");
      }
      words.add(parser.getText());
    }
    return words;
  }

  private static Map<String, double[]> inputs(JsonParser parser) throws IOException {
    if (parser.currentToken() != JsonToken.START_OBJECT) {
      throw new InputException("inputs is not an object of inputs and their values");
    }
    Map<String, double[]> inputs = new LinkedHashMap<>();
    while (parser.nextToken() == JsonToken.FIELD_NAME) {
      String name = parser.currentName();
      boolean list = parser.nextToken() == JsonToken.START_ARRAY;
      inputs.put(
          name,
          list
              ? numbers(parser, "the input " + name)
              : new double[] {number(parser, "the input " + name)});
    }
    return inputs;
  }

  private static double[] numbers(JsonParser parser, String name) throws IOException {
    if (parser.currentToken() != JsonToken.START_ARRAY) {
      throw new InputException(name + " is not a list of numbers");
    }
    double[] numbers = new double[16];
    int n = 0;
    while (parser.nextToken() != JsonToken.END_ARRAY) {
      if (n == numbers.length) {
        numbers = Arrays.copyOf(numbers, 2 * n);
      }
      numbers[n++] = number(parser, name);
    }
    return Arrays.copyOf(numbers, n);
  }

  private static double number(JsonParser parser, String name) throws IOException {
    JsonToken token = parser.currentToken();
    if (token == JsonToken.VALUE_NULL) {
      return Double.NaN;
    }
    if (token != null && token.isNumeric()) {
      return parser.getDoubleValue();
    }
    Float named = token == JsonToken.VALUE_STRING ? JsonNumbers.ofString(parser.getText()) : null;
    if (named == null) {
      throw new InputException(name + " holds something that is no number");
    }
    return named;
  }

  /**
   * The lines of a file that are not blank.
   *
   * @throws InputException when the file cannot be read as UTF-8 or has no end in sight
   */
  static List<String> lines(Path file) {
    return reading(file, InputFile::lines);
  }

  /** How a file is read into lines. */
  private interface Reading {
    List<String> lines(Path file) throws IOException;
  }

  private static List<String> reading(Path file, Reading reading) {
    try {
      return reading.lines(file);
    } catch (CharacterCodingException e) {
      throw new InputException("texts " + file + " are not UTF-8; a text a line is right", e);
    } catch (NoSuchFileException e) {
      throw new InputException("texts " + file + ": there is no such file", e);
    } catch (IOException e) {
      throw new InputException("texts " + file + " cannot be read: " + e.getMessage(), e);
    }
  }
}

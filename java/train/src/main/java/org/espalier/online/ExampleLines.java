package org.espalier.online;

import com.fasterxml.jackson.core.JsonFactory;
import com.fasterxml.jackson.core.JsonParser;
import com.fasterxml.jackson.core.JsonProcessingException;
import com.fasterxml.jackson.core.JsonToken;
import com.fasterxml.jackson.core.StreamReadConstraints;
import com.fasterxml.jackson.core.StreamReadFeature;
import com.fasterxml.jackson.core.json.JsonReadFeature;
import java.io.IOException;
import java.util.Arrays;
import java.util.List;
import java.util.Objects;
import java.util.function.BiFunction;
import java.util.stream.Stream;
import org.espalier.InputException;
import org.espalier.format.CsvLine;
import org.espalier.format.JsonNumbers;
import org.espalier.format.JsonReason;
import org.espalier.format.Names;
import org.espalier.format.NearNames;

/**
 * Reads examples from lines. JSON: {@code {"id": "a", "features": [1, 2], "label": 0}}, or {@code
 * "values": [0.5]} for outcomes that are values; a label may be the name of its class; other keys are ignored, and so is a null; numbers may be
 * NaN, Infinity and -Infinity, bare as Python writes them or as strings, for the guard to see. For features, the values
 * of all inputs one after the other, there may be {@code "inputs": {"user": 17, "dense": [0.5, 1]}}, each input of the
 * model by its name, or {@code "text"}, with {@code "text_pair"} a pair of texts, or {@code "image"} where something makes features of these. CSV: the features, then the outcome in
 * the last columns; nan and inf are numbers there. For a model that knows missing values a feature that is null or an
 * empty column is NaN.
 *
 * <p>Thread safe.
 */
public final class ExampleLines {
  private static final JsonFactory JSON =
      JsonFactory.builder()
          .enable(StreamReadFeature.STRICT_DUPLICATE_DETECTION)
          .enable(JsonReadFeature.ALLOW_NON_NUMERIC_NUMBERS)
          .disable(JsonFactory.Feature.CANONICALIZE_FIELD_NAMES) // names come from outside
          .disable(JsonFactory.Feature.INTERN_FIELD_NAMES)
          .streamReadConstraints(
              StreamReadConstraints.builder().maxNestingDepth(8).maxNumberLength(100).build())
          .build();

  private final List<ExampleInput> inputs;
  private final int features;
  private final int outputs;
  private final boolean classes;
  private final boolean missing;
  private final ClassNames names;
  private final Encoded encoded;

  /** Examples for a learner, given as features. */
  public ExampleLines(OnlineLearner learner) {
    this(learner, ClassNames.NONE, null);
  }

  /**
   * Examples for a learner.
   *
   * @param names what labels may be called
   * @param encoded what features are made of; null where lines have them
   */
  public ExampleLines(OnlineLearner learner, ClassNames names, Encoded encoded) {
    this(
        learner.model().inputs(),
        learner.outputs(),
        learner.settings().loss().isForClasses(),
        learner.model().knowsMissing(),
        names,
        encoded);
  }

  /**
   * What lines have in place of features, which are made of it.
   *
   * @param key of a string
   * @param second the key of another one, which there may be beside it; null where there is none
   * @param features makes the features of such a string and of the other one or null, called by each thread that reads a
   *     line with one
   */
  public record Encoded(String key, String second, BiFunction<String, String, float[]> features) {
    private boolean has(String given) {
      return given.equals(key) || given.equals(second);
    }
  }

  /**
   * @param missing whether the model knows features that are missing
   */
  ExampleLines(
      List<ExampleInput> inputs,
      int outputs,
      boolean classes,
      boolean missing,
      ClassNames names,
      Encoded encoded) {
    this.inputs = inputs;
    this.features = inputs.stream().mapToInt(ExampleInput::size).sum();
    this.outputs = outputs;
    this.classes = classes;
    this.missing = missing;
    this.names = names;
    this.encoded = encoded;
  }

  /** What a JSON object says; an outcome may be missing, and what has an outcome may have no features. */
  public record Parsed(String id, float[] features, Integer label, float[] values) {
    /**
     * The example.
     *
     * @throws InputException if there is no outcome
     */
    public Example example() {
      if (label == null && values == null) {
        throw new InputException("there is neither label nor values");
      }
      return new Example(id, features, label == null ? -1 : label, values);
    }
  }

  /**
   * Reads a JSON object with features.
   *
   * @throws InputException that says what is wrong with it
   */
  public Parsed json(String text) {
    Parsed parsed = object(text);
    if (parsed.features() == null) {
      throw missingFeatures(text);
    }
    return parsed;
  }

  /**
   * Reads a JSON object with features, an outcome, or both; where one is missing there is an id, by which
   * they are joined.
   *
   * @throws InputException that says what is wrong with it
   */
  public Parsed part(String text) {
    Parsed parsed = object(text);
    boolean outcome = parsed.label() != null || parsed.values() != null;
    if (parsed.features() == null && (parsed.id() == null || !outcome)) {
      throw missingFeatures(text);
    }
    if (!outcome && parsed.id() == null) {
      throw new InputException(
          "there is neither label nor values, nor an id by which they can come later");
    }
    return parsed;
  }

  private InputException missingFeatures(String line) {
    if (encoded != null) {
      return new InputException("there is neither " + encoded.key() + " nor features");
    }
    boolean other = line.contains("\"image\"") || line.contains("\"text\"");
    return new InputException(
        (inputs.size() == 1 ? "features" : "inputs")
            + " are missing"
            + (other
                ? "; texts and images are for what has an encoder (--encoder), images also for a"
                    + " model that takes them as --image-processor says"
                : ""));
  }

  private Parsed object(String line) {
    String id = null;
    float[] x = null;
    float[] named = null;
    String source = null;
    String second = null;
    Integer label = null;
    float[] values = null;
    try (JsonParser parser = JSON.createParser(line)) {
      if (parser.nextToken() != JsonToken.START_OBJECT) {
        throw new InputException("it is not a JSON object");
      }
      while (parser.nextToken() == JsonToken.FIELD_NAME) {
        String key = parser.currentName();
        JsonToken token = parser.nextToken();
        if (token == JsonToken.VALUE_NULL) {
          continue; // as if it were not there
        }
        switch (key) {
          case "id" -> {
            if (token != JsonToken.VALUE_STRING && token != JsonToken.VALUE_NUMBER_INT) {
              throw new InputException("id is neither a string nor an integer");
            }
            id = parser.getText();
          }
          case "label" -> {
            if (token == JsonToken.VALUE_STRING) {
              label = names.of(parser.getText());
            } else {
              // 1.0 too, as tables write it whose column has a gap.
              double number = token.isNumeric() ? parser.getDoubleValue() : -1;
              if (!(number >= 0 && number < 0x1p63 && number == Math.rint(number))) {
                throw new InputException("label is not a class, an integer from 0 on");
              }
              label = (int) Math.min(Integer.MAX_VALUE, number);
            }
          }
          case "features" -> x = numbers(parser, "features", features, missing);
          case "inputs" -> named = inputs(parser);
          case "values" -> values = numbers(parser, "values", outputs, false);
          default -> {
            if (encoded == null || !encoded.has(key)) {
              parser.skipChildren();
            } else if (token != JsonToken.VALUE_STRING) {
              throw new InputException(key + " is not a string");
            } else if (key.equals(encoded.key())) {
              source = parser.getText();
            } else {
              second = parser.getText();
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
    if (label != null && values != null) {
      throw new InputException("there are both label and values");
    }
    if (Stream.of(x, named, source).filter(Objects::nonNull).count() > 1) {
      String other = source == null ? "inputs" : encoded.key();
      throw new InputException(
          "there are both " + (x == null ? other + " and inputs" : "features and " + other));
    }
    if (second != null && source == null) {
      throw new InputException("there is a " + encoded.second() + " and no " + encoded.key());
    }
    float[] made =
        x != null ? x : source != null ? encoded.features().apply(source, second) : named;
    return new Parsed(id, made, label, values);
  }

  /** The values of inputs by name, one input after the other. */
  private float[] inputs(JsonParser parser) throws IOException {
    if (parser.currentToken() != JsonToken.START_OBJECT) {
      throw new InputException("inputs is not an object of inputs and their values");
    }
    List<String> names = inputs.stream().map(ExampleInput::name).toList();
    float[][] given = new float[names.size()][];
    while (parser.nextToken() == JsonToken.FIELD_NAME) {
      String name = parser.currentName();
      int k = names.indexOf(name);
      if (k < 0) {
        throw new InputException(
            "there is no input "
                + Names.quote(name)
                + "; there are "
                + NearNames.list(name, names));
      }
      boolean alone = parser.nextToken() != JsonToken.START_ARRAY && inputs.get(k).size() == 1;
      given[k] =
          alone
              ? new float[] {value(parser, "the input " + name, missing)}
              : numbers(parser, "the input " + name, inputs.get(k).size(), missing);
    }
    float[] all = new float[features];
    int at = 0;
    for (int k = 0; k < given.length; k++) {
      if (given[k] == null) {
        throw new InputException("the input " + names.get(k) + " is missing");
      }
      System.arraycopy(given[k], 0, all, at, given[k].length);
      at += given[k].length;
    }
    return all;
  }

  private static float[] numbers(JsonParser parser, String name, int expected, boolean nulls)
      throws IOException {
    if (parser.currentToken() != JsonToken.START_ARRAY) {
      throw new InputException(name + " is not a list of numbers");
    }
    float[] numbers = new float[expected];
    int n = 0;
    for (JsonToken t = parser.nextToken(); t != JsonToken.END_ARRAY; t = parser.nextToken()) {
      if (t == null) {
        throw new InputException(name + " does not end");
      }
      float value = value(parser, name, nulls);
      if (n < expected) {
        numbers[n] = value;
      }
      n++;
    }
    if (n != expected) {
      throw new InputException(name + " holds " + n + " numbers; " + expected + " are right");
    }
    return numbers;
  }

  /** The number that the parser is at. */
  private static float value(JsonParser parser, String name, boolean nulls) throws IOException {
    JsonToken token = parser.currentToken();
    if (token.isNumeric()) {
      return parser.getFloatValue();
    }
    if (token == JsonToken.VALUE_NULL) {
      if (!nulls) {
        throw missing(name + " holds null", !name.equals("values"));
      }
      return Float.NaN;
    }
    Float named = token == JsonToken.VALUE_STRING ? JsonNumbers.ofString(parser.getText()) : null;
    if (named == null) {
      throw new InputException(name + " holds something that is no number");
    }
    return named;
  }

  /** What is said of a value that is not there and must be. */
  private static InputException missing(String what, boolean feature) {
    return new InputException(
        what
            + (feature ? ", and this model knows no missing values" : ", which no outcome is")
            + "; a number is right");
  }

  /**
   * Reads a line of comma-separated numbers, which may be in double quotes.
   *
   * @throws InputException that says what is wrong with it
   */
  public Example csv(String line) {
    String[] cells = CsvLine.cells(line);
    int outcomes = classes ? 1 : outputs;
    if (cells.length != features + outcomes) {
      throw new InputException(
          "there are "
              + cells.length
              + " columns; "
              + features
              + " features and "
              + outcomes
              + (classes ? " label" : " values")
              + " are right");
    }
    float[] numbers = new float[cells.length];
    for (int i = 0; i < cells.length; i++) {
      if (cells[i].isEmpty()) {
        if (i >= features || !missing) {
          throw missing("column " + (i + 1) + " is empty", i < features);
        }
        numbers[i] = Float.NaN;
        continue;
      }
      if (i == features && names.names().contains(cells[i])) {
        numbers[i] = names.of(cells[i]);
        continue;
      }
      try {
        numbers[i] = Float.parseFloat(CsvLine.number(cells[i]));
      } catch (NumberFormatException e) {
        throw new InputException(
            "column " + (i + 1) + " is no number: " + Names.quote(cells[i]), e);
      }
    }
    float[] x = Arrays.copyOf(numbers, features);
    if (!classes) {
      return Example.of(x, Arrays.copyOfRange(numbers, features, numbers.length));
    }
    float label = numbers[features];
    if (!(label >= 0 && label == (int) label)) {
      throw new InputException("the label is not a class, an integer from 0 on");
    }
    return Example.of(x, (int) label);
  }
}

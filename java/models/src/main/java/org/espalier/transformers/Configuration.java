package org.espalier.transformers;

import com.fasterxml.jackson.core.StreamReadFeature;
import com.fasterxml.jackson.core.json.JsonReadFeature;
import com.fasterxml.jackson.databind.DeserializationFeature;
import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.json.JsonMapper;
import com.fasterxml.jackson.databind.node.ObjectNode;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Collection;
import java.util.List;
import java.util.Map;
import java.util.Set;
import org.espalier.InputException;
import org.espalier.format.JsonFile;
import org.espalier.format.Names;

/** The settings of a {@code config.json}, each checked when it is asked for. Keys that are null count as absent. */
final class Configuration {
  static final String FILE = "config.json";

  private static final int MOST_BYTES = 16 << 20;

  /** More than any model has; products of two such sizes fit a long. */
  private static final long MOST = Integer.MAX_VALUE;

  private static final JsonMapper JSON =
      JsonMapper.builder()
          .enable(DeserializationFeature.FAIL_ON_TRAILING_TOKENS)
          .enable(StreamReadFeature.STRICT_DUPLICATE_DETECTION)
          .enable(JsonReadFeature.ALLOW_NON_NUMERIC_NUMBERS) // Python writes NaN and Infinity
          .build();

  private final Path folder;
  private final String place;
  private final JsonNode root;

  private Configuration(Path folder, String place, JsonNode root) {
    this.folder = folder;
    this.place = place;
    this.root = root;
  }

  /**
   * Reads the configuration of a model.
   *
   * @throws InputException if it is no JSON object
   */
  static Configuration read(Path folder) {
    return read(folder, FILE);
  }

  private static Configuration read(Path folder, String name) {
    Path file = folder.resolve(name);
    JsonNode root = JsonFile.read(file, MOST_BYTES, JSON);
    if (!root.isObject()) {
      throw new InputException(file + " is not a JSON object");
    }
    return new Configuration(folder, file.toString(), root);
  }

  /**
   * Another file of settings in the folder; null where there is none.
   *
   * @throws InputException if it is no JSON object
   */
  Configuration beside(String name) {
    return Files.isRegularFile(folder.resolve(name)) ? read(folder, name) : null;
  }

  /** What messages call it. */
  String place() {
    return place;
  }

  /** What the group of a key says; null where it is absent. */
  Configuration group(String key) {
    JsonNode value = root.get(key);
    if (value == null || value.isNull()) {
      return null;
    }
    if (!value.isObject()) {
      throw wrong(key, "an object");
    }
    return new Configuration(folder, place + ": " + key, value);
  }

  /**
   * What is said of a part of the model. Old configurations say it twice, and Transformers goes by what is under {@code
   * …_dict}; a part of which nothing is said has its defaults.
   */
  Configuration part(String key) {
    Configuration part = group(has(key + "_dict") ? key + "_dict" : key);
    return part == null
        ? new Configuration(folder, place + ": " + key, JSON.createObjectNode())
        : part;
  }

  /** The same with values for keys that it has not; one that is null stays so. */
  Configuration withDefaults(Map<String, ?> defaults) {
    ObjectNode filled = root.deepCopy();
    defaults.forEach(
        (key, value) -> {
          if (!root.has(key)) {
            filled.set(key, JSON.valueToTree(value));
          }
        });
    return new Configuration(folder, place, filled);
  }

  /** The same with another value for a key. */
  Configuration with(String key, long value) {
    ObjectNode changed = root.deepCopy();
    changed.put(key, value);
    return new Configuration(folder, place, changed);
  }

  List<String> keys() {
    List<String> keys = new ArrayList<>();
    root.fieldNames().forEachRemaining(keys::add);
    return keys;
  }

  boolean has(String key) {
    return root.hasNonNull(key);
  }

  /** A whole number of 1 or more, which must be there. */
  long size(String key) {
    if (!has(key)) {
      throw wrong(key, "a whole number of 1 or more");
    }
    return size(key, 1);
  }

  /** A whole number of 1 or more. */
  long size(String key, long otherwise) {
    return whole(key, otherwise, 1);
  }

  /** A whole number of {@code least} or more. */
  long whole(String key, long otherwise, long least) {
    if (!has(key)) {
      return otherwise;
    }
    JsonNode value = root.get(key);
    boolean fits = value.isIntegralNumber() && value.canConvertToLong();
    if (!fits || value.longValue() < least || value.longValue() > MOST) {
      throw wrong(key, "a whole number from " + least + " to " + MOST);
    }
    return value.longValue();
  }

  /** A finite number above 0. */
  double positive(String key, double otherwise) {
    if (!has(key)) {
      return otherwise;
    }
    double value = root.get(key).isNumber() ? root.get(key).doubleValue() : Double.NaN;
    if (!(value > 0 && value <= Double.MAX_VALUE)) {
      throw wrong(key, "a number above 0");
    }
    return value;
  }

  /** A finite number of 0 or more, which is 0 where the key is absent. */
  double orZero(String key) {
    JsonNode value = root.path(key);
    return value.isNumber() && value.doubleValue() == 0 ? 0 : positive(key, 0);
  }

  boolean flag(String key, boolean otherwise) {
    if (!has(key)) {
      return otherwise;
    }
    if (!root.get(key).isBoolean()) {
      throw wrong(key, "true or false");
    }
    return root.get(key).booleanValue();
  }

  String text(String key, String otherwise) {
    if (!has(key)) {
      return otherwise;
    }
    if (!root.get(key).isTextual()) {
      throw wrong(key, "a text");
    }
    return root.get(key).textValue();
  }

  /** What a token is called, by a text or by an object that has it as {@code content}. */
  String name(String key) {
    return root.path(key).isObject() ? group(key).text("content", "") : text(key, "");
  }

  /** A text that is one of some. */
  String choice(String key, String otherwise, Collection<String> known) {
    String value = text(key, otherwise);
    if (!known.contains(value)) {
      throw new InputException(
          place
              + ": "
              + key
              + " is "
              + Names.quote(value)
              + ", which is not known here; known are "
              + String.join(", ", known));
    }
    return value;
  }

  /** The texts of a list; empty where the key is absent. */
  List<String> texts(String key) {
    if (has(key) && !root.get(key).isArray()) {
      throw wrong(key, "a list of texts");
    }
    List<String> texts = new ArrayList<>();
    for (JsonNode value : root.path(key)) {
      if (!value.isTextual()) {
        throw wrong(key, "a list of texts");
      }
      texts.add(value.textValue());
    }
    return texts;
  }

  /** The texts of a list, or the parts of one text with | between them; empty where the key is absent. */
  List<String> parts(String key) {
    if (!has(key) || root.get(key).isArray()) {
      return texts(key);
    }
    List<String> parts = new ArrayList<>();
    for (String part : text(key, "").split("\\|")) {
      parts.add(part.strip());
    }
    return parts;
  }

  /** The finite numbers of a list; empty where the key is absent. */
  double[] numbers(String key) {
    JsonNode list = root.path(key);
    double[] numbers = new double[list.size()];
    for (int i = 0; i < numbers.length; i++) {
      JsonNode value = list.path(i);
      numbers[i] = value.isNumber() ? value.doubleValue() : Double.NaN;
      if (!Double.isFinite(numbers[i])) {
        throw wrong(key, "a list of numbers");
      }
    }
    return numbers;
  }

  /** The whole numbers of 0 or more of a list; empty where the key is absent. */
  List<Long> wholes(String key) {
    List<Long> wholes = new ArrayList<>();
    if (has(key) && !root.get(key).isArray()) {
      throw wrong(key, "a list of whole numbers");
    }
    for (double value : numbers(key)) {
      if (value < 0 || value > MOST || value != Math.rint(value)) {
        throw wrong(key, "a list of whole numbers");
      }
      wholes.add((long) value);
    }
    return wholes;
  }

  /** Height and width, as an object has both, or one number for them; null where an object has them not. */
  long[] rectangle(String key) {
    JsonNode value = root.path(key);
    if (!value.isObject()) {
      return new long[] {size(key), size(key)};
    }
    Configuration both = group(key);
    return both.has("height") && both.has("width")
        ? new long[] {both.size("height"), both.size("width")}
        : null;
  }

  /** How many classes a head tells apart. */
  long labels() {
    int named = entries("id2label");
    return size("num_labels", named > 0 ? named : 2);
  }

  /**
   * Of each layer whether its tokens see their neighbours alone, by {@code layer_types}; empty where that is absent.
   *
   * @param layers how many there are
   */
  List<Boolean> sliding(long layers) {
    List<String> types = texts("layer_types");
    boolean fits = types.isEmpty() || types.size() >= layers;
    if (!fits || !List.of("full_attention", "sliding_attention").containsAll(types)) {
      throw wrong(
          "layer_types", "full_attention or sliding_attention for each of num_hidden_layers");
    }
    return types.stream().map("sliding_attention"::equals).toList();
  }

  /** How many entries a list or an object has; 0 where the key is absent. */
  int entries(String key) {
    return root.path(key).size();
  }

  /**
   * Refuses what no graph here computes.
   *
   * @param key must be absent, null, false, 0 or one of {@code harmless}
   */
  void refuse(String key, String... harmless) {
    JsonNode value = root.get(key);
    boolean off =
        value == null
            || value.isNull()
            || value.isBoolean() && !value.booleanValue()
            || value.isNumber() && value.doubleValue() == 0
            || value.isTextual() && Set.of(harmless).contains(value.textValue());
    if (!off) {
      throw new InputException(
          place + ": " + key + " = " + shortened(value) + " is not supported for this model_type");
    }
  }

  /** What to throw where the value of a key, or that there is none, is not right. */
  InputException wrong(String key, String right) {
    return new InputException(
        place
            + (has(key) ? ": " + key + " is " + shortened(root.get(key)) : " has no " + key)
            + "; "
            + right
            + " is right");
  }

  private static String shortened(JsonNode value) {
    String text = value.toString();
    return text.length() <= 60 ? text : text.substring(0, 60) + "…";
  }
}

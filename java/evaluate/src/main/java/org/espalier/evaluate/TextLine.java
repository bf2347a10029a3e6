package org.espalier.evaluate;

import com.fasterxml.jackson.core.JsonFactory;
import com.fasterxml.jackson.core.JsonProcessingException;
import com.fasterxml.jackson.core.StreamReadConstraints;
import com.fasterxml.jackson.core.StreamReadFeature;
import com.fasterxml.jackson.databind.DeserializationFeature;
import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.json.JsonMapper;
import java.io.IOException;
import java.nio.charset.CharacterCodingException;
import java.nio.file.NoSuchFileException;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import java.util.Locale;
import org.espalier.InputException;
import org.espalier.format.InputFile;
import org.espalier.format.JsonReason;

/**
 * A text of a file of JSON lines, as {@code {"text": "…", "label": 1}}, and what is known of it. Other keys are ignored.
 *
 * @param label one class or number; null where there is none
 * @param labels several classes that do not exclude each other, 0 or 1 each; null where there are none
 * @param values several numbers; null where there are none
 */
public record TextLine(String text, JsonNode label, JsonNode labels, JsonNode values) {
  private static final JsonMapper JSON =
      JsonMapper.builder(
              JsonFactory.builder()
                  .enable(StreamReadFeature.STRICT_DUPLICATE_DETECTION)
                  .streamReadConstraints(StreamReadConstraints.builder().maxNestingDepth(8).build())
                  .build())
          .enable(DeserializationFeature.FAIL_ON_TRAILING_TOKENS)
          .build();

  /** Whether a file is one of JSON lines, by its name, which ends with .jsonl; else it is of texts, one a line. */
  public static boolean areIn(Path file) {
    return areIn(file.toString());
  }

  /** The same of a file that may have no path, as one in an artefact. */
  public static boolean areIn(String name) {
    return name.toLowerCase(Locale.ROOT).endsWith(".jsonl");
  }

  /**
   * Reads a file; blank lines are skipped.
   *
   * @throws InputException that names the example, counted from 1, which is no such object
   */
  public static List<TextLine> read(Path file) {
    List<String> lines = lines(file);
    List<TextLine> texts = new ArrayList<>(lines.size());
    for (String line : lines) {
      try {
        texts.add(parse(line));
      } catch (InputException e) {
        throw new InputException(
            file + ": example " + (texts.size() + 1) + ": " + e.getMessage(), e);
      }
    }
    return texts;
  }

  /**
   * The lines of a file that are not blank.
   *
   * @throws InputException when the file cannot be read as UTF-8 or has no end in sight
   */
  static List<String> lines(Path file) {
    try {
      return InputFile.lines(file);
    } catch (CharacterCodingException e) {
      throw new InputException("texts " + file + " are not UTF-8; a text a line is right", e);
    } catch (NoSuchFileException e) {
      throw new InputException("texts " + file + ": there is no such file", e);
    } catch (IOException e) {
      throw new InputException("texts " + file + " cannot be read: " + e.getMessage(), e);
    }
  }

  private static TextLine parse(String line) {
    JsonNode json;
    try {
      json = JSON.readTree(line);
    } catch (JsonProcessingException e) {
      throw new InputException("it is not JSON: " + JsonReason.of(e), e);
    }
    if (!json.isObject()) {
      throw new InputException("it is not a JSON object, {\"text\": \"…\", \"label\": 1}");
    }
    if (!json.path("text").isTextual()) {
      throw new InputException("text is " + (json.has("text") ? "not a string" : "missing"));
    }
    return new TextLine(
        json.get("text").textValue(),
        known(json, "label"),
        known(json, "labels"),
        known(json, "values"));
  }

  private static JsonNode known(JsonNode json, String key) {
    JsonNode value = json.get(key);
    return value == null || value.isNull() ? null : value;
  }
}

package org.espalier.encoder;

import com.fasterxml.jackson.core.JsonProcessingException;
import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.json.JsonMapper;
import com.fasterxml.jackson.databind.node.ObjectNode;
import java.nio.file.Path;
import org.espalier.InputException;
import org.espalier.evaluate.Pooling;
import org.espalier.evaluate.TextTokenizer;
import org.espalier.format.JsonFile;

/**
 * How texts or images become features, beside the model and the file that says how they become tensors.
 *
 * @param maxTokens of texts; 0 for images
 */
record EncoderSettings(int maxTokens, Pooling pooling) {
  private static final int MOST_BYTES = 10_000;

  private static final JsonMapper JSON = new JsonMapper();

  boolean isOfTexts() {
    return maxTokens > 0;
  }

  /**
   * Reads the settings of a version.
   *
   * @param texts whether they are of an encoder of texts
   * @throws InputException if they are none
   */
  static EncoderSettings read(Path file, boolean texts) {
    JsonNode json = JsonFile.read(file, MOST_BYTES);
    if (!texts) {
      boolean pools = json.size() == 1 && json.path("pooling").isTextual();
      Pooling pooling = pools ? pooling(file, json) : Pooling.LAST;
      if (pooling == Pooling.LAST) {
        throw new InputException(file + " holds other settings than pooling, mean or cls");
      }
      return new EncoderSettings(0, pooling);
    }
    JsonNode maxTokens = json.path("max_tokens");
    JsonNode pooling = json.path("pooling");
    boolean whole = maxTokens.isIntegralNumber() && maxTokens.canConvertToInt();
    if (json.size() != 2
        || !whole
        || maxTokens.intValue() < TextTokenizer.LEAST_TOKENS
        || maxTokens.intValue() > TextTokenizer.MOST_TOKENS
        || !pooling.isTextual()) {
      throw new InputException(
          file
              + " holds other settings than max_tokens, "
              + TextTokenizer.LEAST_TOKENS
              + " to "
              + TextTokenizer.MOST_TOKENS
              + ", and pooling, mean, cls or last");
    }
    return new EncoderSettings(maxTokens.intValue(), pooling(file, json));
  }

  private static Pooling pooling(Path file, JsonNode json) {
    try {
      return Pooling.parse(json.path("pooling").textValue());
    } catch (InputException e) {
      throw new InputException(file + ": " + e.getMessage(), e);
    }
  }

  byte[] bytes() {
    ObjectNode json = JSON.createObjectNode();
    if (isOfTexts()) {
      json.put("max_tokens", maxTokens);
    }
    json.put("pooling", pooling.toString());
    try {
      return JSON.writeValueAsBytes(json);
    } catch (JsonProcessingException e) {
      throw new IllegalStateException("what was made here is JSON", e);
    }
  }
}

package org.espalier.format.safetensors;

import com.fasterxml.jackson.core.JsonFactory;
import com.fasterxml.jackson.core.JsonParser;
import com.fasterxml.jackson.core.JsonProcessingException;
import com.fasterxml.jackson.core.StreamReadConstraints;
import java.io.ByteArrayInputStream;
import java.io.IOException;
import java.io.InputStreamReader;
import java.nio.charset.CodingErrorAction;
import java.nio.charset.StandardCharsets;
import org.espalier.format.JsonReason;

/**
 * A parser for untrusted JSON: strict UTF-8, bounded depth and sizes. Duplicate keys are left to the caller, who can
 * say where they are.
 */
final class StrictJson {
  private static final int MAX_NAME = 1 << 16;
  private static final int MAX_NUMBER = 1000;

  private StrictJson() {}

  /**
   * @param json UTF-8; reading other bytes throws {@link java.nio.charset.CharacterCodingException}
   * @param depth how many objects and lists may be open at once
   */
  static JsonParser parser(byte[] json, int depth) throws IOException {
    // Names come from outside: a table that shares them could be made to collide.
    JsonFactory factory =
        JsonFactory.builder()
            .disable(JsonFactory.Feature.CANONICALIZE_FIELD_NAMES)
            .disable(JsonFactory.Feature.INTERN_FIELD_NAMES)
            .streamReadConstraints(
                StreamReadConstraints.builder()
                    .maxNestingDepth(depth)
                    .maxNameLength(MAX_NAME)
                    .maxNumberLength(MAX_NUMBER)
                    .maxStringLength(Header.MAX_BYTES)
                    .build())
            .build();
    // A reader, because from bytes the parser would guess UTF-16 and UTF-32 too.
    return factory.createParser(
        new InputStreamReader(
            new ByteArrayInputStream(json),
            StandardCharsets.UTF_8
                .newDecoder()
                .onMalformedInput(CodingErrorAction.REPORT)
                .onUnmappableCharacter(CodingErrorAction.REPORT)));
  }

  /** The parser's reason without its source snippet, and the place. */
  static String reason(JsonProcessingException e) {
    String text = JsonReason.of(e);
    if (text.length() > 300) {
      text = text.substring(0, 300) + "…";
    }
    return e.getLocation() == null
        ? text
        : text + " (character " + e.getLocation().getCharOffset() + ")";
  }

  /** Describes what the parser is at, in words. */
  static String kind(JsonParser parser) {
    if (parser.currentToken() == null) {
      return "missing";
    }
    return switch (parser.currentToken()) {
      case START_OBJECT -> "an object";
      case START_ARRAY -> "a list";
      case VALUE_STRING -> "a string";
      case VALUE_NUMBER_INT -> "an integer";
      case VALUE_NUMBER_FLOAT -> "a number that is not an integer";
      case VALUE_TRUE, VALUE_FALSE -> "true or false";
      case VALUE_NULL -> "null";
      default -> "missing";
    };
  }
}

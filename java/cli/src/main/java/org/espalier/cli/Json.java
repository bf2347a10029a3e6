package org.espalier.cli;

import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.node.JsonNodeFactory;
import com.fasterxml.jackson.databind.node.ObjectNode;
import org.espalier.compress.Seconds;

/** Pieces of JSON that several commands print. */
final class Json {
  private Json() {}

  /** A number; null for NaN and infinities, which JSON lacks. */
  static JsonNode of(Number number) {
    JsonNodeFactory json = JsonNodeFactory.instance;
    if (number instanceof Integer || number instanceof Long) {
      return json.numberNode(number.longValue());
    }
    double value = number.doubleValue();
    if (!Double.isFinite(value)) {
      return json.nullNode();
    }
    return number instanceof Float f ? json.numberNode(f) : json.numberNode(value);
  }

  /** Where the time went. */
  static ObjectNode of(Seconds seconds) {
    return JsonNodeFactory.instance
        .objectNode()
        .put("read", seconds.read())
        .put("select", seconds.select())
        .put("apply", seconds.apply())
        .put("write", seconds.write());
  }
}

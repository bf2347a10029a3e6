package org.espalier.cli;

import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.node.ArrayNode;
import com.fasterxml.jackson.databind.node.JsonNodeFactory;
import com.fasterxml.jackson.databind.node.ObjectNode;
import java.util.List;
import java.util.Map;
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

  /** Numbers, texts, lists and maps under their keys, in their order. */
  static ObjectNode of(Map<String, ?> values) {
    return (ObjectNode) node(values);
  }

  private static JsonNode node(Object value) {
    if (value instanceof Map<?, ?> map) {
      ObjectNode json = JsonNodeFactory.instance.objectNode();
      map.forEach((key, inner) -> json.set((String) key, node(inner)));
      return json;
    }
    if (value instanceof List<?> list) {
      ArrayNode json = JsonNodeFactory.instance.arrayNode();
      list.forEach(inner -> json.add(node(inner)));
      return json;
    }
    if (value instanceof Boolean flag) {
      return JsonNodeFactory.instance.booleanNode(flag);
    }
    return value instanceof Number number
        ? of(number)
        : JsonNodeFactory.instance.textNode((String) value);
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

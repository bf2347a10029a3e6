package org.espalier.recipe;

import com.fasterxml.jackson.databind.node.ArrayNode;
import com.fasterxml.jackson.databind.node.JsonNodeFactory;
import com.fasterxml.jackson.databind.node.ObjectNode;
import java.util.List;
import org.espalier.recipe.SettingType.Choice;
import org.espalier.recipe.SettingType.Flag;
import org.espalier.recipe.SettingType.Group;
import org.espalier.recipe.SettingType.Key;
import org.espalier.recipe.SettingType.ListOf;
import org.espalier.recipe.SettingType.Real;
import org.espalier.recipe.SettingType.Variant;
import org.espalier.recipe.SettingType.Variants;
import org.espalier.recipe.SettingType.Whole;

/** The keys of recipes as a JSON Schema, draft 2020-12. */
final class JsonSchema {
  private static final JsonNodeFactory JSON = JsonNodeFactory.instance;

  private JsonSchema() {}

  static ObjectNode of(Group root) {
    ObjectNode schema = JSON.objectNode();
    schema.put("$schema", "https://json-schema.org/draft/2020-12/schema");
    schema.put("title", "Espalier recipe");
    schema.setAll(json(root));
    return schema;
  }

  private static ObjectNode json(SettingType type) {
    ObjectNode node = JSON.objectNode();
    if (type instanceof Group group) {
      return object(node, group.keys(), null);
    } else if (type instanceof Variants variants) {
      ArrayNode any =
          node.put("type", "array").put("minItems", 1).putObject("items").putArray("oneOf");
      for (Variant v : variants.variants()) {
        any.add(object(JSON.objectNode().put("description", v.description()), v.keys(), v.kind()));
      }
    } else if (type instanceof ListOf list) {
      ArrayNode any = node.putArray("anyOf");
      any.add(json(list.item()));
      any.addObject().put("type", "array").set("items", json(list.item()));
    } else if (type instanceof Choice choice) {
      ArrayNode words = node.putArray("enum");
      choice.words().forEach(words::add);
    } else if (type instanceof Flag) {
      node.put("type", "boolean");
    } else if (type instanceof Whole whole) {
      node.put("type", "integer").put("minimum", whole.least()).put("maximum", whole.most());
    } else if (type instanceof Real real) {
      node.put("type", "number")
          .put(real.leastIn() ? "minimum" : "exclusiveMinimum", real.least())
          .put(real.mostIn() ? "maximum" : "exclusiveMaximum", real.most());
    } else {
      node.put("type", "string").put("minLength", 1);
    }
    return node;
  }

  private static ObjectNode object(ObjectNode node, List<Key> keys, String kind) {
    node.put("type", "object").put("additionalProperties", false);
    ObjectNode properties = node.putObject("properties");
    ArrayNode required = node.putArray("required");
    if (kind != null) {
      properties.putObject("kind").put("const", kind);
      required.add("kind");
    }
    for (Key key : keys) {
      ObjectNode value = json(key.type());
      value.put("description", key.description());
      if (key.fallback() != null && !key.fallback().isEmpty()) {
        value.put("$comment", "default: " + key.fallback());
      }
      properties.set(key.name(), value);
      if (key.required()) {
        required.add(key.name());
      }
    }
    return node;
  }
}

package org.espalier.recipe;

import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;

/** A piece of YAML with the place where it was written. Scalars are text: the schema gives types. */
sealed interface YamlNode {
  Place place();

  /** In words, for messages. */
  String describe();

  /**
   * One value.
   *
   * @param quoted whether it was in quotes, so that {@code ""} and {@code "null"} are texts
   */
  record Scalar(String text, boolean quoted, Place place) implements YamlNode {
    /** Whether nothing was written. */
    boolean isNull() {
      return !quoted && (text.isEmpty() || text.equals("~") || text.equals("null"));
    }

    @Override
    public String describe() {
      return isNull()
          ? "nothing"
          : "'" + (text.length() > 60 ? text.substring(0, 57) + "…" : text) + "'";
    }
  }

  /** A list. */
  record Sequence(List<YamlNode> items, Place place) implements YamlNode {
    @Override
    public String describe() {
      return "a list";
    }
  }

  /** Keys with values in the order of the file; the map can be changed by {@code --set}. */
  record Mapping(Map<String, YamlNode> entries, Map<String, Place> keys, Place place)
      implements YamlNode {
    static Mapping empty(Place place) {
      return new Mapping(new LinkedHashMap<>(), new LinkedHashMap<>(), place);
    }

    void put(String key, YamlNode value, Place at) {
      entries.put(key, value);
      keys.put(key, at);
    }

    @Override
    public String describe() {
      return "a group of keys";
    }
  }
}

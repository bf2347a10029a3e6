package org.espalier.online;

import java.io.StringReader;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.HashSet;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Locale;
import java.util.Map;
import java.util.Set;
import java.util.TreeSet;
import java.util.function.Supplier;
import org.espalier.InputException;
import org.espalier.format.NearNames;
import org.yaml.snakeyaml.LoaderOptions;
import org.yaml.snakeyaml.Yaml;
import org.yaml.snakeyaml.constructor.SafeConstructor;
import org.yaml.snakeyaml.error.MarkedYAMLException;
import org.yaml.snakeyaml.error.YAMLException;
import org.yaml.snakeyaml.nodes.MappingNode;
import org.yaml.snakeyaml.nodes.Node;
import org.yaml.snakeyaml.nodes.NodeTuple;
import org.yaml.snakeyaml.nodes.ScalarNode;
import org.yaml.snakeyaml.nodes.SequenceNode;

/** A mapping of a recipe, whose keys are asked for one by one. What it holds may be anything; errors name line and key. Not for several threads. */
final class RecipeSection {
  /** Up to here floating point has all integers. */
  private static final double MOST_EXACT = 1L << 53;

  private final String path;
  private final String where;
  private final Node node;
  private final Map<String, Node> values = new LinkedHashMap<>();
  private final Map<String, Integer> lines = new LinkedHashMap<>();
  private final Set<String> asked = new HashSet<>();
  private final List<RecipeSection> inner = new ArrayList<>();

  /**
   * The outermost mapping of a text.
   *
   * @param where what to call it in messages
   * @throws InputException where it is no YAML, or no mapping
   */
  static RecipeSection of(String text, String where) {
    return new RecipeSection(root(text, where), "", where);
  }

  private static Node root(String text, String where) {
    Node root;
    try {
      LoaderOptions options = new LoaderOptions();
      options.setMaxAliasesForCollections(0);
      options.setNestingDepthLimit(10);
      root = new Yaml(new SafeConstructor(options)).compose(new StringReader(text));
    } catch (MarkedYAMLException e) {
      int line = e.getProblemMark() == null ? 0 : e.getProblemMark().getLine() + 1;
      throw new InputException(where + ", line " + line + ": " + e.getProblem(), e);
    } catch (YAMLException e) {
      throw new InputException(where + " is not YAML: " + e.getMessage(), e);
    }
    if (root == null) {
      throw new InputException(where + " is empty; loss and learning-rate are needed");
    }
    return root;
  }

  private RecipeSection(Node node, String path, String where) {
    this.path = path;
    this.where = where;
    this.node = node;
    if (!(node instanceof MappingNode mapping)) {
      throw wrong("a mapping of keys to values is right here");
    }
    for (NodeTuple tuple : mapping.getValue()) {
      if (!(tuple.getKeyNode() instanceof ScalarNode key)) {
        throw wrong("a key is not a word");
      }
      if (values.put(key.getValue(), tuple.getValueNode()) != null) {
        throw new InputException(
            where + ", line " + line(key) + ": " + path + key.getValue() + " occurs twice");
      }
      lines.put(key.getValue(), line(key));
    }
  }

  private static int line(Node node) {
    return node.getStartMark().getLine() + 1;
  }

  InputException wrong(String message) {
    String name = path.isEmpty() ? "" : path.substring(0, path.length() - 1) + ": ";
    return new InputException(where + ", line " + line(node) + ": " + name + message);
  }

  InputException wrongKey(String key, String message) {
    return new InputException(place(key) + " " + message);
  }

  /** Line and key, for messages. */
  String place(String key) {
    return where + ", line " + lines.get(key) + ": " + path + key;
  }

  Set<String> keys() {
    return values.keySet();
  }

  /** Says what is there, because a key that is missing may be misspelt. */
  InputException missing(String key) {
    return wrong(key + " is missing; the keys here are " + NearNames.list(key, values.keySet()));
  }

  /** A record's own complaint, with the place of this section. */
  <T> T checked(Supplier<T> maker) {
    try {
      return maker.get();
    } catch (IllegalArgumentException e) {
      throw wrong(e.getMessage());
    }
  }

  boolean has(String key) {
    return values.containsKey(key);
  }

  boolean isScalar(String key) {
    return values.get(key) instanceof ScalarNode;
  }

  String textOrNull(String key) {
    asked.add(key);
    return values.get(key) instanceof ScalarNode scalar ? scalar.getValue() : null;
  }

  String text(String key) {
    String text = textOrNull(key);
    if (text == null) {
      throw has(key) ? wrongKey(key, "is not one word") : missing(key);
    }
    return text;
  }

  List<String> texts(String key) {
    asked.add(key);
    List<String> list = new ArrayList<>();
    Node value = values.get(key);
    if (value instanceof SequenceNode sequence) {
      for (Node item : sequence.getValue()) {
        if (!(item instanceof ScalarNode scalar)) {
          throw wrongKey(key, "holds something that is not a word");
        }
        list.add(scalar.getValue());
      }
    } else if (value != null) {
      throw wrongKey(key, "is not a list, as [a, b]");
    }
    return list;
  }

  String text(String key, String otherwise) {
    asked.add(key);
    return has(key) ? text(key) : otherwise;
  }

  /** A list of whole numbers; empty where there is none. */
  List<Integer> integers(String key) {
    List<Integer> list = new ArrayList<>();
    for (String text : texts(key)) {
      try {
        list.add(Integer.valueOf(text));
      } catch (NumberFormatException e) {
        throw wrongKey(key, "holds '" + text + "'; integers are right");
      }
    }
    return List.copyOf(list);
  }

  double number(String key) {
    String text = text(key);
    try {
      double value = Double.parseDouble(text);
      if (Double.isFinite(value)) {
        return value;
      }
    } catch (NumberFormatException e) {
      // said below
    }
    throw wrongKey(key, "is '" + text + "'; a number is right");
  }

  double number(String key, double otherwise) {
    asked.add(key);
    return has(key) ? number(key) : otherwise;
  }

  /** A number from 0 on that is below 1. */
  double share(String key, double otherwise) {
    double value = number(key, otherwise);
    if (!(value >= 0 && value < 1)) {
      throw wrongKey(key, "is " + value + "; 0 or more and below 1 is right");
    }
    return value;
  }

  int integer(String key) {
    double value = number(key);
    if (value != Math.rint(value) || Math.abs(value) > Integer.MAX_VALUE) {
      throw wrongKey(
          key, "is '" + text(key) + "'; an integer up to " + Integer.MAX_VALUE + " is right");
    }
    return (int) value;
  }

  /** An integer from 1 to a most one. */
  int count(String key, int otherwise, int most) {
    int value = integer(key, otherwise);
    if (value < 1 || value > most) {
      throw wrongKey(key, "is " + value + "; 1 to " + most + " is right");
    }
    return value;
  }

  /** An integer of 64 bits. */
  long wide(String key, long otherwise) {
    asked.add(key);
    if (!has(key)) {
      return otherwise;
    }
    String text = text(key);
    try {
      return Long.parseLong(text);
    } catch (NumberFormatException e) {
      double value = number(key); // as 1e3
      if (value != Math.rint(value) || Math.abs(value) > MOST_EXACT) {
        throw wrongKey(key, "is '" + text + "'; an integer up to " + Long.MAX_VALUE + " is right");
      }
      return (long) value;
    }
  }

  int integer(String key, int otherwise) {
    asked.add(key);
    return has(key) ? integer(key) : otherwise;
  }

  boolean flag(String key, boolean otherwise) {
    asked.add(key);
    if (!has(key)) {
      return otherwise;
    }
    String text = text(key);
    if (!text.equals("true") && !text.equals("false")) {
      throw wrongKey(key, "is '" + text + "'; true or false is right");
    }
    return text.equals("true");
  }

  <E extends Enum<E>> E choice(String key, Class<E> type, String otherwise) {
    String text = text(key, otherwise);
    for (E value : type.getEnumConstants()) {
      if (value.name().toLowerCase(Locale.ROOT).equals(text)) {
        return value;
      }
    }
    throw wrongKey(
        key,
        "is '"
            + text
            + "'; one of "
            + Arrays.toString(type.getEnumConstants()).toLowerCase(Locale.ROOT)
            + " is right");
  }

  /** The mapping under a key; null where there is none. */
  RecipeSection section(String key) {
    asked.add(key);
    Node value = values.get(key);
    if (value == null) {
      return null;
    }
    RecipeSection section = new RecipeSection(value, path + key + ".", where);
    inner.add(section);
    return section;
  }

  /** Refuses keys that nobody asked for. */
  void finish() {
    for (Map.Entry<String, Integer> key : lines.entrySet()) {
      if (!asked.contains(key.getKey())) {
        throw new InputException(
            where
                + ", line "
                + key.getValue()
                + ": "
                + path
                + key.getKey()
                + " is unknown; known here are "
                + String.join(", ", new TreeSet<>(asked)));
      }
    }
    inner.forEach(RecipeSection::finish);
  }
}

package org.espalier.recipe;

import java.util.ArrayList;
import java.util.LinkedHashSet;
import java.util.List;
import java.util.Set;
import org.espalier.InputException;
import org.espalier.format.NearNames;
import org.espalier.recipe.SettingType.Choice;
import org.espalier.recipe.SettingType.Flag;
import org.espalier.recipe.SettingType.Group;
import org.espalier.recipe.SettingType.Key;
import org.espalier.recipe.SettingType.ListOf;
import org.espalier.recipe.SettingType.Real;
import org.espalier.recipe.SettingType.Text;
import org.espalier.recipe.SettingType.Variant;
import org.espalier.recipe.SettingType.Variants;
import org.espalier.recipe.SettingType.Whole;

/** Checks YAML against the schema and gives every key its type; all mistakes are told at once. */
final class SettingsReader {
  private static final int SHOWN = 20;

  private final List<String> mistakes = new ArrayList<>();

  /**
   * Reads a whole recipe.
   *
   * @throws InputException with a line for each mistake
   */
  Settings read(YamlNode root) {
    Settings settings = group(RecipeSchema.ROOT, root, "");
    fail();
    return settings;
  }

  private void fail() {
    if (!mistakes.isEmpty()) {
      int others = mistakes.size() - SHOWN;
      throw new InputException(
          String.join("\n  ", mistakes.subList(0, Math.min(SHOWN, mistakes.size())))
              + (others > 0 ? "\n  and " + others + " other mistakes" : ""));
    }
  }

  private void wrong(Place place, String path, String what) {
    mistakes.add(place + ": " + (path.isEmpty() ? "" : path + ": ") + what);
  }

  private static String join(String path, String key) {
    return path.isEmpty() ? key : path + "." + key;
  }

  private Settings group(Group type, YamlNode node, String path) {
    Settings settings = new Settings(path, node.place());
    if (node instanceof YamlNode.Scalar s && s.isNull()) {
      node = YamlNode.Mapping.empty(node.place());
    }
    if (!(node instanceof YamlNode.Mapping mapping)) {
      wrong(node.place(), path, node.describe() + " where " + type.describe() + " is expected");
      return settings;
    }
    keys(type.keys(), Set.of(), mapping, path, settings);
    return settings;
  }

  private void keys(
      List<Key> keys,
      Set<String> others,
      YamlNode.Mapping mapping,
      String path,
      Settings settings) {
    List<String> names = new ArrayList<>(others);
    keys.forEach(key -> names.add(key.name()));
    mapping
        .keys()
        .forEach(
            (key, place) -> {
              if (!names.contains(key)) {
                wrong(
                    place,
                    path,
                    "there is no key '" + key + "'; near it: " + NearNames.list(key, names));
              }
            });
    for (Key key : keys) {
      YamlNode value = mapping.entries().get(key.name());
      String at = join(path, key.name());
      // A group of defaults stays one without its keys; what has no default is as if not written.
      boolean isNothing =
          value instanceof YamlNode.Scalar s
              && s.isNull()
              && !(key.type() instanceof Group && (key.required() || key.fallback() != null));
      if (value == null || isNothing) {
        if (key.required()) {
          wrong(
              value == null ? mapping.place() : value.place(),
              at,
              "missing; it takes " + key.type().describe());
        } else if (key.fallback() != null) {
          YamlNode written = YamlReader.read("the schema", false, key.fallback());
          settings.put(key.name(), value(key.type(), written, at), mapping.place(), false);
        }
        continue;
      }
      Object read = value(key.type(), value, at);
      if (read != null) {
        settings.put(key.name(), read, mapping.keys().get(key.name()), true);
      }
    }
  }

  /** The value, or null after a mistake. */
  private Object value(SettingType type, YamlNode node, String path) {
    if (type instanceof Group group) {
      return group(group, node, path);
    }
    if (type instanceof Variants variants) {
      return stages(variants, node, path);
    }
    if (type instanceof ListOf list) {
      List<YamlNode> items = node instanceof YamlNode.Sequence s ? s.items() : List.of(node);
      List<Object> values = new ArrayList<>();
      for (YamlNode item : items) {
        Object value = value(list.item(), item, path);
        if (value != null) {
          values.add(value);
        }
      }
      return values;
    }
    if (!(node instanceof YamlNode.Scalar scalar)) {
      wrong(node.place(), path, node.describe() + "; it takes " + type.describe());
      return null;
    }
    Object value = scalar(type, scalar.text());
    if (value == null) {
      String near =
          type instanceof Choice c ? "; near it: " + NearNames.list(scalar.text(), c.words()) : "";
      wrong(node.place(), path, scalar.describe() + "; it takes " + type.describe() + near);
    }
    return value;
  }

  private static Object scalar(SettingType type, String text) {
    try {
      if (type instanceof Text) {
        return text.isBlank() ? null : text;
      } else if (type instanceof Choice choice) {
        return choice.words().contains(text) ? text : null;
      } else if (type instanceof Flag) {
        return text.equals("true") ? Boolean.TRUE : text.equals("false") ? Boolean.FALSE : null;
      } else if (type instanceof Whole whole) {
        long value = Long.parseLong(text);
        return value >= whole.least() && value <= whole.most() ? (Object) value : null;
      }
      // Java's own syntax knows «1f» and «0x1p3» too.
      if (!text.matches("[+-]?(\\d+(\\.\\d*)?|\\.\\d+)([eE][+-]?\\d+)?")) {
        return null;
      }
      double value = Double.parseDouble(text);
      return ((Real) type).holds(value) ? (Object) value : null;
    } catch (NumberFormatException e) {
      return null;
    }
  }

  private Object stages(Variants type, YamlNode node, String path) {
    if (!(node instanceof YamlNode.Sequence list) || list.items().isEmpty()) {
      wrong(node.place(), path, "it takes " + type.describe());
      return null;
    }
    List<String> kinds = type.variants().stream().map(Variant::kind).toList();
    List<Settings> stages = new ArrayList<>();
    Set<String> names = new LinkedHashSet<>();
    for (YamlNode item : list.items()) {
      if (!(item instanceof YamlNode.Mapping mapping)) {
        wrong(item.place(), path, item.describe() + "; a stage begins with «- kind: …»");
        continue;
      }
      YamlNode kind = mapping.entries().get("kind");
      String given = kind instanceof YamlNode.Scalar s ? s.text() : null;
      if (!kinds.contains(given)) {
        Place place = kind == null ? mapping.place() : kind.place();
        wrong(
            place,
            path + ".kind",
            (given == null ? "missing" : "there is no kind '" + given + "'")
                + "; it is one of "
                + String.join(", ", kinds));
        continue;
      }
      String name = stageName(mapping, given);
      Settings stage = new Settings(name, mapping.place());
      stage.put("kind", given, kind.place(), true);
      keys(type.variants().get(kinds.indexOf(given)).keys(), Set.of("kind"), mapping, name, stage);
      stage.put("name", name, stage.place("name"), stage.given("name"));
      if (!name.matches("[A-Za-z][A-Za-z0-9_-]*")) {
        wrong(
            stage.place("name"),
            path,
            "the name '" + name + "'; letters, digits, - and _ make one");
      } else if (RecipeSchema.ROOT.keys().stream().anyMatch(k -> k.name().equals(name))) {
        wrong(stage.place("name"), path, "the name '" + name + "' is a key of the recipe");
      } else if (!names.add(name)) {
        wrong(
            stage.place("name"),
            path,
            "two stages have the name '" + name + "'; name: tells them apart");
      }
      stages.add(stage);
    }
    return stages;
  }

  /** What a stage is called. */
  static String stageName(YamlNode.Mapping stage, String kind) {
    return stage.entries().get("name") instanceof YamlNode.Scalar s && !s.isNull()
        ? s.text()
        : kind;
  }
}

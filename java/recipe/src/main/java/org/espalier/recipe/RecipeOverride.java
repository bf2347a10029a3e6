package org.espalier.recipe;

import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import org.espalier.InputException;
import org.espalier.format.NearNames;

/** A value that {@code --set} gives a key of a recipe: {@code stage.key=value} or {@code section.key=value}. */
final class RecipeOverride {
  /** What messages call it. */
  private final String source;

  private final String[] path;
  private final YamlNode value;

  /**
   * @throws InputException if it has another form
   */
  RecipeOverride(String given) {
    source = "--set " + given;
    int equals = given.indexOf('=');
    if (equals <= 0) {
      throw new InputException(
          source + ": it takes stage.key=value or section.key=value, as qat.steps=100 or seed=2");
    }
    path = given.substring(0, equals).strip().split("\\.", -1);
    value = YamlReader.read(source, false, given.substring(equals + 1));
  }

  /**
   * Puts the value into a recipe, in place of what stands there.
   *
   * @throws InputException if the recipe has no such stage or section
   */
  void apply(YamlNode recipe) {
    YamlNode.Mapping root = mapping(recipe);
    Map<String, YamlNode.Mapping> stages = stages(root);
    YamlNode.Mapping stage = stages.get(path[0]);
    if (stage == null) {
      requireSection(stages);
      put(root, 0);
    } else if (path.length == 1) {
      throw new InputException(source + ": which key of the stage '" + path[0] + "'?");
    } else {
      put(stage, 1);
    }
  }

  /** The stages by their names; of several of one name the first. */
  private static Map<String, YamlNode.Mapping> stages(YamlNode.Mapping root) {
    Map<String, YamlNode.Mapping> stages = new LinkedHashMap<>();
    if (root.entries().get("stages") instanceof YamlNode.Sequence list) {
      for (YamlNode item : list.items()) {
        if (item instanceof YamlNode.Mapping m
            && m.entries().get("kind") instanceof YamlNode.Scalar kind) {
          stages.putIfAbsent(SettingsReader.stageName(m, kind.text()), m);
        }
      }
    }
    return stages;
  }

  private void requireSection(Map<String, YamlNode.Mapping> stages) {
    List<String> names = new ArrayList<>();
    RecipeSchema.ROOT.keys().forEach(key -> names.add(key.name()));
    names.remove("stages");
    if (!names.contains(path[0])) {
      names.addAll(stages.keySet());
      throw new InputException(
          source
              + ": there is no stage or section '"
              + path[0]
              + "'; near it: "
              + NearNames.list(path[0], names));
    }
  }

  /** Puts the value where the path leads from {@code group} on; groups that are missing are made. */
  private void put(YamlNode.Mapping group, int from) {
    YamlNode.Mapping at = group;
    for (String key : List.of(path).subList(from, path.length - 1)) {
      YamlNode next = at.entries().get(key);
      if (next == null || next instanceof YamlNode.Scalar s && s.isNull()) {
        next = YamlNode.Mapping.empty(new Place(source, 0));
        at.put(key, next, next.place());
      }
      at = mapping(next);
    }
    at.put(path[path.length - 1], value, new Place(source, 0));
  }

  private YamlNode.Mapping mapping(YamlNode node) {
    if (node instanceof YamlNode.Mapping mapping) {
      return mapping;
    }
    throw new InputException(
        source
            + ": "
            + node.place()
            + " has "
            + node.describe()
            + " where a group of keys is expected");
  }
}

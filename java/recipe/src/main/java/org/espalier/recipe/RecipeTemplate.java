package org.espalier.recipe;

import java.util.HashMap;
import java.util.List;
import java.util.Map;
import org.espalier.recipe.SettingType.Group;
import org.espalier.recipe.SettingType.Key;
import org.espalier.recipe.SettingType.Variant;
import org.espalier.recipe.SettingType.Variants;

/** A recipe to start from: what is given, and all other keys as comments. */
final class RecipeTemplate {
  private RecipeTemplate() {}

  /** See {@link RecipeSchema#template}. */
  static String of(String model, String kind, String data, String stage, Map<String, String> more) {
    StringBuilder out = new StringBuilder();
    out.append(
        "# A recipe for 'espalier compress'. Keys behind # show what stands by default, or may be"
            + " added.\n");
    Map<String, String> given = new HashMap<>(more);
    given.put("model.file", quote(model));
    given.put("data." + kind, quote(data));
    given.put(stage + ".steps", "200");
    for (Key key : RecipeSchema.ROOT.keys()) {
      out.append("\n# ").append(key.description()).append("\n");
      if (key.type() instanceof Variants variants) {
        out.append(key.name()).append(":\n");
        for (Variant v : variants.variants()) {
          boolean used = v.kind().equals(stage);
          String lead = used ? "" : "# ";
          out.append("  # ").append(v.description()).append("\n");
          out.append("  ").append(lead).append("- kind: ").append(v.kind()).append("\n");
          template(v.keys(), "    ", v.kind() + ".", used ? given : null, out);
        }
      } else if (key.type() instanceof Group group) {
        boolean used =
            group.keys().stream().anyMatch(k -> given.containsKey(key.name() + "." + k.name()));
        out.append(used ? "" : "# ").append(key.name()).append(":\n");
        template(group.keys(), "  ", key.name() + ".", used ? given : null, out);
      } else {
        out.append(key.name()).append(": ").append(key.fallback()).append("\n");
      }
    }
    return out.toString();
  }

  private static void template(
      List<Key> keys, String indent, String path, Map<String, String> given, StringBuilder out) {
    for (Key key : keys) {
      String value = given == null ? null : given.get(path + key.name());
      String shown = value != null ? value : key.fallback() == null ? "" : key.fallback();
      String line = key.name() + ":" + (shown.isEmpty() ? "" : " " + shown);
      if (key.type() instanceof Group group) {
        out.append(indent)
            .append(value == null ? "# " : "")
            .append(line)
            .append("  # ")
            .append(key.description())
            .append("\n");
        template(group.keys(), indent + "  ", path + key.name() + ".", null, out);
      } else {
        out.append(indent).append(value == null ? "# " : "").append(line);
        out.append("  # ").append(key.description()).append("\n");
      }
    }
  }

  /** Text in the double quotes of YAML. */
  private static String quote(String text) {
    return "\"" + text.replace("\\", "\\\\").replace("\"", "\\\"").replace("\n", "\\n") + "\"";
  }
}

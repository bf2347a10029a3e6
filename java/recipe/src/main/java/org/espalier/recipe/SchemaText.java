package org.espalier.recipe;

import java.util.List;
import org.espalier.recipe.SettingType.Group;
import org.espalier.recipe.SettingType.Key;
import org.espalier.recipe.SettingType.Variant;
import org.espalier.recipe.SettingType.Variants;

/** The keys of recipes for people to read. */
final class SchemaText {
  private SchemaText() {}

  static String of(Group root) {
    StringBuilder out = new StringBuilder();
    describe(root.keys(), "", out);
    return out.toString();
  }

  private static void describe(List<Key> keys, String indent, StringBuilder out) {
    for (Key key : keys) {
      boolean nested = key.type() instanceof Group || key.type() instanceof Variants;
      out.append(indent).append(key.name()).append(nested ? ":" : ": " + key.type().describe());
      if (key.required()) {
        out.append(" (required)");
      } else if (key.fallback() != null && !key.fallback().isEmpty()) {
        out.append(" (default ").append(key.fallback()).append(")");
      }
      out.append("\n").append(indent).append("    ").append(key.description()).append("\n");
      if (key.type() instanceof Group group) {
        describe(group.keys(), indent + "  ", out);
      } else if (key.type() instanceof Variants variants) {
        for (Variant v : variants.variants()) {
          out.append(indent).append("  - kind: ").append(v.kind()).append("\n");
          out.append(indent).append("        ").append(v.description()).append("\n");
          describe(v.keys(), indent + "    ", out);
        }
      }
    }
  }
}

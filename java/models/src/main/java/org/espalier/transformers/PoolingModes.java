package org.espalier.transformers;

import com.fasterxml.jackson.databind.JsonNode;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import org.espalier.InputException;
import org.espalier.format.JsonFile;
import org.espalier.format.Names;

/** What the {@code config.json} of a module Pooling of sentence-transformers names: how states of tokens become one. */
public final class PoolingModes {
  private static final int MOST_BYTES = 1 << 20;

  /** The modes, by the key that says of each whether it is one, in the order in which several lie in an embedding. */
  private static final Map<String, String> MODES = new LinkedHashMap<>();

  static {
    MODES.put("pooling_mode_cls_token", "cls");
    MODES.put("pooling_mode_max_tokens", "max");
    MODES.put("pooling_mode_mean_tokens", "mean");
    MODES.put("pooling_mode_mean_sqrt_len_tokens", "mean_sqrt_len_tokens");
    MODES.put("pooling_mode_weightedmean_tokens", "weightedmean");
    MODES.put("pooling_mode_lasttoken", "lasttoken");
  }

  private PoolingModes() {}

  /**
   * Reads the modes, in the order in which they lie in an embedding.
   *
   * @throws InputException if the file names none that there is
   */
  public static List<String> read(Path file) {
    JsonNode root = JsonFile.read(file, MOST_BYTES);
    if (!root.isObject()) {
      throw new InputException(file + " is not a JSON object");
    }
    List<String> given = root.has("pooling_mode") ? named(file, root) : flagged(file, root);
    return given.isEmpty()
        ? List.of("mean")
        : MODES.values().stream().filter(given::contains).toList();
  }

  /** As the library writes them today: one text or a list. */
  private static List<String> named(Path file, JsonNode root) {
    JsonNode given = root.get("pooling_mode");
    List<String> modes = new ArrayList<>();
    for (JsonNode mode : given.isArray() ? given : List.of(given)) {
      if (!mode.isTextual() || !MODES.containsValue(mode.textValue())) {
        throw new InputException(
            file
                + ": pooling_mode is "
                + Names.quote(mode.asText())
                + "; one or several of "
                + String.join(", ", MODES.values())
                + " are right");
      }
      modes.add(mode.textValue());
    }
    return modes;
  }

  /** As it wrote them before: true or false of each. */
  private static List<String> flagged(Path file, JsonNode root) {
    List<String> modes = new ArrayList<>();
    MODES.forEach(
        (key, mode) -> {
          JsonNode flag = root.path(key);
          if (!flag.isMissingNode() && !flag.isBoolean()) {
            throw new InputException(
                file
                    + ": "
                    + key
                    + " is "
                    + Names.quote(flag.toString())
                    + "; true or false is right");
          }
          if (flag.booleanValue()) {
            modes.add(mode);
          }
        });
    return modes;
  }
}

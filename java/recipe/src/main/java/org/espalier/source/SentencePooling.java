package org.espalier.source;

import com.fasterxml.jackson.databind.JsonNode;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import org.espalier.InputException;
import org.espalier.evaluate.Pooling;
import org.espalier.format.JsonFile;
import org.espalier.format.Names;

/**
 * How a model of sentence-transformers makes an embedding of the states of a text's tokens.
 *
 * @param modules its {@code modules.json}
 * @param folder where that says that the next one lies; empty for its own folder
 * @param file the {@code config.json} of its module Pooling
 * @param modes what that names; several are one behind the other
 * @param others kinds of modules that are not computed here
 */
public record SentencePooling(
    Path modules, String folder, Path file, List<String> modes, List<String> others) {
  private static final int MOST_BYTES = 1 << 20;

  /** The modes, by the key that says of each whether it is one. */
  private static final Map<String, String> MODES = new LinkedHashMap<>();

  /** Those that are computed here. Embeddings have the length 1, so what the sum is divided by does not matter. */
  private static final Map<String, Pooling> KNOWN =
      Map.of(
          "cls", Pooling.CLS,
          "mean", Pooling.MEAN,
          "mean_sqrt_len_tokens", Pooling.MEAN,
          "lasttoken", Pooling.LAST);

  static {
    MODES.put("pooling_mode_cls_token", "cls");
    MODES.put("pooling_mode_max_tokens", "max");
    MODES.put("pooling_mode_mean_tokens", "mean");
    MODES.put("pooling_mode_mean_sqrt_len_tokens", "mean_sqrt_len_tokens");
    MODES.put("pooling_mode_weightedmean_tokens", "weightedmean");
    MODES.put("pooling_mode_lasttoken", "lasttoken");
  }

  public SentencePooling {
    modes = List.copyOf(modes);
    others = List.copyOf(others);
  }

  /**
   * Reads the modes that the file of a module Pooling names.
   *
   * @throws InputException if it is none
   */
  static List<String> modes(Path file) {
    JsonNode root = JsonFile.read(file, MOST_BYTES);
    if (!root.isObject()) {
      throw new InputException(file + " is not a JSON object");
    }
    List<String> modes = root.has("pooling_mode") ? named(file, root) : flagged(file, root);
    return modes.isEmpty() ? List.of("mean") : modes;
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

  /** What the model is made for; null where that is not computed here. */
  public Pooling pooling() {
    return modes.size() == 1 ? KNOWN.get(modes.get(0)) : null;
  }

  /**
   * What to say where the states of its tokens are pooled.
   *
   * @param taken how
   */
  List<String> notes(Pooling taken) {
    List<String> notes = new ArrayList<>();
    if (taken == pooling()) {
      notes.add("states of tokens are pooled by " + taken + ", as " + file + " says");
    } else {
      notes.add(
          "states of tokens are pooled by "
              + taken
              + "; the model is made for another pooling, "
              + String.join(" and ", modes)
              + (pooling() == null ? ", which is not computed here" : "")
              + " ("
              + file
              + "): its embeddings are others than these");
    }
    if (!others.isEmpty()) {
      notes.add(
          modules
              + " names modules that are not computed here ("
              + String.join(", ", others)
              + "): the model's embeddings are others than these");
    }
    return notes;
  }
}

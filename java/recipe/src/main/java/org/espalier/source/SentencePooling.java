package org.espalier.source;

import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import org.espalier.evaluate.Pooling;

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
  /** Those that are computed here. Embeddings have the length 1, so what the sum is divided by does not matter. */
  private static final Map<String, Pooling> KNOWN =
      Map.of(
          "cls", Pooling.CLS,
          "mean", Pooling.MEAN,
          "mean_sqrt_len_tokens", Pooling.MEAN,
          "lasttoken", Pooling.LAST);

  public SentencePooling {
    modes = List.copyOf(modes);
    others = List.copyOf(others);
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

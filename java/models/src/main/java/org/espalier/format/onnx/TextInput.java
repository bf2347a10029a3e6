package org.espalier.format.onnx;

import java.util.Arrays;
import java.util.List;
import java.util.Locale;

/**
 * The inputs of models that read texts as tokens, by the names that exporters give them. Each is int64 [texts,
 * tokens], and 0 where a text is padded behind its end.
 */
public enum TextInput {
  /** Vocabulary indices. */
  INPUT_IDS,
  /** 1 for a token. */
  ATTENTION_MASK,
  /** Which part of a text a token is of, from 0. */
  TOKEN_TYPE_IDS,
  /** Where in its text a token is, from 0. */
  POSITION_IDS;

  /** What models call it. */
  public String inputName() {
    return name().toLowerCase(Locale.ROOT);
  }

  /** The input that models call so; null where there is none. */
  public static TextInput of(String name) {
    return Arrays.stream(values()).filter(i -> i.inputName().equals(name)).findAny().orElse(null);
  }

  /** What models call them. */
  public static List<String> names() {
    return Arrays.stream(values()).map(TextInput::inputName).toList();
  }

  /**
   * Writes a text of one part into a padded row.
   *
   * @param ids of the text
   * @param rows receives as many values from {@code at} on
   */
  public void write(long[] ids, long[] rows, int at) {
    for (int t = 0; t < ids.length; t++) {
      rows[at + t] =
          switch (this) {
            case INPUT_IDS -> ids[t];
            case ATTENTION_MASK -> 1;
            case TOKEN_TYPE_IDS -> 0;
            case POSITION_IDS -> t;
          };
    }
  }
}

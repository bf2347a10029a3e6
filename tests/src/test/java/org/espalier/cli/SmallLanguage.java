package org.espalier.cli;

import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import java.util.Random;

/**
 * A language of 40 words, each of which may be followed by two others, one of them three times as often: the best
 * perplexity is exp(0.5623) = 1.755.
 */
public final class SmallLanguage {
  public static final int WORDS = 40;

  /** Of the tokenizer: the words and one for all that is unknown. */
  public static final int VOCABULARY = WORDS + 1;

  private SmallLanguage() {}

  /** Writes tokenizer.json, and texts.txt of 3,000 texts. */
  public static void write(Path folder) throws IOException {
    StringBuilder vocabulary = new StringBuilder("\"[UNK]\": 0");
    for (int w = 0; w < WORDS; w++) {
      vocabulary.append(", \"").append(word(w)).append("\": ").append(w + 1);
    }
    Files.writeString(
        folder.resolve("tokenizer.json"),
        """
        {"version": "1.0", "truncation": null, "padding": null, "added_tokens": [],
         "normalizer": null, "pre_tokenizer": {"type": "WhitespaceSplit"},
         "post_processor": null, "decoder": null,
         "model": {"type": "WordLevel", "unk_token": "[UNK]", "vocab": {%s}}}
        """
            .formatted(vocabulary));
    Files.write(folder.resolve("texts.txt"), texts(3000, 3));
  }

  static String word(int w) {
    return "w" + w;
  }

  /** Some texts of the language. */
  public static List<String> texts(int n, long seed) {
    Random random = new Random(seed);
    List<String> texts = new ArrayList<>();
    for (int i = 0; i < n; i++) {
      int w = random.nextInt(WORDS);
      StringBuilder text = new StringBuilder(word(w));
      for (int left = 4 + random.nextInt(16); left > 0; left--) {
        w = (random.nextInt(4) > 0 ? 7 * w + 3 : 7 * w + 11) % WORDS;
        text.append(' ').append(word(w));
      }
      texts.add(text.toString());
    }
    return texts;
  }
}

package org.espalier.cli;

import ai.onnxruntime.OnnxTensor;
import ai.onnxruntime.OrtEnvironment;
import ai.onnxruntime.OrtException;
import ai.onnxruntime.OrtSession;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.Random;
import java.util.stream.Stream;
import org.espalier.format.onnx.TextInput;

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

  /** What a model gives for a padded batch of texts. */
  public static Map<String, float[][]> run(Path file, List<String> texts) throws OrtException {
    int longest = texts.stream().mapToInt(t -> t.split(" ").length).max().orElseThrow();
    Map<String, long[][]> rows = new HashMap<>();
    for (TextInput input : TextInput.values()) {
      long[][] padded = new long[texts.size()][longest];
      for (int i = 0; i < padded.length; i++) {
        long[] ids =
            Stream.of(texts.get(i).split(" "))
                .mapToLong(word -> Long.parseLong(word.substring(1)) + 1)
                .toArray();
        input.write(ids, padded[i], 0);
      }
      rows.put(input.inputName(), padded);
    }
    OrtEnvironment environment = OrtEnvironment.getEnvironment();
    Map<String, OnnxTensor> fed = new HashMap<>();
    Map<String, float[][]> all = new HashMap<>();
    try (OrtSession session = environment.createSession(file.toString())) {
      for (String input : session.getInputNames()) {
        fed.put(input, OnnxTensor.createTensor(environment, rows.get(input)));
      }
      try (OrtSession.Result result = session.run(fed)) {
        for (var entry : result) {
          all.put(entry.getKey(), (float[][]) entry.getValue().getValue());
        }
      }
    } finally {
      fed.values().forEach(OnnxTensor::close);
    }
    return all;
  }
}

package org.espalier.evaluate;

import java.util.ArrayList;
import java.util.Collection;
import java.util.LinkedHashMap;
import java.util.LinkedHashSet;
import java.util.List;
import java.util.Map;
import java.util.Set;
import org.espalier.InputException;
import org.espalier.compress.onnx.Answers;
import org.espalier.evaluate.TextTokenizer.Tokens;
import org.espalier.format.onnx.OnnxModel;

/** Whether a model of fewer tokens gives for texts of these what it gave. */
public final class VocabularyCheck {
  /** Of sums in another order a model's outputs may move by so much of their norm. */
  private static final double MOST = 1e-3;

  private VocabularyCheck() {}

  /** Values with their last axis. */
  private record Output(float[] values, int last) {}

  /**
   * Compares a model with what was made of it.
   *
   * @param kept the numbers of the tokens that stay, by their new ones
   * @param texts of these tokens alone
   * @throws InputException where they differ, or the models do not run
   */
  public static void compare(
      OnnxModel original,
      TextTokenizer before,
      OnnxModel made,
      TextTokenizer after,
      int[] kept,
      List<String> texts) {
    Set<String> outputs = new LinkedHashSet<>(Answers.of(original));
    List<Map<String, Output>> expected = run(original, before, outputs, texts);
    List<Map<String, Output>> actual = run(made, after, outputs, texts);
    for (String output : outputs) {
      double difference = 0;
      double square = 0;
      for (int t = 0; t < texts.size(); t++) {
        float[] e = values(expected.get(t).get(output), actual.get(t).get(output), kept);
        float[] a = actual.get(t).get(output).values();
        for (int i = 0; i < a.length; i++) {
          difference += ((double) a[i] - e[i]) * ((double) a[i] - e[i]);
          square += (double) e[i] * e[i];
        }
      }
      if (!(Math.sqrt(difference) <= MOST * Math.sqrt(square))) {
        throw new InputException(
            original.name()
                + ": without the tokens that no text has its output "
                + output
                + " is off by "
                + Math.sqrt(difference / square)
                + " of its norm; the model does with tokens what is not known");
      }
    }
  }

  /** What is said of tokens, of those that stay. */
  private static float[] values(Output expected, Output actual, int[] kept) {
    if (expected.values().length == actual.values().length) {
      return expected.values();
    }
    float[] values = new float[actual.values().length];
    for (int i = 0; i < values.length; i++) {
      int row = i / actual.last();
      values[i] = expected.values()[row * expected.last() + kept[i % actual.last()]];
    }
    return values;
  }

  private static List<Map<String, Output>> run(
      OnnxModel model, TextTokenizer tokenizer, Collection<String> outputs, List<String> texts) {
    List<Map<String, Output>> results = new ArrayList<>();
    try (OnnxTextModel loaded = new OnnxTextModel(model, 1)) {
      for (String text : texts) {
        Tokens tokens = tokenizer.encode(text);
        Map<String, Output> result = new LinkedHashMap<>();
        loaded.run(
            List.of(tokens),
            Set.copyOf(outputs),
            (output, shape, values) -> {
              float[] copy = new float[values.remaining()];
              values.get(copy);
              result.put(output, new Output(copy, (int) shape[shape.length - 1]));
            });
        results.add(result);
      }
    }
    return results;
  }
}

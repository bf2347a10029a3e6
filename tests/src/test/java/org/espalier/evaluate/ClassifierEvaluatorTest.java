package org.espalier.evaluate;

import static org.junit.jupiter.api.Assertions.assertEquals;

import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Arrays;
import java.util.List;
import org.espalier.evaluate.TextTokenizer.Tokens;
import org.espalier.format.onnx.TaggerModel;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;

class ClassifierEvaluatorTest {
  @TempDir Path folder;

  private Path tagger(int seed) throws IOException {
    return Files.write(
        folder.resolve(seed + ".onnx"), TaggerModel.of(seed, 50, 16, 3).toByteArray());
  }

  private int changed(int... lengths) throws IOException {
    List<Tokens> texts =
        Arrays.stream(lengths)
            .mapToObj(
                n -> {
                  long[] ones = new long[n];
                  Arrays.fill(ones, 1);
                  return new Tokens(ones, ones, new long[n], null);
                })
            .toList();
    List<long[]> labels = texts.stream().map(Tokens::types).toList();
    try (ModelPair pair =
        new ModelPair(
            MeasuredModel.of(tagger(3)),
            MeasuredModel.of(tagger(4)),
            ExampleTensors.ofTexts(texts))) {
      return ClassifierEvaluator.evaluate(pair, labels, List.of(), (phase, done, all) -> {})
          .changed()
          .size();
    }
  }

  /** A text of one token is no example with one label where others have several. */
  @Test
  void answersOfTokensAreNotShown() throws IOException {
    assertEquals(0, changed(1, 4));
    assertEquals(2, changed(1, 1));
  }
}

package org.espalier.evaluate;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.io.IOException;
import java.io.InputStream;
import java.net.JarURLConnection;
import java.net.URISyntaxException;
import java.net.URL;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Arrays;
import java.util.List;
import java.util.Map;
import org.espalier.InputException;
import org.espalier.compress.Progress;
import org.espalier.compress.onnx.Clipping;
import org.espalier.compress.onnx.DynamicQuantizer;
import org.espalier.compress.onnx.RuntimeRuns;
import org.espalier.compress.onnx.StaticQuantizer;
import org.espalier.format.onnx.OnnxModel;
import org.junit.jupiter.api.BeforeAll;
import org.junit.jupiter.api.Tag;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;

/**
 * A real sentence encoder, quantized and compared with its original on texts it was not fitted to.
 */
@Tag("loops")
class MiniLmFidelityTest {
  @TempDir static Path folder;

  private static Path original;
  private static Path tokenizerFile;
  private static List<String> fitting;
  private static List<String> held;

  @BeforeAll
  static void unpack() throws IOException, URISyntaxException {
    original = resource("all-minilm-l6-v2.onnx");
    tokenizerFile = resource("all-minilm-l6-v2-tokenizer.json");
    URL nouns = MiniLmFidelityTest.class.getResource("/net/sf/extjwnl/data/wordnet/wn31/data.noun");
    Path wordNet = Path.of(((JarURLConnection) nouns.openConnection()).getJarFileURL().toURI());
    List<String> sentences = WordNetSentences.sample(wordNet, 164);
    fitting = sentences.subList(0, 64);
    held = sentences.subList(64, 164);
  }

  private static Path resource(String name) throws IOException {
    Path file = folder.resolve(name);
    try (InputStream in = MiniLmFidelityTest.class.getResourceAsStream("/" + name)) {
      Files.copy(in, file);
    }
    return file;
  }

  @Test
  void aCalibratedModelStaysFaithfulAndSmall() {
    Path small = folder.resolve("int8.onnx");
    try (TextTokenizer tokenizer = new TextTokenizer(tokenizerFile, 256)) {
      OnnxModel model = OnnxModel.read(original);
      DynamicQuantizer q = new DynamicQuantizer(model, RuntimeRuns.exactDynamic());
      q.calibrate(new TextActivations(tokenizer, fitting, 2));
      q.apply();
      model.write(small);
      Fidelity f =
          new FidelityEvaluator(tokenizer, Pooling.MEAN)
              .evaluate(MeasuredModel.of(original), MeasuredModel.of(small), held, Progress.NONE);
      Map<String, Object> report = f.toMap();
      assertEquals(100, f.texts());
      // An eighth of the calibration that the command uses; without any it is 0.993.
      assertTrue(f.cosineMean() >= 0.997 && f.cosineMean() < 0.99999, report.toString());
      assertTrue(f.cosineMin() <= f.cosineP5() && f.cosineP5() <= f.cosineMean());
      assertTrue(f.pairSpearman() >= 0.99, report.toString());
      assertTrue(f.neighbourAgreement() >= 0.85, report.toString());
      assertTrue(f.savings().sizeRatio() <= 0.255, report.toString());
      assertTrue(f.savings().speedup() > 0, report.toString());
      // Dynamic quantization depends on the batch, but not much once channels are equalized.
      assertTrue(f.batchCosineMean() > 0.99 && f.batchCosineMean() < 1, report.toString());
    }
  }

  @Test
  void aStaticModelStaysFaithfulWhateverTheBatch() {
    Path small = folder.resolve("qdq.onnx");
    try (TextTokenizer tokenizer = new TextTokenizer(tokenizerFile, 256)) {
      OnnxModel model = OnnxModel.read(original);
      StaticQuantizer q = new StaticQuantizer(model, RuntimeRuns.exactStatic());
      // 36 linear layers, the pooler and three embedding tables.
      assertEquals(40, q.quantized().size());
      assertEquals(Map.of(), q.skipped());
      q.apply(q.calibrate(new TextActivations(tokenizer, fitting, 2), new Clipping.MinMax()));
      model.write(small);
      Fidelity f =
          new FidelityEvaluator(tokenizer, Pooling.MEAN)
              .evaluate(MeasuredModel.of(original), MeasuredModel.of(small), held, Progress.NONE);
      Map<String, Object> report = f.toMap();
      // 0.998 with the examples that the command uses; without fitting it is 0.992.
      assertTrue(f.cosineMean() >= 0.996 && f.cosineMean() < 0.99999, report.toString());
      assertTrue(f.savings().sizeRatio() <= 0.255, report.toString());
      assertTrue(f.savings().speedup() > 0, report.toString());
      // Ranges are fixed: the batch changes a result only where float32 rounding moves a step.
      assertTrue(f.batchCosineMean() > 0.999, report.toString());
    }
  }

  @Test
  void aModelAgreesWithItselfWhateverTheBatch() {
    try (TextTokenizer tokenizer = new TextTokenizer(tokenizerFile, 256)) {
      Fidelity f =
          new FidelityEvaluator(tokenizer, Pooling.CLS)
              .evaluate(
                  MeasuredModel.of(original),
                  MeasuredModel.of(original),
                  held.subList(0, 12),
                  Progress.NONE);
      assertEquals(1, f.cosineMin(), 1e-9);
      assertEquals(1, f.neighbourAgreement());
      assertEquals(1, f.savings().sizeRatio());
      // Padding changes float32 sums by rounding only.
      assertEquals(1, f.batchCosineMean(), 1e-5);
    }
  }

  @Test
  void longTextsAreCutAndBrokenTokenizersNamed() throws IOException {
    try (TextTokenizer tokenizer = new TextTokenizer(tokenizerFile, 16)) {
      assertEquals(16, tokenizer.encode("word ".repeat(100)).length());
      // [CLS] hello world [SEP]
      assertEquals(
          List.of(101L, 7592L, 2088L, 102L),
          Arrays.stream(tokenizer.encode("Hello world").ids()).boxed().toList());
    }
    Path broken = Files.writeString(folder.resolve("broken.json"), "{");
    InputException e = assertThrows(InputException.class, () -> new TextTokenizer(broken, 16));
    assertTrue(e.getMessage().contains("broken.json"), e.getMessage());
  }
}

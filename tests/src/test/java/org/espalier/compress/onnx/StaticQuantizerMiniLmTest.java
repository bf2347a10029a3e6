package org.espalier.compress.onnx;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertTrue;

import ai.onnxruntime.OnnxTensor;
import ai.onnxruntime.OrtEnvironment;
import ai.onnxruntime.OrtException;
import ai.onnxruntime.OrtSession;
import java.io.IOException;
import java.io.InputStream;
import java.nio.LongBuffer;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import java.util.Random;
import org.espalier.evaluate.TensorActivations;
import org.espalier.format.onnx.OnnxModel;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;

/** A real transformer, MiniLM-L6, on random token ids: it needs no tokenizer to be compared. */
class StaticQuantizerMiniLmTest {
  @TempDir Path folder;

  private static Map<String, OnnxTensor> tokens(long seed) throws OrtException {
    Random random = new Random(seed);
    int n = 8 + random.nextInt(40);
    long[] ids = new long[n];
    long[] ones = new long[n];
    for (int i = 0; i < n; i++) {
      ids[i] = i == 0 ? 101 : i == n - 1 ? 102 : 1000 + random.nextInt(20_000);
      ones[i] = 1;
    }
    return Map.of(
        "input_ids",
        tensor(ids),
        "attention_mask",
        tensor(ones),
        "token_type_ids",
        tensor(new long[n]));
  }

  private static OnnxTensor tensor(long[] values) throws OrtException {
    return OnnxTensor.createTensor(
        OrtEnvironment.getEnvironment(), LongBuffer.wrap(values), new long[] {1, values.length});
  }

  private static double[] embed(OrtSession session, Map<String, OnnxTensor> in)
      throws OrtException {
    try (OrtSession.Result result = session.run(in)) {
      float[][] rows = ((float[][][]) result.get(0).getValue())[0];
      double[] sum = new double[rows[0].length];
      for (float[] row : rows) {
        for (int i = 0; i < sum.length; i++) {
          sum[i] += row[i];
        }
      }
      return sum;
    }
  }

  private static double cosine(double[] a, double[] b) {
    double ab = 0;
    double aa = 0;
    double bb = 0;
    for (int i = 0; i < a.length; i++) {
      ab += a[i] * b[i];
      aa += a[i] * a[i];
      bb += b[i] * b[i];
    }
    return ab / Math.sqrt(aa * bb);
  }

  @Test
  void answersStayClose() throws IOException, OrtException {
    Path file = folder.resolve("model.onnx");
    try (InputStream in = getClass().getResourceAsStream("/all-minilm-l6-v2.onnx")) {
      Files.copy(in, file);
    }
    OnnxModel model = OnnxModel.read(file);
    StaticQuantizer quantizer = new StaticQuantizer(model, StaticQuantizer.Options.defaults());
    // 36 linear layers, the pooler and three embedding tables.
    assertEquals(40, quantizer.quantized().size());
    assertTrue(quantizer.quantized().contains("encoder.layer.0.attention.self.query.weight"));
    assertEquals(Map.of(), quantizer.skipped());
    List<Map<String, OnnxTensor>> examples = new ArrayList<>();
    for (int i = 0; i < 24; i++) {
      examples.add(tokens(i));
    }
    quantizer.apply(
        quantizer.calibrate(new TensorActivations(examples, 2), new Clipping.MeanSquaredError()));
    Path small = folder.resolve("int8.onnx");
    model.write(small);
    assertTrue(Files.size(small) < 0.255 * Files.size(file), Files.size(small) + " bytes");
    OrtEnvironment environment = OrtEnvironment.getEnvironment();
    double sum = 0;
    try (OrtSession before = environment.createSession(file.toString());
        OrtSession after = environment.createSession(small.toString())) {
      for (int i = 0; i < 24; i++) {
        Map<String, OnnxTensor> in = tokens(1000 + i);
        double similarity = cosine(embed(before, in), embed(after, in));
        assertTrue(similarity > 0.98, "example " + i + ": " + similarity);
        sum += similarity;
      }
    }
    assertTrue(sum / 24 > 0.995, "mean cosine " + sum / 24);
  }
}

package org.espalier.cli;

import static org.espalier.cli.SmallLanguage.VOCABULARY;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertTrue;

import ai.onnx.proto.OnnxMl.ModelProto;
import ai.onnxruntime.OnnxTensor;
import ai.onnxruntime.OrtEnvironment;
import ai.onnxruntime.OrtException;
import ai.onnxruntime.OrtSession;
import com.fasterxml.jackson.databind.JsonNode;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Arrays;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.stream.Stream;
import org.espalier.format.onnx.OnnxModel;
import org.espalier.format.onnx.SmallDecoder;
import org.espalier.torch.Libtorch;
import org.espalier.transformers.SmallCheckpoint;
import org.junit.jupiter.api.BeforeEach;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.ValueSource;

/** Models that give logits of words for each token and see the whole text. */
class FillingModelsTest {
  @TempDir private Path folder;
  private Path checkpoint;
  private Path texts;

  @BeforeEach
  void makeCheckpoint() throws IOException {
    Libtorch.load();
    checkpoint = Files.createDirectory(folder.resolve("checkpoint"));
    SmallLanguage.write(checkpoint);
    texts = Files.write(folder.resolve("texts.txt"), SmallLanguage.texts(12, 8));
    SmallCheckpoint.writeFillingModel(checkpoint);
  }

  /** Logits [tokens][words] of one text. */
  private static float[][] logits(OrtSession session, String text) throws OrtException {
    long[] ids =
        Stream.of(text.split(" "))
            .mapToLong(word -> Long.parseLong(word.substring(1)) + 1)
            .toArray();
    long[] ones = new long[ids.length];
    Arrays.fill(ones, 1);
    OrtEnvironment environment = OrtEnvironment.getEnvironment();
    Map<String, OnnxTensor> fed = new HashMap<>();
    fed.put("input_ids", OnnxTensor.createTensor(environment, new long[][] {ids}));
    fed.put("attention_mask", OnnxTensor.createTensor(environment, new long[][] {ones}));
    try (OrtSession.Result result = session.run(fed)) {
      return ((float[][][]) result.get(0).getValue())[0];
    } finally {
      fed.values().forEach(OnnxTensor::close);
    }
  }

  private static double[] shares(float[] logits) {
    double largest = Double.NEGATIVE_INFINITY;
    for (float logit : logits) {
      largest = Math.max(largest, logit);
    }
    double sum = 0;
    double[] shares = new double[logits.length];
    for (int i = 0; i < shares.length; i++) {
      shares[i] = Math.exp(logits[i] - largest);
      sum += shares[i];
    }
    for (int i = 0; i < shares.length; i++) {
      shares[i] /= sum;
    }
    return shares;
  }

  private static int largest(float[] values) {
    int best = 0;
    for (int i = 1; i < values.length; i++) {
      best = values[i] > values[best] ? i : best;
    }
    return best;
  }

  @Test
  void whatIsSaidOfEachTokenIsCompared() throws Exception {
    Path onnx = folder.resolve("model.onnx");
    Path int4 = folder.resolve("int4.onnx");
    Run.of("export", checkpoint, "-o", onnx).done();
    Run.of("quantize", checkpoint, "-o", int4, "--to", "onnx-int4", "--calibration", texts).done();
    double divergence = 0;
    int same = 0;
    int tokens = 0;
    OrtEnvironment environment = OrtEnvironment.getEnvironment();
    try (OrtSession first = environment.createSession(onnx.toString());
        OrtSession second = environment.createSession(int4.toString())) {
      for (String text : Files.readAllLines(texts)) {
        float[][] a = logits(first, text);
        float[][] b = logits(second, text);
        for (int t = 0; t < a.length; t++) {
          double[] p = shares(a[t]);
          double[] q = shares(b[t]);
          for (int w = 0; w < p.length; w++) {
            divergence += p[w] * Math.log(p[w] / q[w]);
          }
          same += largest(a[t]) == largest(b[t]) ? 1 : 0;
          tokens++;
        }
      }
    }
    for (Path reference : List.of(onnx, checkpoint)) {
      JsonNode json = Run.of("evaluate", reference, int4, "--texts", texts, "--json").json();
      assertEquals(12, json.path("texts").asInt());
      assertEquals(tokens, json.path("tokens").asInt());
      assertEquals(divergence / tokens, json.path("kl").asDouble(), 1e-4 * divergence / tokens);
      assertEquals((double) same / tokens, json.path("agreement").asDouble(), 1e-9);
      assertTrue(divergence / tokens > 1e-3, json.toString());
      assertFalse(json.has("perplexity") || json.has("accuracy"), json.toString());
    }
    Run run = Run.of("evaluate", onnx, int4, "--texts", texts).done();
    assertTrue(run.err().contains("sees the whole of a text"), run.err());
    assertTrue(run.out().contains("same answer") && !run.out().contains("perplexity"), run.out());
    refused("perplexity is not measured here", onnx, int4, "--require", "perplexity <= 3");
    refused("is no causal language model", onnx, int4, "--task", "causal-lm");
    Run.of("evaluate", onnx, int4, "--texts", texts, "--task", "none").done();
    int code = Run.of("evaluate", onnx, int4, "--texts", texts, "--require", "kl <= 1e-9").code();
    assertEquals(3, code);
  }

  private void refused(String word, Path reference, Path candidate, String... more) {
    Object[] args = {"evaluate", reference, candidate, "--texts", texts};
    Object[] all = Stream.concat(Stream.of(args), Stream.of(more)).toArray();
    Run.refused(folder, new String[] {word}, all);
  }

  /** Ranges that int8 models find as they run come from all tokens: that moves logits, and is no looking ahead. */
  @ParameterizedTest
  @ValueSource(strings = {"onnx-dynamic", "onnx-int4", "onnx-float16"})
  void causalModelsAreStillSuch(String form) throws IOException {
    Path model =
        Files.write(
            checkpoint.resolve("model.onnx"), SmallDecoder.of(1, VOCABULARY, 32, 2).toByteArray());
    assertFalse(
        OnnxModel.read(model).inputs().stream().anyMatch(i -> i.getName().startsWith("past")));
    Path out = checkpoint.resolve("out.onnx");
    Run.of("quantize", model, "-o", out, "--to", form, "--calibration", texts).done();
    for (Path reference : List.of(model, out)) {
      JsonNode json = Run.of("evaluate", reference, out, "--texts", texts, "--json").json();
      assertTrue(json.path("perplexity").asDouble() > 1, json.toString());
    }
  }

  /** What a classifier of tokens gives has three dimensions and the same name. */
  @Test
  void taggersAreComparedToo() throws IOException {
    Path tagger = Files.createDirectory(folder.resolve("tagger"));
    SmallLanguage.write(tagger);
    SmallCheckpoint.writeTagger(tagger);
    JsonNode json = Run.of("evaluate", tagger, tagger, "--texts", texts, "--json").json();
    assertEquals(1, json.path("agreement").asDouble());
    assertEquals(0, json.path("kl").asDouble(), 1e-9);
    assertFalse(json.has("perplexity"), json.toString());
  }

  /** Of a number for each token all of a text's are compared, and where the largest is. */
  @Test
  void whatAnswersQuestionsIsComparedToo() throws IOException {
    Path answering = Files.createDirectory(folder.resolve("answering"));
    SmallLanguage.write(answering);
    SmallCheckpoint.writeAnswering(answering);
    Path int8 = folder.resolve("int8.onnx");
    Run.of("quantize", answering, "-o", int8, "--to", "onnx-dynamic", "--calibration", texts)
        .done();
    JsonNode json = Run.of("evaluate", answering, int8, "--texts", texts, "--json").json();
    JsonNode outputs = json.path("outputs");
    assertEquals(2, outputs.size(), json.toString());
    assertEquals("start_logits", outputs.path(0).path("name").asText());
    assertEquals("end_logits", outputs.path(1).path("name").asText());
    for (JsonNode output : outputs) {
      assertTrue(output.path("relative_error").asDouble() > 0, json.toString());
      assertTrue(output.path("agreement").asDouble() > 0.9, json.toString());
    }
  }

  /** Widths that texts choose are no embeddings', whatever they are called. */
  @Test
  void whatIsAsWideAsATextIsNoEmbedding() throws IOException {
    Path answering = Files.createDirectory(folder.resolve("answering"));
    SmallLanguage.write(answering);
    SmallCheckpoint.writeAnswering(answering);
    Path onnx = answering.resolve("model.onnx");
    Run.of("export", answering, "-o", onnx).done();
    ModelProto.Builder model = ModelProto.parseFrom(Files.readAllBytes(onnx)).toBuilder();
    model
        .getGraphBuilder()
        .getOutputBuilder(0)
        .getTypeBuilder()
        .getTensorTypeBuilder()
        .getShapeBuilder()
        .getDimBuilder(1)
        .setDimParam("width");
    Files.write(onnx, model.build().toByteArray());
    Run.refused(
        folder,
        new String[] {"model.onnx: the first output has the width", "so it is no embedding"},
        "evaluate",
        onnx,
        onnx,
        "--texts",
        texts);
  }

  @Test
  void recipesDoNotPredictWithThem() throws IOException {
    Path recipe = folder.resolve("recipe.yaml");
    Run.of("recipe", "init", "-o", recipe, "--model", "checkpoint", "--texts", "texts.txt").done();
    assertFalse(Files.readString(recipe).contains("\n  task: causal-lm"));
    Files.writeString(
        recipe,
        """
        model: {file: checkpoint}
        data: {texts: checkpoint/texts.txt, task: causal-lm, validation: 16, evaluation: 24}
        stages: [{kind: fine-tune, steps: 1}]
        """);
    for (String[] command :
        new String[][] {
          {"recipe", "check", recipe.toString()},
          {"compress", recipe.toString(), "-o", folder.resolve("out").toString()}
        }) {
      Run.refused(folder, new String[] {"is no causal language model"}, (Object[]) command);
    }
  }
}

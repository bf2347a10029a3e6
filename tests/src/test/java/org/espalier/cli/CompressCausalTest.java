package org.espalier.cli;

import static org.espalier.cli.SmallLanguage.VOCABULARY;
import static org.espalier.cli.SmallLanguage.WORDS;
import static org.espalier.cli.SmallLanguage.texts;
import static org.espalier.cli.SmallLanguage.word;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertTrue;

import ai.onnx.proto.OnnxMl.GraphProto;
import ai.onnx.proto.OnnxMl.ModelProto;
import ai.onnx.proto.OnnxMl.TensorProto.DataType;
import ai.onnx.proto.OnnxMl.ValueInfoProto;
import ai.onnxruntime.OrtException;
import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.ObjectMapper;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.stream.IntStream;
import java.util.stream.Stream;
import org.bytedeco.javacpp.PointerScope;
import org.bytedeco.pytorch.AbstractTensor;
import org.bytedeco.pytorch.Tensor;
import org.espalier.format.onnx.HalfModels;
import org.espalier.format.onnx.OnnxInitializer;
import org.espalier.format.onnx.OnnxModel;
import org.espalier.format.onnx.OnnxWeight;
import org.espalier.format.onnx.OnnxWeights;
import org.espalier.format.onnx.SmallDecoder;
import org.espalier.format.onnx.SmallModels;
import org.espalier.format.onnx.TextInput;
import org.espalier.torch.Libtorch;
import org.espalier.torch.onnx.OnnxRuntime;
import org.junit.jupiter.api.BeforeEach;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;
import org.junit.jupiter.params.provider.ValueSource;

/**
 * Whole runs of causal language models on texts of a language of 40 words, each of which may be followed by two
 * others, one of them three times as often: the best perplexity is exp(0.5623) = 1.755.
 */
class CompressCausalTest {
  private static final double BEST = 1.755;

  private static final String RECIPE =
      """
      model: {file: model.onnx, tokenizer: tokenizer.json}
      data: {texts: texts.txt, task: causal-lm, validation: 64, evaluation: 100, calibration: 64}
      stages:
        - {kind: fine-tune, steps: 80, batch: 32, learning-rate: 1e-2}
        - {kind: quantize, form: FORM, steps: 10, batch: 32, learning-rate: 1e-3}
      export: {formats: [onnx, onnx-float, onnx-float16]}
      """;

  private static final String ENCODER =
      """
      model: {file: model.onnx, tokenizer: tokenizer.json}
      data: {texts: texts.txt, validation: 64, evaluation: 100}
      stages:
        - {kind: distil, steps: 2, batch: 32}
      export: {formats: [onnx]}
      """;

  @TempDir Path folder;

  @BeforeEach
  void makeInputs() throws IOException {
    Libtorch.load();
    Files.write(folder.resolve("model.onnx"), SmallDecoder.of(1, VOCABULARY, 32, 2).toByteArray());
    Files.writeString(folder.resolve("recipe.yaml"), RECIPE.replace("FORM", "dynamic"));
    SmallLanguage.write(folder);
  }

  private JsonNode compress(Object... more) throws IOException {
    List<Object> arguments = new ArrayList<>();
    arguments.addAll(List.of("compress", folder.resolve("recipe.yaml"), "-o", out()));
    arguments.addAll(List.of(more));
    Run.of(arguments.toArray()).done();
    return new ObjectMapper().readTree(out().resolve("report.json").toFile());
  }

  private Path out() {
    return folder.resolve("out");
  }

  @ParameterizedTest
  @CsvSource({"dynamic, int8", "static, int8", "int4, int4"})
  void aLanguageModelLearnsAndKeepsItInIntegers(String form, String weights) throws IOException {
    Files.writeString(folder.resolve("recipe.yaml"), RECIPE.replace("FORM", form));
    JsonNode report = compress();
    JsonNode fidelity = report.path("fidelity");
    assertEquals("causal-lm", report.path("data").path("task").asText());
    assertEquals(100, fidelity.path("texts").asLong());
    assertTrue(fidelity.path("reference_perplexity").asDouble() > 35, fidelity.toString());
    assertTrue(fidelity.path("perplexity").asDouble() < 1.1 * BEST, fidelity.toString());
    assertTrue(fidelity.path("perplexity").asDouble() > 0.9 * BEST, fidelity.toString());
    assertTrue(fidelity.path("accuracy").asDouble() > 0.7, fidelity.toString());
    String page = Files.readString(out().resolve("report.html"));
    assertTrue(page.contains("Perplexity") && page.contains("divergence"), page);
    assertTrue(page.contains("quantized to " + weights), page);
    try (Stream<Path> files = Files.list(out())) {
      List<String> models =
          files.map(f -> f.getFileName().toString()).filter(f -> f.endsWith(".onnx")).toList();
      assertTrue(models.contains("model-" + weights + ".onnx"), models.toString());
      assertTrue(models.contains("model-float16.onnx"), models.toString());
    }
    assertTrue(page.contains("of the norm of logits from the float32 model"), page);
  }

  /** A layer, and of the other one some channels, go before what is left follows the whole. */
  @Test
  void aModelWithoutALayerFollowsTheWhole() throws IOException {
    compress("--set", "quantize.steps=0");
    Files.copy(out().resolve("model-float.onnx"), folder.resolve("teacher.onnx"));
    Path shallow = folder.resolve("shallow.yaml");
    Files.writeString(
        shallow,
        """
        model: {file: teacher.onnx, tokenizer: tokenizer.json}
        student: {layers: 0.5, channels: 0.25}
        data: {texts: texts.txt, task: causal-lm, validation: 64, evaluation: 100}
        stages:
          - {kind: distil, steps: 80, batch: 32, learning-rate: 1e-2}
        export: {formats: [onnx]}
        """);
    Path made = folder.resolve("shallow");
    Run run = Run.of("compress", shallow, "-o", made).done();
    assertTrue(run.err().contains("1 of 2 layers (without "), run.err());
    assertTrue(run.err().contains("96 of 128 channels"), run.err());
    JsonNode report = new ObjectMapper().readTree(made.resolve("report.json").toFile());
    assertEquals(0.5, report.at("/model/layers_removed").asDouble());
    JsonNode fidelity = report.path("fidelity");
    assertTrue(fidelity.path("kl").asDouble() < 0.05, fidelity.toString());
    assertTrue(fidelity.path("agreement").asDouble() > 0.9, fidelity.toString());
    String page = Files.readString(made.resolve("report.html"));
    assertTrue(page.contains("50 % of its layers removed, then 25 % of its hidden channels"), page);
    OnnxModel written = OnnxModel.read(made.resolve("model.onnx"));
    assertEquals(5, written.initializers().stream().filter(i -> i.dims().length == 2).count() - 2);

    Files.writeString(shallow, Files.readString(shallow).replace("layers: 0.5", "layers: 0.9"));
    Run.refused(
        folder,
        new String[] {"shallow.yaml:2: student.layers", "2 of 2 layers", "of which 1 can"},
        "compress",
        shallow,
        "-o",
        folder.resolve("none"));
  }

  /** A model of a quarter of the weights follows one that has learned, without looking at a label. */
  @Test
  void aStudentFollowsItsTeachersLogits() throws IOException {
    compress("--set", "quantize.steps=0");
    Path teacher = Files.copy(out().resolve("model-float.onnx"), folder.resolve("teacher.onnx"));
    Files.write(
        folder.resolve("student.onnx"), SmallDecoder.of(9, VOCABULARY, 24, 1).toByteArray());
    Files.writeString(
        folder.resolve("distil.yaml"),
        """
        model: {file: teacher.onnx, tokenizer: tokenizer.json}
        student: {file: student.onnx}
        data: {texts: texts.txt, task: causal-lm, validation: 64, evaluation: 100}
        stages:
          - {kind: distil, steps: 120, batch: 32, learning-rate: 1e-2}
        export: {formats: [onnx]}
        """);
    Path made = folder.resolve("distilled");
    Run.of("compress", folder.resolve("distil.yaml"), "-o", made).done();
    JsonNode report = new ObjectMapper().readTree(made.resolve("report.json").toFile());
    JsonNode fidelity = report.path("fidelity");
    assertTrue(fidelity.path("kl").asDouble() < 0.05, fidelity.toString());
    assertTrue(fidelity.path("perplexity").asDouble() < 1.1 * BEST, fidelity.toString());
    assertTrue(fidelity.path("agreement").asDouble() > 0.9, fidelity.toString());

    // What evaluate says of the two, by another way.
    Path texts = Files.write(folder.resolve("others.txt"), texts(20, 8));
    JsonNode said =
        Run.of(
                "evaluate",
                teacher,
                made.resolve("model.onnx"),
                "--texts",
                texts,
                "--tokenizer",
                folder.resolve("tokenizer.json"),
                "--json")
            .json();
    double loss = 0;
    double teachersLoss = 0;
    double divergence = 0;
    int places = 0;
    int next = 0;
    int same = 0;
    int right = 0;
    for (String text : texts(20, 8)) {
      long[] ids =
          Stream.of(text.split(" ")).mapToLong(w -> 1 + Long.parseLong(w.substring(1))).toArray();
      double[][] p = logProbabilities(made.resolve("model.onnx"), ids);
      double[][] q = logProbabilities(teacher, ids);
      for (int t = 0; t < ids.length; t++) {
        for (int c = 0; c < VOCABULARY; c++) {
          divergence += Math.exp(q[t][c]) * (q[t][c] - p[t][c]);
        }
        places++;
        same += likeliest(p[t]) == likeliest(q[t]) ? 1 : 0;
        if (t + 1 < ids.length) {
          loss -= p[t][(int) ids[t + 1]];
          teachersLoss -= q[t][(int) ids[t + 1]];
          right += likeliest(p[t]) == ids[t + 1] ? 1 : 0;
          next++;
        }
      }
    }
    assertEquals(next, said.path("tokens").asLong());
    assertEquals(Math.exp(loss / next), said.path("perplexity").asDouble(), 1e-5);
    assertEquals(Math.exp(teachersLoss / next), said.path("reference_perplexity").asDouble(), 1e-5);
    assertEquals(divergence / places, said.path("kl").asDouble(), 1e-5);
    assertEquals((double) same / places, said.path("agreement").asDouble(), 1e-12);
    assertEquals((double) right / next, said.path("accuracy").asDouble(), 1e-12);
  }

  private static int likeliest(double[] row) {
    return IntStream.range(0, row.length).reduce((a, b) -> row[b] > row[a] ? b : a).orElseThrow();
  }

  /** log softmax of the logits of each place, by ONNX Runtime and Java's doubles. */
  private static double[][] logProbabilities(Path model, long[] ids) {
    try (PointerScope scope = new PointerScope()) {
      Map<String, Tensor> inputs = new LinkedHashMap<>();
      for (TextInput input :
          List.of(TextInput.INPUT_IDS, TextInput.ATTENTION_MASK, TextInput.POSITION_IDS)) {
        long[] row = new long[ids.length];
        input.write(ids, row, 0);
        inputs.put(input.inputName(), AbstractTensor.create(row, 1, ids.length));
      }
      Tensor logits = OnnxRuntime.run(OnnxModel.read(model), inputs).get("logits").contiguous();
      float[] values = new float[(int) logits.numel()];
      logits.data_ptr_float().get(values);
      double[][] result = new double[ids.length][VOCABULARY];
      for (int t = 0; t < ids.length; t++) {
        double sum = 0;
        for (int c = 0; c < VOCABULARY; c++) {
          sum += Math.exp(values[t * VOCABULARY + c]);
        }
        for (int c = 0; c < VOCABULARY; c++) {
          result[t][c] = values[t * VOCABULARY + c] - Math.log(sum);
        }
      }
      return result;
    } catch (OrtException e) {
      throw new AssertionError(e);
    }
  }

  /** Matrices of low rank learn the language while weights rest, and scales of 4 bits are trained behind them. */
  @Test
  void aLanguageModelLearnsByMatricesOfLowRank() throws IOException {
    Files.writeString(folder.resolve("recipe.yaml"), RECIPE.replace("FORM", "int4"));
    JsonNode report = compress("--set", "fine-tune.low-rank=6");
    JsonNode fidelity = report.path("fidelity");
    assertTrue(fidelity.path("perplexity").asDouble() < 1.3 * BEST, fidelity.toString());
    assertEquals(6, report.at("/stages/0/low_rank").asLong());
    assertFalse(report.at("/stages/1").has("low_rank"));
    assertTrue(Files.readString(out().resolve("report.html")).contains("train, rank 6"));
    OnnxModel made = OnnxModel.read(out().resolve("model-float.onnx"));
    assertTrue(
        made.initializers().stream().noneMatch(i -> i.name().contains("low_rank")),
        "what is learned is added to the weights");
    // What is written says which learning rate would have been the default.
    String schema = Run.of("recipe", "schema").done().out();
    assertTrue(schema.contains("By default 3e-3 with low-rank"), schema);
  }

  /** What production runs takes what was read before as inputs; training starts each text at its beginning. */
  @Test
  void aModelWithInputsForThePastIsTrainedAsOneWithout() throws IOException {
    String steps = "quantize.steps=5";
    compress("--set", "fine-tune.steps=5", "--set", steps, "--set", "report.each-stage=false");
    Path one = Files.move(out(), folder.resolve("one"));
    Files.write(
        folder.resolve("model.onnx"), SmallDecoder.withPast(1, VOCABULARY, 32, 2).toByteArray());
    JsonNode report = compress("--set", "fine-tune.steps=5", "--set", steps);
    JsonNode fidelity = report.path("fidelity");
    OnnxModel two = OnnxModel.read(out().resolve("model-float.onnx"));
    assertEquals(7, two.inputs().size());
    OnnxModel other = OnnxModel.read(one.resolve("model-float.onnx"));
    for (OnnxWeight weight : OnnxWeights.of(other)) {
      OnnxInitializer w = other.constant(weight.value());
      assertEquals(w.data(), two.constant(weight.value()).data(), weight.name());
    }
    JsonNode said =
        Run.of(
                "evaluate",
                one.resolve("model-int8.onnx"),
                out().resolve("model-int8.onnx"),
                "--texts",
                Files.write(folder.resolve("others.txt"), texts(20, 8)),
                "--tokenizer",
                folder.resolve("tokenizer.json"),
                "--json")
            .json();
    assertEquals(0, said.path("kl").asDouble(), 1e-9);
    assertEquals(1, said.path("agreement").asDouble());
    assertTrue(fidelity.path("perplexity").asDouble() < 60, fidelity.toString());
  }

  /** Published models are often of float16, with the past as inputs of that type. */
  @Test
  void aModelOfSixteenBitsWithInputsForThePastIsCompressed() throws IOException {
    ModelProto decoder = SmallDecoder.withPast(1, VOCABULARY, 32, 1);
    Files.write(
        folder.resolve("model.onnx"), HalfModels.of(decoder, DataType.FLOAT16).toByteArray());
    JsonNode fidelity =
        compress("--set", "fine-tune.steps=40", "--set", "report.each-stage=false")
            .path("fidelity");
    assertTrue(fidelity.path("perplexity").asDouble() < 5, fidelity.toString());
    assertTrue(fidelity.path("reference_perplexity").asDouble() > 35, fidelity.toString());
    OnnxModel made = OnnxModel.read(out().resolve("model-int8.onnx"));
    assertEquals(
        DataType.FLOAT16_VALUE,
        made.valueInfo("past_key_values.0.key").getType().getTensorType().getElemType());
  }

  /** The embedding is trained with the head that it is, and stored once. */
  @ParameterizedTest
  @ValueSource(strings = {"dynamic", "static"})
  void aHeadThatIsTheEmbeddingStaysOneTensor(String form) throws IOException {
    Files.writeString(folder.resolve("recipe.yaml"), RECIPE.replace("FORM", form));
    Files.write(
        folder.resolve("model.onnx"), SmallDecoder.tied(1, VOCABULARY, 32, 1).toByteArray());
    JsonNode fidelity = compress("--set", "report.each-stage=false").path("fidelity");
    assertTrue(fidelity.path("perplexity").asDouble() < 1.25 * BEST, fidelity.toString());
    for (String name : List.of("model-float.onnx", "model-int8.onnx")) {
      long tables =
          OnnxModel.read(out().resolve(name)).initializers().stream()
              .filter(i -> i.elements() == 32 * VOCABULARY)
              .count();
      assertEquals(1, tables, name);
    }
  }

  @Test
  void aRecipeForOneIsInitialized() throws IOException {
    Path made = folder.resolve("init.yaml");
    Run.of("recipe", "init", "-o", made, "--model", "model.onnx", "--texts", "texts.txt").done();
    assertTrue(Files.readString(made).contains("\n  task: causal-lm"));
    JsonNode found = Run.of("recipe", "check", made, "--json").json();
    assertEquals("causal-lm", found.path("task").asText(), found.toString());
  }

  /** Texts tell the speed of both models too. */
  @Test
  void quantizationOnTextsTellsTheSpeed() {
    for (String form : List.of("onnx-dynamic", "onnx-qdq")) {
      JsonNode json =
          Run.of(
                  "quantize",
                  folder.resolve("model.onnx"),
                  "-o",
                  folder.resolve(form + ".onnx"),
                  "--to",
                  form,
                  "--calibration",
                  folder.resolve("texts.txt"),
                  "--json")
              .json();
      assertTrue(json.path("speedup").asDouble() > 0, json.toString());
    }
  }

  /** Before minutes of training; which a check does not begin. */
  @Test
  void aLanguageModelIsRunInOnnxRuntimeBeforeItIsTrained() throws IOException {
    Path recipe = folder.resolve("recipe.yaml");
    Object[] check = {"recipe", "check", recipe};
    // The text that asks most of a model is not among the first three that it is tried on.
    String own = ", evaluation-texts: own.txt";
    Files.writeString(recipe, RECIPE.replace("FORM", "dynamic").replace(", evaluation: 100", own));
    Path longest = folder.resolve("own.txt");
    Files.writeString(longest, "w1 w2\nw2 w3\nw3 w4\nw4 w5\n" + "w5 ".repeat(70) + "\nw6 w7\n");
    Run.refused(
        folder, new String[] {"model.onnx: ONNX Runtime failed on a batch of 1 texts"}, check);
    Files.writeString(longest, "w1\nw2\n");
    Run.refused(folder, new String[] {"none of the texts has a second token"}, check);

    Files.writeString(recipe, RECIPE.replace("FORM", "dynamic"));
    Path model = folder.resolve("model.onnx");
    byte[] right = Files.readAllBytes(model);
    Files.write(model, withAxesOfTwoDimensions(ModelProto.parseFrom(right)).toByteArray());
    Run.refused(
        folder,
        new String[] {"model.onnx: ONNX Runtime failed on a batch of 1 texts", "Unsqueeze"},
        check);
    Files.write(model, right);
    Run.of(check).done();
  }

  /** Embeddings are measured in batches too, which a model that is fixed at one text cannot run. */
  @Test
  void anEncoderIsRunInOnnxRuntimeBeforeItIsTrained() throws IOException {
    Path recipe = folder.resolve("encoder.yaml");
    Files.writeString(recipe, ENCODER);
    Path model = folder.resolve("model.onnx");
    ModelProto right = ModelProto.parseFrom(Files.readAllBytes(model));
    Files.write(model, withAxesOfTwoDimensions(right).toByteArray());
    Object[] check = {"recipe", "check", recipe};
    Run.refused(folder, new String[] {"model.onnx: ONNX Runtime failed", "Unsqueeze"}, check);
    ModelProto.Builder fixed = right.toBuilder();
    for (ValueInfoProto.Builder input : fixed.getGraphBuilder().getInputBuilderList()) {
      input
          .getTypeBuilder()
          .getTensorTypeBuilder()
          .getShapeBuilder()
          .getDimBuilder(0)
          .setDimValue(1);
    }
    Files.write(model, fixed.build().toByteArray());
    Run.refused(folder, new String[] {"model.onnx: ONNX Runtime failed on a batch of 2"}, check);
    Files.write(model, right.toByteArray());
    Run.of(check).done();
  }

  /** The tokenizer is of a model with one word more, which few of the texts have. */
  @Test
  void aTokenThatTheModelDoesNotHaveIsFoundBeforeItIsTrained() throws IOException {
    Path recipe = folder.resolve("encoder.yaml");
    Files.writeString(recipe, ENCODER.replace("evaluation: 100", "evaluation-texts: own.txt"));
    List<String> texts = texts(3000, 3);
    String last = word(WORDS - 1);
    texts.removeIf(text -> List.of(text.split(" ")).contains(last));
    Files.write(folder.resolve("own.txt"), texts.subList(0, 100));
    texts.addAll(100, List.of(last + " " + word(0), last + " " + word(1), last + " " + word(2)));
    Files.write(folder.resolve("texts.txt"), texts);
    Path model = folder.resolve("model.onnx");
    Files.write(model, SmallDecoder.of(1, VOCABULARY - 1, 32, 1).toByteArray());
    Run.refused(
        folder,
        new String[] {"the index 40 is outside [-40, 39]", "of which 40 is the highest"},
        "recipe",
        "check",
        recipe);
  }

  /** libtorch takes axes of any shape. */
  private static ModelProto withAxesOfTwoDimensions(ModelProto model) {
    ModelProto.Builder changed = model.toBuilder();
    GraphProto.Builder graph = changed.getGraphBuilder();
    graph.addInitializer(SmallModels.int64s("axis", 0).toBuilder().addDims(1));
    graph.getNodeBuilder(graph.getNodeCount() - 1).setOutput(0, "few");
    graph.addNode(SmallModels.node("Unsqueeze", "/more", List.of("few", "axis"), "more"));
    graph.addNode(SmallModels.node("Gather", "/logits", List.of("more", "zero"), "logits"));
    return changed.build();
  }

  @Test
  void whatDoesNotFitIsRefused() throws IOException {
    Path recipe = folder.resolve("recipe.yaml");
    Object[] command = {"compress", recipe, "-o", out()};
    Files.writeString(recipe, RECIPE.replace("FORM", "dynamic").replace("causal-lm", "regression"));
    Run.refused(folder, new String[] {"task", "causal-lm"}, command);
    Files.writeString(recipe, RECIPE.replace("FORM", "dynamic").replace(", task: causal-lm", ""));
    Run.refused(folder, new String[] {"fine-tune", "causal-lm"}, command);
    Files.writeString(recipe, RECIPE.replace("FORM, steps: 10", "dynamic, loss: {hidden: 1}"));
    Run.refused(folder, new String[] {"labels, logits and bound"}, command);
    Files.writeString(recipe, RECIPE.replace("FORM, steps: 10", "dynamic, loss: {output: 1}"));
    Run.refused(folder, new String[] {"labels, logits and bound"}, command);

    Files.writeString(recipe, RECIPE.replace("FORM", "dynamic"));
    OnnxModel narrow = OnnxModel.read(folder.resolve("model.onnx"));
    OnnxInitializer head = OnnxInitializer.floats("lm_head", new long[] {32, 30}, new float[960]);
    narrow.replaceInitializer(head);
    narrow.write(folder.resolve("narrow.onnx"));
    Files.writeString(
        recipe, RECIPE.replace("FORM", "dynamic").replace("model.onnx", "narrow.onnx"));
    Run.refused(folder, new String[] {"logits of 30 tokens", "have a token 40"}, command);

    Files.write(folder.resolve("mlp.onnx"), SmallModels.mlp().toByteArray());
    Files.writeString(recipe, RECIPE.replace("FORM", "dynamic").replace("model.onnx", "mlp.onnx"));
    Run.refused(folder, new String[] {"an input x", "input_ids"}, command);
  }
}

package org.espalier.cli;

import static org.espalier.cli.SmallLanguage.VOCABULARY;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertTrue;

import ai.onnx.proto.OnnxMl.ModelProto;
import ai.onnx.proto.OnnxMl.TensorProto.DataType;
import ai.onnxruntime.OrtEnvironment;
import ai.onnxruntime.OrtException;
import ai.onnxruntime.OrtSession;
import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.ObjectMapper;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.HashMap;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Locale;
import java.util.Map;
import java.util.Set;
import java.util.TreeSet;
import org.bytedeco.javacpp.PointerScope;
import org.bytedeco.pytorch.AbstractTensor;
import org.bytedeco.pytorch.NoGradGuard;
import org.bytedeco.pytorch.Tensor;
import org.bytedeco.pytorch.global.torch;
import org.espalier.ExactProducts;
import org.espalier.format.onnx.HalfModels;
import org.espalier.format.onnx.OnnxModel;
import org.espalier.format.onnx.RuntimeModels;
import org.espalier.format.onnx.RuntimeModels.Form;
import org.espalier.torch.Libtorch;
import org.espalier.torch.TorchScriptModel;
import org.espalier.torch.onnx.OnnxGraph;
import org.espalier.torch.onnx.OnnxRuntime;
import org.junit.jupiter.api.BeforeEach;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;
import org.junit.jupiter.params.provider.EnumSource;
import org.junit.jupiter.params.provider.ValueSource;

/**
 * Whole runs of language models and encoders as they are exported for ONNX Runtime, with its own operators or the newest
 * of ONNX; texts are those of {@link SmallLanguage}, whose best perplexity is 1.755.
 */
class CompressRuntimeModelsTest {
  private static final String RECIPE =
      """
      model: {file: model.onnx, tokenizer: tokenizer.json}
      data: {texts: texts.txt, task: causal-lm, validation: 64, evaluation: 100, calibration: 64}
      stages:
        - {kind: fine-tune, steps: 80, batch: 32, learning-rate: 1e-2}
        - {kind: prune, sparsity: 0.3, refit: true, steps: 5, batch: 32, learning-rate: 1e-3}
        - {kind: quantize, form: FORM, steps: 10, batch: 32, learning-rate: 1e-3}
        - {kind: distil, steps: 5, batch: 32, learning-rate: 1e-4}
      export: {formats: [onnx, onnx-float, torchscript, safetensors]}
      report: {each-stage: false}
      """;

  @TempDir Path folder;

  @BeforeEach
  void makeInputs() throws IOException {
    Libtorch.load();
    SmallLanguage.write(folder);
  }

  private Path write(ModelProto model) throws IOException {
    return Files.write(folder.resolve("model.onnx"), model.toByteArray());
  }

  private Path texts() {
    return folder.resolve("texts.txt");
  }

  private List<Object> quantize(Path model, Path out, String form, Object... more) {
    List<Object> args =
        new ArrayList<>(
            List.of("quantize", model, "-o", out, "--to", form, "--calibration", texts()));
    args.addAll(ExactProducts.options(form));
    args.addAll(List.of(more));
    return args;
  }

  private Path out() {
    return folder.resolve("out");
  }

  private JsonNode compress() throws IOException {
    Run.of("compress", folder.resolve("recipe.yaml"), "-o", out()).done();
    return new ObjectMapper().readTree(out().resolve("report.json").toFile()).path("fidelity");
  }

  private JsonNode evaluate(Path model, Path other) throws IOException {
    Path own = Files.write(folder.resolve("others.txt"), SmallLanguage.texts(100, 8));
    return Run.of("evaluate", model, other, "--texts", own, "--json").json();
  }

  @ParameterizedTest
  @CsvSource({
    "PACKED, dynamic",
    "PACKED, static",
    "GROUPED, dynamic",
    "LONG, dynamic",
    "LONG, static",
    "MULTI_HEAD, dynamic",
    "MULTI_HEAD, static",
    "PLAIN, dynamic",
    "STANDARD, dynamic",
    "STANDARD, static",
    "STANDARD, int4",
    "EXPORTED, dynamic",
    "EXPORTED, static",
    "EXPORTED, int4"
  })
  void aDecoderLearnsIsPrunedQuantizedAndDistilled(Form form, String grid)
      throws IOException, OrtException {
    Path model = write(RuntimeModels.decoder(form, 1, VOCABULARY, 2));
    boolean script = form != Form.LONG; // TorchScript is written without If
    String text = RECIPE.replace("FORM", grid);
    Files.writeString(
        folder.resolve("recipe.yaml"), script ? text : text.replace("torchscript, ", ""));
    JsonNode fidelity = compress();
    assertEquals(100, fidelity.path("texts").asLong());
    assertTrue(fidelity.path("reference_perplexity").asDouble() > 35, fidelity.toString());
    assertTrue(fidelity.path("perplexity").asDouble() < 1.1 * 1.755, fidelity.toString());
    assertTrue(fidelity.path("size_ratio").asDouble() < 0.4, fidelity.toString());
    String bits = grid.equals("int4") ? "int4" : "int8";
    OnnxModel made = OnnxModel.read(out().resolve("model-" + bits + ".onnx"));
    assertEquals(
        OnnxModel.read(model).inputs().stream().map(v -> v.getName()).toList(),
        made.inputs().stream().map(v -> v.getName()).toList());
    if (script) {
      checkScript();
    }
  }

  /** The module must give what the graph does. */
  private void checkScript() throws OrtException {
    try (PointerScope scope = new PointerScope();
        NoGradGuard noGrad = new NoGradGuard();
        TorchScriptModel script = TorchScriptModel.read(out().resolve("model.pt"))) {
      OnnxModel floats = OnnxModel.read(out().resolve("model-float.onnx"));
      Map<String, Tensor> inputs = inputs(floats);
      Tensor expected = OnnxRuntime.run(floats, inputs).get("logits");
      Map<String, Tensor> named = new LinkedHashMap<>();
      List<Tensor> values = List.copyOf(inputs.values());
      for (int i = 0; i < values.size(); i++) {
        named.put(script.inputNames().get(i), values.get(i));
      }
      Tensor actual = script.forward(named).values().iterator().next();
      // Its weights are rounded to their grids.
      double difference = actual.sub(expected).norm().item_double();
      assertTrue(difference < 0.05 * expected.norm().item_double(), "logits differ " + difference);
    }
  }

  /** Two texts of five tokens of a model's inputs, in order. */
  private static Map<String, Tensor> inputs(OnnxModel model) {
    Map<String, Tensor> inputs = new LinkedHashMap<>();
    model
        .inputs()
        .forEach(
            v -> {
              Tensor t =
                  switch (v.getName()) {
                    case "input_ids" ->
                        AbstractTensor.create(new long[] {3, 4, 5, 40, 7, 8, 1, 9, 2, 6}, 2, 5);
                    case "attention_mask" ->
                        AbstractTensor.create(new long[] {1, 1, 1, 1, 1, 1, 1, 1, 1, 1}, 2, 5);
                    case "position_ids" ->
                        AbstractTensor.create(new long[] {0, 1, 2, 3, 4, 0, 1, 2, 3, 4}, 2, 5);
                    default ->
                        torch.zeros(
                            2,
                            v.getType().getTensorType().getShape().getDim(1).getDimValue(),
                            0,
                            v.getType().getTensorType().getShape().getDim(3).getDimValue());
                  };
              inputs.put(v.getName(), t);
            });
    return inputs;
  }

  @ParameterizedTest
  @EnumSource
  void aRecipeForADecoderIsInitialized(Form form) throws IOException {
    Path model = write(RuntimeModels.decoder(form, 1, VOCABULARY, 1));
    Path recipe = folder.resolve("recipe.yaml");
    Run.of("recipe", "init", "-o", recipe, "--model", model, "--texts", texts()).done();
    JsonNode found = Run.of("recipe", "check", recipe, "--json").json();
    assertEquals("causal-lm", found.path("task").asText(), found.toString());
  }

  @ParameterizedTest
  @EnumSource
  void aDecoderIsQuantizedAndPrunedWithoutTraining(Form form) throws IOException {
    Path model = write(RuntimeModels.decoder(form, 1, VOCABULARY, 2));
    Map<String, Double> kl = new HashMap<>();
    for (String to : List.of("onnx-dynamic", "onnx-qdq", "onnx-int4", "onnx-int8")) {
      Path made = folder.resolve(to + ".onnx");
      Run run = Run.of(quantize(model, made, to, "--json").toArray());
      JsonNode float32 = run.json().path("float");
      float32.forEach(reason -> assertEquals("the table is small", reason.asText(), to));
      assertFalse(run.err().contains("stay as they are"), run.err());
      JsonNode said = evaluate(model, made);
      double most = to.equals("onnx-int4") ? 0.05 : 1e-3;
      kl.put(to, said.path("kl").asDouble());
      assertTrue(kl.get(to) < most, said.toString());
    }
    assertTrue(kl.get("onnx-int8") < kl.get("onnx-dynamic"), kl.toString());
    Path others = folder.resolve("others.txt");
    String said =
        Run.of("evaluate", model, folder.resolve("onnx-int8.onnx"), "--texts", others).done().out();
    assertTrue(said.contains(String.format(Locale.ROOT, "%.3g nats", kl.get("onnx-int8"))), said);
    Path pruned = folder.resolve("pruned.onnx");
    Run.of("prune", model, "-o", pruned, "--amount", "0.2", "--refit", "--calibration", texts())
        .done();
    JsonNode refitted = evaluate(model, pruned);
    Run.of("prune", model, "-o", folder.resolve("plain.onnx"), "--amount", "0.2").done();
    JsonNode plain = evaluate(model, folder.resolve("plain.onnx"));
    assertTrue(
        refitted.path("kl").asDouble() < 0.7 * plain.path("kl").asDouble(), refitted + " " + plain);
  }

  @ParameterizedTest
  @CsvSource({"STANDARD, false", "STANDARD, true", "EXPORTED, false", "EXPORTED, true"})
  void aDecoderLosesHeadsAndChannels(Form form, boolean caches) throws IOException {
    Path model = write(RuntimeModels.decoder(form, 1, VOCABULARY, 2));
    Path made = folder.resolve("narrow.onnx");
    List<Object> prune = new ArrayList<>(List.of("prune", model, "-o", made, "--channels", "0.5"));
    prune.addAll(List.of("--allocation", "uniform", "--calibration", texts()));
    if (caches) {
      prune.add("--cache-heads");
    }
    Run run = Run.of(prune.toArray()).done();
    // Both queries of a group of two, or the group with its keys and values.
    assertTrue(run.out().contains("96 of 192 channels and 2 of 4 heads"), run.out());
    assertTrue(evaluate(model, made).path("kl").isNumber());
    Path small = folder.resolve("small.onnx");
    Run.of(quantize(made, small, "onnx-dynamic").toArray()).done();
    assertTrue(evaluate(made, small).path("kl").asDouble() < 1e-3);
  }

  /** As they are published for machines with a GPU. */
  @ParameterizedTest
  @EnumSource(names = {"PACKED", "STANDARD", "EXPORTED"})
  void aDecoderOfSixteenBitsIsCompressed(Form form) throws IOException {
    write(HalfModels.of(RuntimeModels.decoder(form, 1, VOCABULARY, 1), DataType.FLOAT16));
    Files.writeString(folder.resolve("recipe.yaml"), RECIPE.replace("FORM", "dynamic"));
    JsonNode fidelity = compress();
    assertTrue(fidelity.path("perplexity").asDouble() < 1.2 * 1.755, fidelity.toString());
  }

  @ParameterizedTest
  @ValueSource(booleans = {false, true})
  void anOptimizedEncoderIsCompressed(boolean lengths) throws IOException {
    Path model = write(RuntimeModels.encoder(1, VOCABULARY, 2, lengths));
    Path recipe = folder.resolve("recipe.yaml");
    Run.of("recipe", "init", "-o", recipe, "--model", model, "--texts", texts()).done();
    Files.writeString(
        recipe,
        Files.readString(recipe)
            .replaceAll("(?m)^ +steps: [0-9]+", "    steps: 10")
            .replace(
                "kind: quantize", "kind: quantize\n    form: " + ExactProducts.lines("dynamic"))
            .replace("  # validation: 256", "  validation: 64"));
    JsonNode fidelity = compress();
    assertTrue(fidelity.path("cosine_mean").asDouble() > 0.999, fidelity.toString());
    assertTrue(fidelity.path("size_ratio").asDouble() < 0.4, fidelity.toString());
    Set<String> operators = new TreeSet<>();
    OnnxModel made = OnnxModel.read(out().resolve("model-int8.onnx"));
    made.nodes().forEach(n -> operators.add(n.getOpType()));
    assertTrue(operators.contains("MultiHeadAttention"), operators.toString());
    assertFalse(operators.contains("MatMul"), operators.toString());
    Path pruned = folder.resolve("pruned.onnx");
    Run.of("prune", model, "-o", pruned, "--amount", "0.2", "--refit", "--calibration", texts())
        .done();
    JsonNode said = evaluate(model, pruned);
    assertTrue(said.path("cosine_mean").asDouble() > 0.99, said.toString());
  }

  @ParameterizedTest
  @ValueSource(strings = {"dynamic", "static", "int4"})
  void anExportedEncoderIsCompressed(String form) throws IOException {
    Path model = write(RuntimeModels.exportedEncoder(1, VOCABULARY, 2));
    Path recipe = folder.resolve("recipe.yaml");
    Run.of("recipe", "init", "-o", recipe, "--model", model, "--texts", texts()).done();
    String text =
        Files.readString(recipe)
            .replaceAll("(?m)^ +steps: [0-9]+", "    steps: 10")
            .replace("kind: quantize", "kind: quantize\n    form: " + ExactProducts.lines(form))
            .replace("  # validation: 256", "  validation: 64");
    assertTrue(text.contains("\n    form: " + form), text);
    Files.writeString(recipe, text);
    double least = form.equals("int4") ? 0.98 : 0.999;
    JsonNode fidelity = compress();
    assertTrue(fidelity.path("cosine_mean").asDouble() > least, fidelity.toString());
    Path made = folder.resolve("made.onnx");
    String to =
        Map.of("dynamic", "onnx-dynamic", "static", "onnx-qdq", "int4", "onnx-int4").get(form);
    Run.of(quantize(model, made, to).toArray()).done();
    JsonNode said = evaluate(model, made);
    assertTrue(said.path("cosine_mean").asDouble() > least, said.toString());
    Path narrow = folder.resolve("narrow.onnx");
    Run run = Run.of("prune", model, "-o", narrow, "--channels", "0.25", "--calibration", texts());
    assertTrue(run.done().out().contains("heads"), run.out());
    assertTrue(evaluate(model, narrow).path("cosine_mean").asDouble() > 0.8);
  }

  /** What ONNX Runtime itself makes of models, as its users save it: it joins nodes of all of them. */
  @ParameterizedTest
  @EnumSource
  void aDecoderThatOnnxRuntimeOptimizedIsTrained(Form form) throws IOException, OrtException {
    Path plain = write(RuntimeModels.decoder(form, 1, VOCABULARY, 2));
    Path optimized = folder.resolve("optimized.onnx");
    OrtEnvironment environment = OrtEnvironment.getEnvironment();
    try (OrtSession.SessionOptions options = new OrtSession.SessionOptions()) {
      options.setOptimizationLevel(OrtSession.SessionOptions.OptLevel.EXTENDED_OPT);
      options.setOptimizedModelFilePath(optimized.toString());
      environment.createSession(plain.toString(), options).close();
    }
    OnnxModel model = OnnxModel.read(optimized);
    boolean joined = model.nodes().stream().anyMatch(n -> n.getOpType().equals("QuickGelu"));
    assertEquals(form != Form.EXPORTED, joined); // which has Swish
    try (PointerScope scope = new PointerScope();
        NoGradGuard noGrad = new NoGradGuard();
        OnnxGraph graph = new OnnxGraph(model)) {
      Map<String, Tensor> inputs = inputs(model);
      Map<String, Tensor> expected = OnnxRuntime.run(OnnxModel.read(plain), inputs);
      graph
          .forward(inputs)
          .forEach(
              (name, t) ->
                  assertTrue(torch.allclose(t, expected.get(name), 1e-3, 1e-4, false), name));
    }
    Path recipe = folder.resolve("recipe.yaml");
    Run.of("recipe", "init", "-o", recipe, "--model", optimized, "--texts", texts()).done();
    Run.of("recipe", "check", recipe).done();
  }
}

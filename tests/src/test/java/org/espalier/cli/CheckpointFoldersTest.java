package org.espalier.cli;

import static org.espalier.cli.SmallLanguage.VOCABULARY;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertTrue;

import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.ObjectMapper;
import com.fasterxml.jackson.databind.node.ObjectNode;
import java.awt.image.BufferedImage;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.security.MessageDigest;
import java.util.ArrayList;
import java.util.HexFormat;
import java.util.List;
import javax.imageio.ImageIO;
import org.espalier.format.onnx.OnnxModel;
import org.espalier.recipe.Recipe;
import org.espalier.recipe.RecipeRun;
import org.espalier.recipe.RunMonitor;
import org.espalier.torch.Libtorch;
import org.espalier.torch.TorchDevice;
import org.espalier.transformers.SmallCheckpoint;
import org.junit.jupiter.api.BeforeEach;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.ValueSource;

/** Folders of safetensors with a configuration where ONNX is taken: measured, trained, in front of what learns. */
class CheckpointFoldersTest {
  @TempDir private Path folder;
  private Path checkpoint;
  private Path texts;

  @BeforeEach
  void makeCheckpoint() throws IOException {
    Libtorch.load();
    checkpoint = Files.createDirectory(folder.resolve("checkpoint"));
    SmallLanguage.write(checkpoint);
    texts = Files.write(folder.resolve("texts.txt"), SmallLanguage.texts(60, 8));
    SmallCheckpoint.writeTextEncoder(checkpoint, "mpnet");
  }

  private Path export(String name) {
    Path onnx = folder.resolve(name);
    Run.of("export", checkpoint, "-o", onnx).done();
    return onnx;
  }

  private static JsonNode withoutTimes(JsonNode json) {
    return ((ObjectNode) json)
        .without(List.of("reference", "candidate", "speedup", "reference_ms", "ms"));
  }

  /** What is said of a folder is what is said of its export, but for the size, which is that of its weights. */
  @Test
  void isMeasuredAsItsExportIs() throws IOException {
    Path onnx = export("model.onnx");
    Path int8 = folder.resolve("int8.onnx");
    Run.of("quantize", checkpoint, "-o", int8, "--to", "onnx-dynamic", "--calibration", texts)
        .done();
    JsonNode of = Run.of("evaluate", onnx, int8, "--texts", texts, "--json").json();
    JsonNode folders = Run.of("evaluate", checkpoint, int8, "--texts", texts, "--json").json();
    assertEquals(checkpoint.toString(), folders.path("reference").asText());
    double ratio = of.path("size_ratio").asDouble();
    double graph = Files.size(onnx) - Files.size(checkpoint.resolve("model.safetensors"));
    assertTrue(graph > 0 && graph < 0.1 * Files.size(onnx), "the graph takes " + graph);
    assertEquals(
        ratio * Files.size(onnx) / Files.size(checkpoint.resolve("model.safetensors")),
        folders.path("size_ratio").asDouble(),
        1e-9);
    assertTrue(folders.path("cosine_mean").asDouble() < 0.999999, folders.toString());
    assertEquals(
        withoutTimes(((ObjectNode) of).without("size_ratio")),
        withoutTimes(((ObjectNode) folders).without("size_ratio")));
    // The tokenizer lies beside it now.
    Run back = Run.of("evaluate", int8, checkpoint, "--texts", texts).done();
    assertTrue(back.out().contains("cosine"), back.out());
  }

  /** Integers and floats of 8 bits count as they lie in the folder, not as what runs of them. */
  @Test
  void aFolderIsAsLargeAsItsFiles() throws IOException {
    Path small = folder.resolve("float8");
    Run.of("quantize", checkpoint, "-o", small, "--to", "compressed-tensors-float8").done();
    JsonNode json = Run.of("evaluate", checkpoint, small, "--texts", texts, "--json").json();
    double files =
        (double) Files.size(small.resolve("model.safetensors"))
            / Files.size(checkpoint.resolve("model.safetensors"));
    assertEquals(files, json.path("size_ratio").asDouble(), 1e-9);
  }

  /** Before anything is trained. */
  @Test
  void aQuantizedFolderIsNotQuantizedAgain() throws IOException {
    Path small = folder.resolve("float8");
    Run.of("quantize", checkpoint, "-o", small, "--to", "compressed-tensors-float8").done();
    Path recipe =
        Files.writeString(
            folder.resolve("recipe.yaml"),
            """
            model: {file: float8}
            data: {texts: texts.txt, validation: 8, evaluation: 8, calibration: 8}
            stages:
              - {kind: quantize, fit: false, steps: 2, batch: 4}
            export: {formats: [compressed-tensors]}
            """);
    String[] said = {"export.formats: compressed-tensors", "quantized already"};
    Run.refused(folder, said, "recipe", "check", recipe);
    Run.refused(folder, said, "compress", recipe, "-o", folder.resolve("out"));
  }

  @ParameterizedTest
  @ValueSource(
      strings = {"quantize --to onnx-int4", "prune --channels 0.3", "prune --amount 0.5 --refit"})
  void whatLiesBesideTheWeightsGoesAlong(String command) throws IOException {
    Path out = folder.resolve("out.onnx");
    Path tokenizer = folder.resolve("out-tokenizer.json");
    List<Object> args = new ArrayList<>(List.of((Object[]) command.split(" ")));
    args.addAll(List.of(checkpoint, "-o", out, "--calibration", texts));
    Run run = Run.of(args.toArray()).done();
    assertTrue(run.err().contains("its tokenizer as " + tokenizer), run.err());
    assertEquals(-1, Files.mismatch(checkpoint.resolve("tokenizer.json"), tokenizer));
    Files.delete(out);
    Files.delete(tokenizer);
    Files.createDirectory(tokenizer);
    run = Run.of(args.toArray());
    assertEquals(2, run.code(), run.err());
    assertTrue(run.err().contains(tokenizer.toString()), run.err());
    assertFalse(Files.exists(out));
  }

  @Test
  void languageModelsAndImageEncodersAreMeasured() throws IOException {
    SmallCheckpoint.writeLanguageModel(checkpoint, VOCABULARY);
    JsonNode json = Run.of("evaluate", checkpoint, checkpoint, "--texts", texts, "--json").json();
    assertEquals(0, json.path("kl").asDouble(), 1e-6);
    assertTrue(json.path("perplexity").asDouble() > 2, json.toString());
    Path images = Files.createDirectory(folder.resolve("images"));
    SmallCheckpoint.writeImageModel(images, "vit");
    Files.writeString(
        images.resolve("preprocessor_config.json"), "{\"size\": {\"height\": 25, \"width\": 25}}");
    Path picture = Files.createDirectory(folder.resolve("pictures")).resolve("1.png");
    ImageIO.write(new BufferedImage(30, 30, BufferedImage.TYPE_INT_RGB), "png", picture.toFile());
    json = Run.of("evaluate", images, images, "--examples", picture.getParent(), "--json").json();
    assertEquals(1, json.path("examples").asInt(), json.toString());
  }

  @Test
  void isTrainedAsItsExportIs() throws Exception {
    export("model.onnx");
    Path other = Files.createDirectory(folder.resolve("teacher"));
    SmallCheckpoint.writeTextEncoder(other, "mpnet");
    String recipe =
        """
        model: {file: %s}
        teacher: {file: %s}
        data: {texts: checkpoint/texts.txt, train: 200, validation: 16, evaluation: 24}
        stages:
          - {kind: quantize, steps: 3, batch: 16}
        export: {formats: [onnx, safetensors]}
        """;
    Path ofFolder =
        Files.writeString(folder.resolve("a.yaml"), recipe.formatted("checkpoint/", "teacher"));
    Run.of("export", other, "-o", folder.resolve("teacher.onnx")).done();
    Path ofFile =
        Files.writeString(folder.resolve("b.yaml"), recipe.formatted("model.onnx", "teacher.onnx"));
    JsonNode checked = Run.of("recipe", "check", ofFolder, "--json").json();
    assertEquals(3, checked.path("steps").asInt(), checked.toString());
    Path a = folder.resolve("a");
    Path b = folder.resolve("b");
    Run.of("compress", ofFolder, "-o", a).done();
    Run.of("compress", ofFile, "-o", b).done();
    assertEquals(-1, Files.mismatch(a.resolve("model-int8.onnx"), b.resolve("model-int8.onnx")));
    assertEquals(
        -1, Files.mismatch(a.resolve("model.safetensors"), b.resolve("model.safetensors")));
    JsonNode report = new ObjectMapper().readTree(a.resolve("report.json").toFile());
    JsonNode model = report.path("model");
    assertEquals("checkpoint/", model.path("file").asText());
    assertEquals("checkpoint", report.path("title").asText());
    assertEquals(Files.size(checkpoint.resolve("model.safetensors")), model.path("bytes").asLong());
    StringBuilder sums = new StringBuilder();
    for (String name : List.of("config.json", "model.safetensors")) {
      sums.append(sha256(Files.readAllBytes(checkpoint.resolve(name)))).append("  " + name + "\n");
    }
    assertEquals(sha256(sums.toString().getBytes()), model.path("sha256").asText());
    assertEquals("mean", model.path("pooling").asText());
    double size = report.path("fidelity").path("size_ratio").asDouble();
    assertTrue(size > 0.1 && size < 0.6, report.path("fidelity").toString());
  }

  private static String sha256(byte[] bytes) throws Exception {
    return HexFormat.of().formatHex(MessageDigest.getInstance("SHA-256").digest(bytes));
  }

  /** A run of another configuration, or of other weights, is none to go on with. */
  @Test
  void aStoppedRunGoesOnWithItsFolderAlone() throws IOException {
    Path recipe =
        Files.writeString(
            folder.resolve("recipe.yaml"),
            """
            model: {file: checkpoint}
            data: {texts: checkpoint/texts.txt, train: 100, validation: 16, evaluation: 24}
            stages:
              - {kind: distil, steps: 60, batch: 16, learning-rate: 1e-3}
            """);
    Path stopped = folder.resolve("stopped");
    Path whole = folder.resolve("whole");
    Run.of("compress", recipe, "-o", whole).done();
    int[] asked = {0};
    RunMonitor impatient =
        new RunMonitor() {
          @Override
          public boolean stopRequested() {
            return ++asked[0] > 30;
          }
        };
    assertEquals(
        RecipeRun.Outcome.STOPPED,
        new RecipeRun(Recipe.read(recipe, List.of()), folder, stopped, impatient, TorchDevice.CPU)
            .run(false));
    Path config = checkpoint.resolve("config.json");
    String was = Files.readString(config);
    Files.writeString(config, was + "\n");
    Run refused = Run.of("compress", recipe, "-o", stopped, "--resume");
    assertEquals(2, refused.code(), refused.err());
    Files.writeString(config, was);
    Run.of("compress", recipe, "-o", stopped, "--resume").done();
    assertEquals(-1, Files.mismatch(whole.resolve("model.onnx"), stopped.resolve("model.onnx")));
  }

  @Test
  void aRecipeForAFolderIsWritten() throws IOException {
    Path recipe = folder.resolve("recipe.yaml");
    Run.of("recipe", "init", "-o", recipe, "--model", "checkpoint", "--texts", "texts.txt").done();
    String written = Files.readString(recipe);
    assertTrue(written.contains("\n  file: \"checkpoint\""), written);
    assertFalse(written.contains("\n  task: causal-lm"), written);
    SmallCheckpoint.writeLanguageModel(checkpoint, VOCABULARY);
    Files.delete(recipe);
    Run.of("recipe", "init", "-o", recipe, "--model", "checkpoint", "--texts", "texts.txt").done();
    written = Files.readString(recipe);
    assertTrue(written.contains("\n  task: causal-lm"), written);
  }

  /** compressed-tensors takes the folder's own configuration. */
  @Test
  void integersGoBackWithTheConfigurationOfTheFolder() throws IOException {
    SmallCheckpoint.writeLanguageModel(checkpoint, VOCABULARY);
    Path recipe =
        Files.writeString(
            folder.resolve("recipe.yaml"),
            """
model: {file: checkpoint}
data: {texts: checkpoint/texts.txt, task: causal-lm, train: 100, validation: 16, evaluation: 24}
stages:
  - {kind: quantize, form: int4, block: 32, steps: 2, batch: 16}
export: {formats: [compressed-tensors]}
""");
    Path out = folder.resolve("out");
    Run.of("compress", recipe, "-o", out).done();
    JsonNode json =
        Run.of(
                "evaluate",
                out.resolve("model-int4.onnx"),
                out.resolve("compressed-tensors"),
                "--texts",
                texts,
                "--json")
            .json();
    assertTrue(json.path("kl").asDouble() < 1e-4, json.toString());
    Files.writeString(
        recipe,
        Files.readString(recipe)
            .replace(
                "{file: checkpoint}", "{file: model.onnx, tokenizer: checkpoint/tokenizer.json}"));
    export("model.onnx");
    Run.refused(folder, new String[] {"model.config is missing"}, "recipe", "check", recipe);
  }

  /** Blocks that compressed-tensors does not have are written as ONNX. */
  @Test
  void integersOfSmallBlocksAreTrained() throws IOException {
    SmallCheckpoint.writeLanguageModel(checkpoint, VOCABULARY);
    String text =
        """
model: {file: checkpoint}
data: {texts: checkpoint/texts.txt, task: causal-lm, train: 50, validation: 8, evaluation: 8}
stages: [{kind: quantize, form: int4, block: 16, steps: 1, batch: 4}]
""";
    Path recipe = Files.writeString(folder.resolve("recipe.yaml"), text);
    Path out = folder.resolve("out");
    Run.of("compress", recipe, "-o", out).done();
    assertTrue(
        OnnxModel.read(out.resolve("model-int4.onnx")).nodes().stream()
            .filter(n -> n.getOpType().equals("MatMulNBits"))
            .flatMap(n -> n.getAttributeList().stream())
            .anyMatch(a -> a.getName().equals("block_size") && a.getI() == 16));
    Files.writeString(recipe, text + "export: {formats: [compressed-tensors]}\n");
    Run.refused(
        folder,
        new String[] {"compressed-tensors has blocks of 32, 64 and 128"},
        "compress",
        recipe,
        "-o",
        folder.resolve("other"));
  }

  @Test
  void refusesFoldersThatAreNoModels() throws IOException {
    Path onnx = export("model.onnx");
    Path recipe =
        Files.writeString(
            folder.resolve("recipe.yaml"),
            """
            model: {file: checkpoint}
            data: {texts: texts.txt, validation: 16, evaluation: 24}
            stages: [{kind: quantize, steps: 1}]
            """);
    Path online =
        Files.writeString(
            folder.resolve("online.yaml"),
            "loss: cross-entropy\nlearning-rate: 1\nmodel: {outputs: 2}\n");
    Path config = checkpoint.resolve("config.json");
    String was = Files.readString(config);
    for (String[] wrong :
        new String[][] {
          {was.replace("mpnet", "rwkv"), "model_type is 'rwkv', which is not known here"},
          {"[1]", "config.json is not a JSON object"},
          {was.replace("\"vocab_size\": 41", "\"vocab_size\": 42"), "is right by its config.json"}
        }) {
      Files.writeString(config, wrong[0]);
      refused(wrong[1], "evaluate", checkpoint, onnx, "--texts", texts);
      refused(wrong[1], "evaluate", onnx, checkpoint, "--texts", texts);
      refused(wrong[1], "recipe", "check", recipe);
      refused(
          wrong[1],
          "online",
          "--encoder",
          checkpoint,
          "--input",
          texts,
          "--recipe",
          online,
          "--store",
          folder.resolve("store"));
    }
    Files.writeString(config, was);
    Path images = Files.createDirectory(folder.resolve("images"));
    SmallCheckpoint.writeImageModel(images, "vit");
    Files.writeString(
        images.resolve("preprocessor_config.json"), "{\"size\": {\"height\": 25, \"width\": 25}}");
    refused(
        "pooling last is of texts",
        "online",
        "--encoder",
        images,
        "--pooling",
        "last",
        "--input",
        texts,
        "--recipe",
        online,
        "--store",
        folder.resolve("store"));
    Files.delete(config);
    refused(
        "evaluate is for .onnx models and folders", "evaluate", checkpoint, onnx, "--texts", texts);
    refused("there is no file", "recipe", "check", recipe);
  }

  private void refused(String word, Object... args) {
    Run.refused(folder, new String[] {word}, args);
  }
}

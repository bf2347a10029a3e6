package org.espalier.recipe;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertInstanceOf;
import static org.junit.jupiter.api.Assertions.assertNull;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import com.fasterxml.jackson.databind.node.JsonNodeFactory;
import com.fasterxml.jackson.databind.node.ObjectNode;
import java.io.IOException;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.List;
import java.util.Map;
import java.util.Optional;
import java.util.stream.Stream;
import org.espalier.InputException;
import org.espalier.train.Augmentation;
import org.espalier.train.CompressionPlan;
import org.espalier.train.Optimizer;
import org.espalier.train.Pruning;
import org.espalier.train.Quantization;
import org.espalier.train.Stage;
import org.espalier.train.Training;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.Arguments;
import org.junit.jupiter.params.provider.MethodSource;

/** What a recipe says, and what is said about one that is wrong: all of it in milliseconds. */
class RecipeTest {
  private static final String RIGHT =
      """
      seed: 7
      model:
        file: model.onnx
      data:
        texts: texts.txt
      stages:
        - kind: prune
          name: thin
          sparsity: 0.4
          schedule: cubic
          steps: 100
          exclude: [head.*]
        - kind: quantize
          epochs: 2
          optimizer: sgd
          nesterov: true
      """;

  private static Recipe parse(String text, String... overrides) {
    return Recipe.parse("recipe.yaml", text, List.of(overrides));
  }

  @Test
  void productsThatSaturateAreToldWithWhatHelps() {
    String told = ReportBuilder.saturating(parse(RIGHT), true).orElseThrow();
    assertTrue(told.contains("VNNI") && told.contains("unsigned-weights: true"), told);
    assertEquals(Optional.empty(), ReportBuilder.saturating(parse(RIGHT), false));
    for (String exact : List.of("form=int4", "unsigned-weights=true", "reduce-range=true")) {
      Recipe recipe = parse(RIGHT, "quantize." + exact);
      assertEquals(Optional.empty(), ReportBuilder.saturating(recipe, true), exact);
    }
    String floats = RIGHT.substring(0, RIGHT.indexOf("  - kind: quantize"));
    assertEquals(Optional.empty(), ReportBuilder.saturating(parse(floats), true));
  }

  @Test
  void whatIsSlowerIsToldWithWhatHelps() {
    String dynamic = ReportBuilder.slower(parse(RIGHT), 0.5).orElseThrow();
    assertTrue(dynamic.startsWith("the quantized model is slower here"), dynamic);
    assertTrue(dynamic.contains("2.00 times as long as the original"), dynamic);
    assertTrue(dynamic.contains("form: static") && dynamic.contains("exclude"), dynamic);
    String fixed = ReportBuilder.slower(parse(RIGHT, "quantize.form=static"), 0.5).orElseThrow();
    assertFalse(fixed.contains("form: static"), fixed);
    assertTrue(fixed.contains("exclude") && fixed.contains("channels"), fixed);
    String int4 = ReportBuilder.slower(parse(RIGHT, "quantize.form=int4"), 0.5).orElseThrow();
    assertTrue(int4.contains("form: dynamic") && int4.contains("in place of int4"), int4);
    for (double speedup : new double[] {0.97, 2, Double.NaN}) {
      assertEquals(Optional.empty(), ReportBuilder.slower(parse(RIGHT), speedup));
    }
    String floats = RIGHT.substring(0, RIGHT.indexOf("  - kind: quantize"));
    assertEquals(Optional.empty(), ReportBuilder.slower(parse(floats), 0.5));
    ObjectNode report = JsonNodeFactory.instance.objectNode();
    report.putArray("warnings").add("int8 < float");
    String page = ReportPage.of(report);
    assertTrue(page.contains("<p class=\"warning\">int8 &lt; float</p>"), page);
  }

  @Test
  void whatIsWrittenIsMeant() {
    Recipe recipe = parse(RIGHT);
    assertEquals(7, recipe.stages().seed());
    assertEquals("model.onnx", recipe.model().file());
    assertEquals(List.of("onnx", "safetensors"), recipe.formats());
    Stage.Prune prune = assertInstanceOf(Stage.Prune.class, recipe.stages().stages().get(0));
    assertEquals("thin", prune.name());
    assertEquals(0.4, prune.pruning().sparsity());
    assertEquals(Pruning.Schedule.CUBIC, prune.pruning().schedule());
    assertEquals(100, prune.training().steps());
    assertEquals(Training.Schedule.Shape.COSINE, prune.training().schedule().shape());
    assertFalse(prune.pruning().include().test("head.weight"));
    assertTrue(prune.pruning().include().test("body.weight"));
    Stage.Quantize quantize =
        assertInstanceOf(Stage.Quantize.class, recipe.stages().stages().get(1));
    assertEquals("quantize", quantize.name());
    assertEquals(Quantization.Form.DYNAMIC, quantize.quantization().form());
    assertEquals(2, quantize.training().epochs());
    assertEquals(0, quantize.training().steps());
    assertTrue(assertInstanceOf(Optimizer.Sgd.class, quantize.training().optimizer()).nesterov());
    assertTrue(quantize.training().objective().isForEmbeddings());
  }

  @Test
  void augmentationIsOffUnlessItIsWritten() {
    String images = RIGHT.replace("texts: texts.txt", "examples: photos");
    assertEquals(Augmentation.NONE, parse(images).data().augmentation());
    String[] written = {"data.augment.flip=both", "data.augment.zoom=0.25"};
    assertEquals(
        new Augmentation(Augmentation.Flip.BOTH, 0, 0.25, 0, 0, 0),
        parse(images, written).data().augmentation());
    assertEquals(
        Augmentation.NONE,
        parse(images, "data.augment.zoom=1", "data.augment=").data().augmentation());
  }

  /** Of 4 bits it is the scales that are trained, with a rate of their own, unless the recipe says otherwise. */
  @Test
  void fourBitsTrainTheirScales() {
    String adamW = RIGHT.replace("    optimizer: sgd\n    nesterov: true\n", "");
    Stage.Quantize int8 = (Stage.Quantize) parse(adamW).stages().stages().get(1);
    assertFalse(int8.quantization().weights().learnScales());
    assertEquals(3e-5, int8.training().optimizer().learningRate());
    Stage.Quantize int4 =
        (Stage.Quantize)
            parse(adamW, "quantize.form=int4", "quantize.block=64").stages().stages().get(1);
    assertEquals(Quantization.Form.INT4, int4.quantization().form());
    assertEquals(64, int4.quantization().weights().block());
    assertTrue(int4.quantization().weights().learnScales());
    assertEquals(3e-4, int4.training().optimizer().learningRate());
    Stage.Quantize weights =
        (Stage.Quantize)
            parse(adamW, "quantize.form=int4", "quantize.learn-scales=false")
                .stages()
                .stages()
                .get(1);
    assertEquals(32, weights.quantization().weights().block());
    assertFalse(weights.quantization().weights().learnScales());
    assertEquals(3e-5, weights.training().optimizer().learningRate());
    String formats = "export.formats=[compressed-tensors]";
    parse(adamW, "quantize.form=int4", "model.config=config.json", formats);
    Map.of(
            "quantize.block=16",
                "has blocks of 32, 64 and 128; the stage quantize makes blocks of 16",
            "quantize.size=0.3", "has weights of 4 bits alone; the stage quantize gives some 8")
        .forEach(
            (setting, words) -> {
              InputException e =
                  assertThrows(
                      InputException.class,
                      () -> parse(adamW, "quantize.form=int4", setting, formats));
              assertTrue(e.getMessage().contains("formats"), e.getMessage());
              assertTrue(e.getMessage().contains(words), e.getMessage());
            });
  }

  @Test
  void setChangesStagesAndSections() {
    Recipe recipe =
        parse(
            RIGHT,
            "thin.sparsity=0.9",
            "quantize.loss.similarity=2",
            "model.max-tokens=16",
            "seed=3",
            "thin.exclude=[a, b]");
    assertEquals(3, recipe.stages().seed());
    assertEquals(16, recipe.model().maxTokens());
    Stage.Prune prune = (Stage.Prune) recipe.stages().stages().get(0);
    assertEquals(0.9, prune.pruning().sparsity());
    assertTrue(prune.pruning().include().test("head.weight"));
    assertEquals(2, recipe.stages().stages().get(1).training().objective().similarity());
  }

  /** The original would take back what was learned after it, and labels alone say less than both. */
  @Test
  void whatWasFineTunedTeachesTheStagesBehindIt() {
    String tuned =
        RIGHT
                .replace("texts: texts.txt", "examples: x.safetensors")
                .replace("kind: prune", "kind: fine-tune")
                .replaceAll("(?m)^ *(sparsity|schedule|exclude):.*\n", "")
            + "    - {kind: distil}\n".substring(2);
    assertEquals(List.of(1.0, 0.5, 0.5), shareOfLabels(tuned));
    CompressionPlan plan = parse(tuned).stages();
    assertNull(plan.teacherOf(0));
    assertEquals(plan.stages().get(0), plan.teacherOf(1));
    assertEquals(plan.stages().get(0), plan.teacherOf(2));
    assertNull(parse(tuned.replace("fine-tune", "distil")).stages().teacherOf(2));
    String given = tuned.replace("nesterov: true", "loss: {labels: 0.25, logits: 0.75}");
    assertEquals(List.of(1.0, 0.25, 0.5), shareOfLabels(given));
  }

  private static List<Double> shareOfLabels(String text) {
    return parse(text).stages().stages().stream()
        .map(stage -> stage.training().objective())
        .map(objective -> objective.labels() / (objective.labels() + objective.logits()))
        .toList();
  }

  /** Texts can hardly be too many for what is solved for; the rest is content with fewer. */
  @Test
  void whatIsRefittedSeesMoreTexts() {
    assertEquals(256, parse(RIGHT).data().calibration());
    String refitted = RIGHT.replace("schedule: cubic", "refit: true");
    assertEquals(2048, parse(refitted).data().calibration());
    String narrow = RIGHT.replace("data:", "student: {channels: 0.2}\ndata:");
    assertEquals(2048, parse(narrow).data().calibration());
    assertEquals(64, parse(narrow, "data.calibration=64").data().calibration());
    String file = RIGHT.replace("data:", "student: {file: small.onnx}\ndata:");
    assertEquals(256, parse(file).data().calibration());
    String examples = narrow.replace("texts: texts.txt", "examples: x.safetensors");
    assertEquals(256, parse(examples).data().calibration());
  }

  static Stream<Arguments> mistakes() {
    return Stream.of(
        wrong("sparsity: 0.4", "sparsty: 0.4", "recipe.yaml:9: thin", "'sparsty'", "'sparsity'"),
        wrong(
            "sparsity: 0.4", "sparsity: 1", "recipe.yaml:9: thin.sparsity", "'1'", "0 to below 1"),
        wrong("sparsity: 0.4", "sparsity: .nan", "recipe.yaml:9", "a number"),
        wrong("sparsity: 0.4", "sparsity: [1]", "recipe.yaml:9", "a list"),
        wrong("schedule: cubic", "schedule: cubik", "recipe.yaml:10", "'cubik'", "'cubic'"),
        wrong("nesterov: true", "nesterov: yes", "recipe.yaml:16", "true or false"),
        wrong("steps: 100", "steps: 1e3", "recipe.yaml:11", "a whole number"),
        wrong("steps: 100", "steps: 0", "recipe.yaml:7", "thin", "cubic"),
        wrong("seed: 7", "sed: 7", "recipe.yaml:1", "'sed'", "'seed'"),
        wrong(
            "kind: quantize", "kind: quantise", "recipe.yaml:13", "'quantise'", "quantize, distil"),
        wrong("kind: quantize", "kind: fine-tune", "recipe.yaml:13", "fine-tune"),
        wrong("name: thin", "name: quantize", "recipe.yaml", "two stages", "'quantize'"),
        wrong("name: thin", "name: model", "recipe.yaml:8", "'model' is a key"),
        wrong("file: model.onnx", "file:", "recipe.yaml:3", "model.file", "missing", "maven:"),
        wrong("texts: texts.txt", "examples: a\n  texts: b", "recipe.yaml", "not both"),
        wrong("epochs: 2", "epochs: 2\n    steps: 5", "recipe.yaml:13", "one of them"),
        wrong("epochs: 2", "loss: {labels: 1}", "recipe.yaml:14", "need data.examples"),
        wrong("texts: texts.txt", "texts: a\n  task: regression", "recipe.yaml:6", "labels"),
        wrong(
            "texts: texts.txt",
            "examples: photos\n  augment: {flip: left}",
            "recipe.yaml:6: data.augment.flip",
            "none, horizontal, vertical or both"),
        wrong(
            "texts: texts.txt",
            "examples: photos\n  augment: {rotate: .nan, shift: 1, crop: 0.1}",
            "data.augment.rotate",
            "from 0 to 180",
            "0 to below 1",
            "no key 'crop'"),
        wrong("texts: texts.txt", "texts: a\n  augment: {zoom: 0.1}", "recipe.yaml:6", "images"),
        wrong("epochs: 2", "loss: {embedding: 0}", "recipe.yaml:14", "weight 0"),
        wrong("epochs: 2", "clip: mse", "recipe.yaml:14", "static"),
        wrong("epochs: 2", "form: static\n    clip: most", "recipe.yaml:15", "'most'", "auto"),
        wrong("epochs: 2", "block: 64", "recipe.yaml:14", "form: int4"),
        wrong("epochs: 2", "form: int4\n    block: 48", "recipe.yaml:15", "16, 32, 64"),
        wrong("epochs: 2", "form: int4\n    reduce-range: true", "recipe.yaml:15", "8 bits"),
        wrong("epochs: 2", "form: int4\n    unsigned-weights: true", "recipe.yaml:15", "8 bits"),
        wrong(
            "epochs: 2",
            "reduce-range: true\n    unsigned-weights: true",
            "recipe.yaml:15",
            "have a sign"),
        wrong("epochs: 2", "size: 0.2", "recipe.yaml:14", "it is for form: int4"),
        wrong(
            "epochs: 2",
            "form: int4\n    size: 0.2\n    fit: false",
            "recipe.yaml:15",
            "fit: true"),
        wrong("epochs: 2", "form: int4\n    clip: mse", "recipe.yaml:15", "static"),
        wrong(
            "seed: 7",
            "seed: 7\nexport: {formats: [compressed-tensors]}",
            "recipe.yaml:2",
            "fit: false"),
        wrong("epochs: 2", "beta1: 0.5", "recipe.yaml:14", "optimizer: adamw"),
        wrong("optimizer: sgd", "momentum: 0.5", "recipe.yaml:15", "optimizer: sgd"),
        wrong("schedule: cubic", "until: 0.5", "recipe.yaml:10", "schedule: cubic"),
        wrong("epochs: 2", "batch: 2\n    loss: {similarity: 1}", "recipe.yaml:14", "3 or more"),
        wrong("sparsity: 0.4", "pattern: 4:2", "recipe.yaml:9", "4:2"),
        wrong("sparsity: 0.4", "pattern: 2:4:8", "recipe.yaml:9", "2:4:8"),
        wrong("sparsity: 0.4", "pattern: 1:65", "recipe.yaml:9", "<= 64"),
        wrong("exclude: [head.*]", "exclude: '[a'", "recipe.yaml", "without a ]"),
        wrong("seed: 7", "export: {formats: [torchscripts]}", "recipe.yaml:1", "torchscript"),
        wrong("seed: 7", "seed: 7\nseed: 8", "recipe.yaml:2", "'seed' was given in line 1"),
        wrong("seed: 7", "seed: &a 7", "recipe.yaml:1", "anchors"),
        wrong("seed: 7", "seed: *a", "recipe.yaml:1", "anchors"),
        wrong("seed: 7", "seed: !!java.net.URL [x]", "recipe.yaml:1", "tag"),
        wrong("seed: 7", "seed: [", "recipe.yaml", "no valid YAML"),
        wrong("head.*", "head.\0", "recipe.yaml:12", "U+0000"),
        wrong("seed: 7", "\tseed: 7", "recipe.yaml:1", "no valid YAML"),
        wrong("seed: 7", "? [a]\n: b", "recipe.yaml:1", "where a key is expected"),
        wrong("seed: 7", "---\nseed: 7\n---", "recipe.yaml:3", "a second document"),
        wrong("seed: 7", "seed: " + "[".repeat(100_000), "recipe.yaml:1", "levels"),
        wrong("seed: 7", "#" + "x".repeat(1 << 20), "recipe.yaml", "characters"));
  }

  private static Arguments wrong(String right, String instead, String... words) {
    return Arguments.of(right, instead, List.of(words));
  }

  @ParameterizedTest
  @MethodSource("mistakes")
  void aMistakeIsNamedWithItsPlaceAndWhatIsRight(String right, String instead, List<String> words) {
    assertTrue(RIGHT.contains(right));
    String text = RIGHT.replace(right, instead);
    InputException e = assertThrows(InputException.class, () -> parse(text));
    for (String word : words) {
      assertTrue(e.getMessage().contains(word), () -> "no '" + word + "' in " + e.getMessage());
    }
  }

  /** As --set quantize.loss= writes it: the default again. */
  @Test
  void aGroupOfNothingIsNotThere() {
    assertEquals(
        parse(RIGHT).stages().stages().get(1).training().objective(),
        parse(RIGHT, "quantize.loss.hidden=7", "quantize.loss=")
            .stages()
            .stages()
            .get(1)
            .training()
            .objective());
    assertNull(parse(RIGHT, "teacher.file=a.onnx", "teacher=").teacher());
    assertTrue(
        assertThrows(InputException.class, () -> parse(RIGHT, "model="))
            .getMessage()
            .contains("model.file: missing"));
  }

  @Test
  void globsThatMatchNothingAreNamed() {
    Stage.Prune prune =
        (Stage.Prune) parse(RIGHT, "thin.include=[a.*, b.*]").stages().stages().get(0);
    NameGlobs globs = (NameGlobs) prune.pruning().include();
    globs.check(List.of("a.w", "b.w", "head.w"));
    for (String missing : List.of("a", "b", "head")) {
      List<String> names =
          Stream.of("a", "b", "head").filter(n -> !n.equals(missing)).map(n -> n + ".w").toList();
      InputException e = assertThrows(InputException.class, () -> globs.check(names));
      assertTrue(e.getMessage().contains("'" + missing + ".*' matches no weight"), e.getMessage());
    }
  }

  @Test
  void allMistakesAreToldAtOnce() {
    InputException e =
        assertThrows(
            InputException.class,
            () -> parse(RIGHT.replace("0.4", "x").replace("name: thin", "nam: thin")));
    assertTrue(
        e.getMessage().contains("recipe.yaml:8") && e.getMessage().contains("recipe.yaml:9"));
  }

  @Test
  void wrongOverridesNameThemselves() {
    for (String[] c :
        new String[][] {
          {"thn.sparsity=1", "'thn'", "'thin'"},
          {"thin.sparsty=0.1", "--set thin.sparsty=0.1", "'sparsity'"},
          {"thin.sparsity=2", "--set thin.sparsity=2", "0 to below 1"},
          {"thin=1", "which key"},
          {"sparsity", "stage.key=value"},
          {"thin.sparsity.x=1", "group of keys"},
          {"model.file=", "--set model.file=", "missing"},
        }) {
      InputException e = assertThrows(InputException.class, () -> parse(RIGHT, c[0]));
      for (int i = 1; i < c.length; i++) {
        String word = c[i];
        assertTrue(e.getMessage().contains(word), () -> "no '" + word + "' in " + e.getMessage());
      }
    }
  }

  @Test
  void filesThatAreNoRecipeAreRefused(@TempDir Path folder) throws IOException {
    Path binary = Files.write(folder.resolve("binary"), new byte[] {(byte) 0xff, (byte) 0xfe, 0});
    Path empty = Files.writeString(folder.resolve("empty"), "");
    Path huge = Files.writeString(folder.resolve("huge"), "#".repeat(2 << 20));
    for (Path path : List.of(folder, folder.resolve("none.yaml"), binary, empty, huge)) {
      InputException e = assertThrows(InputException.class, () -> Recipe.read(path, List.of()));
      assertTrue(e.getMessage().contains(path.toString()), e.getMessage());
    }
  }

  @Test
  void theTemplateIsARightRecipeAndNamesEveryKey() {
    String template =
        RecipeSchema.template("a \"b\" \\ c.onnx", "texts", "t.txt", "quantize", Map.of());
    Recipe recipe = parse(template);
    assertEquals("a \"b\" \\ c.onnx", recipe.model().file());
    assertEquals(1, recipe.stages().stages().size());
    // Every line that is commented out is right too, but for keys that exclude each other.
    String described = RecipeSchema.describe();
    for (String line : described.lines().toList()) {
      String key = line.strip().split(":")[0];
      if (line.contains(": ") && key.matches("[a-z0-9-]+")) {
        assertTrue(template.contains(key + ":"), key);
      }
    }
    assertTrue(RecipeSchema.toJsonSchema().at("/properties/stages/items/oneOf").size() == 4);
  }

  @Test
  void theExamplesAreRight() throws IOException {
    try (Stream<Path> files =
        Files.walk(Path.of(System.getProperty("espalier.root"), "examples"))) {
      List<Path> recipes = files.filter(f -> f.toString().endsWith(".yaml")).toList();
      assertFalse(recipes.isEmpty());
      for (Path path : recipes) {
        if (Files.readString(path, StandardCharsets.UTF_8).contains("stages:")) {
          Recipe.read(path, List.of());
        }
      }
    }
  }
}

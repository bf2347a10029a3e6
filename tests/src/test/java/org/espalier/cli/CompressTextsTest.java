package org.espalier.cli;

import static org.espalier.format.onnx.SmallModels.floats;
import static org.espalier.format.onnx.SmallModels.line;
import static org.espalier.format.onnx.SmallModels.value;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertTrue;

import ai.onnx.proto.OnnxMl.GraphProto;
import ai.onnx.proto.OnnxMl.TensorProto.DataType;
import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.ObjectMapper;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import java.util.Random;
import java.util.Set;
import java.util.function.Function;
import org.espalier.ExactProducts;
import org.espalier.evaluate.FidelityEvaluator;
import org.espalier.format.onnx.OnnxModel;
import org.espalier.format.onnx.SmallModels;
import org.espalier.format.onnx.TextClassifierModel;
import org.junit.jupiter.api.BeforeEach;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;

/** Whole runs on texts with labels. */
class CompressTextsTest {
  private static final int WIDTH = 16;

  private static final String RECIPE =
      """
      model: {file: model.onnx}
      data: {examples: texts.jsonl, validation: 100, evaluation: 300, calibration: 64}
      stages:
        - {kind: fine-tune, steps: 300, batch: 32, learning-rate: 1e-2}
        - {kind: quantize, form: FORM, steps: 30, batch: 32, learning-rate: 1e-3LOSS}
      export: {formats: [onnx, onnx-float]}
      report: {each-stage: false}
      """;

  @TempDir Path folder;
  private Path recipe;
  private final List<String> texts = SmallLanguage.texts(1200, 7);

  @BeforeEach
  void write() throws IOException {
    SmallLanguage.write(folder);
    recipe("dynamic", "");
    model(2);
  }

  private void recipe(String form, String loss) throws IOException {
    recipe =
        Files.writeString(
            folder.resolve("recipe.yaml"),
            RECIPE.replace("FORM", ExactProducts.form(form)).replace("LOSS", loss));
  }

  private void model(int outputs) throws IOException {
    Files.write(
        folder.resolve("model.onnx"),
        TextClassifierModel.of(3, SmallLanguage.VOCABULARY, WIDTH, outputs).toByteArray());
  }

  /** The share of words of the first half of the language. */
  private static double share(String text) {
    String[] words = text.split(" ");
    int first = 0;
    for (String word : words) {
      first += Integer.parseInt(word.substring(1)) < SmallLanguage.WORDS / 2 ? 1 : 0;
    }
    return (double) first / words.length;
  }

  private Path examples(String name, Function<String, String> labels) throws IOException {
    List<String> lines = new ArrayList<>();
    for (String text : texts) {
      lines.add("{\"text\": \"" + text + "\"" + labels.apply(text) + ", \"source\": [1]}");
    }
    return Files.write(folder.resolve(name), lines);
  }

  private static String label(String text) {
    return ", \"label\": " + (share(text) > 0.5 ? 1 : 0);
  }

  private JsonNode compress() throws IOException {
    Run.of("compress", recipe, "-o", folder.resolve("out")).done();
    return new ObjectMapper().readTree(folder.resolve("out/report.json").toFile());
  }

  @ParameterizedTest
  @CsvSource({"dynamic", "static"})
  void learnsClassesOfTexts(String form) throws IOException {
    recipe(form, "");
    examples("texts.jsonl", CompressTextsTest::label);
    JsonNode report = compress();
    assertEquals("labelled examples", report.get("data").get("kind").asText());
    assertEquals("classification", report.get("data").get("task").asText());
    JsonNode fidelity = report.get("fidelity");
    assertTrue(fidelity.get("accuracy").asDouble() > 0.93, fidelity.toString());
    assertTrue(fidelity.get("reference_accuracy").asDouble() < 0.7, fidelity.toString());
    OnnxModel written = OnnxModel.read(folder.resolve("out/model-int8.onnx"));
    assertEquals(ExactProducts.first().type(), type(written));
    // Validation pads batches, ONNX Runtime reads each text alone.
    Path held = Files.write(folder.resolve("held.jsonl"), lines());
    JsonNode judged =
        Run.of(
                "evaluate",
                folder.resolve("model.onnx"),
                folder.resolve("out/model-float.onnx"),
                "--examples",
                held,
                "--json")
            .json();
    assertTrue(judged.get("labels").get("accuracy").asDouble() > 0.93, judged.toString());
  }

  private List<String> lines() {
    return SmallLanguage.texts(200, 99).stream()
        .map(text -> "{\"text\": \"" + text + "\"" + label(text) + "}")
        .toList();
  }

  private static DataType type(OnnxModel model) {
    return model.initializers().stream()
        .map(i -> i.type())
        .filter(type -> type == ExactProducts.first().type())
        .findAny()
        .orElse(DataType.FLOAT);
  }

  @Test
  void takesWordsForClasses() throws IOException {
    Files.writeString(
        recipe,
        Files.readString(recipe)
            .replace("calibration: 64", "classes: [few, many], calibration: 64"));
    examples(
        "texts.jsonl",
        text -> share(text) > 0.5 ? ", \"label\": \"many\"" : ", \"label\": \"few\"");
    JsonNode report = compress();
    JsonNode changed = report.get("fidelity").get("changed_answers").get(0);
    boolean many = share(changed.get("text").asText()) > 0.5;
    assertEquals(many ? "many" : "few", changed.get("label_name").asText());
    assertTrue(List.of("few", "many").contains(changed.get("reference_name").asText()));
    assertTrue(
        Files.readString(folder.resolve("out/report.html"))
            .contains(changed.get("text").asText() + "</div>"));
    double byWords = report.get("fidelity").get("accuracy").asDouble();
    recipe("dynamic", "");
    examples("texts.jsonl", CompressTextsTest::label);
    String name = "m".repeat(1000);
    Files.writeString(
        folder.resolve("config.json"), "{\"id2label\": {\"0\": \"" + name + "\", \"1\": \"<b>\"}}");
    Run.of("compress", recipe, "-o", folder.resolve("numbers")).done();
    JsonNode numbers = new ObjectMapper().readTree(folder.resolve("numbers/report.json").toFile());
    assertEquals(byWords, numbers.get("fidelity").get("accuracy").asDouble());
    for (JsonNode answer : numbers.get("fidelity").get("changed_answers")) {
      String right = answer.get("label").asInt() == 0 ? "m".repeat(300) + "…" : "<b>";
      assertEquals(right, answer.get("label_name").asText());
    }
    String page = Files.readString(folder.resolve("numbers/report.html"));
    assertTrue(page.contains("&lt;b&gt;"), page);
  }

  /** input_ids, attention_mask, token_type_ids → the sums of a table's rows for either text → logits [n, 2]. */
  private void comparingModel() throws IOException {
    Random random = new Random(4);
    GraphProto.Builder g =
        GraphProto.newBuilder()
            .setName("comparing")
            .addInput(value("input_ids", DataType.INT64, -1, -2))
            .addInput(value("attention_mask", DataType.INT64, -1, -2))
            .addInput(value("token_type_ids", DataType.INT64, -1, -2))
            .addInitializer(floats("words", random, 0.3f, SmallLanguage.VOCABULARY, WIDTH))
            .addInitializer(floats("layer", random, 0.2f, 2 * WIDTH, WIDTH))
            .addInitializer(floats("head", random, 0.25f, WIDTH, 2))
            .addInitializer(SmallModels.int64s("row", 0, 1, -1))
            .addInitializer(SmallModels.int64s("flat", 0, -1))
            .addNode(line("found Gather words input_ids"));
    for (String input : List.of("attention_mask", "token_type_ids")) {
      g.addNode(line(input + "_f Cast " + input, SmallModels.attribute("to", 1)))
          .addNode(line(input + "_row Reshape " + input + "_f row"));
    }
    g.addNode(line("ofFirst Sub attention_mask_row token_type_ids_row"))
        .addNode(line("first MatMul ofFirst found"))
        .addNode(line("second MatMul token_type_ids_row found"))
        .addNode(line("both Concat first second", SmallModels.attribute("axis", 2)))
        .addNode(line("sums Reshape both flat"))
        .addNode(line("mixed MatMul sums layer"))
        .addNode(line("bent Tanh mixed"))
        .addNode(line("logits MatMul bent head"))
        .addOutput(value("logits", DataType.FLOAT, -1, 2));
    Files.write(folder.resolve("model.onnx"), SmallModels.model(17, g).toByteArray());
  }

  private static String pair(String first, String second) {
    return "{\"text\": \""
        + first
        + "\", \"text_pair\": \""
        + second
        + "\", \"label\": "
        + (share(second) > share(first) ? 1 : 0)
        + "}";
  }

  @Test
  void comparesPairsOfTexts() throws IOException {
    comparingModel();
    List<String> lines = new ArrayList<>();
    for (int i = 0; i < texts.size(); i++) {
      lines.add(pair(texts.get(i), texts.get((7 * i + 3) % texts.size())));
    }
    Path file = Files.write(folder.resolve("texts.jsonl"), lines);
    JsonNode fidelity = compress().get("fidelity");
    assertTrue(fidelity.get("accuracy").asDouble() > 0.9, fidelity.toString());
    assertTrue(fidelity.get("reference_accuracy").asDouble() < 0.7, fidelity.toString());
    Path quantized = folder.resolve("quantized.onnx");
    Path trained = folder.resolve("out/model-float.onnx");
    List<Object> args =
        new ArrayList<>(
            List.of("quantize", trained, "-o", quantized, "--to=onnx-qdq", "--calibration", file));
    args.addAll(ExactProducts.options("onnx-qdq"));
    Run.of(args.toArray()).done();
    JsonNode judged = Run.of("evaluate", trained, quantized, "--examples", file, "--json").json();
    assertTrue(judged.get("labels").get("accuracy").asDouble() > 0.9, judged.toString());
    refused("there is a text_pair and no text", "{\"text_pair\": \"w1\", \"features\": [1]}");
    refused("text_pair is not a string", "{\"text\": \"w1\", \"text_pair\": 1}");
  }

  @Test
  void learnsNumbersAndSeveralLabelsOfTexts() throws IOException {
    model(1);
    recipe("dynamic", ", loss: {labels: 1}");
    examples("texts.jsonl", text -> ", \"label\": " + share(text));
    JsonNode report = compress();
    assertEquals("regression", report.get("data").get("task").asText());
    assertTrue(
        report.get("fidelity").get("r2").asDouble() > 0.9, report.get("fidelity").toString());
    model(2);
    recipe("dynamic", "");
    Files.move(folder.resolve("out"), folder.resolve("first"));
    examples(
        "texts.jsonl",
        text ->
            ", \"labels\": ["
                + (share(text) > 0.5 ? 1 : 0)
                + ", "
                + (share(text) > 0.3 ? "1" : "null")
                + "]");
    JsonNode several = compress().get("fidelity");
    assertTrue(several.get("accuracy").asDouble() > 0.9, several.toString());
  }

  @Test
  void followsTheTeacherWithoutLabels() throws IOException {
    recipe =
        Files.writeString(
            recipe,
            RECIPE
                .replaceAll("(?m)^.*fine-tune.*\n", "")
                .replace("FORM", ExactProducts.form("dynamic"))
                .replace("LOSS", ""));
    examples("texts.jsonl", text -> "");
    Files.write(folder.resolve("held.jsonl"), lines());
    Path own =
        Files.writeString(
            folder.resolve("own.yaml"),
            Files.readString(recipe)
                .replace("texts.jsonl,", "texts.jsonl, evaluation-examples: held.jsonl,"));
    Run check = Run.of("recipe", "check", own).done();
    assertTrue(check.err().contains("held.jsonl are not measured"), check.err());
    JsonNode report = compress();
    assertEquals("examples", report.get("data").get("kind").asText());
    assertTrue(
        report.get("fidelity").get("cosine_mean").asDouble() > 0.99,
        report.get("fidelity").toString());
  }

  @Test
  void initWritesARecipeForThem() throws IOException {
    Path written = folder.resolve("init.yaml");
    examples("texts.jsonl", CompressTextsTest::label);
    Run.of("recipe", "init", "-o", written, "--model", "model.onnx", "--examples", "texts.jsonl")
        .done();
    JsonNode checked = Run.of("recipe", "check", written, "--json").json();
    assertEquals("classification", checked.get("task").asText());
  }

  /** What is measured was not trained on. */
  @Test
  void takesEachTextOnce() throws IOException {
    String text = Files.readString(recipe).replace("steps: 300", "steps: 20");
    Files.writeString(recipe, text);
    List<String> lines = Files.readAllLines(examples("texts.jsonl", CompressTextsTest::label));
    int different = Set.copyOf(texts).size();
    Path held = Files.write(folder.resolve("held.jsonl"), lines.subList(0, 300));
    List<String> more = new ArrayList<>(lines);
    more.addAll(lines.subList(200, 500)); // 100 of them are held out
    Files.write(folder.resolve("texts.JSONL"), more);
    Run twice = Run.of("compress", recipe, "-o", folder.resolve("out")).done();
    assertEquals(different < texts.size(), twice.err().contains("are left out"), twice.err());
    String own = "{examples: texts.JSONL, evaluation-examples: held.jsonl,";
    Files.writeString(recipe, text.replace("{examples: texts.jsonl,", own));
    Run run = Run.of("compress", recipe, "-o", folder.resolve("own")).done();
    int kept = different - Set.copyOf(texts.subList(0, 300)).size();
    String said = more.size() - kept + " texts of ";
    assertTrue(run.err().contains(said), said + ": " + run.err());
    assertTrue(run.err().contains("for they occur more than once, or in "), run.err());
    JsonNode report = new ObjectMapper().readTree(folder.resolve("own/report.json").toFile());
    assertEquals(kept - 100, report.get("data").get("training").asInt(), report.toString());
    assertEquals(300, report.get("data").get("evaluation").asInt());
    Files.writeString(
        recipe, text.replace("texts.jsonl,", "held.jsonl, evaluation-examples: held.jsonl,"));
    Run.refused(folder, new String[] {"has no text that is not in"}, "recipe", "check", recipe);
  }

  @Test
  void readsFilesWithAByteOrderMark() throws IOException {
    Path marked = examples("texts.jsonl", CompressTextsTest::label);
    Files.writeString(marked, "\ufeff" + Files.readString(marked));
    Run.of("recipe", "check", recipe).done();
    Path plain = Files.writeString(folder.resolve("marked.txt"), "\ufeffw1 w2\n\n\ufeffw3\n");
    assertEquals(List.of("w1 w2", "\ufeffw3"), FidelityEvaluator.readTexts(plain));
  }

  /** Hidden states are followed token by token. */
  @Test
  void followsOutputsOfTokens() throws IOException {
    GraphProto.Builder g =
        GraphProto.newBuilder()
            .setName("encoder")
            .addInput(value("input_ids", DataType.INT64, -1, -2))
            .addInitializer(floats("words", new Random(3), 1, SmallLanguage.VOCABULARY, WIDTH))
            .addInitializer(floats("layer", new Random(4), 0.25f, WIDTH, WIDTH))
            .addNode(line("found Gather words input_ids"))
            .addNode(line("states MatMul found layer"))
            .addOutput(value("states", DataType.FLOAT, -1, -2, WIDTH));
    Files.write(folder.resolve("model.onnx"), SmallModels.model(17, g).toByteArray());
    examples("texts.jsonl", text -> "");
    recipe("dynamic", ", loss: {output: 1}");
    Files.writeString(recipe, Files.readString(recipe).replaceAll("(?m)^.*fine-tune.*\n", ""));
    JsonNode fidelity = compress().get("fidelity");
    assertTrue(fidelity.get("cosine_mean").asDouble() > 0.99, fidelity.toString());
  }

  @Test
  void saysWhereTextsWithoutLabelsAreWrong() throws IOException {
    examples("texts.jsonl", CompressTextsTest::label);
    Files.writeString(
        recipe,
        Files.readString(recipe)
            .replace("examples:", "texts:")
            .replaceAll("(?m)^.*fine-tune.*\n", ""));
    Run.refused(
        folder,
        new String[] {"a model with one output a text for other ends takes labelled examples"},
        "recipe",
        "check",
        recipe);
    // What classifies is no embedding, whatever its shape.
    Path init = folder.resolve("init.yaml");
    Run.of("recipe", "init", "-o", init, "--model", "model.onnx", "--texts", "texts.jsonl").done();
    assertTrue(Files.readString(init).contains("\n    # loss:"), "a loss for embeddings");
  }

  @Test
  void refusesWhatIsNoText() throws IOException {
    refused("there is none of text, tokens, image, features", "{\"label\": 1}");
    refused("example 2: it is not JSON", "{\"text\": \"w1\", \"label\": 1}", "{\"text\"");
    refused("is a word; data.classes", "{\"text\": \"w1\", \"label\": \"many\"}");
    refused("classes are whole numbers", "classification", "{\"text\": \"w1\", \"label\": 0.5}");
    refused(
        "example 2: there is values, and label before",
        "{\"text\": \"w1\", \"label\": 1}",
        "{\"text\": \"w1\", \"values\": [1]}");
    refused(
        "labels has 1 entries, earlier ones 2",
        "{\"text\": \"w1\", \"labels\": [1, 0]}",
        "{\"text\": \"w1\", \"labels\": [1]}");
    refused("values holds '\"a\"', which is no number", "{\"text\": \"w1\", \"values\": [\"a\"]}");
    refused("the text '' has no tokens", "{\"text\": \"\", \"label\": 1}");
    refused(
        "the label '\\u001b[31m\\u000aw' is a word",
        "{\"text\": \"w1\", \"label\": \"\\u001b[31m\\nw\"}"); // no command to a terminal
    refused("example 1: label holds '{\"a\":1}'", "{\"text\": \"w1\", \"label\": {\"a\": 1}}");
    refused("it goes on after its JSON object", "{\"text\": \"w1\"} {\"text\": \"w2\"}");
    refused("holds no example", "");
    examples("texts.jsonl", text -> ", \"label\": 5");
    Run.refused(folder, new String[] {"has 2 classes", "a label 5"}, "recipe", "check", recipe);
    Files.writeString(
        recipe, Files.readString(recipe).replace("texts.jsonl", "t.safetensors, classes: [a]"));
    Run.refused(folder, new String[] {"data.classes", ".jsonl"}, "recipe", "check", recipe);
    Run.refused(
        folder,
        new String[] {"--classes is for --examples in lines"},
        "evaluate",
        folder.resolve("model.onnx"),
        folder.resolve("model.onnx"),
        "--examples",
        "x.safetensors",
        "--classes",
        "a,b");
    examples("texts.jsonl", CompressTextsTest::label);
    Run.refused(
        folder,
        new String[] {"of the classes [a, b, a] a word is there twice"},
        "evaluate",
        folder.resolve("model.onnx"),
        folder.resolve("model.onnx"),
        "--examples",
        folder.resolve("texts.jsonl"),
        "--classes",
        "a,b,a");
    Run.refused(
        folder,
        new String[] {"of the classes [a, , b] one has no name"},
        "evaluate",
        folder.resolve("model.onnx"),
        folder.resolve("model.onnx"),
        "--examples",
        folder.resolve("texts.jsonl"),
        "--classes",
        "a,,b");
  }

  private void refused(String word, String... lines) throws IOException {
    List<String> all = new ArrayList<>(List.of(lines));
    String text = Files.readString(recipe);
    if (all.get(0).equals("classification")) {
      all.remove(0);
      text = text.replace("calibration: 64", "task: classification, calibration: 64");
    }
    Path own = Files.writeString(folder.resolve("refused.yaml"), text);
    Files.write(folder.resolve("texts.jsonl"), all);
    Run.refused(folder, new String[] {"texts.jsonl", word}, "recipe", "check", own);
  }
}

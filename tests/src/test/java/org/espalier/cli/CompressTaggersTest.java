package org.espalier.cli;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertTrue;

import ai.onnx.proto.OnnxMl.ModelProto;
import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.ObjectMapper;
import java.io.IOException;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.Map;
import java.util.Random;
import java.util.function.UnaryOperator;
import java.util.stream.Collectors;
import java.util.stream.Stream;
import org.espalier.ExactProducts;
import org.espalier.evaluate.ExampleLine;
import org.espalier.format.AtomicFile;
import org.espalier.format.onnx.SmallModels;
import org.espalier.format.onnx.TaggerModel;
import org.espalier.format.safetensors.SafetensorsDtype;
import org.espalier.format.safetensors.SafetensorsWriter;
import org.espalier.format.safetensors.TensorSpec;
import org.junit.jupiter.api.BeforeEach;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.ValueSource;

/** Whole runs on words with tags: named entities. */
class CompressTaggersTest {
  private static final int SENTENCES = 700;
  private static final int WIDTH = 16;
  private static final List<String> CLASSES = List.of("O", "B-PER", "I-PER", "B-LOC", "I-LOC");
  private static final String NAMES = "[O, B-PER, I-PER, B-LOC, I-LOC]";

  /** A word is one piece or, if it is a name, two, of which the first says what it names. */
  private static final List<String> PIECES =
      Stream.concat(
              Stream.of("[UNK]", "[CLS]", "[SEP]", "per", "loc"),
              Stream.of("a", "b", "c", "d").flatMap(end -> Stream.of("##" + end, "x" + end)))
          .toList();

  private static final String TOKENIZER =
      """
{"version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
 "pre_tokenizer": {"type": "WhitespaceSplit"},
 "post_processor": {"type": "TemplateProcessing",
  "single": [{"SpecialToken": {"id": "[CLS]", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}},
    {"SpecialToken": {"id": "[SEP]", "type_id": 0}}],
  "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
  "special_tokens": {"[CLS]": {"id": "[CLS]", "ids": [1], "tokens": ["[CLS]"]},
    "[SEP]": {"id": "[SEP]", "ids": [2], "tokens": ["[SEP]"]}}},
 "decoder": null,
 "model": {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
  "max_input_chars_per_word": 100, "vocab": {VOCABULARY}}}
""";

  private static final String RECIPE =
      """
      model: {file: model.onnx}
      data: {examples: FILE, validation: 100, evaluation: 200, calibration: 64}
      stages:
        - {kind: fine-tune, steps: 200, batch: 32, learning-rate: 1e-2}
        - {kind: quantize, form: FORM, steps: 20, batch: 32, learning-rate: 1e-3}
      export: {formats: [onnx, onnx-float]}
      report: {each-stage: false}
      """;

  /** Words and their classes. */
  private record Sentence(List<String> words, List<Integer> tags) {
    String line(UnaryOperator<String> tag) {
      return "{\"tokens\": ["
          + words.stream().map(w -> '"' + w + '"').collect(Collectors.joining(", "))
          + "], \"tags\": ["
          + tags.stream().map(t -> tag.apply(t.toString())).collect(Collectors.joining(", "))
          + "]}";
    }

    String ofWords() {
      return line(tag -> '"' + CLASSES.get(Integer.parseInt(tag)) + '"');
    }

    String column() {
      StringBuilder lines = new StringBuilder();
      for (int i = 0; i < words.size(); i++) {
        lines.append(words.get(i) + " XX _ " + CLASSES.get(tags.get(i)) + "\n");
      }
      return lines.toString();
    }
  }

  @TempDir Path folder;
  private Path recipe;

  @BeforeEach
  void write() throws IOException {
    String vocabulary =
        PIECES.stream()
            .map(piece -> "\"" + piece + "\": " + PIECES.indexOf(piece))
            .collect(Collectors.joining(", "));
    Files.writeString(
        folder.resolve("tokenizer.json"), TOKENIZER.replace("VOCABULARY", vocabulary));
    Files.write(
        folder.resolve("model.onnx"),
        TaggerModel.of(3, PIECES.size(), WIDTH, CLASSES.size()).toByteArray());
    recipe("words.jsonl, classes: " + NAMES, "dynamic");
  }

  private void recipe(String file, String form) throws IOException {
    recipe =
        Files.writeString(
            folder.resolve("recipe.yaml"),
            RECIPE.replace("FILE", file).replace("FORM", ExactProducts.form(form)));
  }

  /**
   * Sentences of 3 to 12 words, or of some number. A name behind one of its kind goes on with it.
   *
   * @param length 0 for some of each
   */
  private static List<Sentence> sentences(int count, int length, long seed) {
    Random random = new Random(seed);
    return Stream.generate(
            () -> {
              List<String> words = new ArrayList<>();
              List<Integer> tags = new ArrayList<>();
              String before = "";
              for (int left = length > 0 ? length : 3 + random.nextInt(10); left > 0; left--) {
                String kind = List.of("x", "x", "per", "loc", before).get(random.nextInt(5));
                kind = kind.isEmpty() ? "x" : kind;
                words.add(kind + (char) ('a' + random.nextInt(4)));
                tags.add(
                    kind.equals("x")
                        ? 0
                        : (kind.equals("per") ? 1 : 3) + (kind.equals(before) ? 1 : 0));
                before = kind;
              }
              return new Sentence(words, tags);
            })
        .distinct()
        .limit(count)
        .toList();
  }

  private Path lines(String name, List<Sentence> sentences) throws IOException {
    return Files.write(folder.resolve(name), sentences.stream().map(Sentence::ofWords).toList());
  }

  private JsonNode compress(String out) throws IOException {
    Run.of("compress", recipe, "-o", folder.resolve(out)).done();
    return new ObjectMapper().readTree(folder.resolve(out + "/report.json").toFile());
  }

  private static void assertRight(JsonNode measured) {
    assertTrue(measured.path("accuracy").asDouble() > 0.95, measured.toString());
    assertTrue(measured.path("entity_f1").asDouble() > 0.9, measured.toString());
    assertTrue(measured.path("reference_entity_f1").asDouble() < 0.5, measured.toString());
  }

  /** Fine-tuned, quantized with calibration, measured. */
  @ParameterizedTest
  @ValueSource(strings = {"dynamic", "static"})
  void entitiesAreLearned(String form) throws IOException {
    recipe("words.jsonl, classes: " + NAMES, form);
    lines("words.jsonl", sentences(SENTENCES, 0, 5));
    JsonNode report = compress("out");
    assertEquals("classification", report.at("/data/task").asText());
    assertRight(report.path("fidelity"));
    String page = Files.readString(folder.resolve("out/report.html"));
    assertTrue(page.contains("F1 of entities"), page);
    Path held = lines("held.jsonl", sentences(200, 0, 6));
    Path made = folder.resolve("quantized.onnx");
    Path trained = folder.resolve("out/model-float.onnx");
    String to = form.equals("static") ? "onnx-qdq" : "onnx-dynamic";
    Run.of("quantize", trained, "-o", made, "--to", to, "--calibration", held).done();
    Object[] evaluate = {
      "evaluate",
      folder.resolve("model.onnx"),
      made,
      "--examples",
      held,
      "--classes",
      String.join(",", CLASSES),
      "--json"
    };
    assertRight(Run.of(evaluate).json().path("labels"));
    String table = Run.of(Arrays.copyOf(evaluate, evaluate.length - 1)).done().out();
    assertTrue(table.contains("entity f1") && table.contains("0."), table);
    Path pruned = folder.resolve("pruned.onnx");
    Path columns =
        Files.writeString(
            folder.resolve("held.conll"),
            sentences(200, 0, 6).stream().map(Sentence::column).collect(Collectors.joining("\n")));
    Run.of("prune", trained, "-o", pruned, "--amount", 0.3, "--refit", "--calibration", columns)
        .done();
    JsonNode refitted =
        Run.of("evaluate", trained, pruned, "--examples", held, "--task", "none", "--json").json();
    assertTrue(refitted.at("/outputs/0/cosine_mean").asDouble() > 0.9, refitted.toString());
  }

  /** All sentences have as many tokens, so that no batch is padded and all are in one order. */
  @Test
  void linesAreTrainedOnAsTensorsAre() throws IOException {
    List<Sentence> all = new ArrayList<>();
    for (Sentence s : sentences(4000, 6, 9)) {
      long names = s.tags().stream().filter(tag -> tag > 0).count();
      if (names == 3) {
        all.add(s);
      }
    }
    all = all.subList(0, 500);
    int tokens = 2 + 6 + 3;
    long n = all.size();
    ByteBuffer ids = ByteBuffer.allocate((int) (8 * n * tokens)).order(ByteOrder.LITTLE_ENDIAN);
    ByteBuffer labels = ByteBuffer.allocate(ids.capacity()).order(ByteOrder.LITTLE_ENDIAN);
    ByteBuffer mask = ByteBuffer.allocate(ids.capacity()).order(ByteOrder.LITTLE_ENDIAN);
    for (Sentence s : all) {
      ids.putLong(1);
      labels.putLong(-100);
      for (int i = 0; i < s.words().size(); i++) {
        String word = s.words().get(i);
        labels.putLong(s.tags().get(i));
        if (word.length() == 2) {
          ids.putLong(PIECES.indexOf(word));
        } else {
          ids.putLong(PIECES.indexOf(word.substring(0, 3)));
          ids.putLong(PIECES.indexOf("##" + word.substring(3)));
          labels.putLong(-100);
        }
      }
      ids.putLong(2);
      labels.putLong(-100);
    }
    while (mask.hasRemaining()) {
      mask.putLong(1);
    }
    List<Long> shape = List.of(n, (long) tokens);
    Map<String, ByteBuffer> tensors =
        Map.of("input_ids", ids, "attention_mask", mask, "labels", labels);
    try (AtomicFile file = AtomicFile.create(folder.resolve("examples.safetensors"))) {
      List<TensorSpec> specs =
          Stream.of("input_ids", "attention_mask", "labels")
              .map(name -> new TensorSpec(name, SafetensorsDtype.I64, shape))
              .toList();
      SafetensorsWriter writer = new SafetensorsWriter(file, specs, Map.of());
      for (TensorSpec spec : specs) {
        writer.append(spec.name(), tensors.get(spec.name()).flip());
      }
      writer.finish();
      file.commit();
    }
    recipe("examples.safetensors", "dynamic");
    Path first = folder.resolve("tensors/model-int8.onnx");
    JsonNode byTensors = compress("tensors").path("fidelity");
    lines("words.jsonl", all);
    recipe("words.jsonl, classes: " + NAMES, "dynamic");
    JsonNode byLines = compress("lines").path("fidelity");
    assertEquals(-1, Files.mismatch(first, folder.resolve("lines/model-int8.onnx")));
    for (String key : List.of("accuracy", "f1", "log_loss", "agreement", "cosine_mean")) {
      assertEquals(byTensors.path(key), byLines.path(key), key);
    }
    assertFalse(byTensors.has("entity_f1"));
    // Numbers and CoNLL's columns say the same.
    Files.write(folder.resolve("words.jsonl"), all.stream().map(s -> s.line(tag -> tag)).toList());
    recipe("words.jsonl", "dynamic");
    assertFalse(compress("numbers").path("fidelity").has("entity_f1"));
    assertEquals(-1, Files.mismatch(first, folder.resolve("numbers/model-int8.onnx")));
    Files.writeString(
        folder.resolve("words.conll"),
        "-DOCSTART- -X- -X- O\n\n"
            + all.stream().map(Sentence::column).collect(Collectors.joining("  \n\n")));
    assertEquals(all.size(), ExampleLine.read(folder.resolve("words.conll"), -1).size());
    recipe("words.conll, classes: " + NAMES, "dynamic");
    assertEquals(byLines.path("entity_f1"), compress("columns").path("fidelity").path("entity_f1"));
    assertEquals(-1, Files.mismatch(first, folder.resolve("columns/model-int8.onnx")));
  }

  @Test
  void columnsAreReadAsTheyAreWritten() throws IOException {
    Path file =
        Files.writeString(
            folder.resolve("a.CONLL"),
            "\ufeff-DOCSTART-\tO\r\n"
                + "New York\tB-LOC\r\n"
                + "#\t\r\n\r\n"
                + " \r\n"
                + "xa\t3\r\n"
                + "-DOCSTART-\tO\r\n"
                + "xb\t-100");
    List<ExampleLine> read = ExampleLine.read(file, -1);
    assertEquals(
        List.of(List.of("New York", "#"), List.of("xa"), List.of("xb")),
        read.stream().map(ExampleLine::words).toList());
    assertEquals(
        "[[\"B-LOC\",null], [3], [-100]]",
        read.stream().map(line -> line.outcomes().get("tags")).toList().toString());
    Files.writeString(file, "  xa   O \n\nxb B-LOC\n");
    assertEquals(
        "[[\"O\"], [\"B-LOC\"]]",
        ExampleLine.read(file, -1).stream()
            .map(line -> line.outcomes().get("tags"))
            .toList()
            .toString());
    Files.writeString(file, "xa\nxb\n"); // nothing is known
    assertEquals(Map.of(), ExampleLine.read(file, -1).get(0).outcomes());
  }

  /** Without tags, and by a loss without labels, the logits of each token are followed. */
  @ParameterizedTest
  @ValueSource(strings = {"", ", loss: {logits: 1}", ", loss: {output: 1}"})
  void taggersAreFollowedWithoutTags(String loss) throws IOException {
    boolean tagged = loss.contains("output");
    List<String> lines = new ArrayList<>();
    for (Sentence s : sentences(SENTENCES, 0, 5)) {
      lines.add(tagged ? s.ofWords() : s.ofWords().replaceAll(", \"tags.*", "}"));
    }
    Files.write(folder.resolve("words.jsonl"), lines);
    Files.writeString(
        recipe,
        Files.readString(recipe)
            .replaceAll("(?m)^.*fine-tune.*\n", "")
            .replace("1e-3}", "1e-3" + loss + "}"));
    JsonNode report = compress("out");
    assertTrue(report.at("/fidelity/cosine_mean").asDouble() > 0.99, report.toString());
    assertTrue(report.at("/stages/0/after/quality").asDouble() > 0.9, report.toString());
  }

  /** Of independent values no softmax is followed. */
  @Test
  void refusesToFollowSigmoidsOfTokensByLogits() throws IOException {
    ModelProto.Builder model = TaggerModel.of(3, PIECES.size(), WIDTH, CLASSES.size()).toBuilder();
    model.getGraphBuilder().addNode(SmallModels.line("shares Sigmoid logits"));
    model.getGraphBuilder().getOutputBuilder(0).setName("shares");
    Files.write(folder.resolve("model.onnx"), model.build().toByteArray());
    List<String> lines =
        sentences(SENTENCES, 0, 5).stream()
            .map(s -> s.ofWords().replaceAll(", \"tags.*", "}"))
            .toList();
    Files.write(folder.resolve("words.jsonl"), lines);
    String text = Files.readString(recipe).replaceAll("(?m)^.*fine-tune.*\n", "");
    Files.writeString(recipe, text.replace("1e-3}", "1e-3, loss: {logits: 1}}"));
    Run.refused(
        folder,
        new String[] {"has several values a token; loss {output: 1}"},
        "recipe",
        "check",
        recipe);
    Files.writeString(recipe, text);
    Run.of("recipe", "check", recipe).done();
  }

  @Test
  void initWritesARecipeForThem() throws IOException {
    Path written = folder.resolve("init.yaml");
    Files.write(
        folder.resolve("words.jsonl"),
        sentences(SENTENCES, 0, 5).stream().map(s -> s.line(tag -> tag)).toList());
    Run.of("recipe", "init", "-o", written, "--model", "model.onnx", "--examples", "words.jsonl")
        .done();
    JsonNode checked = Run.of("recipe", "check", written, "--json").json();
    assertEquals("classification", checked.get("task").asText());
    // A fifth of few is held out for either.
    assertEquals(SENTENCES / 5, checked.get("validation_examples").asInt());
  }

  @Test
  void tagsWithoutATokenAreTold() throws IOException {
    List<String> lines =
        new ArrayList<>(sentences(SENTENCES, 0, 5).stream().map(Sentence::ofWords).toList());
    lines.add(
        "{\"tokens\": [\"xa\", \"\", \"pera\", \"xb\"], \"tags\": [\"O\", \"O\", null, \"O\"]}");
    lines.add("{\"tokens\": [\"xa\"], \"tags\": null}");
    Files.write(folder.resolve("words.jsonl"), lines);
    String told = Run.of("recipe", "check", recipe).done().err();
    assertTrue(told.contains(" 1 are left out: their words are behind max-tokens"), told);
    Files.writeString(
        recipe, Files.readString(recipe).replace("onnx}\n", "onnx, max-tokens: 8}\n"));
    told = Run.of("recipe", "check", recipe).done().err();
    assertTrue(told.contains("are left out") && !told.contains(" 1 are"), told);
  }

  @Test
  void refusesWhatDoesNotFit() throws IOException {
    refused(
        "tags has 1 entries, and there are 2 tokens",
        "{\"tokens\": [\"xa\", \"xb\"], \"tags\": [0]}");
    refused("tags is no list", "{\"tokens\": [\"xa\"], \"tags\": \"O\"}");
    refused("tokens is not a list of words", "{\"tokens\": \"xa\", \"tags\": [0]}");
    refused(
        "tokens holds something that is no string", "{\"tokens\": [\"xa\", 1], \"tags\": [0, 0]}");
    refused("there are tags and no tokens", "{\"text\": \"xa\", \"tags\": [0]}");
    refused("there are several of text, tokens", "{\"text\": \"xa\", \"tokens\": [\"xa\"]}");
    refused(
        "the tag 'B-ORG' is none of the classes", "{\"tokens\": [\"xa\"], \"tags\": [\"B-ORG\"]}");
    refused("tags is 0.5; classes are whole", "{\"tokens\": [\"xa\"], \"tags\": [0.5]}");
    refused("example 1: tags holds -3; classes", "{\"tokens\": [\"xa\"], \"tags\": [-3]}");
    refused("tags holds '{}', which is no number", "{\"tokens\": [\"xa\"], \"tags\": [{}]}");
    refused(
        "example 2: it has a text, and earlier ones have tokens",
        "{\"tokens\": [\"xa\"], \"tags\": [0]}",
        "{\"text\": \"xa\", \"label\": 0}");
    refused(
        "example 2: there is label, and tags before",
        "{\"tokens\": [\"xa\"], \"tags\": [0]}",
        "{\"tokens\": [\"xa\"], \"label\": 0}");
    // Of the model's five classes.
    List<Sentence> some = sentences(SENTENCES, 0, 5);
    Files.write(folder.resolve("words.jsonl"), some.stream().map(s -> s.line(t -> "7")).toList());
    Run.refused(folder, new String[] {"has 5 classes", "a label 7"}, "recipe", "check", recipe);
    lines("words.jsonl", some);
    Files.writeString(recipe, Files.readString(recipe).replace("I-LOC]", "I-LOC, B-ORG]"));
    Run.refused(
        folder,
        new String[] {"has 5 classes, and there are 6 names of classes"},
        "recipe",
        "check",
        recipe);
    recipe("words.jsonl, task: regression, classes: " + NAMES, "dynamic");
    Run.refused(folder, new String[] {"tags are classes"}, "recipe", "check", recipe);
    // One label a sentence is for other models.
    Files.write(
        folder.resolve("words.jsonl"),
        some.stream().map(s -> s.ofWords().replaceAll("\"tags.*", "\"label\": 0}")).toList());
    recipe("words.jsonl", "dynamic");
    Run.refused(
        folder, new String[] {"for models with one output a text"}, "recipe", "check", recipe);
    Files.writeString(folder.resolve("words.conll"), "xa X O\nxb O\n");
    recipe("words.conll, classes: " + NAMES, "dynamic");
    Run.refused(
        folder,
        new String[] {"words.conll: example 1: there are 2 columns, and 3 before"},
        "recipe",
        "check",
        recipe);
  }

  private void refused(String word, String... lines) throws IOException {
    Files.write(folder.resolve("words.jsonl"), List.of(lines));
    Run.refused(folder, new String[] {"words.jsonl", word}, "recipe", "check", recipe);
  }
}

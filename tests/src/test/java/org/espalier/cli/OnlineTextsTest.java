package org.espalier.cli;

import static org.espalier.cli.Client.post;
import static org.espalier.cli.Client.start;
import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertNull;
import static org.junit.jupiter.api.Assertions.assertTrue;

import ai.onnx.proto.OnnxMl.GraphProto;
import ai.onnx.proto.OnnxMl.TensorProto.DataType;
import com.fasterxml.jackson.databind.JsonNode;
import java.io.IOException;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.HashSet;
import java.util.List;
import java.util.Map;
import java.util.Random;
import java.util.Set;
import java.util.StringJoiner;
import java.util.concurrent.Callable;
import java.util.concurrent.ConcurrentHashMap;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.concurrent.Future;
import org.espalier.encoder.Encoder;
import org.espalier.evaluate.Pooling;
import org.espalier.format.onnx.SmallModels;
import org.espalier.online.ClassNames;
import org.espalier.online.Learnable;
import org.espalier.online.OnlineLearner;
import org.espalier.online.OnlineRecipe;
import org.espalier.online.model.NewModel;
import org.espalier.store.ModelStore;
import org.junit.jupiter.api.BeforeEach;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;

/** What learns behind a fixed encoder of texts. */
class OnlineTextsTest {
  private static final int WIDTH = 48;

  @TempDir Path folder;
  private Path recipe;
  private Path store;
  private Path encoder;

  @BeforeEach
  void write() throws IOException {
    SmallLanguage.write(folder);
    encoder = encoder("encoder.onnx", 17, 1, false);
    store = folder.resolve("store");
    recipe("");
  }

  private void recipe(String more) throws IOException {
    recipe =
        Files.writeString(
            folder.resolve("online.yaml"),
            "loss: cross-entropy\nlearning-rate: 1\nbatch: 4\nmodel: {outputs: 2" + more + "}\n");
  }

  /**
   * input_ids, attention_mask [n, t] → rows of a table [n, t, 48], or their sum over the tokens that are there [n, 48]; and
   * an output of its own for the name that what learns gives to its.
   */
  private Path encoder(String name, int opset, long seed, boolean pooled) throws IOException {
    GraphProto.Builder g =
        GraphProto.newBuilder()
            .setName("encoder")
            .addInput(SmallModels.value("input_ids", DataType.INT64, -1, -2))
            .addInput(SmallModels.value("attention_mask", DataType.INT64, -1, -2))
            .addInitializer(
                SmallModels.floats("weight", new Random(seed), 1, SmallLanguage.VOCABULARY, WIDTH))
            .addNode(SmallModels.line("outputs Gather weight input_ids"));
    if (pooled) {
      g.addInitializer(SmallModels.int64s("row", 0, 1, -1))
          .addInitializer(SmallModels.int64s("flat", 0, -1))
          .addNode(
              SmallModels.line(
                  "there Cast attention_mask", SmallModels.attribute("to", DataType.FLOAT_VALUE)))
          .addNode(SmallModels.line("rows Reshape there row"))
          .addNode(SmallModels.line("sums MatMul rows outputs"))
          .addNode(SmallModels.line("embedding Reshape sums flat"))
          .addOutput(SmallModels.value("embedding", DataType.FLOAT, -1, WIDTH));
    } else {
      g.addOutput(SmallModels.value("outputs", DataType.FLOAT, -1, -2, WIDTH));
    }
    return Files.write(folder.resolve(name), SmallModels.model(opset, g).toByteArray());
  }

  /** Texts are of the class 1 that have more words of the first half. */
  private static List<String> lines(int n, long seed, String key) {
    List<String> lines = new ArrayList<>();
    for (String text : SmallLanguage.texts(n, seed)) {
      lines.add(
          "{\"id\": \"e"
              + lines.size()
              + "\", \""
              + key
              + "\": \""
              + text
              + "\", \"label\": "
              + label(text)
              + "}");
    }
    return lines;
  }

  private static int label(String text) {
    int first = 0;
    String[] words = text.split(" ");
    for (String word : words) {
      first += Integer.parseInt(word.substring(1)) < SmallLanguage.WORDS / 2 ? 1 : 0;
    }
    return 2 * first > words.length ? 1 : 0;
  }

  private Run learn(Path input, Object... more) {
    List<Object> all = new ArrayList<>(List.of("--encoder", encoder));
    all.addAll(List.of(more));
    return Run.online(input, recipe, store, all.toArray());
  }

  @Test
  void learnsTextsAndEachVersionHasTheEncoder() throws IOException {
    Path input = Files.write(folder.resolve("in.jsonl"), lines(1200, 1, "text"));
    JsonNode json = learn(input, "--publish", 500, "--json").json();
    assertEquals(0, json.get("bad").asInt());
    assertEquals(1200, json.get("learned").asInt());
    double accuracy = json.get("metrics").get("accuracy_window").asDouble();
    assertTrue(accuracy > 0.85, "accuracy " + accuracy);
    Set<Object> files = new HashSet<>();
    for (int version = 1; version <= 3; version++) {
      Path own = store.resolve("versions/" + version + "/model/encoder.onnx");
      files.add(Files.getAttribute(own, "unix:ino"));
      assertEquals(-1, Files.mismatch(encoder, own));
      assertEquals(List.of(), ModelStore.open(store).verify(version));
    }
    assertEquals(1, files.size(), "the bytes are there once");
    assertTrue(files.add(Files.getAttribute(encoder, "unix:ino")), "not the user's own");
  }

  @Test
  void resumesToTheSameBytesWithOutcomesThatComeLater() throws IOException {
    List<String> all = new ArrayList<>();
    List<String> lines = lines(120, 2, "text");
    for (int i = 0; i < lines.size(); i++) {
      all.add(lines.get(i).replaceAll(", \"label\".*", "}"));
      if (i >= 10) { // so some wait when it stops
        all.add(lines.get(i - 10).replaceAll("\"text\".*, ", ""));
      }
    }
    Path input = Files.write(folder.resolve("in.jsonl"), all);
    learn(input).done();
    byte[] whole = Files.readAllBytes(store.resolve("versions/1/model/learner.state"));
    store = folder.resolve("other");
    Files.write(input, all.subList(0, 98));
    learn(input).done();
    Files.write(input, all);
    JsonNode json = Run.resume(input, store, "--json").json();
    assertEquals(all.size() - 98, json.get("lines").asInt());
    assertTrue(json.get("seen").asInt() > 50, json.toString());
    assertArrayEquals(whole, Files.readAllBytes(store.resolve("versions/2/model/learner.state")));
  }

  private static Service service(Path store) {
    Service.Limits limits = new Service.Limits(10_000, 1e6, 100, 5, true);
    return new Service(ModelStore.open(store), limits, null, null, null, null);
  }

  @ParameterizedTest
  @CsvSource({
    "mean,17,false,''",
    "mean,11,false,', hidden: [8]'",
    "cls,17,false,''",
    "cls,17,true,''",
    "last,17,false,''",
    "last,9,false,''"
  })
  void servesTextsAndIsOneGraphInOnnxRuntime(
      String pooling, int opset, boolean pooled, String hidden) throws Exception {
    encoder = encoder("other.onnx", opset, 3, pooled);
    recipe(hidden);
    Path input = Files.write(folder.resolve("in.jsonl"), lines(60, 4, "text"));
    learn(input, "--pooling", pooling).done();
    Path whole = folder.resolve("whole.onnx");
    Run.of("store", "export", "--store", store, "-o", whole).done();
    assertEquals(
        -1,
        Files.mismatch(folder.resolve("tokenizer.json"), folder.resolve("whole-tokenizer.json")));
    List<String> texts = SmallLanguage.texts(5, 6);
    Map<String, float[][]> answers = SmallLanguage.run(whole, texts);
    assertEquals(2, answers.size());
    try (Service service = service(store)) {
      int port = start(service);
      for (int i = 0; i < texts.size(); i++) {
        JsonNode answer =
            post(port, "/predict", "{\"id\": " + i + ", \"text\": \"" + texts.get(i) + "\"}");
        float[] outputs = answers.get("outputs_1")[i];
        assertEquals(outputs[0], answer.get("outputs").get(0).asDouble(), 1e-5);
        assertEquals(outputs[1], answer.get("outputs").get(1).asDouble(), 1e-5);
      }
      for (int i = 0; i < texts.size(); i++) {
        post(port, "/feedback", "{\"id\": " + i + ", \"label\": " + label(texts.get(i)) + "}");
      }
    }
    assertEquals(2, ModelStore.open(store).current().getAsLong(), "it has learned");
    assertEquals(-1, Files.mismatch(encoder, store.resolve("versions/2/model/encoder.onnx")));
  }

  /** input_ids, attention_mask, token_type_ids → the rows of the first text less those of the second [n, 48]. */
  private Path comparingEncoder() throws IOException {
    GraphProto.Builder g =
        GraphProto.newBuilder()
            .setName("comparing")
            .addInput(SmallModels.value("input_ids", DataType.INT64, -1, -2))
            .addInput(SmallModels.value("attention_mask", DataType.INT64, -1, -2))
            .addInput(SmallModels.value("token_type_ids", DataType.INT64, -1, -2))
            .addInitializer(
                SmallModels.floats("table", new Random(5), 1, SmallLanguage.VOCABULARY, WIDTH))
            .addInitializer(SmallModels.int64s("row", 0, 1, -1))
            .addInitializer(SmallModels.int64s("flat", 0, -1))
            .addNode(SmallModels.line("found Gather table input_ids"))
            .addNode(SmallModels.line("first Sub attention_mask token_type_ids"))
            .addNode(SmallModels.line("signs Sub first token_type_ids"))
            .addNode(
                SmallModels.line(
                    "signed Cast signs", SmallModels.attribute("to", DataType.FLOAT_VALUE)))
            .addNode(SmallModels.line("rows Reshape signed row"))
            .addNode(SmallModels.line("sums MatMul rows found"))
            .addNode(SmallModels.line("embedding Reshape sums flat"))
            .addOutput(SmallModels.value("embedding", DataType.FLOAT, -1, WIDTH));
    return Files.write(folder.resolve("comparing.onnx"), SmallModels.model(17, g).toByteArray());
  }

  private static String pair(String first, String second) {
    return "\"text\": \"" + first + "\", \"text_pair\": \"" + second + "\"";
  }

  /** Of pairs of a word each the class is 1 where the first is behind the second, which neither says alone. */
  @Test
  void learnsAndAnswersPairsOfTexts() throws Exception {
    encoder = comparingEncoder();
    List<String> lines = new ArrayList<>();
    List<String> pairs = new ArrayList<>();
    List<Integer> labels = new ArrayList<>();
    Random random = new Random(8);
    for (int i = 0; i < 1500; i++) {
      int first = random.nextInt(SmallLanguage.WORDS);
      int second = (first + 8 + random.nextInt(SmallLanguage.WORDS - 16)) % SmallLanguage.WORDS;
      pairs.add(pair("w" + first, "w" + second));
      labels.add(first > second ? 1 : 0);
      lines.add("{" + pairs.get(i) + ", \"label\": " + labels.get(i) + "}");
    }
    Path input = Files.write(folder.resolve("in.jsonl"), lines);
    JsonNode json = learn(input, "--json").json();
    assertEquals(0, json.get("bad").asInt());
    double accuracy = json.get("metrics").get("accuracy_window").asDouble();
    assertTrue(accuracy > 0.9, "accuracy " + accuracy);
    try (Service service = service(store)) {
      int port = start(service);
      int right = 0;
      for (int i = 0; i < 20; i++) {
        JsonNode answer = post(port, "/predict", "{\"id\": " + i + ", " + pairs.get(i) + "}");
        right += answer.get("label").asInt() == labels.get(i) ? 1 : 0;
        post(port, "/feedback", "{\"id\": " + i + ", \"label\": " + labels.get(i) + "}");
      }
      assertTrue(right > 17, "right " + right);
      String alone = post(400, port, "/predict", "{\"text_pair\": \"w1\"}").toString();
      assertTrue(alone.contains("there is a text_pair and no text"), alone);
    }
    lines.set(3, "{\"text_pair\": \"w1\", \"label\": 1}");
    lines.set(4, "{\"text\": \"w1\", \"text_pair\": 1, \"label\": 1}");
    Files.write(input, lines.subList(0, 10));
    store = folder.resolve("other");
    Run run = learn(input, "--json");
    assertEquals(2, run.json().get("bad").asInt());
    for (String word :
        List.of("line 4: there is a text_pair and no text", "line 5: text_pair is not a string")) {
      assertTrue(run.err().contains(word), run.err());
    }
  }

  /** What a version answers to a text is one answer, whoever else asks and whatever is learned meanwhile. */
  @Test
  void answersManyClientsWhileItLearns() throws Exception {
    learn(Files.write(folder.resolve("in.jsonl"), lines(60, 4, "text"))).done();
    List<String> texts = SmallLanguage.texts(5, 6);
    Map<String, JsonNode> known = new ConcurrentHashMap<>();
    ExecutorService threads = Executors.newFixedThreadPool(16);
    try (Service service = service(store)) {
      int port = start(service);
      List<Callable<Void>> clients = new ArrayList<>();
      for (int client = 0; client < 16; client++) {
        int first = client;
        clients.add(
            () -> {
              for (int i = 0; i < 30; i++) {
                String text = texts.get((first + i) % texts.size());
                JsonNode answer = post(port, "/predict", "{\"text\": \"" + text + "\"}");
                String key = answer.get("version") + " " + text;
                JsonNode before = known.putIfAbsent(key, answer.get("outputs"));
                assertEquals(
                    before == null ? answer.get("outputs") : before, answer.get("outputs"));
              }
              return null;
            });
      }
      clients.add(
          () -> {
            for (int i = 0; i < 40; i++) {
              String text = texts.get(i % texts.size());
              post(port, "/predict", "{\"id\": " + i + ", \"text\": \"" + text + "\"}");
              post(port, "/feedback", "{\"id\": " + i + ", \"label\": " + label(text) + "}");
            }
            return null;
          });
      for (Future<Void> client : threads.invokeAll(clients)) {
        client.get();
      }
    } finally {
      threads.shutdown();
    }
    assertTrue(ModelStore.open(store).current().getAsLong() > 1, "it has learned");
  }

  @Test
  void servesNoVersionOfAnotherEncoder() throws Exception {
    Path input = Files.write(folder.resolve("in.jsonl"), lines(20, 4, "text"));
    learn(input).done();
    Path first = store;
    try (Service service = service(first)) {
      int port = start(service);
      JsonNode before = post(port, "/predict", "{\"text\": \"w1 w2\"}");
      store = folder.resolve("other");
      encoder = encoder("other.onnx", 17, 9, false);
      learn(input).done();
      Run.of("store", "publish", store.resolve("versions/1/model"), "--store", first).done();
      Thread.sleep(1200); // it looks twice a second
      assertEquals(1, service.storeVersion());
      assertEquals(before, post(port, "/predict", "{\"text\": \"w1 w2\"}"));
    }
  }

  @Test
  void countsLinesThatAreNoTexts() throws IOException {
    List<String> lines = lines(20, 4, "text");
    lines.add("{\"text\": 5, \"label\": 1}");
    lines.add("{\"text\": \"w1\", \"features\": [1], \"label\": 1}");
    lines.add("{\"label\": 1}");
    lines.add("{\"text\": null, \"label\": 1}");
    StringJoiner features = new StringJoiner(", ", "[", "]");
    for (int i = 0; i < WIDTH; i++) {
      features.add("0.25");
    }
    lines.add("{\"features\": " + features + ", \"label\": 1}"); // an embedding that somebody has
    Run run = learn(Files.write(folder.resolve("in.jsonl"), lines), "--json");
    assertEquals(4, run.json().get("bad").asInt());
    assertEquals(21, run.json().get("learned").asInt());
    for (String word :
        List.of(
            "line 21: text is not a string",
            "line 22: features holds 1 numbers; 48 are right",
            "line 23: there is neither text nor features")) {
      assertTrue(run.err().contains(word), run.err());
    }
  }

  @Test
  void refusesWhatFitsNoEncoder() throws IOException {
    Path input = Files.write(folder.resolve("in.jsonl"), lines(20, 4, "text"));
    Object[] common = {"--input", input, "--recipe", recipe, "--store", store};
    refused("are of an --encoder, which is missing", common, "--max-tokens", 5);
    refused("are of an --encoder, which is missing", common, "--pooling", "cls");
    refused("not as CSV", common, "--encoder", encoder, "--csv");
    refused("--max-tokens 2 is outside", common, "--encoder", encoder, "--max-tokens", 2);
    refused("there is no file", common, "--encoder", folder.resolve("none.onnx"));
    refused("tokenizer", common, "--encoder", encoder, "--tokenizer", recipe);
    Path perceptron = Files.write(folder.resolve("mlp.onnx"), SmallModels.mlp().toByteArray());
    refused("takes no texts (it has no input_ids) and no images", common, "--encoder", perceptron);
    Path words = Files.copy(folder.resolve("tokenizer.json"), folder.resolve("words.json"));
    refused("words.json", common, "--encoder", encoder, "--tokenizer", words, "--report", words);
    recipe(", features: 7");
    refused("features: 7", common, "--encoder", encoder);
    recipe("");
    learn(input).done();
    Path other = encoder("other.onnx", 17, 9, false);
    Object[] resume = {"--input", input, "--resume", "--store", store};
    refused("has another encoder", resume, "--encoder", other);
    refused("has another encoder", resume, "--encoder", encoder, "--pooling", "cls");
    Files.write(input, lines(40, 4, "text"));
    Run.resume(input, store, "--encoder", encoder).done();
    learn(input).done(); // anew
    for (int version = 2; version <= 3; version++) {
      assertTrue(
          Files.isSameFile(
              store.resolve("versions/1/model/encoder.onnx"),
              store.resolve("versions/" + version + "/model/encoder.onnx")),
          "the bytes are there once");
    }
  }

  /** Lines may be of 16 MiB, and there may be hundreds of processors. */
  @Test
  void readsFewLongLinesAhead() throws IOException {
    byte[] line =
        ("{\"text\": \"" + "w".repeat(5_000_000) + "\"}\n").getBytes(StandardCharsets.UTF_8);
    long[] read = {0};
    LineReader reader =
        new LineReader(
            "lines without end",
            buffer -> {
              for (int i = 0; i < buffer.length; i++) {
                buffer[i] = line[(int) ((read[0] + i) % line.length)];
              }
              read[0] += buffer.length;
              return buffer.length;
            },
            1 << 24);
    OnlineRecipe sized = OnlineRecipe.read(recipe).withFeatures(WIDTH);
    Path words = folder.resolve("tokenizer.json");
    try (Encoder open = Encoder.ofTexts(encoder, words, 10, Pooling.MEAN);
        Learnable model = NewModel.of(sized);
        OnlineLearner learner = new OnlineLearner(model, sized.settings());
        OnlineExamples examples =
            new OnlineExamples(
                learner, false, ClassNames.NONE, open.encoded(null), null, note -> {})) {
      examples.lookAhead(reader);
      assertEquals(4, read[0] / line.length, "lines of a third of what may be ahead");
      assertNull(examples.read(reader.next()), "it is too long a text");
      assertEquals(1, examples.bad());
    }
  }

  /** What reads features of texts: one input of floats, in whatever shape. */
  @Test
  void refusesModelsThatReadNoFeatures() throws IOException {
    Path input = Files.write(folder.resolve("in.jsonl"), lines(20, 4, "text"));
    recipe = Files.writeString(recipe, "loss: cross-entropy\nlearning-rate: 0.1\nbatch: 4\n");
    Object[] common = {"--input", input, "--recipe", recipe, "--store", store};
    GraphProto.Builder two =
        GraphProto.newBuilder()
            .setName("two")
            .addInput(SmallModels.value("x", DataType.FLOAT, -1, WIDTH / 2))
            .addInput(SmallModels.value("y", DataType.FLOAT, -1, WIDTH / 2))
            .addInitializer(SmallModels.floats("w", new Random(1), 1, WIDTH / 2, 2))
            .addNode(SmallModels.line("sum Add x y"))
            .addNode(SmallModels.line("z MatMul sum w"))
            .addOutput(SmallModels.value("z", DataType.FLOAT, -1, 2));
    Path several =
        Files.write(folder.resolve("two.onnx"), SmallModels.model(17, two).toByteArray());
    refused("one input of floats", common, "--encoder", encoder, "--model", several);
    GraphProto.Builder rows =
        GraphProto.newBuilder()
            .setName("rows")
            .addInput(SmallModels.value("x", DataType.INT64, -1, WIDTH))
            .addInitializer(SmallModels.floats("w", new Random(1), 1, 9, 2))
            .addNode(SmallModels.line("found Gather w x"))
            .addNode(SmallModels.line("z ReduceMax found", SmallModels.list("axes", 1)))
            .addOutput(SmallModels.value("z", DataType.FLOAT, -1, 1, 2));
    Path table =
        Files.write(folder.resolve("rows.onnx"), SmallModels.model(17, rows).toByteArray());
    refused("the model has [x of Long]", common, "--encoder", encoder, "--model", table);
  }

  @Test
  void saysBeforehandWhatWillBeNoGraph() throws IOException {
    encoder = encoder("old.onnx", 13, 1, false);
    recipe = Files.writeString(recipe, "loss: cross-entropy\nlearning-rate: 0.1\nbatch: 4\n");
    GraphProto.Builder head =
        GraphProto.newBuilder()
            .setName("head")
            .addInput(SmallModels.value("x", DataType.FLOAT, -1, WIDTH))
            .addInitializer(SmallModels.floats("scale", new Random(1), 1, WIDTH))
            .addInitializer(SmallModels.floats("w", new Random(1), 1, WIDTH, 2))
            .addNode(SmallModels.line("normal LayerNormalization x scale"))
            .addNode(SmallModels.line("z MatMul normal w"))
            .addOutput(SmallModels.value("z", DataType.FLOAT, -1, 2));
    Path own = Files.write(folder.resolve("head.onnx"), SmallModels.model(17, head).toByteArray());
    Path input = Files.write(folder.resolve("in.jsonl"), lines(20, 4, "text"));
    Run run = learn(input, "--model", own).done();
    String reason = "in which [LayerNormalization] may be others";
    assertTrue(run.err().contains("'store export' will make no graph"), run.err());
    assertTrue(run.err().contains(reason), run.err());
    Path whole = folder.resolve("whole.onnx");
    Run.refused(folder, new String[] {reason}, "store", "export", "--store", store, "-o", whole);
  }

  private void refused(String word, Object[] common, Object... more) {
    List<Object> all = new ArrayList<>(List.of("online"));
    all.addAll(List.of(common));
    all.addAll(List.of(more));
    Run.refused(folder, new String[] {word}, all.toArray());
  }
}

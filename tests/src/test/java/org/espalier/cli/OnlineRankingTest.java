package org.espalier.cli;

import static org.espalier.cli.Client.post;
import static org.espalier.cli.Client.start;
import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertTrue;

import ai.onnx.proto.OnnxMl.ModelProto;
import ai.onnx.proto.OnnxMl.TensorProto.DataType;
import ai.onnxruntime.OnnxTensor;
import ai.onnxruntime.OrtEnvironment;
import ai.onnxruntime.OrtException;
import ai.onnxruntime.OrtSession;
import com.fasterxml.jackson.databind.JsonNode;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.Map;
import java.util.function.Function;
import java.util.stream.Stream;
import org.espalier.compress.onnx.DynamicQuantizer;
import org.espalier.compress.onnx.Int8Model;
import org.espalier.compress.onnx.RuntimeRuns;
import org.espalier.format.onnx.OnnxModel;
import org.espalier.format.onnx.RankingModel;
import org.espalier.format.onnx.SmallModels;
import org.espalier.store.ModelStore;
import org.junit.jupiter.api.BeforeEach;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;
import org.junit.jupiter.params.provider.ValueSource;

/** A model of several inputs, of three types, learns a stream of visits. */
class OnlineRankingTest {
  private static final int USERS = 3000;
  private static final int ITEMS = 10;

  /** The users that come. */
  private static final int ACTIVE = 20;

  @TempDir Path folder;
  private Path model;
  private Path recipe;
  private Path store;

  @BeforeEach
  void write() throws IOException {
    model = write("ranking.onnx", ranking());
    recipe = recipe("batch: 1\n");
    store = folder.resolve("store");
  }

  private static ModelProto ranking() {
    return RankingModel.of(3, USERS, ITEMS, 8);
  }

  private Path write(String name, ModelProto proto) throws IOException {
    return Files.write(folder.resolve(name), proto.toByteArray());
  }

  private Path recipe(String more) throws IOException {
    return Files.writeString(
        folder.resolve("online.yaml"), "loss: binary\nlearning-rate: 0.05\n" + more);
  }

  private static List<RankingModel.Visit> visits(int n) {
    return RankingModel.visits(1, n, ACTIVE, ITEMS);
  }

  private static String inputs(RankingModel.Visit v) {
    return "\"inputs\": {\"user\": "
        + v.shown().user()
        + ", \"items\": ["
        + v.shown().item()
        + ", "
        + v.before()
        + "], \"dense\": "
        + Arrays.toString(v.dense())
        + "}";
  }

  private static List<String> lines(int n) {
    return visits(n).stream()
        .map(v -> "{" + inputs(v) + ", \"label\": " + v.clicks() + "}")
        .toList();
  }

  /** The values of all inputs one after the other. */
  private static String row(RankingModel.Visit v) {
    String dense = Arrays.toString(v.dense());
    return v.shown().user()
        + ", "
        + v.shown().item()
        + ", "
        + v.before()
        + ", "
        + dense.substring(1, dense.length() - 1);
  }

  private Path stream(String name, List<String> lines) throws IOException {
    return Files.write(folder.resolve(name), lines);
  }

  private JsonNode online(Path to, List<String> lines, Object... more) throws IOException {
    return Run.online(stream("visits.jsonl", lines), recipe, to, arguments(more)).json();
  }

  private Object[] arguments(Object... more) {
    return Stream.concat(Stream.of("--model", model, "--json"), Stream.of(more)).toArray();
  }

  /** Fails unless the model is not learned, for reasons that are said. */
  private void refused(String... said) throws IOException {
    Path input = stream("visits.jsonl", lines(9));
    Object[] args = arguments("--input", input, "--recipe", recipe, "--store", store);
    Run.refused(folder, said, Stream.concat(Stream.of("online"), Stream.of(args)).toArray());
  }

  private static Path version(Path store, int id) {
    return store.resolve("versions/" + id + "/model");
  }

  private static Path graph(Path store, int id) {
    return version(store, id).resolve("model.onnx");
  }

  private static float[] table(Path model, String name) {
    return SmallModels.values(OnnxModel.read(model), name);
  }

  /** What ONNX Runtime makes of a visit. */
  private static float logit(OrtSession session, RankingModel.Visit v) throws OrtException {
    OrtEnvironment environment = OrtEnvironment.getEnvironment();
    int[][] items = {{(int) v.shown().item(), (int) v.before()}};
    try (OnnxTensor user = OnnxTensor.createTensor(environment, new long[] {v.shown().user()});
        OnnxTensor pair = OnnxTensor.createTensor(environment, items);
        OnnxTensor dense = OnnxTensor.createTensor(environment, new float[][] {v.dense()});
        OrtSession.Result result =
            session.run(Map.of("user", user, "items", pair, "dense", dense))) {
      return ((float[]) result.get(0).getValue())[0];
    }
  }

  private Service service() {
    Service.Limits limits = new Service.Limits(10_000, 1e6, 100, 1_000_000, true);
    return new Service(ModelStore.open(store), limits, null, null, null, null);
  }

  /**
   * Versions are ONNX models of the same inputs that say what the service says. 1e-4: sums of some ten products of some tenths,
   * and 1e-2 where a sum that lies between two integers may be rounded to either.
   */
  @ParameterizedTest
  @ValueSource(booleans = {false, true})
  void learnsAndServesWhatOnnxRuntimeSays(boolean int8) throws Exception {
    if (int8) {
      OnnxModel integers = OnnxModel.read(model);
      new DynamicQuantizer(integers, RuntimeRuns.exactDynamic()).apply();
      model = folder.resolve("int8.onnx");
      integers.write(model);
    }
    JsonNode metrics = online(store, lines(4000)).path("metrics");
    assertTrue(metrics.path("accuracy_window").asDouble() > (int8 ? 0.8 : 0.9), metrics.toString());
    assertEquals(int8, Int8Model.is(OnnxModel.read(graph(store, 1))));
    try (Service service = service();
        OrtSession session =
            OrtEnvironment.getEnvironment().createSession(graph(store, 1).toString())) {
      int port = start(service);
      for (RankingModel.Visit v : visits(4050).subList(4000, 4050)) {
        JsonNode said = post(200, port, "/predict", "{" + inputs(v) + "}").path("outputs");
        assertEquals(logit(session, v), said.get(0).floatValue(), int8 ? 1e-2 : 1e-4);
        assertEquals(
            said, post(200, port, "/predict", "{\"features\": [" + row(v) + "]}").path("outputs"));
      }
    }
  }

  /** Plain descent and the lazy optimizer touch the rows of users that came. */
  @ParameterizedTest
  @ValueSource(strings = {"batch: 4\n", "batch: 4\nadamw: {}\nsparse-rows: always\n"})
  void rowsThatNobodyReadStay(String settings) throws IOException {
    recipe(settings);
    online(store, lines(400));
    float[] before = table(model, "users.weight");
    float[] after = table(graph(store, 1), "users.weight");
    for (int user = 0; user < USERS; user++) {
      assertEquals(user < ACTIVE, before[8 * user] != after[8 * user], "user " + user);
    }
  }

  /** The items' table too, which an input of int32 reads twice for an example. */
  @Test
  void descentByRowsLeavesTheBitsOfWholeTables() throws IOException {
    for (String rows : List.of("never", "always")) {
      recipe("batch: 4\nsparse-rows: " + rows + "\n");
      online(folder.resolve(rows), lines(200));
    }
    assertArrayEquals(
        Files.readAllBytes(graph(folder.resolve("never"), 1)),
        Files.readAllBytes(graph(folder.resolve("always"), 1)));
  }

  /** The same values in any order of the inputs, one after the other, and as columns. */
  @Test
  void eachFormOfLinesTeachesTheSame() throws IOException {
    Map<String, Function<RankingModel.Visit, String>> forms =
        Map.of(
            "a.jsonl", v -> "{" + inputs(v) + ", \"label\": " + v.clicks() + "}",
            "b.jsonl", v -> "{\"label\": " + v.clicks() + ", " + shuffled(v) + "}",
            "c.jsonl", v -> "{\"features\": [" + row(v) + "], \"label\": " + v.clicks() + "}",
            "d.csv", v -> row(v) + ", " + v.clicks());
    online(store, lines(100));
    for (String name : forms.keySet()) {
      Path own = folder.resolve(name + " store");
      Path input = stream(name, visits(100).stream().map(forms.get(name)).toList());
      Run.online(input, recipe, own, arguments()).done();
      assertArrayEquals(
          Files.readAllBytes(graph(store, 1)), Files.readAllBytes(graph(own, 1)), name);
    }
  }

  private static String shuffled(RankingModel.Visit v) {
    return "\"inputs\": {\"dense\": "
        + Arrays.toString(v.dense())
        + ", \"items\": ["
        + v.shown().item()
        + ","
        + v.before()
        + "], \"user\": ["
        + v.shown().user()
        + "]}";
  }

  /** Visits whose outcome comes thirty lines later, some of them after the run has stopped. */
  private static List<String> delayed(int n) {
    List<RankingModel.Visit> visits = visits(n);
    List<String> lines = new ArrayList<>();
    for (int i = 0; i < n + 30; i++) {
      if (i < n) {
        lines.add("{\"id\": " + i + ", " + inputs(visits.get(i)) + "}");
      }
      if (i >= 30) {
        lines.add("{\"id\": " + (i - 30) + ", \"label\": " + visits.get(i - 30).clicks() + "}");
      }
    }
    return lines;
  }

  @ParameterizedTest
  @ValueSource(
      strings = {
        "batch: 4\n",
        "batch: 4\nmomentum: 0.5\nreplay: {capacity: 50, per-step: 4}\n",
        "batch: 4\nadamw: {}\nsparse-rows: always\n"
      })
  void aResumedStreamEndsWithTheSameBits(String settings) throws IOException {
    recipe(settings);
    Path whole = folder.resolve("whole");
    List<String> lines = delayed(200);
    assertEquals(200, online(whole, lines).path("learned").asInt());
    online(store, lines.subList(0, 206));
    Path input = stream("visits.jsonl", lines);
    assertEquals(0, Run.resume(input, store, "--json").json().path("bad").asInt());
    for (String file : List.of("model.onnx", "learner.state")) {
      assertArrayEquals(
          Files.readAllBytes(version(whole, 1).resolve(file)),
          Files.readAllBytes(version(store, 2).resolve(file)),
          file);
    }
  }

  @Test
  void theServiceLearnsFromFeedbackOnInputs() throws Exception {
    online(store, lines(40));
    List<RankingModel.Visit> next = visits(60).subList(40, 60);
    try (Service service = service()) {
      int port = start(service);
      for (RankingModel.Visit v : next) {
        post(200, port, "/predict", "{\"id\": \"v\", " + inputs(v) + "}");
        post(200, port, "/predict", "{\"id\": \"v\", " + shuffled(v) + "}"); // the same
        String other = inputs(v).replace("\"user\": ", "\"user\": 1");
        post(409, port, "/predict", "{\"id\": \"v\", " + other + "}");
        post(200, port, "/feedback", "{\"id\": \"v\", \"label\": " + v.clicks() + "}");
      }
      for (String[] bad :
          new String[][] {
            {"{\"user\": 1, \"items\": [2, 3]}", "the input dense is missing"},
            {
              "{\"user\": 0.5, \"items\": [2, 3], \"dense\": [0, 0, 0, 0]}", "input user is 0.5; it"
            },
            {"{\"user\": 1, \"items\": [2, 20], \"dense\": [0, 0, 0, 0]}", "20 is outside"},
            {
              "{\"user\": 1, \"items\": [2, 1e9], \"dense\": [0, 0, 0, 0]}",
              "value 2 of the input items"
            },
          }) {
        String said = post(400, port, "/predict", "{\"inputs\": " + bad[0] + "}").toString();
        assertTrue(said.contains(bad[1]), said);
        assertFalse(said.contains(folder.toString()), said);
      }
    }
    float[] before = table(graph(store, 1), "users.weight");
    float[] after = table(graph(store, 2), "users.weight");
    for (int user = 0; user < USERS; user++) {
      long id = user;
      assertEquals(
          next.stream().anyMatch(v -> v.shown().user() == id),
          before[8 * user] != after[8 * user],
          "user " + user);
    }
  }

  /** Lines that are wrong go where all such lines go; what no table has is taken out when it is learned. */
  @Test
  void wrongLinesAreToldAndKept() throws IOException {
    List<String> good = lines(20);
    List<String> some = new ArrayList<>(good);
    some.add(3, "{\"inputs\": {\"user\": 1, \"items\": [2, 3]}, \"label\": 1}");
    some.add(5, good.get(5).replace("\"user\": ", "\"user\": 3000"));
    Path quarantine = folder.resolve("quarantine.jsonl");
    Path input = stream("visits.jsonl", some);
    Run run = Run.online(input, recipe, store, arguments("--quarantine", quarantine)).done();
    assertTrue(run.err().contains("line 4: the input dense is missing"), run.err());
    assertEquals(1, run.json().path("bad").asInt());
    assertEquals(1, run.json().path("removed").asInt());
    assertEquals(20, run.json().path("learned").asInt());
    assertEquals(2, Files.readAllLines(quarantine).size());
    Path other = folder.resolve("other");
    online(other, good);
    assertArrayEquals(
        table(graph(other, 1), "users.weight"), table(graph(store, 1), "users.weight"));
  }

  /** Sizes that the graph leaves open are the recipe's to say; the order of the keys is not that of the values. */
  @Test
  void theRecipeSaysSizesThatTheGraphLeavesOpen() throws IOException {
    online(store, lines(100));
    ModelProto.Builder open = ranking().toBuilder();
    for (int input : new int[] {1, 2}) {
      open.getGraphBuilder()
          .getInputBuilder(input)
          .getTypeBuilder()
          .getTensorTypeBuilder()
          .getShapeBuilder()
          .getDimBuilder(1)
          .setDimParam("open");
    }
    model = write("open.onnx", open.build());
    refused(
        "open.onnx does not say how many values its input items has",
        "model: {inputs: {user: …, items: …, dense: …}, outputs: …}");
    recipe("batch: 1\nmodel:\n  inputs: {dense: 4, items: 2, user: 1}\n  outputs: 1\n");
    Path other = folder.resolve("other");
    online(other, lines(100));
    assertArrayEquals(
        table(graph(store, 1), "users.weight"), table(graph(other, 1), "users.weight"));
  }

  @ParameterizedTest
  @CsvSource(
      delimiter = '|',
      value = {
        "{inputs: {user: 1, item: 2, dense: 4}, outputs: 1}|line 4: model.inputs.item is no input"
            + " of |its inputs are 'items', 'user', 'dense'",
        "{inputs: {user: 1, items: 2}, outputs: 1}|line 4: model.inputs is without some inputs of |"
            + "ranking.onnx; inputs: {user: …, items: …, dense: …} is right",
        "{features: 7, outputs: 1}|line 4: model.features is for a model with one input; |"
            + "ranking.onnx has 3; inputs: {user: …, items: …, dense: …} is right",
        "{features: 7, inputs: {user: 1}, outputs: 1}|line 4: model.features is beside"
            + " inputs|right",
        "{hidden: [7], inputs: {user: 1}, outputs: 1}|line 4: model.hidden is of a new model|no"
            + " inputs",
        "{inputs: {}, outputs: 1}|line 4: model.inputs names no input|is right",
        "{inputs: [user, items], outputs: 1}|line 4: model.inputs: a mapping|is right here",
        "{inputs: {user: 0}, outputs: 1}|line 4: model.inputs.user is 0; 1 to|is right",
        "{inputs: {user: x}, outputs: 1}|line 4: model.inputs.user is 'x'|a number is right",
        "{inputs: {user: 268435456, items: 2}, outputs: 1}|line 4: model: features and outputs are"
            + " 268435458|are right",
        "{inputs: {user: 1, items: 2, dense: 4}}|line 4: model: outputs is missing|'inputs'",
        "{inputs: {user: 1, items: 3, dense: 4}, outputs: 1}|the input items must have the shape|[",
        "{inputs: {user: 2, items: 2, dense: 4}, outputs: 1}|the input user must have the shape|[",
        "{inputs: {user: 1, items: 2, dense: 4}, outputs: 2}|has 1 values for 1 examples; 2|z"
      })
  void sizesThatAreNotTheModelsAreRefused(String sizes, String said, String right)
      throws IOException {
    recipe("batch: 1\nmodel: " + sizes + "\n");
    refused(said, right);
  }

  @Test
  void eachInputIsOfATypeThatLearns() throws IOException {
    ModelProto.Builder other = ranking().toBuilder();
    other
        .getGraphBuilder()
        .getInputBuilder(2)
        .getTypeBuilder()
        .getTensorTypeBuilder()
        .setElemType(DataType.DOUBLE_VALUE);
    model = write("double.onnx", other.build());
    refused("double.onnx: the input dense is DOUBLE; a model that learns takes float32");
  }

  /** A new model has one input: these sizes are of a model that is given. */
  @Test
  void inputsMakeNoNewModel() throws IOException {
    recipe("batch: 1\nmodel: {inputs: {user: 1, dense: 4}, outputs: 1}\n");
    Path input = stream("visits.jsonl", lines(9));
    String[] said = {"there is no model: give --model, or say model: {features"};
    Run.refused(folder, said, "online", "--input", input, "--recipe", recipe, "--store", store);
  }

  /** Old exporters list weights among the inputs, to say their types. */
  @Test
  void weightsAmongTheInputsAreNone() throws IOException {
    online(store, lines(100));
    ModelProto.Builder old = ranking().toBuilder();
    for (String weight : List.of("users.weight", "top.0.bias")) {
      long[] shape = OnnxModel.of(ranking(), "ranking").constant(weight).dims();
      old.getGraphBuilder().addInput(0, SmallModels.value(weight, DataType.FLOAT, shape));
    }
    model = write("old.onnx", old.build());
    Path other = folder.resolve("other");
    online(other, lines(100));
    assertArrayEquals(
        table(graph(store, 1), "users.weight"), table(graph(other, 1), "users.weight"));
  }

  /** An exporter that fixed the batch at 1 made a model that learns one example at a time. */
  @Test
  void aBatchThatIsFixedIsNamed() throws IOException {
    ModelProto.Builder fixed = ranking().toBuilder();
    fixed
        .getGraphBuilder()
        .getInputBuilder(1)
        .getTypeBuilder()
        .getTensorTypeBuilder()
        .getShapeBuilder()
        .getDimBuilder(0)
        .setDimValue(1);
    model = write("fixed.onnx", fixed.build());
    assertEquals(9, online(store, lines(9)).path("learned").asInt());
    recipe("batch: 4\n");
    refused("the input items must have the shape [1, 2]");
  }
}

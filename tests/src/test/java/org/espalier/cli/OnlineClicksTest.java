package org.espalier.cli;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertTrue;

import ai.onnx.proto.OnnxMl.ModelProto;
import ai.onnx.proto.OnnxMl.TensorProto.DataType;
import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.ObjectMapper;
import java.io.IOException;
import java.net.InetAddress;
import java.net.InetSocketAddress;
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import org.espalier.format.onnx.ClickModel;
import org.espalier.format.onnx.OnnxModel;
import org.espalier.format.onnx.SmallModels;
import org.espalier.store.ModelStore;
import org.junit.jupiter.api.BeforeEach;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.EnumSource;
import org.junit.jupiter.params.provider.ValueSource;

/** A model that lives by its tables learns a stream of visits. */
class OnlineClicksTest {
  private static final int USERS = 300;
  private static final int ITEMS = 20;

  @TempDir Path folder;
  private Path model;
  private Path recipe;
  private Path store;

  @BeforeEach
  void write() throws IOException {
    model = folder.resolve("clicks.onnx");
    Files.write(model, clicks().toByteArray());
    recipe = recipe("batch: 1\n");
    store = folder.resolve("store");
  }

  private static ModelProto clicks() {
    return ClickModel.of(3, USERS, ITEMS, 8);
  }

  private Path recipe(String more) throws IOException {
    return Files.writeString(
        folder.resolve("online.yaml"), "loss: binary\nlearning-rate: 0.5\n" + more);
  }

  /** Visits of 40 of the users. */
  private static List<String> lines(int n) {
    List<String> lines = new ArrayList<>();
    for (ClickModel.Visit v : ClickModel.visits(1, n, 40, ITEMS)) {
      lines.add(
          "{\"features\": [" + v.user() + ", " + v.item() + "], \"label\": " + v.clicks() + "}");
    }
    return lines;
  }

  private JsonNode online(Path to, List<String> lines, Object... more) throws IOException {
    Path input = Files.write(folder.resolve("visits.jsonl"), lines);
    List<Object> args = new ArrayList<>(List.of("online", "--input", input, "--json"));
    args.addAll(List.of("--store", to));
    args.addAll(List.of(more));
    return Run.of(args.toArray()).json();
  }

  private static float[] table(Path model, String name) {
    return SmallModels.values(OnnxModel.read(model), name);
  }

  @ParameterizedTest
  @EnumSource(
      value = DataType.class,
      names = {"INT64", "INT32"})
  void tablesLearnFromWholeNumbers(DataType type) throws IOException {
    ModelProto proto = SmallModels.withInputType(clicks(), type.getNumber());
    Files.write(model, proto.toByteArray());
    JsonNode metrics =
        online(store, lines(2500), "--recipe", recipe, "--model", model).path("metrics");
    assertTrue(metrics.path("accuracy_window").asDouble() > 0.97, metrics.toString());
    Path learned = store.resolve("versions/1/model/model.onnx");
    float[] before = table(model, "users");
    float[] after = table(learned, "users");
    for (int user = 0; user < USERS; user++) {
      assertEquals(user < 40, before[8 * user] != after[8 * user], "user " + user);
    }
    recipe("batch: 1\nonly: [head]\n");
    metrics =
        online(folder.resolve("frozen"), lines(2500), "--recipe", recipe, "--model", model)
            .path("metrics");
    assertTrue(metrics.path("accuracy_window").asDouble() < 0.65, metrics.toString());
  }

  @ParameterizedTest
  @ValueSource(
      strings = {
        "momentum: 0.5\n",
        "momentum: 0.5\nsparse-rows: always\n",
        "adamw: {}\nweight-decay: 0.01\nsparse-rows: always\n"
      })
  void aResumedStreamEndsWithTheSameBits(String optimizer) throws IOException {
    recipe(optimizer + "batch: 4\n");
    Path whole = folder.resolve("whole");
    online(whole, lines(400), "--recipe", recipe, "--model", model);
    online(store, lines(400).subList(0, 200), "--recipe", recipe, "--model", model);
    online(store, lines(400), "--resume");
    for (String file : List.of("model.onnx", "learner.state")) {
      assertArrayEquals(
          Files.readAllBytes(whole.resolve("versions/1/model").resolve(file)),
          Files.readAllBytes(store.resolve("versions/2/model").resolve(file)),
          file);
    }
  }

  /** The others of their batch are learned as if they had come alone. */
  @ParameterizedTest
  @ValueSource(strings = {"never", "always"})
  void whatNoTableHasIsLeftOut(String rows) throws IOException {
    String sparse = "sparse-rows: " + rows + "\n";
    recipe("batch: 4\n" + sparse);
    List<String> good = lines(6);
    List<String> some = new ArrayList<>(good);
    some.add(1, "{\"features\": [300, 3], \"label\": 1}");
    some.add(2, "{\"features\": [5.5, 3], \"label\": 1}");
    some.add("{\"features\": [16777217, 3], \"label\": 1}");
    some.add("{\"features\": [\"NaN\", 3], \"label\": 1}");
    JsonNode found = online(store, some, "--recipe", recipe, "--model", model);
    assertEquals(6, found.path("learned").asInt(), found.toString());
    assertEquals(4, found.path("removed").asInt(), found.toString());
    // In batches of the same examples.
    recipe("batch: 2\n" + sparse);
    Path other = folder.resolve("other");
    online(other, good.subList(0, 2), "--recipe", recipe, "--model", model);
    recipe("batch: 4\n" + sparse);
    Path two = folder.resolve("two");
    online(two, some.subList(0, 4), "--recipe", recipe, "--model", model);
    assertArrayEquals(
        table(other.resolve("versions/1/model/model.onnx"), "users"),
        table(two.resolve("versions/1/model/model.onnx"), "users"));
  }

  @Test
  void theServiceRefusesARequestThatNoTableHas() throws Exception {
    online(store, lines(40), "--recipe", recipe, "--model", model);
    Service.Limits limits = new Service.Limits(10_000, 1e6, 100, 1_000_000, true);
    try (Service service = new Service(ModelStore.open(store), limits, null, null, null, null)) {
      int port = service.start(new InetSocketAddress(InetAddress.getLoopbackAddress(), 0));
      for (String bad : List.of("300, 0", "0, -21", "1.5, 0")) {
        HttpResponse<String> refused = post(port, "{\"features\": [" + bad + "]}");
        assertEquals(400, refused.statusCode(), refused.body());
        assertTrue(refused.body().matches("(?s).*(outside|whole numbers).*"), refused.body());
      }
      // Which is 16777216 as a float, the index of another row.
      for (String large : List.of("16777217, 0", "0, -16777217", "1e30, 0")) {
        String said = post(port, "{\"features\": [" + large + "]}").body();
        assertTrue(said.contains("from -16777215 to 16777215"), said);
      }
      HttpResponse<String> answer = post(port, "{\"features\": [-1, 7]}");
      assertEquals(200, answer.statusCode(), answer.body());
      JsonNode same = new ObjectMapper().readTree(post(port, "{\"features\": [299, 7]}").body());
      assertEquals(same.get("outputs"), new ObjectMapper().readTree(answer.body()).get("outputs"));
    }
  }

  private static HttpResponse<String> post(int port, String body) throws Exception {
    return post(port, "predict", body);
  }

  private static HttpResponse<String> post(int port, String path, String body) throws Exception {
    return HttpClient.newHttpClient()
        .send(
            HttpRequest.newBuilder(URI.create("http://127.0.0.1:" + port + "/" + path))
                .POST(HttpRequest.BodyPublishers.ofString(body))
                .build(),
            HttpResponse.BodyHandlers.ofString());
  }

  /** What was learned by rows is what the service goes on with, and answers by. */
  @Test
  void theServiceGoesOnByRows() throws Exception {
    recipe("momentum: 0.5\nbatch: 2\nsparse-rows: always\n");
    Path whole = folder.resolve("whole");
    online(whole, lines(60), "--recipe", recipe, "--model", model);
    online(store, lines(60).subList(0, 40), "--recipe", recipe, "--model", model);
    Service.Limits limits = new Service.Limits(10_000, 1e6, 100, 1_000_000, true);
    try (Service service = new Service(ModelStore.open(store), limits, null, null, null, null)) {
      int port = service.start(new InetSocketAddress(InetAddress.getLoopbackAddress(), 0));
      for (ClickModel.Visit v : ClickModel.visits(1, 60, 40, ITEMS).subList(40, 60)) {
        String features = "\"features\": [" + v.user() + ", " + v.item() + "]";
        assertEquals(200, post(port, "{\"id\": \"v\", " + features + "}").statusCode());
        String outcome = "{\"id\": \"v\", \"label\": " + v.clicks() + "}";
        assertEquals(2, post(port, "feedback", outcome).statusCode() / 100);
      }
    }
    float[] before = table(model, "users");
    float[] after = table(store.resolve("versions/2/model/model.onnx"), "users");
    float[] expected = table(whole.resolve("versions/1/model/model.onnx"), "users");
    for (int i = 0; i < after.length; i++) {
      // Of other batches, in which feedback comes, and so not of the same bits.
      assertEquals(expected[i] != before[i], after[i] != before[i], "entry " + i);
    }
  }

  @Test
  void aModelWithoutTablesCannotLearnByRows() throws IOException {
    recipe("batch: 1\nsparse-rows: always\nmodel: {features: 2, outputs: 1}\n");
    Path input = Files.write(folder.resolve("visits.jsonl"), lines(4));
    String[] said = {"does not fit the model", "sparse-rows: always", "looks no rows up"};
    Run.refused(folder, said, "online", "--input", input, "--recipe", recipe, "--store", store);
    recipe("batch: 1\nsparse-rows: sometimes\n");
    Run.refused(
        folder,
        new String[] {"line 4", "sparse-rows", "auto, always"},
        "online",
        "--input",
        input,
        "--recipe",
        recipe,
        "--model",
        model,
        "--store",
        store);
  }

  @Test
  void otherTypesOfInputsAreRefused() throws IOException {
    ModelProto.Builder proto = clicks().toBuilder();
    proto
        .getGraphBuilder()
        .getInputBuilder(0)
        .getTypeBuilder()
        .getTensorTypeBuilder()
        .setElemType(DataType.INT16_VALUE);
    Files.write(model, proto.build().toByteArray());
    Path input = Files.write(folder.resolve("visits.jsonl"), lines(4));
    Object[] args = {
      "online", "--input", input, "--recipe", recipe, "--model", model, "--store", store
    };
    Run.refused(folder, new String[] {"the input ids is INT16", "int64 or int32"}, args);
  }
}

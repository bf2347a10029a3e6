package org.espalier.cli;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertNull;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.ObjectMapper;
import java.io.IOException;
import java.net.InetAddress;
import java.net.InetSocketAddress;
import java.net.Socket;
import java.net.SocketTimeoutException;
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.channels.FileChannel;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.nio.file.StandardOpenOption;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import java.util.function.BooleanSupplier;
import org.espalier.InputException;
import org.espalier.format.safetensors.SafetensorsDtype;
import org.espalier.format.safetensors.SafetensorsWriter;
import org.espalier.format.safetensors.TensorSpec;
import org.espalier.store.ModelStore;
import org.junit.jupiter.api.BeforeEach;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;

class ServeTest {
  private static final String TOKEN = "0123456789abcdef0123456789abcdef";

  @TempDir Path folder;
  private Path store;
  private final HttpClient client = HttpClient.newHttpClient();
  private int port;

  @BeforeEach
  void learn() throws IOException {
    Path recipe =
        Files.writeString(
            folder.resolve("online.yaml"),
            "loss: cross-entropy\n"
                + "learning-rate: 0.3\n"
                + "batch: 8\n"
                + "model: {features: 3, outputs: 2}\n");
    Path input = Files.write(folder.resolve("in.jsonl"), OnlineTest.lines(400, 1));
    store = folder.resolve("store");
    Run.online(input, recipe, store).done();
  }

  private Service service(Service.Limits limits, String token) {
    Service service = new Service(ModelStore.open(store), limits, token, null, null, null);
    port = service.start(new InetSocketAddress(InetAddress.getLoopbackAddress(), 0));
    return service;
  }

  @Test
  void predictsLearnsFromFeedbackAndPublishes() throws Exception {
    ObjectMapper mapper = new ObjectMapper();
    try (Service service = service(new Service.Limits(10_000, 1e6, 100, 50, true), null)) {
      int right = 0;
      List<String> lines = OnlineTest.lines(120, 9);
      for (String line : lines) {
        JsonNode example = mapper.readTree(line);
        JsonNode answer = post(200, "/predict", line, null);
        assertEquals(2, answer.get("outputs").size());
        assertTrue(answer.get("version").asLong() >= 1);
        right += answer.get("label").asInt() == example.get("label").asInt() ? 1 : 0;
        String feedback =
            "{\"id\": \""
                + example.get("id").asText()
                + "\", \"label\": "
                + example.get("label")
                + "}";
        JsonNode accepted = post(200, "/feedback", feedback, null);
        assertTrue(accepted.get("predicted_by").asLong() <= answer.get("version").asLong());
      }
      assertTrue(right > 105, right + " of 120");
      until(() -> service.storeVersion() >= 2);
      until(() -> get("/versions", null).body().contains("\"seen\":520"));
      String metrics = get("/metrics", null).body();
      for (String name :
          List.of(
              "espalier_examples_seen_total 520.0",
              "espalier_predict_seconds_count 120",
              "espalier_metric{name=\"accuracy_window\"}",
              "espalier_events_total{kind=\"drift\"} 0.0")) {
        assertTrue(metrics.contains(name), name + " in " + metrics);
      }
      assertTrue(
          metrics.lines().noneMatch(line -> line.matches("# HELP \\S+\\s*")),
          "each says what it is: " + metrics);
      assertEquals(200, get("/health", null).statusCode());
    }
    // What was learned is not lost when it ends.
    JsonNode last = Run.of("store", "show", "--store", store, "--json").json();
    assertEquals(520, last.get("data").get("to").asInt());
    assertEquals("serve", last.get("source").asText());
  }

  @Test
  void saysAtTheEndWhatIsInNoVersion() throws Exception {
    Service service = service(new Service.Limits(10_000, 1e6, 100, 1000, true), null);
    learnFrom(OnlineTest.lines(16, 9));
    until(() -> get("/versions", null).body().contains("\"seen\":416"));
    Path versions = store.resolve("versions");
    Files.move(versions, folder.resolve("away"));
    Files.writeString(versions, "a file in place of the folder");
    String said = assertThrows(InputException.class, service::close).getMessage();
    assertTrue(said.startsWith("what was learned last is in no version: "), said);
    assertTrue(said.contains(versions.toString()), said);
  }

  @Test
  void answersEachOfAList() throws Exception {
    try (Service service = service(new Service.Limits(10_000, 1e6, 100, 1000, true), null)) {
      JsonNode alone = post(200, "/predict", "{\"features\": [1, 2, 3]}", null);
      JsonNode all =
          post(
              200,
              "/predict",
              " [{\"id\": \"a\", \"features\": [1, 2, 3]}, {\"features\": [1]},\n"
                  + "{\"features\": [NaN, 0, 0], \"x\": [{\"é\": \"}]\"}]},{\"id\": \"b\","
                  + " \"features\": [-1, 2, 3]}] ",
              null);
      assertEquals(4, all.size());
      assertEquals(alone, all.get(0));
      assertEquals(400, all.get(1).get("status").asInt());
      assertTrue(all.get(1).get("error").asText().contains("3 are right"), all.toString());
      assertTrue(all.get(2).get("outputs").get(0).isNull());
      assertEquals(alone.get("version"), all.get(3).get("version"));
      String both =
          "[{\"id\": \"a\", \"label\": 1}, {\"id\": \"c\", \"label\": 1}, {\"id\": \"b\"}]";
      JsonNode fed = post(200, "/feedback", both, null);
      assertTrue(fed.get(0).get("accepted").asBoolean(), fed.toString());
      assertEquals(404, fed.get(1).get("status").asInt());
      assertEquals(400, fed.get(2).get("status").asInt());
      assertTrue(
          post(200, "/feedback", "[{\"id\": \"b\", \"label\": 0}]", null)
              .get(0)
              .get("accepted")
              .asBoolean());
      assertEquals(0, post(200, "/predict", "[]", null).size());
      String many = "[" + "{},".repeat(1000);
      assertEquals(1000, post(200, "/predict", many.replaceAll(",$", "]"), null).size());
      assertTrue(
          post(400, "/predict", many + "{}]", null).get("error").asText().contains("at most 1000"));
      for (String bad :
          List.of("[", "[1]", "[{}", "[{}] 1", "[[{}]]", "[{\"features\": [1, 2, 3]}")) {
        JsonNode said = post(400, "/predict", bad, null);
        assertTrue(said.has("error"), bad);
      }
    }
  }

  @Test
  void countsEachOfAListAsARequest() throws Exception {
    try (Service service = service(new Service.Limits(10_000, 5, 100, 1000, true), null)) {
      String one = "{\"features\": [1, 2, 3]}";
      JsonNode all = post(200, "/predict", "[" + (one + ",").repeat(9) + one + "]", null);
      assertTrue(all.get(0).has("outputs") && all.get(2).has("outputs"), all.toString());
      assertEquals(429, all.get(9).get("status").asInt(), all.toString());
    }
  }

  @Test
  void followsARollback() throws Exception {
    String features = "{\"features\": [1, 2, 3]}";
    try (Service service = service(new Service.Limits(10_000, 1e6, 100, 1000, true), null)) {
      JsonNode first = post(200, "/predict", features, null);
      assertEquals(1, first.get("store_version").asLong());
      learnFrom(OnlineTest.lines(40, 9));
      until(() -> get("/versions", null).body().contains("\"seen\":440"));
      assertTrue(get("/metrics", null).body().contains("\nespalier_unpublished 40.0\n"));
      JsonNode learned = post(200, "/predict", features, null);
      long before = learned.get("version").asLong();
      assertTrue(before > first.get("version").asLong());
      assertEquals(1, learned.get("store_version").asLong());
      Run.of("store", "publish", store.resolve("versions/1/model"), "--store", store).done();
      until(() -> service.storeVersion() == 2);
      assertEquals(2, post(200, "/predict", features, null).get("store_version").asLong());
      Run.of("store", "rollback", "--store", store).done();
      until(() -> service.storeVersion() == 1);
      until(() -> get("/metrics", null).body().contains("\nespalier_unpublished 0.0\n"));
      // The old answers again, under a number that nothing else had.
      JsonNode again = post(200, "/predict", features, null);
      assertEquals(first.get("outputs"), again.get("outputs"));
      assertTrue(again.get("version").asLong() > before, again + " after " + before);
      assertEquals(1, again.get("store_version").asLong());
    }
  }

  /** A version without a learner's state is served, learned on, and becomes the parent. */
  @Test
  void followsAVersionThatNoLearnerMade() throws Exception {
    Path other = folder.resolve("other.safetensors");
    weights(other, new float[] {0, 0, 0, 0, 5, 0}, 2);
    String features = "{\"features\": [1, 2, 3]}";
    try (Service service = service(new Service.Limits(10_000, 1e6, 100, 20, true), null)) {
      long before = post(200, "/predict", features, null).get("version").asLong();
      Run.of("store", "publish", other, "--store", store).done();
      until(() -> service.storeVersion() == 2);
      JsonNode answer = post(200, "/predict", features, null);
      assertEquals("[0.0,10.0]", answer.get("outputs").toString());
      assertTrue(answer.get("version").asLong() > before);

      learnFrom(OnlineTest.lines(40, 9));
      until(() -> service.storeVersion() >= 3);
      assertTrue(post(200, "/predict", features, null).get("store_version").asLong() >= 3);
      JsonNode learned = Run.of("store", "show", "3", "--store", store, "--json").json();
      assertEquals(2, learned.get("parent").asLong());

      // A rollback to what no learner made, as one to what a learner made.
      Run.of("store", "rollback", "2", "--store", store).done();
      until(() -> service.storeVersion() == 2);
      assertEquals("[0.0,10.0]", post(200, "/predict", features, null).get("outputs").toString());
      Run.of("store", "rollback", "1", "--store", store).done();
      until(() -> service.storeVersion() == 1);
    }
  }

  /** What cannot be served leaves what is served, and nothing is published over it. */
  @Test
  void staysWhereAnotherModelIsPublished() throws Exception {
    Path wider = folder.resolve("wider.safetensors");
    weights(wider, new float[8], 2);
    try (Service service = service(new Service.Limits(10_000, 1e6, 100, 20, true), null)) {
      Run.of("store", "publish", wider, "--store", store).done();
      Thread.sleep(1200);
      assertEquals(1, service.storeVersion());
      learnFrom(OnlineTest.lines(40, 9));
      until(() -> get("/versions", null).body().contains("\"seen\":440"));
      Thread.sleep(700);
      assertEquals(1, service.storeVersion());
    }
    ModelStore after = ModelStore.open(store);
    assertEquals(2, after.current().getAsLong());
    assertEquals(List.of(1L, 2L, 3L), after.ids()); // what was learned is not lost
    assertEquals(1, after.version(3).lineage().parent());
  }

  private void learnFrom(List<String> lines) throws Exception {
    for (String line : lines) {
      JsonNode example = new ObjectMapper().readTree(line);
      post(200, "/predict", line, null);
      String feedback =
          "{\"id\": \""
              + example.get("id").asText()
              + "\", \"label\": "
              + example.get("label")
              + "}";
      post(200, "/feedback", feedback, null);
    }
  }

  /** A linear model without biases. */
  private static void weights(Path file, float[] weight, int outputs) throws IOException {
    try (FileChannel channel =
        FileChannel.open(file, StandardOpenOption.CREATE, StandardOpenOption.WRITE)) {
      SafetensorsWriter writer =
          new SafetensorsWriter(
              channel,
              e -> new InputException(e.getMessage(), e),
              List.of(
                  new TensorSpec(
                      "weight",
                      SafetensorsDtype.F32,
                      List.of((long) outputs, (long) weight.length / outputs)),
                  new TensorSpec("bias", SafetensorsDtype.F32, List.of((long) outputs))),
              Map.of());
      for (float[] values : new float[][] {weight, new float[outputs]}) {
        ByteBuffer bytes = ByteBuffer.allocate(4 * values.length).order(ByteOrder.LITTLE_ENDIAN);
        bytes.asFloatBuffer().put(values);
        writer.append(values == weight ? "weight" : "bias", bytes);
      }
      writer.finish();
    }
  }

  @Test
  void refusesBadRequests() throws Exception {
    try (Service service = service(new Service.Limits(200, 1e6, 2, 1000, true), null)) {
      refused(400, "/predict", "nonsense", "not JSON");
      refused(400, "/predict", "{\"features\": [1]}", "features holds 1 numbers; 3 are right");
      refused(400, "/predict", "{}", "features are missing");
      refused(400, "/predict", "{\"inputs\": {}}", "the input features is missing");
      refused(400, "/predict", "{\"inputs\": {\"x\": 1}}", "no input 'x'; there are 'features'");
      refused(413, "/predict", " ".repeat(201), "more than 200 bytes");
      refused(404, "/feedback", "{\"id\": \"x\", \"label\": 1}", "'x'");
      refused(400, "/feedback", "{\"label\": 1}", "id is missing");
      post(200, "/predict", "{\"id\": \"a\", \"features\": [1, 2, 3]}", null);
      post(200, "/predict", "{\"id\": \"a\", \"inputs\": {\"features\": [1, 2, 3]}}", null);
      refused(409, "/predict", "{\"id\": \"a\", \"features\": [1, 2, 4]}", "waits");
      refused(400, "/feedback", "{\"id\": \"a\", \"label\": 5}", "unknown; 0 to 1");
      refused(400, "/feedback", "{\"id\": \"a\", \"label\": 1, \"values\": [1]}", "either");
      refused(400, "/feedback", "{\"id\": \"a\", \"label\": 0.5}", "not a class");
      post(200, "/feedback", "{\"id\": \"a\", \"label\": 1.0}", null);
      refused(404, "/feedback", "{\"id\": \"a\", \"label\": 1}", "'a'");
      refused(404, "/nothing", "", "/predict");
      assertEquals(405, get("/predict", null).statusCode());
      assertTrue(get("/metrics", null).body().contains("espalier_refused_total"));
      assertEquals(1, service.storeVersion());
    }
    try (Service slow = service(new Service.Limits(200, 2, 2, 1000, false), null)) {
      refused(403, "/feedback", "{\"id\": \"a\", \"label\": 1}", "does not learn");
      get("/health", null);
      refused(429, "/predict", "{}", "requests a second");
      assertEquals(2, slow.storeVersion()); // what the first one learned
    }
  }

  /** Clients that send half a request and wait do not keep others from being answered. */
  @Test
  void slowClientsDoNotBlock() throws Exception {
    List<Socket> slow = new ArrayList<>();
    try (Service service = service(new Service.Limits(10_000, 1e6, 100, 1000, true), null)) {
      String begin = "POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{";
      for (int i = 0; i < 300; i++) {
        Socket socket = new Socket(InetAddress.getLoopbackAddress(), port);
        slow.add(socket);
        String sent = i % 2 == 0 ? begin : begin.substring(0, 20);
        socket.getOutputStream().write(sent.getBytes(StandardCharsets.US_ASCII));
      }
      for (int i = 0; i < 10; i++) {
        post(200, "/predict", "{\"features\": [1, 2, 3]}", null);
      }
      // All of them are still waited for: nobody was answered because they had gone.
      for (Socket socket : slow) {
        socket.setSoTimeout(1);
        assertThrows(SocketTimeoutException.class, () -> socket.getInputStream().read());
      }
      assertEquals(1, service.storeVersion());
    } finally {
      for (Socket socket : slow) {
        socket.close();
      }
    }
  }

  @Test
  void answersAsHttpSays() throws Exception {
    String features = "{\"features\": [1, 2, \"NaN\"]}";
    try (Service service = service(new Service.Limits(10_000, 1e6, 100, 1000, true), TOKEN)) {
      HttpRequest head =
          request("/health", null).method("HEAD", HttpRequest.BodyPublishers.noBody()).build();
      assertEquals(200, client.send(head, HttpResponse.BodyHandlers.ofString()).statusCode());
      HttpResponse<String> wrong = get("/predict", TOKEN);
      assertEquals(405, wrong.statusCode());
      assertEquals("POST", wrong.headers().firstValue("Allow").get());
      HttpRequest lower =
          HttpRequest.newBuilder(URI.create("http://127.0.0.1:" + port + "/versions"))
              .header("Authorization", "bearer " + TOKEN)
              .build();
      assertEquals(200, client.send(lower, HttpResponse.BodyHandlers.ofString()).statusCode());
      HttpRequest bytes =
          request("/predict", TOKEN)
              .POST(HttpRequest.BodyPublishers.ofByteArray(new byte[] {'"', (byte) 0xff, '"'}))
              .build();
      HttpResponse<String> refused = client.send(bytes, HttpResponse.BodyHandlers.ofString());
      assertEquals(400, refused.statusCode());
      assertTrue(refused.body().contains("not UTF-8"), refused.body());
      // What is not known has no label.
      JsonNode answer = post(200, "/predict", features, TOKEN);
      assertTrue(answer.get("outputs").get(0).isNull(), answer.toString());
      assertNull(answer.get("label"));
      assertEquals(1, service.storeVersion());
    }
    try (Service rare = service(new Service.Limits(10_000, 0.001, 100, 1000, true), null)) {
      post(200, "/predict", features, null);
      post(429, "/predict", features, null);
      assertEquals("1", get("/versions", null).headers().firstValue("Retry-After").get());
      assertEquals(200, get("/health", null).statusCode());
      assertEquals(1, rare.storeVersion());
    }
  }

  @Test
  void wantsTheToken() throws Exception {
    try (Service service = service(new Service.Limits(10_000, 1e6, 100, 1000, true), TOKEN)) {
      assertEquals(200, get("/health", null).statusCode());
      assertEquals(401, get("/versions", null).statusCode());
      assertEquals(401, get("/metrics", "wrong").statusCode());
      assertEquals(200, get("/versions", TOKEN).statusCode());
      assertEquals(1, service.storeVersion());
    }
    Path token = Files.writeString(folder.resolve("token"), "short\n");
    Run.refused(
        folder,
        new String[] {"--token"},
        "serve",
        "--store",
        store,
        "--port",
        0,
        "--host",
        "0.0.0.0");
    Run.refused(
        folder,
        new String[] {"16 characters"},
        "serve",
        "--store",
        store,
        "--port",
        0,
        "--token",
        token);
    Run.refused(folder, new String[] {"--port 70000"}, "serve", "--store", store, "--port", 70000);
    Run.refused(
        folder,
        new String[] {"no such store"},
        "serve",
        "--store",
        folder.resolve("none"),
        "--port",
        0);
  }

  /** Who lost an answer gets it again, whatever was learned meanwhile. */
  @Test
  void answersARepeatedRequestTheSame() throws Exception {
    String asked = "{\"id\": \"a\", \"features\": [1, 2, \"NaN\"]}";
    String spaced = "{\"features\": [1.0, 2e0, NaN], \"id\": \"a\"}";
    try (Service service = service(new Service.Limits(10_000, 1e6, 100, 1000, true), null)) {
      JsonNode first = post(200, "/predict", asked, null);
      learnFrom(OnlineTest.lines(40, 9));
      until(() -> get("/versions", null).body().contains("\"seen\":440"));
      Run.of("store", "publish", store.resolve("versions/1/model"), "--store", store).done();
      until(() -> service.storeVersion() == 2);
      assertEquals(first, post(200, "/predict", spaced, null));
      refused(
          409, "/predict", asked.replace("2", "3"), "'a' waits for the outcome of other features");
      assertEquals(first, post(200, "/predict", asked, null));
      // One case waits, and its outcome is taken once; then the id is free.
      assertEquals(
          first.get("version"),
          post(200, "/feedback", "{\"id\": \"a\", \"label\": 1}", null).get("predicted_by"));
      refused(404, "/feedback", "{\"id\": \"a\", \"label\": 1}", "'a'");
      JsonNode later = post(200, "/predict", asked, null);
      assertTrue(later.get("version").asLong() > first.get("version").asLong());
      assertEquals(1, first.get("store_version").asLong());
      assertEquals(2, later.get("store_version").asLong());
    }
  }

  private void refused(int status, String path, String body, String word) throws Exception {
    JsonNode answer = post(status, path, body, null);
    assertTrue(answer.get("error").asText().contains(word), answer.toString());
  }

  private JsonNode post(int status, String path, String body, String token) throws Exception {
    HttpResponse<String> response =
        client.send(
            request(path, token).POST(HttpRequest.BodyPublishers.ofString(body)).build(),
            HttpResponse.BodyHandlers.ofString());
    assertEquals(status, response.statusCode(), response.body());
    return new ObjectMapper().readTree(response.body());
  }

  private HttpResponse<String> get(String path, String token) {
    try {
      return client.send(request(path, token).GET().build(), HttpResponse.BodyHandlers.ofString());
    } catch (IOException | InterruptedException e) {
      throw new AssertionError(e);
    }
  }

  private HttpRequest.Builder request(String path, String token) {
    HttpRequest.Builder builder =
        HttpRequest.newBuilder(URI.create("http://127.0.0.1:" + port + path));
    return token == null ? builder : builder.header("Authorization", "Bearer " + token);
  }

  private static void until(BooleanSupplier done) throws InterruptedException {
    long deadline = System.nanoTime() + 20_000_000_000L;
    while (!done.getAsBoolean()) {
      assertTrue(System.nanoTime() < deadline, "it takes too long");
      Thread.sleep(20);
    }
  }
}

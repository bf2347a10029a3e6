package org.espalier.cli;

import static org.espalier.cli.Client.post;
import static org.espalier.cli.Client.start;
import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertNotEquals;
import static org.junit.jupiter.api.Assertions.assertTrue;

import ai.onnx.proto.OnnxMl.NodeProto;
import ai.onnx.proto.OnnxMl.TensorProto.DataType;
import ai.onnxruntime.OnnxTensor;
import ai.onnxruntime.OrtEnvironment;
import ai.onnxruntime.OrtException;
import ai.onnxruntime.OrtSession;
import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.ObjectMapper;
import java.io.ByteArrayOutputStream;
import java.io.IOException;
import java.io.PrintStream;
import java.nio.ByteBuffer;
import java.nio.FloatBuffer;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.Random;
import java.util.Set;
import org.espalier.compress.onnx.DynamicQuantizer;
import org.espalier.compress.onnx.Int8Model;
import org.espalier.format.onnx.OnnxInitializer;
import org.espalier.format.onnx.OnnxModel;
import org.espalier.format.onnx.SmallModels;
import org.espalier.online.OnlineRecipe;
import org.espalier.online.model.OnnxModels;
import org.espalier.store.ModelStore;
import org.junit.jupiter.api.BeforeEach;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;
import org.junit.jupiter.params.provider.ValueSource;

/** ONNX models that learn, and what learned as ONNX, checked in ONNX Runtime. */
class OnlineOnnxTest {
  private static final float[] X = {0.5f, -1.25f, 2};

  @TempDir Path folder;
  private Path recipe;
  private Path store;
  private Path model;

  @BeforeEach
  void write() throws IOException {
    recipe =
        Files.writeString(
            folder.resolve("online.yaml"),
            "loss: cross-entropy\nlearning-rate: 0.2\nmomentum: 0.5\nbatch: 8\n"
                + "model: {features: 3, outputs: 2}\n");
    store = folder.resolve("store");
    model = folder.resolve("net.onnx");
    OnnxModels.perceptron(3, 8, 2).write(model);
  }

  private Path input(int n, int seed) throws IOException {
    return Files.write(folder.resolve(seed + ".jsonl"), OnlineTest.lines(n, seed));
  }

  /** The other weight is of floats, and learned. */
  @Test
  void integersThatAreNotLearnedAreTold() throws Exception {
    byte[] bytes = new byte[16];
    bytes[1] = 17;
    OnnxModel integers = OnnxModels.perceptron(3, 8, 2);
    integers.addInitializer(
        OnnxInitializer.bytes("integers", DataType.INT8, new long[] {8, 2}, bytes));
    integers.addInitializer(OnnxInitializer.floats("step", new long[0], 0.01f));
    List<NodeProto> nodes = new ArrayList<>(integers.nodes());
    integers.addInitializer(
        OnnxInitializer.bytes("three", DataType.INT8, new long[0], new byte[] {3}));
    nodes.add(0, SmallModels.line("floats DequantizeLinear integers step three"));
    nodes.replaceAll(
        n ->
            n.getInputList().contains("second.weight")
                ? n.toBuilder().setInput(1, "floats").build()
                : n);
    integers.setNodes(nodes);
    integers.removeInitializer("second.weight");
    integers.write(model);
    PrintStream before = System.err;
    ByteArrayOutputStream told = new ByteArrayOutputStream();
    System.setErr(new PrintStream(told, true, StandardCharsets.UTF_8));
    try {
      Run.online(input(40, 1), recipe, store, "--model", model).done();
    } finally {
      System.setErr(before);
    }
    String text = told.toString(StandardCharsets.UTF_8);
    assertTrue(text.contains("1 weight stays as it is: a zero point of 3 in place of 0"), text);
    Path exported = folder.resolve("out.onnx");
    Run.of("store", "export", "--store", store, "-o", exported).done();
    OnnxModel learned = OnnxModel.read(exported);
    assertEquals(ByteBuffer.wrap(bytes), learned.constant("integers").data());
    String floats = "first.weight";
    assertNotEquals(integers.constant(floats).data(), learned.constant(floats).data());
  }

  @ParameterizedTest
  @ValueSource(booleans = {false, true})
  void anOnnxModelStaysOneAndGoesOnInTheSameBits(boolean int8) throws Exception {
    if (int8) {
      OnnxModel integers = OnnxModels.perceptron(3, 8, 2);
      new DynamicQuantizer(integers, DynamicQuantizer.Options.defaults()).apply();
      integers.write(model);
    }
    Path other = folder.resolve("other");
    Path whole = input(400, 1);
    Path half = Files.write(folder.resolve("half"), OnlineTest.lines(400, 1).subList(0, 200));
    for (Object[] args :
        new Object[][] {
          {"--input", whole, "--recipe", recipe, "--model", model, "--store", other},
          {"--input", half, "--recipe", recipe, "--model", model, "--store", store},
          {"--input", whole, "--resume", "--store", store}
        }) {
      Object[] all = new Object[args.length + 1];
      all[0] = "online";
      System.arraycopy(args, 0, all, 1, args.length);
      Run.of(all).done();
    }
    for (String file : List.of("model.onnx", "learner.state")) {
      assertArrayEquals(
          Files.readAllBytes(other.resolve("versions/1/model").resolve(file)),
          Files.readAllBytes(store.resolve("versions/2/model").resolve(file)),
          file);
    }
    JsonNode diff = Run.of("store", "diff", "1", "2", "--store", store, "--json").json();
    assertEquals(4, diff.get("layers").size());
    Path exported = folder.resolve("out.onnx");
    Run.of("store", "export", "--store", store, "-o", exported).done();
    Map<String, float[]> answer = run(exported, "x");
    assertEquals(1, answer.size());
    assertNotEquals(run(model, "x").get("y")[0], answer.get("y")[0]);
    assertEquals(int8, Int8Model.is(OnnxModel.read(exported)));
    // Another graph with weights of the same sizes is not what the state belongs to.
    String told = Run.resume(whole, store, "--model", otherGraph()).err();
    assertTrue(
        told.contains("other settings:\n  what of the model is not learned, its graph or frozen"),
        told);
  }

  /** What runs on two examples may not run on the one that is left of the last batch. */
  @Test
  void aModelOfOutputsForNoOtherNumberOfExamplesIsRefused() throws IOException {
    var proto = OnnxModels.perceptron(3, 8, 2).toProto().toBuilder();
    var graph = proto.getGraphBuilder();
    String output = graph.getOutput(0).getName();
    NodeProto.Builder last = graph.getNodeBuilder(graph.getNodeCount() - 1);
    last.setOutput(0, "all");
    graph.addInitializer(SmallModels.int64s("two", 0, 0));
    graph.addNode(SmallModels.node("Gather", "gather", List.of("all", "two"), output));
    Path file = folder.resolve("two.onnx");
    OnnxModel.of(proto.build(), "two").write(file);
    Run.refused(
        folder,
        new String[] {"two.onnx does not run on one example", "has 4 values for 1 examples"},
        "online",
        "--input",
        input(9, 1),
        "--recipe",
        recipe,
        "--model",
        file,
        "--store",
        store);
  }

  /** With another activation. */
  private Path otherGraph() throws IOException {
    var proto = OnnxModels.perceptron(3, 8, 2).toProto().toBuilder();
    proto.getGraphBuilder().getNodeBuilder(2).setOpType("Relu");
    Path file = folder.resolve("relu.onnx");
    OnnxModel.of(proto.build(), "relu").write(file);
    return file;
  }

  @Test
  void theServiceAnswersAndLearnsWithAnOnnxModel() throws Exception {
    Run.online(input(80, 1), recipe, store, "--model", model).done();
    ObjectMapper mapper = new ObjectMapper();
    Service.Limits limits = new Service.Limits(10_000, 1e6, 100, 1_000_000, true);
    try (Service service = new Service(ModelStore.open(store), limits, null, null, null, null)) {
      int port = start(service);
      JsonNode answer = post(port, "/predict", "{\"inputs\": {\"x\": [0.5, -1.25, 2]}}");
      // What the service says is what ONNX Runtime makes of the version.
      float[] expected = run(store.resolve("versions/1/model/model.onnx"), "x").get("y");
      for (int c = 0; c < 2; c++) {
        assertEquals(expected[c], answer.get("outputs").get(c).floatValue(), 1e-5);
      }
      for (String line : OnlineTest.lines(48, 2)) {
        JsonNode example = mapper.readTree(line);
        post(port, "/predict", line);
        post(
            port,
            "/feedback",
            "{\"id\": \""
                + example.get("id").asText()
                + "\", \"label\": "
                + example.get("label")
                + "}");
      }
    }
    JsonNode last = Run.of("store", "show", "--store", store, "--json").json();
    assertEquals(2, last.get("id").asInt());
    assertEquals(128, last.get("data").get("to").asInt());
    assertNotEquals(
        run(model, "x").get("y")[0],
        run(store.resolve("versions/2/model/model.onnx"), "x").get("y")[0]);
  }

  @Test
  void aPublishedModelLearnsByARecipe() throws Exception {
    Run.of("store", "publish", model, "--store", store).done();
    Run.refused(
        folder,
        new String[] {"no learner made version 1", "--recipe"},
        "serve",
        "--store",
        store,
        "--port",
        0);
    Service.Limits limits = new Service.Limits(10_000, 1e6, 100, 1_000_000, true);
    OnlineRecipe given = OnlineRecipe.read(recipe);
    try (Service service = new Service(ModelStore.open(store), limits, null, given, null, null)) {
      int port = start(service);
      post(port, "/predict", "{\"id\": \"a\", \"features\": [0.5, -1.25, 2]}");
      post(port, "/feedback", "{\"id\": \"a\", \"label\": 1}");
    }
    // The next one goes on by itself.
    try (Service service = new Service(ModelStore.open(store), limits, null, null, null, null)) {
      assertEquals(2, service.storeVersion());
    }
    Files.writeString(
        recipe, "loss: cross-entropy\nlearning-rate: 1\nmodel: {features: 4, outputs: 2}\n");
    Run.of("store", "rollback", "1", "--store", store).done();
    Run.refused(
        folder,
        new String[] {"must have the shape [batch, 3]"},
        "serve",
        "--store",
        store,
        "--port",
        0,
        "--recipe",
        recipe);
  }

  /** Images [n, 3, 16, 16] are 768 features in a row; the graph says so, the recipe need not. */
  @Test
  void theSizesOfAGraphAreItsOwn() throws Exception {
    Path images = folder.resolve("images.onnx");
    OnnxModel.of(SmallModels.cnn(), "cnn").write(images);
    Run.of("store", "publish", images, "--store", store).done();
    Random random = new Random(3);
    float[] x = new float[768];
    for (int i = 0; i < x.length; i++) {
      x[i] = (float) random.nextGaussian();
    }
    float[] expected = run(images, "x", new long[] {1, 3, 16, 16}, x).get("y");
    Service.Limits frozen = new Service.Limits(100_000, 1e6, 100, 1_000_000, false);
    try (Service service = new Service(ModelStore.open(store), frozen, null, null, null, null)) {
      int port = start(service);
      JsonNode answer = post(port, "/predict", "{\"features\": " + Arrays.toString(x) + "}");
      assertEquals(10, answer.get("outputs").size());
      for (int c = 0; c < 10; c++) {
        assertEquals(expected[c], answer.get("outputs").get(c).floatValue(), 1e-4);
      }
    }
    Files.writeString(recipe, "loss: cross-entropy\nlearning-rate: 0.01\nbatch: 2\n");
    Path stream =
        Files.writeString(
            folder.resolve("images.jsonl"),
            ("{\"features\": " + Arrays.toString(x) + ", \"label\": 7}\n").repeat(20));
    Run.online(stream, recipe, folder.resolve("learned"), "--model", images).done();
    Path learned = folder.resolve("learned/versions/1/model/model.onnx");
    float[] after = run(learned, "x", new long[] {1, 3, 16, 16}, x).get("y");
    assertTrue(after[7] - expected[7] > 0.01, expected[7] + " became " + after[7]);

    var open = SmallModels.cnn().toBuilder();
    open.getGraphBuilder()
        .getInputBuilder(0)
        .getTypeBuilder()
        .getTensorTypeBuilder()
        .getShapeBuilder()
        .getDimBuilder(3)
        .setDimParam("width");
    OnnxModel.of(open.build(), "open").write(images);
    Run.refused(
        folder,
        new String[] {"how many values its input has", "model: {features"},
        "online",
        "--input",
        stream,
        "--recipe",
        recipe,
        "--model",
        images,
        "--store",
        store);
  }

  /** Two features whose product says the class. */
  private static List<String> crossed(int n) {
    Random random = new Random(9);
    List<String> lines = new ArrayList<>();
    for (int i = 0; i < n; i++) {
      float a = (float) random.nextGaussian();
      float b = (float) random.nextGaussian();
      lines.add(
          "{\"features\": [" + a + ", " + b + ", 0.5], \"label\": " + (a * b > 0 ? 1 : 0) + "}");
    }
    return lines;
  }

  @Test
  void aNewPerceptronLearnsWhatNoPlaneDivides() throws Exception {
    String settings = "loss: cross-entropy\nlearning-rate: 0.05\nmomentum: 0.5\nbatch: 4\n";
    Path stream = Files.write(folder.resolve("crossed.jsonl"), crossed(4000));
    Path half = Files.write(folder.resolve("half.jsonl"), crossed(4000).subList(0, 2000));
    Files.writeString(recipe, settings + "model: {features: 3, outputs: 2}\n");
    Path flat = folder.resolve("flat");
    assertTrue(metrics(stream, flat, "--recipe", recipe).path("accuracy_window").asDouble() < 0.6);
    for (String activation : List.of("relu", "tanh", "leaky-relu")) {
      Files.writeString(
          recipe,
          settings
              + "model: {features: 3, hidden: [24, 12], outputs: 2, activation: "
              + activation
              + "}\n");
      Path whole = folder.resolve(activation);
      double accuracy =
          metrics(stream, whole, "--recipe", recipe).path("accuracy_window").asDouble();
      assertTrue(accuracy > 0.9, activation + " " + accuracy);
      Path halves = folder.resolve(activation + "-halves");
      metrics(half, halves, "--recipe", recipe);
      metrics(stream, halves, "--resume");
      for (String file : List.of("model.onnx", "learner.state")) {
        assertArrayEquals(
            Files.readAllBytes(whole.resolve("versions/1/model").resolve(file)),
            Files.readAllBytes(halves.resolve("versions/2/model").resolve(file)),
            file);
      }
      Path exported = folder.resolve(activation + ".onnx");
      Run.of("store", "export", "--store", whole, "-o", exported).done();
      Map<String, float[]> answer =
          run(exported, "features", new long[] {1, 3}, new float[] {1.5f, -1.5f, 0.5f});
      assertTrue(answer.get("probabilities")[0] > 0.8, activation);
      float[] z = answer.get("outputs");
      assertEquals(1 / (1 + Math.exp(z[1] - z[0])), answer.get("probabilities")[0], 1e-5);
    }
  }

  private static JsonNode metrics(Path stream, Path store, Object... more) {
    List<Object> args = new ArrayList<>(List.of("online", "--input", stream, "--json"));
    args.addAll(List.of("--store", store));
    args.addAll(List.of(more));
    return Run.of(args.toArray()).json().path("metrics");
  }

  @ParameterizedTest
  @CsvSource(
      delimiter = '|',
      value = {
        "{features: 3, hidden: [4, 0], outputs: 2}|hidden is [4, 0]; all from 1",
        "{features: 3, hidden: [a], outputs: 2}|model.hidden holds 'a'; integers are right",
        "{features: 3, hidden: 4, outputs: 2}|model.hidden is not a list",
        "{features: 3, hidden: [100000, 100000], outputs: 2}|the product of two that follow",
        "{features: 3, hidden: [4], outputs: 2, activation: gelu}|relu, leaky-relu, sigmoid or",
        "{features: 3, outputs: 2, activation: tanh}|of the layers in hidden: […], which is"
            + " missing",
        "{features: 3, hiden: [4], outputs: 2}|model.hiden is unknown; known here are activation"
      })
  void aNewPerceptronOfNoSuchShapeIsRefused(String form, String told) throws IOException {
    Files.writeString(recipe, "loss: binary\nlearning-rate: 0.1\nmodel: " + form + "\n");
    Run.refused(
        folder,
        new String[] {"line 3", told},
        "online",
        "--input",
        input(9, 1),
        "--recipe",
        recipe,
        "--store",
        store);
  }

  @Test
  void aLinearModelIsExportedWithProbabilities() throws Exception {
    Run.online(input(80, 1), recipe, store).done();
    Path exported = folder.resolve("out.onnx");
    JsonNode json =
        Run.of("store", "export", "1", "--store", store, "-o", exported, "--json").json();
    assertEquals(1, json.get("version").asInt());
    Map<String, float[]> answer = run(exported, "features");
    float[] z = answer.get("outputs");
    try (Service service =
        new Service(
            ModelStore.open(store),
            new Service.Limits(10_000, 1e6, 1, 1, false),
            null,
            null,
            null,
            null)) {
      int port = start(service);
      JsonNode said = post(port, "/predict", "{\"features\": [0.5, -1.25, 2]}").get("outputs");
      assertEquals(said.get(0).floatValue(), z[0], 1e-5);
      assertEquals(said.get(1).floatValue(), z[1], 1e-5);
    }
    assertEquals(1 / (1 + Math.exp(z[0] - z[1])), answer.get("probabilities")[1], 1e-5);
    assertNotEquals(z[0], z[1]);
    // Of one that nobody says anything of, outputs are values.
    Path weights = store.resolve("versions/1/model/model.safetensors");
    Path plain = folder.resolve("plain");
    Run.of("store", "publish", weights, "--store", plain).done();
    Run.of("store", "export", "--store", plain, "-o", exported).done();
    assertEquals(Set.of("outputs"), run(exported, "features").keySet());
    assertArrayEquals(z, run(exported, "features").get("outputs"));
  }

  @Test
  void theOneOutputOfABinaryLossIsExportedWithItsSigmoidAndValuesWithNothing() throws Exception {
    for (String loss : List.of("binary", "squared")) {
      Path own = folder.resolve(loss);
      Files.writeString(
          recipe, "loss: " + loss + "\nlearning-rate: 0.1\nmodel: {features: 3, outputs: 1}\n");
      Path lines = folder.resolve(loss + ".jsonl");
      Files.write(
          lines,
          OnlineTest.lines(40, 3).stream()
              .map(
                  l ->
                      loss.equals("binary")
                          ? l
                          : l.replaceAll("\"label\": (\\d)", "\"values\": [$1]"))
              .toList());
      Run.online(lines, recipe, own).done();
      Path exported = folder.resolve(loss + ".onnx");
      Run.of("store", "export", "--store", own, "-o", exported).done();
      Map<String, float[]> answer = run(exported, "features");
      if (loss.equals("binary")) {
        assertEquals(
            1 / (1 + Math.exp(-answer.get("outputs")[0])), answer.get("probabilities")[0], 1e-6);
      } else {
        assertEquals(List.of("outputs"), List.copyOf(answer.keySet()));
      }
    }
    Run.refused(
        folder,
        new String[] {".onnx or .pt is right"},
        "store",
        "export",
        "--store",
        folder.resolve("binary"),
        "-o",
        folder.resolve("out.txt"));
  }

  /** Each output for {@link #X}. */
  private static Map<String, float[]> run(Path file, String input) throws OrtException {
    return run(file, input, new long[] {1, X.length}, X);
  }

  private static Map<String, float[]> run(Path file, String input, long[] shape, float[] values)
      throws OrtException {
    OrtEnvironment environment = OrtEnvironment.getEnvironment();
    Map<String, float[]> all = new HashMap<>();
    try (OrtSession session = environment.createSession(file.toString());
        OnnxTensor x = OnnxTensor.createTensor(environment, FloatBuffer.wrap(values), shape);
        OrtSession.Result result = session.run(Map.of(input, x))) {
      for (var entry : result) {
        all.put(entry.getKey(), ((float[][]) entry.getValue().getValue())[0]);
      }
    }
    return all;
  }
}

package org.espalier.cli;

import static org.espalier.cli.Client.post;
import static org.espalier.cli.Client.start;
import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertNotEquals;
import static org.junit.jupiter.api.Assertions.assertTrue;

import ai.onnx.proto.OnnxMl.GraphProto;
import ai.onnx.proto.OnnxMl.TensorProto.DataType;
import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.ObjectMapper;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.Map;
import java.util.Random;
import org.bytedeco.javacpp.FloatPointer;
import org.bytedeco.javacpp.PointerScope;
import org.bytedeco.pytorch.JitModule;
import org.bytedeco.pytorch.QualifiedName;
import org.bytedeco.pytorch.Tensor;
import org.bytedeco.pytorch.global.torch;
import org.espalier.format.onnx.SmallModels;
import org.espalier.online.OnlineRecipe;
import org.espalier.store.ModelStore;
import org.espalier.torch.Libtorch;
import org.espalier.torch.TorchScriptModel;
import org.junit.jupiter.api.BeforeEach;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;

/** TorchScript models that learn. */
class OnlineTorchScriptTest {
  private static final String TWO_LAYERS =
      "def forward(self, x: Tensor) -> Tensor:\n"
          + "    return torch.linear(torch.tanh(torch.linear(x, self.w1, self.b1)), self.w2)"
          + " + self.shift\n";

  @TempDir Path folder;
  private Path recipe;
  private Path store;
  private Path model;

  @BeforeEach
  void write() throws IOException {
    Libtorch.load();
    recipe =
        Files.writeString(
            folder.resolve("online.yaml"),
            "loss: cross-entropy\nlearning-rate: 0.2\nmomentum: 0.5\nbatch: 8\n"
                + "model: {features: 3, outputs: 2}\n");
    store = folder.resolve("store");
    model = saved("net.pt", TWO_LAYERS, false);
  }

  /** Two layers with a buffer; frozen: as constants. */
  private Path saved(String name, String forward, boolean frozen) {
    Path file = folder.resolve(name);
    try (PointerScope scope = new PointerScope()) {
      torch.manual_seed(3);
      JitModule module = new JitModule(new QualifiedName("net"));
      module.register_parameter("w1", torch.randn(8, 3).requires_grad_(true), false);
      module.register_parameter("b1", torch.zeros(8).requires_grad_(true), false);
      module.register_parameter("w2", torch.randn(2, 8).requires_grad_(true), false);
      module.register_buffer("shift", torch.ones(2));
      module.define(forward);
      if (frozen) {
        module.eval();
        module = torch.freeze(module);
      }
      TorchScriptModel.write(module, file);
    }
    return file;
  }

  private Path input(int n, int seed) throws IOException {
    return Files.write(folder.resolve(seed + ".jsonl"), OnlineTest.lines(n, seed));
  }

  private static float[] run(Path file, float... features) {
    try (TorchScriptModel model = TorchScriptModel.read(file);
        PointerScope scope = new PointerScope()) {
      Tensor x = torch.from_blob(new FloatPointer(features), 1, features.length);
      Tensor y = model.forward(Map.of("x", x)).get("output").detach().contiguous();
      float[] answer = new float[(int) y.numel()];
      new FloatPointer(y.data_ptr_float()).get(answer);
      return answer;
    }
  }

  @Test
  void aTorchScriptModelStaysOneAndGoesOnInTheSameBits() throws Exception {
    Path other = folder.resolve("other");
    Path whole = input(400, 1);
    Path half = Files.write(folder.resolve("half"), OnlineTest.lines(400, 1).subList(0, 200));
    Run.online(whole, recipe, other, "--model", model).done();
    Run.online(half, recipe, store, "--model", model).done();
    Run.resume(whole, store).done();
    for (String file : List.of("model.pt", "learner.state")) {
      assertArrayEquals(
          Files.readAllBytes(other.resolve("versions/1/model").resolve(file)),
          Files.readAllBytes(store.resolve("versions/2/model").resolve(file)),
          file);
    }
    Path exported = folder.resolve("out.pt");
    Run.of("store", "export", "--store", store, "-o", exported).done();
    assertNotEquals(run(model, 0.5f, -1, 2)[0], run(exported, 0.5f, -1, 2)[0]);
    Run.refused(
        folder,
        new String[] {"version 2 is TorchScript", ".pt is right"},
        "store",
        "export",
        "--store",
        store,
        "-o",
        folder.resolve("out.onnx"));
    // Other code with weights of the same sizes is not what the state belongs to.
    Path relu = saved("relu.pt", TWO_LAYERS.replace("tanh", "relu"), false);
    assertTrue(Run.resume(whole, store, "--model", relu).err().contains("other settings"));
  }

  /** Infinity times a weight is 1 behind tanh: the outputs do not show what would spoil the gradient. */
  @Test
  void anInfiniteFeatureBehindASaturatedLayerIsTakenOutAlone() throws Exception {
    List<String> lines = new ArrayList<>(OnlineTest.lines(80, 1));
    lines.set(20, "{\"features\": [\"Infinity\", 1, 2], \"label\": 1}");
    Path stream = Files.write(folder.resolve("infinite.jsonl"), lines);
    JsonNode json = Run.online(stream, recipe, store, "--model", model, "--json").json();
    assertEquals(79, json.get("learned").asInt(), json.toString());
    assertEquals(1, json.get("removed").asInt(), json.toString());
  }

  /** Their sizes are the recipe's to say; they are of floats. */
  @Test
  void aModuleOfSeveralInputsLearns() throws Exception {
    String forward =
        TWO_LAYERS.replace("x: Tensor)", "x: Tensor, y: Tensor)").replace("shift", "shift + y");
    Path two = saved("two.pt", forward, false);
    Files.writeString(
        recipe,
        "loss: cross-entropy\nlearning-rate: 0.2\nbatch: 8\n"
            + "model: {inputs: {y: 2, x: 3}, outputs: 2}\n");
    List<String> lines =
        OnlineTest.lines(400, 1).stream()
            .map(
                l ->
                    l.replaceFirst(
                        "\"features\": (\\[[^]]*])", "\"inputs\": {\"y\": [1, 1], \"x\": $1}"))
            .toList();
    Path stream = Files.write(folder.resolve("two.jsonl"), lines);
    JsonNode json = Run.online(stream, recipe, store, "--model", two, "--json").json();
    assertEquals(400, json.get("learned").asInt(), json.toString());
    assertTrue(json.at("/metrics/accuracy_window").asDouble() > 0.8, json.toString());
    Service.Limits limits = new Service.Limits(10_000, 1e6, 100, 1_000_000, true);
    try (Service service = new Service(ModelStore.open(store), limits, null, null, null, null)) {
      int port = start(service);
      String x = "{\"inputs\": {\"x\": [0.5, -1, 2], \"y\": ";
      JsonNode zero = post(port, "/predict", x + "[0, 0]}}").get("outputs");
      JsonNode one = post(port, "/predict", x + "[0, 1.5]}}").get("outputs");
      assertEquals(zero.get(0), one.get(0));
      assertEquals(zero.get(1).floatValue() + 1.5, one.get(1).floatValue(), 1e-6);
    }
  }

  @Test
  void versionsDifferByParameter() throws Exception {
    Path learned = input(100, 1);
    Run.of("store", "publish", model, "--store", store).done();
    Run.online(learned, recipe, store, "--model", model).done();
    JsonNode diff = Run.of("store", "diff", "1", "2", "--store", store, "--json").json();
    assertEquals(3, diff.get("layers").size(), diff.toString());
    JsonNode b1 = diff.get("layers").get(0);
    assertEquals("b1", b1.get("name").asText());
    assertEquals("f32[8]", b1.get("before").asText());
    assertEquals(8, b1.get("changed").asInt());
    assertEquals(0, diff.get("operators").size());
    diff = Run.of("store", "diff", "1", "1", "--store", store, "--json").json();
    assertTrue(diff.get("same").asBoolean(), diff.toString());

    // Equal parameters under other code are not the same model.
    Path relu = saved("relu.pt", TWO_LAYERS.replace("tanh", "relu"), false);
    Run.of("store", "publish", relu, "--store", store).done();
    diff = Run.of("store", "diff", "1", "3", "--store", store, "--json").json();
    assertFalse(diff.get("same").asBoolean(), diff.toString());
    assertEquals(0, diff.get("layers").size(), diff.toString());
    String text = Run.of("store", "diff", "1", "3", "--store", store).done().out();
    assertTrue(text.startsWith("code, buffers or constants: differ"), text);
  }

  @Test
  void aPublishedModelIsServedAndLearnsByARecipe() throws Exception {
    Run.of("store", "publish", model, "--store", store).done();
    Service.Limits limits = new Service.Limits(10_000, 1e6, 100, 1_000_000, true);
    OnlineRecipe given = OnlineRecipe.read(recipe);
    float[] before = run(model, 0.5f, -1.25f, 2);
    try (Service service = new Service(ModelStore.open(store), limits, null, given, null, null)) {
      int port = start(service);
      JsonNode answer = post(port, "/predict", "{\"features\": [0.5, -1.25, 2]}");
      for (int c = 0; c < 2; c++) {
        assertEquals(before[c], answer.get("outputs").get(c).floatValue());
      }
      for (String line : OnlineTest.lines(24, 2)) {
        JsonNode example = new ObjectMapper().readTree(line);
        String id = example.get("id").asText();
        post(port, "/predict", line);
        String label = example.get("label").asText();
        post(port, "/feedback", "{\"id\": \"" + id + "\", \"label\": " + label + "}");
      }
    }
    // The next one goes on by itself, from what was learned.
    Path learned = store.resolve("versions/2/model/model.pt");
    float[] after = run(learned, 0.5f, -1.25f, 2);
    assertNotEquals(before[0], after[0]);
    try (Service service = new Service(ModelStore.open(store), limits, null, null, null, null)) {
      int port = start(service);
      assertEquals(2, service.storeVersion());
      JsonNode answer = post(port, "/predict", "{\"features\": [0.5, -1.25, 2]}");
      assertEquals(after[0], answer.get("outputs").get(0).floatValue());
      // And follows a version that no learner made.
      Run.of("store", "publish", model, "--store", store).done();
      long deadline = System.nanoTime() + 20_000_000_000L;
      while (service.storeVersion() != 3 && System.nanoTime() < deadline) {
        Thread.sleep(20);
      }
      answer = post(port, "/predict", "{\"features\": [0.5, -1.25, 2]}");
      assertEquals(before[0], answer.get("outputs").get(0).floatValue());
    }
  }

  @Test
  void refusesWhatCannotBeLearned() throws Exception {
    Path text = Files.writeString(folder.resolve("text.pt"), "no module");
    String publish = "store publish";
    refused(publish, text, "is not a TorchScript module");
    refused("online", text, "is not a TorchScript module");
    byte[] bytes = Files.readAllBytes(model);
    Path cut = Files.write(folder.resolve("cut.pt"), Arrays.copyOf(bytes, 3000));
    refused(publish, cut, "is not a TorchScript module");
    Path frozen = saved("frozen.pt", TWO_LAYERS, true);
    refused(publish, frozen, "it was frozen");
    refused("online", frozen, "it was frozen");
    refused("inspect", model, "is TorchScript");
    Path three =
        saved(
            "three.pt",
            "def forward(self, x: Tensor) -> Tensor:\n"
                + "    return torch.linear(torch.linear(x, self.w1), torch.cat([self.w2,"
                + " self.w2]))\n",
            false);
    refused("online", three, "8 values for 2 examples; 2 for each");
    Path wide = saved("wide.pt", TWO_LAYERS.replace("self.w1,", "self.w2,"), false);
    refused("online", wide, "wide.pt failed in forward");
    Path two = saved("two.pt", TWO_LAYERS.replace("x: Tensor)", "x: Tensor, y: Tensor)"), false);
    refused("online", two, "line 5: model.features is for a model with one input");
    refused("online", two, "inputs: {x: …, y: …} is right");
    Path none = saved("none.pt", "def forward(self) -> Tensor:\n    return self.w1\n", false);
    refused("online", none, "none.pt has no input; a model that learns has one or more");
    Path constant =
        saved(
            "constant.pt",
            "def forward(self, x: Tensor) -> Tensor:\n    return x[:, 0:2] * 1.0\n",
            false);
    refused("online", constant, "cannot be trained");
    Path whole =
        saved(
            "argmax.pt",
            TWO_LAYERS.replace("return ", "return torch.argmax(").replace("+ self.shift", ", 1)"),
            false);
    refused("online", whole, "argmax.pt");
  }

  private void refused(String command, Path file, String part) throws Exception {
    Object[] args =
        switch (command) {
          case "online" ->
              new Object[] {
                "online",
                "--input",
                input(8, 1),
                "--recipe",
                recipe,
                "--model",
                file,
                "--store",
                store
              };
          case "inspect" -> new Object[] {"inspect", file};
          default -> new Object[] {"store", "publish", file, "--store", store};
        };
    Run.refused(folder, new String[] {part, file.toString()}, args);
  }

  @Test
  void aScriptBehindAnEncoderIsExportedWithoutIt() throws Exception {
    SmallLanguage.write(folder);
    GraphProto.Builder states =
        GraphProto.newBuilder()
            .setName("encoder")
            .addInput(SmallModels.value("input_ids", DataType.INT64, -1, -2))
            .addInitializer(
                SmallModels.floats("words", new Random(1), 1, SmallLanguage.VOCABULARY, 3))
            .addNode(SmallModels.line("states Gather words input_ids"))
            .addOutput(SmallModels.value("states", DataType.FLOAT, -1, -2, 3));
    Path encoder =
        Files.write(folder.resolve("encoder.onnx"), SmallModels.model(17, states).toByteArray());
    Path texts =
        Files.writeString(folder.resolve("texts.jsonl"), "{\"text\": \"w1 w2\", \"label\": 1}\n");
    Run run = Run.online(texts, recipe, store, "--model", model, "--encoder", encoder).done();
    assertTrue(run.err().contains("'store export' will make no graph"), run.err());
    Path exported = folder.resolve("out.pt");
    Run export = Run.of("store", "export", "--store", store, "-o", exported).done();
    assertTrue(export.err().contains("the encoder is not in"), export.err());
    assertEquals(-1, Files.mismatch(store.resolve("versions/1/model/model.pt"), exported));
  }
}

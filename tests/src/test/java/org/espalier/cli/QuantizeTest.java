package org.espalier.cli;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertTrue;

import ai.onnx.proto.OnnxMl.AttributeProto;
import ai.onnx.proto.OnnxMl.GraphProto;
import ai.onnx.proto.OnnxMl.NodeProto;
import ai.onnx.proto.OnnxMl.TensorProto;
import ai.onnx.proto.OnnxMl.TensorProto.DataType;
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
import java.util.stream.Stream;
import org.espalier.ExactProducts;
import org.espalier.device.Cuda;
import org.espalier.device.TestDevice;
import org.espalier.format.onnx.HalfModels;
import org.espalier.format.onnx.SmallModels;
import org.espalier.format.safetensors.RawSafetensors;
import org.espalier.format.safetensors.SafetensorsDtype;
import org.espalier.format.safetensors.TensorSpec;
import org.junit.jupiter.api.BeforeEach;
import org.junit.jupiter.api.Tag;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;

class QuantizeTest {
  @TempDir Path folder;
  private Path onnx;
  private Path checkpoint;

  @BeforeEach
  void models() throws IOException {
    onnx = Files.write(folder.resolve("m.onnx"), SmallModels.mlp().toByteArray());
    checkpoint = Files.createDirectory(folder.resolve("model"));
    RawSafetensors.write(
        checkpoint.resolve("model.safetensors"),
        "{\"layer.weight\":{\"dtype\":\"BF16\",\"shape\":[4,6],\"data_offsets\":[0,48]},"
            + "\"layer.bias\":{\"dtype\":\"BF16\",\"shape\":[4],\"data_offsets\":[48,56]}}",
        56);
    Files.writeString(checkpoint.resolve("config.json"), "{\"model_type\": \"none\"}");
  }

  @Test
  void aModelThatTakesNoTextIsNotCalibratedAndTheCommandSaysSo() {
    Path out = folder.resolve("out.onnx");
    Run run = Run.of("quantize", onnx, "-o", out, "--to", "onnx-dynamic", "--json");
    JsonNode json = run.json();
    assertTrue(run.err().contains("not calibrated"), run.err());
    assertTrue(json.get("quantized").size() >= 1, json.toString());
    assertEquals("onnx-dynamic", json.get("to").asText());
    JsonNode inspected = Run.of("inspect", out, "--json").json();
    assertTrue(inspected.get("tensors").findValuesAsText("dtype").contains("int8"));
  }

  /**
   * The second Conv reads a small channel that shares its step with a large one. Among few Convs both are
   * quantized, among many they stay float unless they are asked for.
   */
  @Test
  void outputsThatInt8SpoilsAreToldOf() throws IOException {
    assertFalse(warns(uneven(1, 0)));
    assertTrue(warns(uneven(10_000, 0)));
    Run many = uneven(10_000, 14);
    assertFalse(warns(many), many.err());
    JsonNode left = many.json().get("float");
    assertEquals(2, left.size(), left.toString());
    assertTrue(left.get("w0").asText().contains("more than 14 %"), left.toString());
    assertTrue(left.has("w1"), left.toString());
    Run all = uneven(10_000, 14, "--include", "*");
    assertTrue(warns(all), all.err());
    assertEquals(0, all.json().get("float").size());
  }

  /** Of two outputs the one that int8 spoils is told of by its name, where it counts. */
  @Test
  void outputsThatCountAreNamed() throws IOException {
    GraphProto.Builder g =
        GraphProto.newBuilder()
            .setName("heads")
            .addInput(SmallModels.value("x", DataType.FLOAT, -1, 1, 8))
            .addInitializer(weights("w", new float[] {1, 10_000}, 2, 1, 1))
            .addInitializer(weights("fine", new float[] {0, 1}, 1, 2, 1))
            .addInitializer(weights("lost", new float[] {1, 1e-6f}, 1, 2, 1))
            .addNode(SmallModels.node("Conv", "", List.of("x", "w"), "c"))
            .addNode(SmallModels.node("Neg", "", List.of("c"), "n"))
            .addNode(SmallModels.node("Conv", "", List.of("n", "fine"), "right"))
            .addNode(SmallModels.node("Conv", "", List.of("n", "lost"), "wrong"))
            .addOutput(SmallModels.value("right", DataType.FLOAT, -1, 1, 8))
            .addOutput(SmallModels.value("wrong", DataType.FLOAT, -1, 1, 8));
    Path model = Files.write(folder.resolve("two.onnx"), SmallModels.model(13, g).toByteArray());
    Path examples = examples("two.safetensors", "x", "[6,1,8]", 48);
    List<Object> line =
        List.of(
            "quantize",
            model,
            "-o",
            folder.resolve("int8.onnx"),
            "--to",
            "onnx-qdq",
            "--calibration",
            examples);
    Run all = Run.of(line.toArray()).done();
    assertTrue(warns(all), all.err());
    assertTrue(all.err().contains("the output wrong changes by"), all.err());
    assertTrue(all.err().contains("most of 2 outputs"), all.err());
    List<Object> one = new ArrayList<>(line);
    one.addAll(List.of("--outputs", "r*,right"));
    Run right = Run.of(one.toArray()).done();
    assertFalse(warns(right), right.err());
  }

  /** All commands call a weight that the graph computes by the same name; a recipe trains and quantizes it too. */
  @Test
  void computedWeightsAreWeights() throws IOException {
    Random random = new Random(4);
    GraphProto.Builder g =
        GraphProto.newBuilder()
            .setName("normalized")
            .addInput(SmallModels.value("x", DataType.FLOAT, -1, 8))
            .addInitializer(SmallModels.floats("v", random, 1, 8, 16))
            .addInitializer(SmallModels.floats("g", random, 1, 1, 16))
            .addNode(
                SmallModels.node("ReduceL2", "", List.of("v"), "norm", SmallModels.list("axes", 0)))
            .addNode(SmallModels.node("Div", "", List.of("v", "norm"), "unit"))
            .addNode(SmallModels.node("Mul", "", List.of("unit", "g"), "w"))
            .addNode(SmallModels.node("MatMul", "/head/MatMul", List.of("x", "w"), "y"))
            .addOutput(SmallModels.value("y", DataType.FLOAT, -1, 16));
    Path model = folder.resolve("normalized.onnx");
    Files.write(model, SmallModels.model(13, g).toByteArray());
    Path out = folder.resolve("out.onnx");
    Run run = Run.of("quantize", model, "-o", out, "--to", "onnx-dynamic", "--json");
    assertEquals("head.weight", run.json().at("/quantized/0").asText());
    assertTrue(run.err().contains("1 weight was computed from constants"), run.err());
    Run pruned =
        Run.of("prune", model, "-o", out, "--count", "64", "--include", "head.*", "--json");
    assertEquals(64, pruned.json().get("pruned").asInt());
    JsonNode inspected = Run.of("inspect", out, "--json").json();
    assertEquals(List.of("head.weight"), inspected.get("tensors").findValuesAsText("name"));
    ByteBuffer x = ByteBuffer.allocate(4 * 8 * 64).order(ByteOrder.LITTLE_ENDIAN);
    while (x.hasRemaining()) {
      x.putFloat((float) random.nextGaussian());
    }
    TensorSpec spec = new TensorSpec("x", SafetensorsDtype.F32, List.of(64L, 8L));
    RawSafetensors.write(folder.resolve("x.safetensors"), Map.of(), Map.of(spec, x.array()));
    Path recipe =
        Files.writeString(
            folder.resolve("recipe.yaml"),
            """
            model: {file: normalized.onnx}
            data: {examples: x.safetensors, validation: 16, evaluation: 16, calibration: 16}
            stages:
              - {kind: quantize, form: FORM, include: ["head.weight"], steps: 4, batch: 8}
            """
                .replace("FORM", ExactProducts.form("dynamic")));
    JsonNode report = Run.of("compress", recipe, "-o", folder.resolve("run"), "--json").json();
    assertEquals("head.weight", report.at("/layers/0/name").asText());
    assertTrue(report.at("/fidelity/cosine_mean").asDouble() > 0.99);
  }

  private static boolean warns(Run run) {
    return run.err().contains("warning: on some of the calibration examples");
  }

  /**
   * Quantizes a chain of Convs.
   *
   * @param large how much larger a channel is than the other
   * @param more Convs of one channel behind the two that matter
   */
  private Run uneven(float large, int more, String... options) throws IOException {
    GraphProto.Builder g =
        GraphProto.newBuilder()
            .setName("uneven")
            .addInput(SmallModels.value("v0", DataType.FLOAT, -1, 1, 8))
            .addOutput(SmallModels.value("v" + (more + 2), DataType.FLOAT, -1, 1, 8))
            .addInitializer(weights("w0", new float[] {1, large}, 2, 1, 1))
            .addInitializer(weights("w1", new float[] {1, 0.01f / large}, 1, 2, 1));
    for (int k = 0; k < more + 2; k++) {
      if (k > 1) {
        g.addInitializer(weights("w" + k, new float[] {1}, 1, 1, 1));
      }
      g.addNode(SmallModels.node("Conv", "", List.of("v" + k, "w" + k), "v" + (k + 1)));
    }
    Path model = Files.write(folder.resolve("c.onnx"), SmallModels.model(13, g).toByteArray());
    ByteBuffer x = ByteBuffer.allocate(4 * 6 * 8).order(ByteOrder.LITTLE_ENDIAN);
    Random random = new Random(2);
    while (x.hasRemaining()) {
      x.putFloat((float) random.nextGaussian());
    }
    TensorSpec spec = new TensorSpec("v0", SafetensorsDtype.F32, List.of(6L, 1L, 8L));
    Path examples = folder.resolve("c.safetensors");
    RawSafetensors.write(examples, Map.of(), Map.of(spec, x.array()));
    List<Object> line =
        new ArrayList<>(
            List.of("quantize", model, "-o", folder.resolve("int8.onnx"), "--to", "onnx-qdq"));
    line.addAll(List.of("--calibration", examples, "--json"));
    line.addAll(List.of(options));
    return Run.of(line.toArray()).done();
  }

  private static TensorProto weights(String name, float[] values, long... dims) {
    ByteBuffer b = ByteBuffer.allocate(4 * values.length).order(ByteOrder.LITTLE_ENDIAN);
    b.asFloatBuffer().put(values);
    return SmallModels.tensor(name, DataType.FLOAT, b, dims);
  }

  /** Each branch has a matrix of its own, and the examples take one. */
  @Test
  void weightsThatCalibrationDoesNotSeeAreToldOf() throws IOException {
    NodeProto.Builder choice = SmallModels.line("y If yes").toBuilder();
    for (String branch : List.of("then_branch", "else_branch")) {
      String z = "z_" + branch;
      choice.addAttribute(
          AttributeProto.newBuilder()
              .setName(branch)
              .setType(AttributeProto.AttributeType.GRAPH)
              .setG(
                  GraphProto.newBuilder()
                      .setName(branch)
                      .addNode(SmallModels.line("h_" + z + " Tanh x"))
                      .addNode(SmallModels.line(z + " MatMul h_" + z + " w_" + branch))
                      .addOutput(SmallModels.value(z, DataType.FLOAT, -1, 64))));
    }
    GraphProto.Builder g =
        GraphProto.newBuilder()
            .setName("choosing")
            .addInput(SmallModels.value("x", DataType.FLOAT, -1, 64))
            .addInitializer(SmallModels.floats("w_then_branch", new Random(1), 1, 64, 64))
            .addInitializer(SmallModels.floats("w_else_branch", new Random(2), 1, 64, 64))
            .addInitializer(weights("bound", new float[] {-1000}))
            .addNode(SmallModels.line("least ReduceMin x", SmallModels.attribute("keepdims", 0)))
            .addNode(SmallModels.line("yes Less least bound"))
            .addNode(choice)
            .addOutput(SmallModels.value("y", DataType.FLOAT, -1, 64));
    Path model = Files.write(folder.resolve("c.onnx"), SmallModels.model(13, g).toByteArray());
    Path examples = folder.resolve("x.safetensors");
    byte[] x = SmallModels.floats("x", new Random(3), 1, 6, 64).getRawData().toByteArray();
    TensorSpec spec = new TensorSpec("x", SafetensorsDtype.F32, List.of(6L, 64L));
    RawSafetensors.write(examples, Map.of(), Map.of(spec, x));
    for (String form : List.of("onnx-dynamic", "onnx-int8", "onnx-int4")) {
      Path out = folder.resolve(form + ".onnx");
      Run run =
          Run.of("quantize", model, "-o", out, "--to", form, "--calibration", examples).done();
      String told =
          "1 weight is rounded to the nearest: in a branch that no example takes ('w_then_branch')";
      assertTrue(run.err().contains(told), run.err());
      run = Run.of("quantize", model, "-o", out, "--to", form, "--calibration", "none").done();
      assertFalse(run.err().contains("nearest"), run.err());
    }
  }

  /** The device that was asked for computes, and says so. */
  @Test
  @Tag("device")
  void aDeviceThatIsNamedComputes() throws IOException {
    try (TestDevice there = new TestDevice()) {
      for (String device : new String[] {"auto", "cuda", "cuda:0", "cpu"}) {
        Path file = checkpoint.resolve("model.safetensors");
        Path pruned = folder.resolve("pruned-" + device.replace(':', '-') + ".safetensors");
        JsonNode json =
            Run.of("prune", file, "-o", pruned, "--amount", "0.5", "--device", device, "--json")
                .json();
        assertEquals(device.equals("cpu") ? "cpu" : "cuda:0", json.get("device").asText());
        Path int8 = folder.resolve("int8-" + device.replace(':', '-'));
        Run.of("quantize", checkpoint, "-o", int8, "--to", "compressed-tensors", "--device", device)
            .done();
        assertArrayEquals(
            Files.readAllBytes(folder.resolve("pruned-auto.safetensors")),
            Files.readAllBytes(pruned));
        assertArrayEquals(
            Files.readAllBytes(folder.resolve("int8-auto/model.safetensors")),
            Files.readAllBytes(int8.resolve("model.safetensors")));
      }
    }
  }

  @Test
  void refusesADeviceThatIsNotThereOrCannotDoIt() {
    String word = Cuda.isAvailable() ? "on the CPU only" : Cuda.unavailabilityCause().getMessage();
    refused(
        word, onnx, "-o", folder.resolve("out.onnx"), "--to", "onnx-dynamic", "--device", "cuda");
    refused(
        "cuda:999",
        checkpoint,
        "-o",
        folder.resolve("out"),
        "--to",
        "compressed-tensors",
        "--device",
        "cuda:999");
  }

  @Test
  void aModelWithoutTextIsCalibratedOnTensors() throws IOException {
    Path cnn = Files.write(folder.resolve("cnn.onnx"), SmallModels.cnn().toByteArray());
    Path examples = examples("examples.safetensors", "x", "[40,3,16,16]", 40 * 768);
    Path out = folder.resolve("out.onnx");
    JsonNode json =
        Run.of("quantize", cnn, "-o", out, "--to", "onnx-qdq", "--calibration", examples, "--json")
            .json();
    assertEquals(4, json.get("quantized").size(), json.toString());
    assertTrue(json.get("speedup").asDouble() > 0, json.toString());
    refused(
        "no tensor for the input x",
        cnn,
        "-o",
        folder.resolve("no.onnx"),
        "--to",
        "onnx-qdq",
        "--calibration",
        RawSafetensors.write(folder.resolve("empty.safetensors"), "{}", 0));
    refused(
        "is no input",
        cnn,
        "-o",
        folder.resolve("no.onnx"),
        "--to",
        "onnx-qdq",
        "--calibration",
        examples("y.safetensors", "y", "[1,3,16,16]", 768));
    refused(
        "does not fit",
        cnn,
        "-o",
        folder.resolve("no.onnx"),
        "--to",
        "onnx-qdq",
        "--calibration",
        examples("shape.safetensors", "x", "[1,1,16,16]", 256));
    refused(
        "is I32",
        cnn,
        "-o",
        folder.resolve("no.onnx"),
        "--to",
        "onnx-qdq",
        "--calibration",
        RawSafetensors.write(
            folder.resolve("type.safetensors"),
            "{\"x\":{\"dtype\":\"I32\",\"shape\":[1,1],\"data_offsets\":[0,4]}}",
            4));
  }

  @Test
  void weightsOfFourBitsAreAnEighth() throws IOException {
    GraphProto.Builder graph =
        GraphProto.newBuilder()
            .setName("wide")
            .addInput(SmallModels.value("x", DataType.FLOAT, -1, 128))
            .addInitializer(SmallModels.floats("w", new Random(1), 1, 128, 256))
            .addNode(SmallModels.node("MatMul", "product", List.of("x", "w"), "y"))
            .addOutput(SmallModels.value("y", DataType.FLOAT, -1, 256));
    Path wide =
        Files.write(folder.resolve("wide.onnx"), SmallModels.model(13, graph).toByteArray());
    Path examples = examples("wide.safetensors", "x", "[40,128]", 40 * 128);
    double[] ratios = new double[2];
    int[] blocks = {32, 128};
    for (int i = 0; i < 2; i++) {
      Path out = folder.resolve("out" + i + ".onnx");
      JsonNode json =
          Run.of(
                  "quantize",
                  wide,
                  "-o",
                  out,
                  "--to",
                  "onnx-int4",
                  "--block",
                  blocks[i],
                  "--calibration",
                  examples,
                  "--json")
              .json();
      assertEquals("onnx-int4", json.get("to").asText());
      assertEquals(1, json.get("quantized").size(), json.toString());
      assertTrue(json.get("speedup").asDouble() > 0, json.toString());
      ratios[i] = json.get("size_ratio").asDouble();
      JsonNode judged = Run.of("evaluate", wide, out, "--examples", examples, "--json").json();
      assertTrue(judged.toString().contains("cosine"), judged.toString());
    }
    assertTrue(ratios[0] < 0.17 && ratios[1] < 0.145, ratios[0] + " and " + ratios[1]);
    Object[] sized = {
      "quantize", wide, "-o", folder.resolve("sized.onnx"), "--to", "onnx-int4", "--json", "--size"
    };
    JsonNode json = with(sized, "0.3", "--calibration", examples).json();
    assertEquals(1, json.get("of_8_bits").size(), json.toString());
    double ratio = json.get("size_ratio").asDouble();
    assertTrue(ratio > 0.28 && ratio <= 0.3, "ratio " + ratio);
    json = with(sized, "0.2", "--calibration", examples).json();
    assertEquals(0, json.get("of_8_bits").size(), json.toString());
    // The share is one of what the file of 16 bits takes.
    Path half = folder.resolve("half.onnx");
    Files.write(
        half, HalfModels.inside(SmallModels.model(13, graph), DataType.FLOAT16).toByteArray());
    sized[1] = half;
    json = with(sized, "0.5", "--calibration", examples).json();
    assertEquals(0, json.get("of_8_bits").size(), json.toString());
    assertTrue(json.get("size_ratio").asDouble() <= 0.5, json.toString());
    for (String[] wrong :
        new String[][] {
          {"0.1", examples.toString(), "weights of 4 bits make a model of"},
          {"0.1", examples.toString(), " times as large is the least"},
          {"0.3", "none", "--size needs what '--calibration none' leaves out"}
        }) {
      Run run = with(sized, wrong[0], "--calibration", wrong[1]);
      assertEquals(2, run.code(), run.err());
      assertTrue(run.err().contains(wrong[2]), run.err());
    }
  }

  @Test
  void float16IsHalf() throws IOException {
    Path cnn = Files.write(folder.resolve("cnn.onnx"), SmallModels.cnn().toByteArray());
    Path examples = examples("examples.safetensors", "x", "[40,3,16,16]", 40 * 768);
    Path out = folder.resolve("half.onnx");
    Object[] command = {"quantize", cnn, "-o", out, "--to", "onnx-float16", "--json"};
    JsonNode json = with(command, "--calibration", examples).json();
    assertEquals(4, json.get("quantized").size(), json.toString());
    assertEquals(0, json.get("float").size(), json.toString());
    double error = json.get("error").asDouble();
    assertTrue(error > 1e-5 && error < 0.01, json.toString());
    Run evaluated = Run.of("evaluate", cnn, out, "--examples", examples, "--json");
    JsonNode judged = evaluated.json();
    assertTrue(judged.get("outputs").get(0).get("cosine_mean").asDouble() > 0.9999, "" + judged);
    assertTrue(evaluated.err().contains("half.onnx computes in 16 bits"), evaluated.err());
    assertFalse(Run.of("evaluate", cnn, cnn, "--examples", examples).err().contains("16 bits"));
    Object[] rounding = {"evaluate", cnn, out, "--examples", examples, "--round-float16", "--json"};
    JsonNode rounded = Run.of(rounding).json();
    double exactly = judged.get("outputs").get(0).get("relative_error").asDouble();
    double onGpus = rounded.get("outputs").get(0).get("relative_error").asDouble();
    assertTrue(onGpus > 1.2 * exactly && onGpus < 0.01, exactly + " and " + onGpus);
    rounding[2] = cnn;
    Run wrong = Run.of(rounding);
    assertEquals(2, wrong.code());
    assertTrue(wrong.err().contains("--round-float16 is for models that compute in 16 bits"));
    json = with(command, "--exclude", "conv1.*").json();
    assertEquals("it is not chosen", json.get("float").get("conv1.weight").asText());
    assertFalse(json.has("error"), json.toString());
    refused("is int8 already", quantized(cnn, examples), "-o", out, "--to", "onnx-float16");
    refused("--reduce-range is for", cnn, "-o", out, "--to", "onnx-float16", "--reduce-range");
  }

  private Path quantized(Path cnn, Path examples) throws IOException {
    Path out = folder.resolve("int8.onnx");
    Run.of("quantize", cnn, "-o", out, "--to", "onnx-qdq", "--calibration", examples, "--json")
        .json();
    return out;
  }

  private Path examples(String file, String name, String shape, int elements) throws IOException {
    byte[] bytes =
        RawSafetensors.bytes(
            "{\""
                + name
                + "\":{\"dtype\":\"F32\",\"shape\":"
                + shape
                + ",\"data_offsets\":[0,"
                + 4 * elements
                + "]}}",
            4 * elements);
    ByteBuffer values = ByteBuffer.wrap(bytes).order(ByteOrder.LITTLE_ENDIAN);
    Random random = new Random(5);
    for (int i = bytes.length - 4 * elements; i < bytes.length; i += 4) {
      values.putFloat(i, (float) random.nextGaussian());
    }
    return Files.write(folder.resolve(file), bytes);
  }

  @Test
  void compressedTensorsOfAFolder() {
    Path out = folder.resolve("int8");
    JsonNode json =
        Run.of("quantize", checkpoint, "-o", out, "--to", "compressed-tensors", "--json").json();
    assertEquals("[\"layer.weight\"]", json.get("quantized").toString());
    assertTrue(json.get("float").isEmpty(), json.toString()); // there is no lm_head
    assertTrue(Files.exists(out.resolve("config.json")));
    assertTrue(
        Run.of("quantize", checkpoint, "-o", folder.resolve("again"), "--to", "compressed-tensors")
            .done()
            .out()
            .contains("1 tensors"));
  }

  @Test
  void compressedTensorsOfFourBits() throws IOException {
    Path two = Files.createDirectory(folder.resolve("two"));
    String header =
        "{\"a.weight\":{\"dtype\":\"BF16\",\"shape\":[64,128],\"data_offsets\":[0,16384]},"
            + "\"b.weight\":{\"dtype\":\"BF16\",\"shape\":[8,96],\"data_offsets\":[16384,17920]}}";
    byte[] bytes = RawSafetensors.bytes(header, 17920);
    Arrays.fill(bytes, bytes.length - 17920, bytes.length, (byte) 0x3c); // each 0.0115
    Files.write(two.resolve("model.safetensors"), bytes);
    Files.writeString(two.resolve("config.json"), "{\"model_type\": \"none\"}");
    String form = "compressed-tensors-int4";

    Run run = Run.of("quantize", two, "-o", folder.resolve("128"), "--to", form, "--json");
    JsonNode json = run.json();
    assertEquals("[\"a.weight\"]", json.get("quantized").toString());
    assertEquals(
        "its 96 input channels are no multiple of 128, but of 32",
        json.get("float").get("b").asText());
    assertTrue(run.err().contains("1 weight stays float"), run.err());
    assertFalse(run.err().contains("warning"), run.err());
    // Nibbles, a scale of 16 bits for each row, the shape, and what stays as it is.
    assertEquals(64 * 128 / 2 + 64 * 2 + 16 + 1536, json.get("output_bytes").asLong());

    run =
        Run.of(
            "quantize",
            two,
            "-o",
            folder.resolve("32"),
            "--to",
            form,
            "--block",
            "32",
            "--asymmetric",
            "--json");
    json = run.json();
    assertEquals("[\"a.weight\",\"b.weight\"]", json.get("quantized").toString());
    assertTrue(json.get("float").isEmpty());
    assertTrue(run.err().contains("the first b.weight [8, 96]"), run.err());
    JsonNode weights =
        new ObjectMapper()
            .readTree(folder.resolve("32/config.json").toFile())
            .at("/quantization_config/config_groups/group_0/weights");
    assertEquals(32, weights.get("group_size").asInt());
    assertFalse(weights.get("symmetric").asBoolean());

    Path out = folder.resolve("out");
    refused("no multiple of 128", two, "-o", out, "--to", form, "--include", "*.weight");
    refused("--block all takes any", checkpoint, "-o", out, "--to", form);
    refused("quantized already", folder.resolve("32"), "-o", out, "--to", form);
    refused("32, 64, 128 and all", two, "-o", out, "--to", form, "--block", "48");
    refused("--block four: 32, 64", two, "-o", out, "--to", form, "--block", "four");
    refused("is for --to", two, "-o", out, "--to", "compressed-tensors", "--asymmetric");
    refused("is for --to", two, "-o", out, "--to", "compressed-tensors", "--block", "32");
    refused("is for safetensors", onnx, "-o", out + ".onnx", "--to", form);
    refused("model_type is 'none'", two, "-o", out, "--to", form, "--calibration", "texts.txt");
    Object[] all = {"quantize", checkpoint, "-o", out, "--to", form, "--block", "all"};
    Run.of(all).done();
  }

  @Test
  void tensorsOfACheckpointAreRounded() throws IOException {
    Path floats = examples("floats.safetensors", "w", "[4,8]", 32);
    Path out = folder.resolve("half.safetensors");
    JsonNode json = Run.of("quantize", floats, "-o", out, "--to", "bfloat16", "--json").json();
    assertEquals(0.5, json.get("size_ratio").asDouble(), json.toString());
    Path no = folder.resolve("no.safetensors");
    refused("no tensor of float32", out, "-o", no, "--to", "float16");
    String plain = folder.resolve("no").toString();
    refused("ends with .safetensors", floats, "-o", plain, "--to", "bfloat16");
    refused("an ONNX model, which --to onnx-float16 takes", onnx, "-o", no, "--to", "float16");
    refused("no ONNX model, which --to float16 takes", floats, "-o", no, "--to", "onnx-float16");
    refused("needs no examples", floats, "-o", out, "--to", "float16", "--calibration", "a");
    assertFalse(Files.exists(no));
  }

  private static Run with(Object[] command, Object... more) {
    return Run.of(Stream.concat(Stream.of(command), Stream.of(more)).toArray());
  }

  private void refused(String word, Object... args) {
    Object[] all = new Object[args.length + 1];
    all[0] = "quantize";
    System.arraycopy(args, 0, all, 1, args.length);
    Run.refused(folder, new String[] {word}, all);
  }

  @Test
  void refusesWhatDoesNotFit() throws IOException {
    Path out = folder.resolve("out.onnx");
    refused("none of onnx-dynamic", onnx, "-o", out, "--to", "int4");
    refused("--to", onnx, "-o", out);
    refused("is for safetensors", onnx, "-o", out, "--to", "compressed-tensors");
    refused("model_type is 'none'", checkpoint, "-o", out, "--to", "onnx-dynamic");
    refused("is the input", onnx, "-o", onnx, "--to", "onnx-dynamic");
    refused("is a directory", onnx, "-o", folder, "--to", "onnx-dynamic");
    refused("ends with .onnx", onnx, "-o", out + ".safetensors", "--to", "onnx-dynamic");
    refused("a folder or", checkpoint, "-o", out + ".onnx", "--to", "compressed-tensors");
    refused("takes no text", onnx, "-o", out, "--to", "onnx-qdq");
    refused("need examples", onnx, "-o", out, "--to", "onnx-qdq", "--calibration", "none");
    refused("--clip is for", onnx, "-o", out, "--to", "onnx-dynamic", "--clip", "mse");
    refused("above 50", onnx, "-o", out, "--to", "onnx-qdq", "--clip", "percentile:50");
    refused("above 50", onnx, "-o", out, "--to", "onnx-qdq", "--clip", "percentile:most");
    refused("none of minmax", onnx, "-o", out, "--to", "onnx-qdq", "--clip", "best");
    refused("'nothing'", onnx, "-o", out, "--to", "onnx-dynamic", "--include", "nothing");
    refused("calibrated on tensors", onnx, "-o", out, "--to", "onnx-qdq", "--outputs", "y");
    refused(
        "'z*' matches no output of floats of ",
        onnx,
        "-o",
        out,
        "--to",
        "onnx-qdq",
        "--calibration",
        examples("mlp.safetensors", "x", "[4,8]", 32),
        "--outputs",
        "y,z*");
    refused(
        "--reduce-range", checkpoint, "-o", out, "--to", "compressed-tensors", "--reduce-range");
    refused("--block is for", onnx, "-o", out, "--to", "onnx-dynamic", "--block", "32");
    String right = ": 16, 32, 64, 128 and 256 are possible in onnx-int8";
    refused("--block 48" + right, onnx, "-o", out, "--to", "onnx-int8", "--block", "48");
    refused("--block all" + right, onnx, "-o", out, "--to", "onnx-int8", "--block", "all");
    // Before the model is looked for, which may be got from elsewhere.
    refused("--block 8: 16", folder.resolve("no.onnx"), "-o", out, "--to=onnx-int4", "--block=8");
    refused("--reduce-range is for", onnx, "-o", out, "--to", "onnx-int4", "--reduce-range");
    refused("--unsigned-weights is for", onnx, "-o", out, "--to=onnx-int4", "--unsigned-weights");
    refused(
        "one is right", onnx, "-o", out, "--to=onnx-qdq", "--reduce-range", "--unsigned-weights");
    refused("--size is for", onnx, "-o", out, "--to", "onnx-int8", "--size", "0.2");
    refused("above 0 and below 1", onnx, "-o", out, "--to", "onnx-int4", "--size", "1");
    refused("above 0 and below 1", onnx, "-o", out, "--to", "onnx-int4", "--size", "NaN");
    refused("--reduce-range is for", onnx, "-o", out, "--to", "onnx-int8", "--reduce-range");
    refused("than a block", onnx, "-o", out, "--to", "onnx-int4");
    refused("model_type is 'none'", checkpoint, "-o", out, "--to", "onnx-int4");
    Path file = checkpoint.resolve("model.safetensors");
    refused("is for .onnx", file, "-o", out, "--to", "onnx-int4");
    refused("is the input", checkpoint, "-o", checkpoint, "--to", "compressed-tensors");
  }

  @Test
  void namesTheTensorThatIsNotFinite() throws IOException {
    Path bad = Files.createDirectory(folder.resolve("bad"));
    // With a blank behind the header the floats lie at odd places, so that a copy is read.
    byte[] bytes =
        RawSafetensors.bytes(
            "{\"layer.weight\":{\"dtype\":\"F32\",\"shape\":[2,2],\"data_offsets\":[0,16]}} ", 16);
    bytes[bytes.length - 1] = 0x7f; // the last float becomes a NaN
    bytes[bytes.length - 2] = (byte) 0xc0;
    Files.write(bad.resolve("model.safetensors"), bytes);
    Files.writeString(bad.resolve("config.json"), "{}");
    refused(
        bad.resolve("model.safetensors") + ": tensor 'layer.weight'",
        bad,
        "-o",
        folder.resolve("out"),
        "--to",
        "compressed-tensors");
  }
}

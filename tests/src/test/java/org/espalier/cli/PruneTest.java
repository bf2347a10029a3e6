package org.espalier.cli;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertTrue;

import ai.onnx.proto.OnnxMl.AttributeProto;
import ai.onnx.proto.OnnxMl.GraphProto;
import ai.onnx.proto.OnnxMl.ModelProto;
import ai.onnx.proto.OnnxMl.TensorProto;
import ai.onnx.proto.OnnxMl.TensorProto.DataType;
import ai.onnx.proto.OnnxMl.ValueInfoProto;
import ai.onnxruntime.OnnxTensor;
import ai.onnxruntime.OrtEnvironment;
import ai.onnxruntime.OrtException;
import ai.onnxruntime.OrtSession;
import com.fasterxml.jackson.databind.JsonNode;
import com.google.protobuf.ByteString;
import java.io.IOException;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.FloatBuffer;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.Comparator;
import java.util.List;
import java.util.Map;
import java.util.Random;
import java.util.Set;
import java.util.TreeMap;
import java.util.stream.Stream;
import org.espalier.device.Cuda;
import org.espalier.format.AtomicFile;
import org.espalier.format.onnx.GroupedDecoder;
import org.espalier.format.onnx.GroupedDecoder.Form;
import org.espalier.format.onnx.OnnxInitializer;
import org.espalier.format.onnx.OnnxModel;
import org.espalier.format.onnx.OnnxWeight;
import org.espalier.format.onnx.OnnxWeights;
import org.espalier.format.onnx.SmallModels;
import org.espalier.format.safetensors.RawSafetensors;
import org.espalier.format.safetensors.SafetensorsDtype;
import org.espalier.format.safetensors.SafetensorsWriter;
import org.espalier.format.safetensors.TensorSpec;
import org.junit.jupiter.api.BeforeEach;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.ValueSource;

class PruneTest {
  @TempDir Path folder;
  private Path onnx;
  private Path tensors;
  private Path out;

  @BeforeEach
  void models() throws IOException {
    onnx = Files.write(folder.resolve("m.onnx"), SmallModels.mlp().toByteArray());
    tensors =
        RawSafetensors.write(
            folder.resolve("m.safetensors"),
            "{\"layer.weight\":{\"dtype\":\"BF16\",\"shape\":[4,6],\"data_offsets\":[0,48]},"
                + "\"layer.bias\":{\"dtype\":\"BF16\",\"shape\":[4],\"data_offsets\":[48,56]},"
                + "\"embed_tokens.weight\":{\"dtype\":\"BF16\",\"shape\":[4,2],"
                + "\"data_offsets\":[56,72]}}",
            72);
    out = folder.resolve("out.onnx");
  }

  /** The values of a FLOAT initializer. */
  private static float[] values(ModelProto model, String name) {
    for (TensorProto t : model.getGraph().getInitializerList()) {
      if (t.getName().equals(name)) {
        FloatBuffer data =
            t.getRawData().asReadOnlyByteBuffer().order(ByteOrder.LITTLE_ENDIAN).asFloatBuffer();
        float[] values = new float[data.remaining()];
        data.get(values);
        return values;
      }
    }
    throw new AssertionError("no initializer " + name);
  }

  /** Of which one is told the other is: ONNX Runtime joins sums and norms then. */
  @ParameterizedTest
  @ValueSource(strings = {"--amount 0.5", "--channels 0.5 --calibration none"})
  void saysTheShapesOfSumsBeforeNorms(String how) throws IOException {
    Random random = new Random(1);
    GraphProto.Builder graph =
        GraphProto.newBuilder()
            .setName("block")
            .addInput(SmallModels.value("x", DataType.FLOAT, -1, -1, 8))
            .addInitializer(SmallModels.floats("w", random, 1, 8, 32))
            .addInitializer(SmallModels.floats("w2", random, 1, 32, 8))
            .addInitializer(SmallModels.floats("gamma", random, 1, 8))
            .addInitializer(SmallModels.floats("beta", random, 1, 8))
            .addNode(SmallModels.line("a MatMul x w"))
            .addNode(SmallModels.line("h Relu a"))
            .addNode(SmallModels.line("b MatMul h w2"))
            .addNode(SmallModels.line("s Add b x"))
            .addNode(SmallModels.line("y LayerNormalization s gamma beta"))
            .addOutput(SmallModels.value("y", DataType.FLOAT, -1, -1, 8));
    Files.write(onnx, SmallModels.model(17, graph).toByteArray());
    List<Object> line = new ArrayList<>(List.of("prune", onnx, "-o", out));
    line.addAll(List.of(how.split(" ")));
    assertEquals(0, Run.of(line.toArray()).code());
    List<ValueInfoProto> told =
        ModelProto.parseFrom(Files.readAllBytes(out)).getGraph().getValueInfoList();
    assertEquals(List.of("b"), told.stream().map(ValueInfoProto::getName).toList());
    assertEquals(
        8, told.get(0).getType().getTensorType().getShape().getDim(2).getDimValue(), told + "");
  }

  @Test
  void zeroesTheSmallestOfAllWeightsOfAnOnnxModel() throws IOException {
    JsonNode json = Run.of("prune", onnx, "-o", out, "--amount", "0.5", "--json").json();

    // 48 of w and 24 of w2; biases are no weights.
    assertEquals(72, json.get("total").asLong());
    assertEquals(36, json.get("pruned").asLong());
    assertEquals("cpu", json.get("device").asText());
    assertTrue(json.get("isa").isTextual());
    for (String phase : List.of("read", "select", "apply", "write")) {
      assertTrue(json.get("seconds").get(phase).asDouble() >= 0, phase);
    }
    assertEquals(2, json.get("tensors").size());
    ModelProto before = SmallModels.mlp();
    ModelProto after = ModelProto.parseFrom(Files.readAllBytes(out));
    List<Float> magnitudes = new ArrayList<>();
    for (String name : List.of("w", "w2")) {
      for (float v : values(before, name)) {
        magnitudes.add(Math.abs(v));
      }
    }
    magnitudes.sort(Comparator.naturalOrder());
    float threshold = magnitudes.get(35);
    assertEquals(threshold, (float) json.get("threshold").asDouble());
    for (String name : List.of("w", "w2")) {
      float[] old = values(before, name);
      float[] pruned = values(after, name);
      for (int i = 0; i < old.length; i++) {
        assertEquals(Math.abs(old[i]) <= threshold ? 0 : old[i], pruned[i], name + i);
      }
    }
    for (String name : List.of("b", "b2")) {
      assertEquals(FloatBuffer.wrap(values(before, name)), FloatBuffer.wrap(values(after, name)));
    }
    assertEquals(before.getGraph().getNodeList(), after.getGraph().getNodeList());
  }

  @Test
  void goesOnFromMasks() throws IOException {
    Path masks = folder.resolve("masks.safetensors");
    Run.of("prune", onnx, "-o", out, "--count", "10", "--mask-out", masks).done();
    Path more = folder.resolve("more.onnx");
    JsonNode json =
        Run.of("prune", out, "-o", more, "--amount", "0.5", "--mask-in", masks, "--json").json();
    assertEquals(10 + 31, json.get("pruned").asLong()); // half of the 62 that remained
    Run.refused(
        folder,
        new String[] {"masks.safetensors", "mask '"},
        "prune",
        out,
        "-o",
        folder.resolve("x.onnx"),
        "--amount",
        "0.1",
        "--mask-in",
        masks,
        "--include",
        "b");
  }

  @Test
  void includeReplacesTheDefaultAndExcludeSubtracts() {
    JsonNode bias =
        Run.of("prune", onnx, "-o", out, "--count", "1", "--include", "b*", "--json").json();
    assertEquals(6 + 4, bias.get("total").asLong()); // b and b2
    JsonNode rest =
        Run.of("prune", onnx, "-o", out, "--count", "1", "--exclude", "*2", "--json").json();
    assertEquals(1, rest.get("tensors").size());
    JsonNode pattern = Run.of("prune", onnx, "-o", out, "--pattern", "1:2", "--json").json();
    assertEquals(36, pattern.get("pruned").asLong());
    assertTrue(pattern.get("threshold").isNull());
  }

  @Test
  void prunesTransposedConvolutionsAndRecurrentLayers() throws Exception {
    Files.write(onnx, SmallModels.recurrent().toByteArray());
    JsonNode json = Run.of("prune", onnx, "-o", out, "--amount", "0.5", "--json").json();
    int total = 72 + 32 + 2 * 24 * 10 + 24 * 14 + 6 * 14 + 24;
    assertEquals(total, json.get("total").asLong());
    assertEquals(total / 2, json.get("pruned").asLong());

    // The same weights, zeroed by hand in the original.
    float threshold = (float) json.get("threshold").asDouble();
    ModelProto.Builder byHand = SmallModels.recurrent().toBuilder();
    for (TensorProto.Builder t : byHand.getGraphBuilder().getInitializerBuilderList()) {
      if (t.getDimsCount() >= 2 && !t.getName().equals("lstm.B")) {
        byte[] raw = t.getRawData().toByteArray();
        FloatBuffer w = ByteBuffer.wrap(raw).order(ByteOrder.LITTLE_ENDIAN).asFloatBuffer();
        for (int i = 0; i < w.capacity(); i++) {
          w.put(i, Math.abs(w.get(i)) <= threshold ? 0 : w.get(i));
        }
        t.setRawData(ByteString.copyFrom(raw));
      }
    }
    float[][] expected = answers(byHand.build().toByteArray());
    float[][] got = answers(Files.readAllBytes(out));
    for (int i = 0; i < expected.length; i++) {
      assertArrayEquals(expected[i], got[i]);
    }
    assertFalse(Arrays.equals(answers(Files.readAllBytes(onnx))[0], got[0]));
  }

  /** What ONNX Runtime computes for three examples. */
  private static float[][] answers(byte[] model) throws OrtException {
    float[][][] x = new float[3][3][8];
    Random random = new Random(4);
    for (float[][] example : x) {
      for (float[] channel : example) {
        for (int i = 0; i < channel.length; i++) {
          channel[i] = (float) random.nextGaussian();
        }
      }
    }
    OrtEnvironment environment = OrtEnvironment.getEnvironment();
    try (OrtSession session = environment.createSession(model);
        OnnxTensor input = OnnxTensor.createTensor(environment, x);
        OrtSession.Result result = session.run(Map.of("x", input))) {
      return (float[][]) result.get(0).getValue();
    }
  }

  /** The graph stays as it is, with the constants of branches where they were, by the names that inspect tells. */
  @Test
  void prunesWeightsInBranches() throws Exception {
    Random random = new Random(6);
    GraphProto.Builder branch =
        GraphProto.newBuilder()
            .setName("branch")
            .addInitializer(SmallModels.floats("own", random, 1, 8, 8))
            .addNode(
                SmallModels.node("Constant", "/branch/Constant", List.of(), "k").toBuilder()
                    .addAttribute(
                        AttributeProto.newBuilder()
                            .setName("value")
                            .setType(AttributeProto.AttributeType.TENSOR)
                            .setT(SmallModels.floats("", random, 1, 8, 8)))
                    .build())
            .addNode(SmallModels.node("MatMul", "", List.of("x", "own"), "a"))
            .addNode(SmallModels.node("MatMul", "/branch/last/MatMul", List.of("a", "k"), "z"))
            .addOutput(SmallModels.value("z", DataType.FLOAT, -1, 8));
    GraphProto.Builder g =
        GraphProto.newBuilder()
            .setName("g")
            .addInput(SmallModels.value("x", DataType.FLOAT, -1, 8))
            .addInput(SmallModels.value("c", DataType.BOOL))
            .addNode(SmallModels.choice("choice", "c", "y", branch))
            .addOutput(SmallModels.value("y", DataType.FLOAT, -1, 8));
    Path model = folder.resolve("branches.onnx");
    Files.write(model, SmallModels.model(13, g).toByteArray());
    JsonNode inspected = Run.of("inspect", model, "--json").json();
    List<String> names = inspected.get("tensors").findValuesAsText("name");
    assertEquals(List.of("own", "branch.last.weight", "own_1", "branch.last.weight_1"), names);
    Path out = folder.resolve("pruned.onnx");
    JsonNode json =
        Run.of("prune", model, "-o", out, "--amount", "0.5", "--scope", "tensor", "--json").json();
    assertEquals(names, json.get("tensors").findValuesAsText("name"));
    assertEquals(4 * 32, json.get("pruned").asInt());
    JsonNode after = Run.of("inspect", out, "--json").json();
    after.get("tensors").forEach(t -> assertEquals(32, t.get("zeros").asInt(), t.toString()));
    OnnxModel one = OnnxModel.read(model);
    OnnxModel other = OnnxModel.read(out);
    assertEquals(one.allNodes().size(), other.allNodes().size());
    assertTrue(other.initializers().isEmpty());
    try (OrtSession session = OrtEnvironment.getEnvironment().createSession(out.toString())) {
      assertEquals(Set.of("y"), session.getOutputNames());
    }
  }

  @Test
  void patternsLieAlongWhatIsSummedOver() throws IOException {
    ModelProto before = SmallModels.recurrent();
    Files.write(onnx, before.toByteArray());
    Run.of(
            "prune",
            onnx,
            "-o",
            out,
            "--pattern",
            "1:2",
            "--include",
            "up.weight",
            "--include",
            "*.R")
        .done();
    ModelProto after = ModelProto.parseFrom(Files.readAllBytes(out));
    // ConvTranspose [8, 2, 2]: of two neighbouring input channels one is kept, of each tap.
    assertPairs(values(before, "up.weight"), values(after, "up.weight"), 4);
    // R [directions, gates, hidden]: of two neighbouring states.
    assertPairs(values(before, "lstm.R"), values(after, "lstm.R"), 1);
    // Eight channels would be those of both groups.
    refused(
        "4 input channels a group",
        "-o",
        folder.resolve("none.onnx"),
        "--pattern",
        "2:8",
        "--include",
        "up.weight");
  }

  private static void assertPairs(float[] before, float[] after, int stride) {
    for (int i = 0; i < before.length; i++) {
      if (i / stride % 2 == 0) {
        boolean first = Math.abs(before[i]) > Math.abs(before[i + stride]);
        assertEquals(first ? before[i] : 0, after[i]);
        assertEquals(first ? 0 : before[i + stride], after[i + stride]);
      }
    }
  }

  @Test
  void prunesSafetensorsWithoutTheirEmbeddings() {
    Path target = folder.resolve("out.safetensors");
    Run run = Run.of("prune", tensors, "-o", target, "--sparsity", "0.25", "--json");
    JsonNode json = run.json();
    assertEquals(24, json.get("total").asLong());
    assertEquals(6, json.get("pruned").asLong());
    assertEquals("layer.weight", json.get("tensors").get(0).get("name").asText());
    assertTrue(run.err().contains("neither the file's size nor its speed"), run.err());
    Run text = Run.of("prune", tensors, "-o", target, "--threshold", "1e-30").done();
    assertTrue(text.out().contains(" of 24 weights"), text.out());
  }

  @Test
  void tensorsOfOtherTypesAreTold() throws IOException {
    Path file =
        RawSafetensors.write(
            folder.resolve("types.safetensors"),
            "{\"a\":{\"dtype\":\"F32\",\"shape\":[2,2],\"data_offsets\":[0,16]},"
                + "\"b\":{\"dtype\":\"F64\",\"shape\":[2,2],\"data_offsets\":[16,48]}}",
            48);
    Run run =
        Run.of("prune", file, "-o", folder.resolve("p.safetensors"), "--amount", "0.5").done();
    assertTrue(run.err().contains("stay as they are: b of F64"), run.err());
    assertTrue(run.out().contains(" of 4 weights"), run.out());
  }

  private void refused(String word, Object... options) {
    Object[] all = new Object[options.length + 2];
    all[0] = "prune";
    all[1] = onnx;
    System.arraycopy(options, 0, all, 2, options.length);
    Run.refused(folder, new String[] {word}, all);
  }

  @Test
  void refusesWhatIsOutOfRange() {
    refused("ends with .onnx", "-o", out + ".pt", "--amount", "0.5");
    refused("ends with .onnx", "-o", out + ".safetensors", "--channels", "0.5");
    refused("ends with .onnx", "-o", out + ".bin", "--amount", "0.5");
    refused(
        "'w2': 25 weights to prune of each tensor, 24 remain",
        "-o",
        out,
        "--count",
        "25",
        "--scope",
        "tensor");
    refused("amount", "-o", out, "--amount", "1.5");
    refused("amount", "-o", out, "--amount", "-0.1");
    refused("amount", "-o", out, "--amount", "NaN");
    refused("--amount", "-o", out, "--amount", "half");
    refused("sparsity", "-o", out, "--sparsity", "2");
    refused("count", "-o", out, "--count", "-1");
    refused("73 weights", "-o", out, "--count", "73");
    refused("threshold", "-o", out, "--threshold", "-1");
    refused("pattern", "-o", out, "--pattern", "4:2");
    refused("pattern", "-o", out, "--pattern", "2to4");
    refused("multiple of 5", "-o", out, "--pattern", "2:5");
    // All tensors that do not fit are told at once.
    refused("'w2': axis 1 of F32[4, 6] is not a multiple", "-o", out, "--pattern", "2:5");
    refused("--scope", "-o", out, "--pattern", "2:4", "--scope", "tensor");
    refused("--scope", "-o", out, "--amount", "0.5", "--scope", "row");
    refused("mutually exclusive", "-o", out, "--amount", "0.5", "--count", "3");
    refused("--amount", "-o", out);
    refused("--output", "--amount", "0.5");
    refused("--threads", "-o", out, "--amount", "0.5", "--threads", "0");
    refused("'no.such.*'", "-o", out, "--amount", "0.5", "--include", "no.such.*");
    refused("'no.such.*'", "-o", out, "--amount", "0.5", "--exclude", "no.such.*");
    refused("no tensor is left", "-o", out, "--amount", "0.5", "--exclude", "*");
    refused("range that runs backwards", "-o", out, "--amount", "0.5", "--include", "[z-a]");
    refused("none of auto", "-o", out, "--amount", "0.5", "--device", "gpu");
    refused("share of 1.0 of the channels", "-o", out, "--channels", "1");
    refused("share of NaN of the channels", "-o", out, "--channels", "NaN");
    refused("mutually exclusive", "-o", out, "--channels", "0.5", "--amount", "0.5");
    refused("--mask-out", "-o", out, "--channels", "0.5", "--mask-out", "masks.safetensors");
    refused("--scope", "-o", out, "--channels", "0.5", "--scope", "global");
    refused("'head.*'", "-o", out, "--channels", "0.5", "--include", "head.*");
    refused("are for --channels", "-o", out, "--amount", "0.5", "--calibration", "none");
    refused(
        "--allocation is for --channels", "-o", out, "--amount", "0.5", "--allocation", "uniform");
    refused("--allocation", "-o", out, "--channels", "0.5", "--allocation", "fair");
    refused("for --channels", "-o", out, "--layers", "0.5", "--allocation", "uniform");
    refused("for --channels", "-o", out, "--layers", "0.5", "--cache-heads");
    refused("not --layers", "-o", out, "--layers", "0.5", "--mask-out", "masks.safetensors");
    refused("--include and --exclude", "-o", out, "--layers", "0.5", "--exclude", "w");
    refused("share of 0.0 of the layers", "-o", out, "--layers", "0");
    refused("share of NaN of the layers", "-o", out, "--layers", "NaN");
    refused("no layers that follow each other", "-o", out, "--layers", "0.5");
    refused("mutually exclusive", "-o", out, "--layers", "0.5", "--channels", "0.5");
    refused("--outputs is for --channels", "-o", out, "--amount", "0.5", "--outputs", "y");
    refused("'z' matches no output", "-o", out, "--channels", "0.5", "--outputs", "z");
    refused("that are calibrated", "-o", out, "--channels", "0.5", "--outputs", "y");
    refused(
        "--outputs is for --allocation global",
        "-o",
        out,
        "--channels",
        "0.5",
        "--outputs",
        "y",
        "--allocation",
        "uniform");
    refused(
        "none.safetensors", "-o", out, "--channels", "0.5", "--calibration", "none.safetensors");
  }

  /** Four images for the small network of convolutions. */
  private Path images() {
    Path examples = folder.resolve("x.safetensors");
    TensorSpec spec = new TensorSpec("x", SafetensorsDtype.F32, List.of(4L, 3L, 16L, 16L));
    ByteBuffer pixels = ByteBuffer.allocate(4 * 4 * 768).order(ByteOrder.LITTLE_ENDIAN);
    Random random = new Random(8);
    while (pixels.hasRemaining()) {
      pixels.putFloat((float) random.nextGaussian());
    }
    try (AtomicFile file = AtomicFile.create(examples)) {
      SafetensorsWriter writer = new SafetensorsWriter(file, List.of(spec), Map.of());
      writer.append("x", pixels.flip());
      writer.finish();
      file.commit();
    }
    return examples;
  }

  /** Half of each output's weights go, the others answer for them; masks go in and out. */
  @Test
  void refitsWhatStays() throws Exception {
    Path cnn = Files.write(folder.resolve("cnn.onnx"), SmallModels.cnn().toByteArray());
    byte[] before = Files.readAllBytes(cnn);
    Path examples = images();
    Path masks = folder.resolve("masks.safetensors");
    String[] prune = {
      "prune", cnn.toString(), "--refit", "--scope", "tensor", "--calibration", examples.toString()
    };
    JsonNode json =
        Run.of(with(prune, "-o", out, "--amount", "0.5", "--mask-out", masks, "--json")).json();
    assertArrayEquals(before, Files.readAllBytes(cnn));
    assertTrue(json.get("threshold").isNull(), json.toString());
    Map<String, Long> pruned = new TreeMap<>();
    json.get("tensors").forEach(t -> pruned.put(t.get("name").asText(), t.get("pruned").asLong()));
    assertEquals(
        List.of("conv1.weight", "conv2.weight", "conv3.weight", "fc.weight"),
        List.copyOf(pruned.keySet()));
    OnnxModel model = OnnxModel.read(out);
    OnnxModel original = OnnxModel.read(cnn);
    for (String name : pruned.keySet()) {
      FloatBuffer old = original.constant(name).floats();
      FloatBuffer now = model.constant(name).floats();
      int outputs = (int) original.constant(name).dims()[0];
      int inputs = old.remaining() / outputs;
      int changed = 0;
      for (int o = 0; o < outputs; o++) {
        int zeros = 0;
        for (int k = 0; k < inputs; k++) {
          zeros += now.get(o * inputs + k) == 0 ? 1 : 0;
          changed += now.get(o * inputs + k) != old.get(o * inputs + k) ? 1 : 0;
        }
        assertEquals((int) Math.rint(0.5 * inputs), zeros, name + ", output " + o);
      }
      assertEquals(pruned.get(name), outputs * (long) Math.rint(0.5 * inputs));
      assertTrue(changed > old.remaining() / 2, name);
    }
    double refitted = error(cnn, out, examples);
    Path zeroed = folder.resolve("zeroed.onnx");
    Run.of("prune", cnn, "-o", zeroed, "--amount", "0.5", "--scope", "tensor").done();
    double plain = error(cnn, zeroed, examples);
    assertTrue(refitted < 0.7 * plain, refitted + " and " + plain);

    Path more = folder.resolve("more.onnx");
    Path sparse = folder.resolve("sparse.safetensors");
    json =
        Run.of(
                with(
                    prune,
                    "-o",
                    more,
                    "--sparsity",
                    "0.75",
                    "--mask-in",
                    masks,
                    "--mask-out",
                    sparse,
                    "--json"))
            .json();
    assertEquals(0.75, json.get("pruned").asDouble() / json.get("total").asDouble(), 0.02);
    OnnxModel twice = OnnxModel.read(more);
    for (String name : pruned.keySet()) {
      FloatBuffer half = model.constant(name).floats();
      FloatBuffer quarter = twice.constant(name).floats();
      for (int i = 0; i < half.remaining(); i++) {
        assertTrue(half.get(i) != 0 || quarter.get(i) == 0, name + " " + i);
      }
    }
    Run.of("prune", cnn, "-o", folder.resolve("x.onnx"), "--amount", "0", "--mask-in", sparse)
        .done();
  }

  /** Each tensor loses what it would lose by magnitude, but for what rounding in its outputs makes of it. */
  @Test
  void refittedTensorsLoseWhatMagnitudesTell() throws Exception {
    Path cnn = Files.write(folder.resolve("cnn.onnx"), SmallModels.cnn().toByteArray());
    JsonNode plain = Run.of("prune", cnn, "-o", out, "--amount", "0.6", "--json").json();
    JsonNode refitted =
        Run.of(
                "prune",
                cnn,
                "-o",
                folder.resolve("refitted.onnx"),
                "--amount",
                "0.6",
                "--refit",
                "--calibration",
                images(),
                "--json")
            .json();
    OnnxModel model = OnnxModel.read(cnn);
    for (int i = 0; i < 4; i++) {
      JsonNode a = plain.get("tensors").get(i);
      JsonNode b = refitted.get("tensors").get(i);
      assertEquals(a.get("name"), b.get("name"));
      long outputs = model.constant(a.get("name").asText()).dims()[0];
      assertEquals(
          a.get("pruned").asDouble(), b.get("pruned").asDouble(), 0.5 * outputs, a.toString());
    }
    assertTrue(error(cnn, folder.resolve("refitted.onnx"), images()) < error(cnn, out, images()));
  }

  private static Object[] with(String[] some, Object... more) {
    return Stream.concat(Stream.of(some), Stream.of(more)).toArray();
  }

  private static double error(Path reference, Path candidate, Path examples) {
    JsonNode json =
        Run.of("evaluate", reference, candidate, "--examples", examples, "--json").json();
    return json.at("/outputs/0/relative_error").asDouble();
  }

  @Test
  void tellsWhatCalibrationDoesNotSee() throws Exception {
    Path model = Files.write(folder.resolve("rnn.onnx"), SmallModels.recurrent().toByteArray());
    Run run = Run.of("prune", model, "-o", out, "--refit", "--amount", "0.5");
    assertTrue(run.err().contains("by magnitude alone: what its LSTM sums over"), run.err());
  }

  @Test
  void refusesToRefitWhatItCannot() throws Exception {
    Path cnn = Files.write(folder.resolve("cnn.onnx"), SmallModels.cnn().toByteArray());
    Path x = folder.resolve("x.onnx");
    Path examples = images();
    String[] prune = {"prune", cnn.toString(), "-o", x.toString(), "--refit"};
    for (String[] more : new String[][] {{"--threshold", "0.1"}, {"--count", "3"}}) {
      Run.refused(
          folder,
          new String[] {"--refit is for --amount, --sparsity"},
          with(prune, (Object[]) more));
    }
    Run.refused(
        folder, new String[] {"takes no text", "--calibration"}, with(prune, "--amount", "0.5"));
    Run.refused(
        folder,
        new String[] {"'conv1.weight': axis 1"},
        with(prune, "--pattern", "2:4", "--include", "conv1.*", "--calibration", examples));
    Run.refused(
        folder,
        new String[] {"is for .onnx models"},
        "prune",
        tensors,
        "-o",
        folder.resolve("y"),
        "--amount",
        "0.5",
        "--refit");
    Run.refused(
        folder,
        new String[] {"not --channels"},
        with(prune, "--channels", "0.5", "--calibration", "none"));
  }

  @Test
  void saysThatAModelIsQuantizedAlready() {
    Path int8 = folder.resolve("int8.onnx");
    Run.of("quantize", onnx, "-o", int8, "--to", "onnx-dynamic", "--calibration", "none").done();
    for (String[] how : new String[][] {{"--amount", "0.5"}, {"--channels", "0.5"}}) {
      Run.refused(
          folder,
          new String[] {
            "int8.onnx", "it is quantized already, with MatMulInteger; prune the model"
          },
          with(new String[] {"prune", int8.toString(), "-o", out.toString()}, (Object[]) how));
    }
  }

  /** A model that is quantized in part: what is float is pruned, never what integers are multiplied by. */
  @ParameterizedTest
  @ValueSource(strings = {"onnx-dynamic", "onnx-qdq", "onnx-int4", "onnx-int8"})
  void refusesScales(String form) throws IOException {
    Random random = new Random(6);
    GraphProto.Builder g =
        GraphProto.newBuilder()
            .addInput(SmallModels.value("ids", DataType.INT64, -1, 2))
            .addInitializer(SmallModels.floats("table", random, 1, 1024, 64))
            .addInitializer(SmallModels.floats("first", random, 0.2f, 64, 64))
            .addInitializer(SmallModels.floats("second", random, 0.2f, 64, 64))
            .addNode(SmallModels.line("words Gather table ids"))
            .addNode(SmallModels.line("h MatMul words first"))
            .addNode(SmallModels.line("y MatMul h second"))
            .addOutput(SmallModels.value("y", DataType.FLOAT, -1, 2, 64));
    Path words = folder.resolve("words.onnx");
    OnnxModel.of(SmallModels.model(17, g), "words").write(words);
    Path part = folder.resolve("part.onnx");
    List<Object> quantize = new ArrayList<>(List.of("quantize", words, "-o", part, "--to", form));
    quantize.addAll(List.of("--exclude", "second", "--calibration"));
    byte[] ids =
        RawSafetensors.bytes(
            "{\"ids\":{\"dtype\":\"I64\",\"shape\":[8,2],\"data_offsets\":[0,128]}}", 128);
    Arrays.fill(ids, ids.length - 128, ids.length, (byte) 0);
    Path examples = Files.write(folder.resolve("ids.safetensors"), ids);
    quantize.add(form.equals("onnx-qdq") ? examples : "none");
    Run.of(quantize.toArray()).done();
    OnnxModel made = OnnxModel.read(part);
    List<String> scales =
        made.initializers().stream()
            .map(OnnxInitializer::name)
            .filter(name -> name.contains("scale"))
            .toList();
    assertTrue(scales.size() >= 2, scales.toString()); // of the table and of the first product
    for (String scale : scales) {
      Run.refused(
          folder,
          new String[] {"part.onnx: tensor '" + scale + "' holds the scales of weights"},
          with(new String[] {"prune"}, part, "-o", out, "--amount", "0.5", "--include", scale));
    }
    assertEquals(List.of("second"), OnnxWeights.of(made).stream().map(OnnxWeight::name).toList());
    JsonNode json = Run.of("prune", part, "-o", out, "--amount", "0.5", "--json").json();
    assertEquals(64 * 64 / 2, json.path("pruned").asInt());
  }

  /** Both sets of channels between the products, that of the depthwise Conv with its groups. */
  @Test
  void removesChannels() throws Exception {
    Path cnn = Files.write(folder.resolve("cnn.onnx"), SmallModels.cnn().toByteArray());
    byte[] before = Files.readAllBytes(cnn);
    Path examples = images();
    JsonNode json =
        Run.of("prune", cnn, "-o", out, "--channels", "0.5", "--calibration", examples, "--json")
            .json();
    assertArrayEquals(before, Files.readAllBytes(cnn));
    assertEquals(2, json.path("channels").size());
    assertEquals("conv1.weight", json.at("/channels/0/name").asText());
    assertEquals(16, json.at("/channels/0/before").asInt());
    assertEquals(8, json.at("/channels/0/after").asInt());
    assertEquals(16, json.at("/channels/1/after").asInt());
    assertTrue(json.path("speedup").asDouble() > 0, json.toString());
    assertEquals(Files.size(out), json.path("output_bytes").asLong());
    assertEquals(Files.size(cnn), json.path("input_bytes").asLong());
    OnnxModel pruned = OnnxModel.read(out);
    assertArrayEquals(new long[] {8, 1, 3, 3}, pruned.constant("conv2.weight").dims());
    assertArrayEquals(new long[] {10, 16}, pruned.constant("fc.weight").dims());
    // Without examples, and of one set alone.
    Path one = folder.resolve("one.onnx");
    Run run = Run.of("prune", cnn, "-o", one, "--channels", "0.5", "--include", "conv3.*");
    assertTrue(run.done().out().contains("16 of 32 channels, in 1 set"), run.out());
    assertTrue(run.err().contains("not calibrated"), run.err());
    Run.refused(
        folder,
        new String[] {"is for .onnx models"},
        "prune",
        tensors,
        "-o",
        folder.resolve("x"),
        "--channels",
        "0.5");
  }

  /** Heads of keys and values that a decoder takes and gives stay, and are told, unless they are asked for. */
  @Test
  void keepsTheHeadsOfCachesUnlessTold() throws Exception {
    Path decoder = folder.resolve("decoder.onnx");
    Files.write(decoder, GroupedDecoder.of(Form.GROUPED, 1, 50, 16, 1).toByteArray());
    String[] prune = {"prune", decoder.toString(), "-o", out.toString(), "--channels", "0.5"};
    Run run = Run.of((Object[]) with(prune, "--calibration", "none"));
    assertTrue(run.done().out().contains("16 of 32 channels and 1 of 2 heads"), run.out());
    assertTrue(run.err().contains("keys and values of 1 attention stay"), run.err());
    assertTrue(run.err().contains("--cache-heads"), run.err());
    assertEquals(2, heads("past_key_values.0.key"));
    Run all = Run.of((Object[]) with(prune, "--calibration", "none", "--cache-heads"));
    assertTrue(all.done().out().contains("16 of 32 channels and 1 of 2 heads"), all.out());
    assertFalse(all.err().contains("stay"), all.err());
    assertEquals(1, heads("past_key_values.0.key"));
    assertEquals(1, heads("present.0.value"));
    Run.refused(
        folder,
        new String[] {"--cache-heads", "hold keys and values of all heads"},
        with(prune, "--cache-heads", "--calibration", "x.safetensors"));
    refused("--cache-heads is for --channels", "-o", out, "--amount", "0.5", "--cache-heads");
  }

  private long heads(String value) {
    ValueInfoProto told = OnnxModel.read(out).valueInfo(value);
    return told.getType().getTensorType().getShape().getDim(1).getDimValue();
  }

  /** Neither three input channels nor one of a depthwise Conv are multiples of 4. */
  @Test
  void whatAPatternDoesNotDivideStaysWholeAndIsTold() throws IOException {
    Path cnn = Files.write(folder.resolve("cnn.onnx"), SmallModels.cnn().toByteArray());
    Run run = Run.of("prune", cnn, "-o", out, "--pattern", "2:4", "--json");
    JsonNode json = run.json();
    assertEquals(
        List.of("conv3.weight", "fc.weight"), json.get("tensors").findValuesAsText("name"));
    assertTrue(
        run.err().contains("2 tensors stay whole: 4 does not divide")
            && run.err().contains("'conv1.weight', 'conv2.weight'"),
        run.err());
    Path file = folder.resolve("two.safetensors");
    RawSafetensors.write(
        file,
        "{\"a\":{\"dtype\":\"BF16\",\"shape\":[4,6],\"data_offsets\":[0,48]},"
            + "\"b\":{\"dtype\":\"BF16\",\"shape\":[3,8],\"data_offsets\":[48,96]}}",
        96);
    Path two = folder.resolve("out.safetensors");
    String[] prune = {"prune", file.toString(), "-o", two.toString(), "--pattern", "2:4", "--json"};
    Run.refused(folder, new String[] {"'a'", "axis 1"}, (Object[]) prune);
    run = Run.of("prune", file, "-o", two, "--pattern", "2:4", "--json", "--exclude", "a");
    assertEquals(List.of("b"), run.json().get("tensors").findValuesAsText("name"));
    Run.refused(
        folder,
        new String[] {"'conv1.weight': axis 1"},
        "prune",
        cnn,
        "-o",
        folder.resolve("x.onnx"),
        "--pattern",
        "2:4",
        "--include",
        "conv*.weight");
  }

  @Test
  void refusesWhereItCannotWrite() throws IOException {
    refused("is a directory", "-o", folder, "--amount", "0.5");
    refused("is the input", "-o", onnx, "--amount", "0.5");
    Path link = Files.createSymbolicLink(folder.resolve("link.onnx"), onnx);
    refused("is the input", "-o", link, "--amount", "0.5");
    refused("does not exist", "-o", folder.resolve("no/such.onnx"), "--amount", "0.5");
    refused("empty path", "-o", "", "--amount", "0.5");
    refused("masks", "-o", out, "--amount", "0.5", "--mask-out", out);
    refused("is the input", "-o", out, "--amount", "0.5", "--mask-out", onnx);
    refused("no such file", "-o", out, "--amount", "0.5", "--mask-in", folder.resolve("none"));
  }

  @Test
  void refusesADeviceThatIsNotThere() {
    String word = Cuda.isAvailable() ? "CPU only" : Cuda.unavailabilityCause().getMessage();
    refused(word, "-o", out, "--amount", "0.5", "--device", "cuda");
    refused("cuda:999", "-o", out, "--amount", "0.5", "--device", "cuda:999");
  }
}

package org.espalier.cli;

import static org.espalier.format.onnx.SmallModels.attribute;
import static org.espalier.format.onnx.SmallModels.real;
import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import ai.onnx.proto.OnnxMl.GraphProto;
import ai.onnx.proto.OnnxMl.ModelProto;
import ai.onnx.proto.OnnxMl.NodeProto;
import ai.onnx.proto.OnnxMl.TensorProto;
import ai.onnx.proto.OnnxMl.TensorProto.DataType;
import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.ObjectMapper;
import com.fasterxml.jackson.databind.node.ObjectNode;
import java.io.IOException;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.FloatBuffer;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Random;
import java.util.Set;
import java.util.stream.Collectors;
import java.util.stream.IntStream;
import org.bytedeco.javacpp.PointerScope;
import org.bytedeco.pytorch.Scalar;
import org.espalier.ExactProducts;
import org.espalier.format.AtomicFile;
import org.espalier.format.onnx.OnnxModel;
import org.espalier.format.onnx.SmallModels;
import org.espalier.format.safetensors.RawSafetensors;
import org.espalier.format.safetensors.SafetensorsDtype;
import org.espalier.format.safetensors.SafetensorsFile;
import org.espalier.format.safetensors.SafetensorsWriter;
import org.espalier.format.safetensors.TensorInfo;
import org.espalier.format.safetensors.TensorSpec;
import org.espalier.torch.Libtorch;
import org.espalier.torch.Parameter;
import org.espalier.torch.TorchScriptModel;
import org.espalier.torch.onnx.GraphScript;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;

/** Whole runs of a small classifier, and what is refused before one. */
class CompressTest extends SmallClassifierRuns {
  @Test
  void aRunWritesModelAndReportAndTwoRunsTheSameBytes() throws IOException {
    Path one = folder.resolve("one");
    JsonNode report = Run.of("compress", recipe, "-o", one, "--json").json();
    assertEquals(report, new ObjectMapper().readTree(one.resolve("report.json").toFile()));
    assertFalse(Files.exists(one.resolve("run")));
    assertEquals(3, report.path("stages").size());
    assertEquals(12, report.at("/stages/0/curve/loss").size());
    assertTrue(report.at("/stages/1/fidelity_untrained/cosine_mean").asDouble() > 0.9);
    assertTrue(report.at("/fidelity/cosine_mean").asDouble() > 0.9);
    assertEquals(2, report.path("layers").size());
    int zeros = 0;
    try (SafetensorsFile file = SafetensorsFile.open(one.resolve("model.safetensors"))) {
      for (TensorInfo tensor : file.tensors()) {
        if (tensor.rank() == 2) {
          ByteBuffer bytes =
              ByteBuffer.allocateDirect((int) tensor.bytes()).order(ByteOrder.LITTLE_ENDIAN);
          file.read(tensor, 0, bytes);
          for (bytes.flip(); bytes.hasRemaining(); ) {
            zeros += bytes.getFloat() == 0 ? 1 : 0;
          }
        }
      }
    }
    assertTrue(zeros >= 18, zeros + " zeros; a quarter of 72 weights are pruned");
    String page = Files.readString(one.resolve("report.html"));
    assertTrue(page.startsWith("<!doctype html>") && page.contains("<svg"));
    assertFalse(page.matches("(?s).*(src|href)=.*"), "it refers to something outside");

    Path two = folder.resolve("two");
    Run again = Run.of("compress", recipe, "-o", two).done();
    assertTrue(again.out().contains("model-int8.onnx"));
    assertSameModels(one, two);
    // What is complete stays as it is.
    assertTrue(Run.of("compress", recipe, "-o", two, "--resume").done().err().contains("already"));
    Run.refused(folder, new String[] {"not empty"}, "compress", recipe, "-o", two);
    ObjectNode slow = (ObjectNode) new ObjectMapper().readTree(two.resolve("report.json").toFile());
    slow.remove("warnings"); // that this machine may have made
    slow.putArray("warnings").add("it is slow");
    Files.writeString(two.resolve("report.json"), slow.toString());
    again = Run.of("compress", recipe, "-o", two, "--resume").done();
    assertTrue(again.err().contains("warning: it is slow"), again.err());
    Run.refused(
        folder,
        new String[] {"another recipe"},
        "compress",
        recipe,
        "-o",
        two,
        "--resume",
        "--set",
        "seed=4");
    Path three = folder.resolve("three");
    Run.of("compress", recipe, "-o", three, "--set", "seed=4").done();
    assertThrows(AssertionError.class, () -> assertSameModels(one, three));
  }

  @Test
  void aTorchScriptModuleIsCompressedAndComesBackAsOne() throws IOException {
    Libtorch.load();
    Path module = folder.resolve("module.pt");
    GraphScript.write(OnnxModel.of(SmallModels.mlp(), "mlp"), module);
    byte[] before = Files.readAllBytes(module);
    Path out = folder.resolve("script");
    String formats = "export.formats=[onnx, safetensors, torchscript]";
    JsonNode report =
        Run.of(
                "compress",
                recipe,
                "-o",
                out,
                "--json",
                "--set",
                "model.file=module.pt",
                "--set",
                formats,
                "--set",
                "quantize.fit=false")
            .json();
    assertTrue(report.at("/fidelity/cosine_mean").asDouble() > 0.9);
    assertEquals(before.length, report.at("/model/bytes").asLong());
    assertArrayEquals(before, Files.readAllBytes(module));
    assertFalse(Files.exists(out.resolve("run")));
    try (PointerScope scope = new PointerScope();
        TorchScriptModel made = TorchScriptModel.read(out.resolve("model.pt"))) {
      assertEquals(
          Set.of("w", "b", "w2", "b2"),
          made.parameters().stream().map(Parameter::name).collect(Collectors.toSet()));
      int zeros = 0;
      for (Parameter p : made.parameters()) {
        zeros += p.tensor().dim() == 2 ? (int) p.tensor().eq(new Scalar(0)).sum().item_long() : 0;
      }
      assertTrue(zeros >= 18, zeros + " zeros; a quarter of 72 weights are pruned");
    }
    ModelProto.Builder looping = SmallModels.mlp().toBuilder();
    looping
        .getGraphBuilder()
        .addNode(SmallModels.node("Loop", "", List.of("y"), "z"))
        .addNode(SmallModels.node("LSTM", "", List.of("y", "y", "y"), "u"));
    Files.write(folder.resolve("looping.onnx"), looping.build().toByteArray());
    Run.refused(
        folder,
        new String[] {"export.formats: torchscript", "looping.onnx", "LSTM, Loop"},
        "compress",
        recipe,
        "-o",
        folder.resolve("none"),
        "--set",
        "model.file=looping.onnx");
    // libtorch takes axes of any shape.
    ModelProto.Builder axes = SmallModels.mlp().toBuilder();
    TensorProto.Builder axis = SmallModels.int64s("axis", 1).toBuilder().addDims(1);
    axes.getGraphBuilder().addInitializer(axis);
    axes.getGraphBuilder().getNodeBuilder(3).setOutput(0, "narrow");
    axes.getGraphBuilder()
        .addNode(SmallModels.node("Unsqueeze", "/wide", List.of("narrow", "axis"), "wide"))
        .addNode(SmallModels.node("Flatten", "/flat", List.of("wide"), "y"));
    Files.write(folder.resolve("axes.onnx"), axes.build().toByteArray());
    Run.refused(
        folder,
        new String[] {"axes.onnx: ONNX Runtime failed on an example", "Unsqueeze"},
        "compress",
        recipe,
        "-o",
        folder.resolve("none"),
        "--set",
        "model.file=axes.onnx");
    Run.refused(
        folder,
        new String[] {"examples.pt", "not a TorchScript module"},
        "compress",
        recipe,
        "-o",
        folder.resolve("none"),
        "--set",
        "model.file="
            + Files.copy(folder.resolve("examples.safetensors"), folder.resolve("examples.pt")));
  }

  @Test
  void staticRangesBecomeQuantizeLinearNodes() throws IOException {
    Path out = folder.resolve("static");
    JsonNode report =
        Run.of(
                "compress",
                recipe,
                "-o",
                out,
                "--json",
                "--set",
                "quantize.form=static",
                "--set",
                "quantize.observer-momentum=0.1")
            .json();
    assertTrue(
        report.at("/fidelity/cosine_mean").asDouble() > 0.9, report.path("fidelity").toString());
    List<String> types =
        OnnxModel.read(out.resolve("model-int8.onnx")).nodes().stream()
            .map(NodeProto::getOpType)
            .toList();
    assertEquals(2, types.stream().filter("QuantizeLinear"::equals).count(), types.toString());
    Run.refused(
        folder,
        new String[] {"clip", "form: static"},
        "recipe",
        "check",
        recipe,
        "--set",
        "quantize.clip=mse");
  }

  /** An old model that gives a map for a map, on examples without labels. */
  @Test
  void aModelOfAnyOutputFollowsItsOriginal() throws IOException {
    Random random = new Random(9);
    GraphProto.Builder g =
        GraphProto.newBuilder()
            .setName("map")
            .addInput(SmallModels.value("x", DataType.FLOAT, -1, 1, 6, 6))
            .addInitializer(SmallModels.floats("c1", random, 0.5f, 8, 1, 3, 3))
            .addInitializer(SmallModels.floats("c2", random, 0.5f, 1, 8, 3, 3))
            .addNode(
                SmallModels.node(
                    "Conv", "/c1", List.of("x", "c1"), "h", attribute("pads", 1, 1, 1, 1)))
            .addNode(
                SmallModels.node("Clip", "/clip", List.of("h"), "r").toBuilder()
                    .addAttribute(real("min", 0))
                    .addAttribute(real("max", 6)))
            .addNode(
                SmallModels.node(
                    "Conv", "/c2", List.of("r", "c2"), "y", attribute("pads", 1, 1, 1, 1)))
            .addOutput(SmallModels.value("y", DataType.FLOAT, -1, 1, 6, 6));
    Files.write(folder.resolve("map.onnx"), SmallModels.model(9, g).toByteArray());
    ByteBuffer inputs = ByteBuffer.allocate(4 * 512 * 36).order(ByteOrder.LITTLE_ENDIAN);
    while (inputs.hasRemaining()) {
      inputs.putFloat(2 * random.nextFloat() - 1);
    }
    try (AtomicFile file = AtomicFile.create(folder.resolve("maps.safetensors"))) {
      TensorSpec spec = new TensorSpec("inputs", SafetensorsDtype.F32, List.of(512L, 1L, 6L, 6L));
      SafetensorsWriter writer = new SafetensorsWriter(file, List.of(spec), Map.of());
      writer.append("inputs", inputs.flip());
      writer.finish();
      file.commit();
    }
    Path map =
        Files.writeString(
            folder.resolve("map.yaml"),
            """
model: {file: map.onnx}
data: {examples: maps.safetensors, validation: 128, evaluation: 128, calibration: 128}
stages:
  - {kind: prune, sparsity: 0.4, steps: 60, batch: 16, learning-rate: 5e-3, loss: {output: 1}}
  - {kind: quantize, form: FORM, clip: minmax, steps: 4, batch: 16, loss: {output: 1}}
"""
                .replace("FORM", ExactProducts.form("static")));
    Path out = folder.resolve("out");
    JsonNode report = Run.of("compress", map, "-o", out, "--json").json();
    double error = report.at("/fidelity/relative_error").asDouble();
    assertTrue(error > 0 && error < 0.5, report.path("fidelity").toString());
    JsonNode pruned = report.at("/stages/0");
    double cut = pruned.at("/changed/loss").asDouble();
    assertTrue(pruned.at("/after/loss").asDouble() < 0.7 * cut, pruned.path("after") + " " + cut);
    // What training saw is what the runtime gives.
    assertEquals(Math.sqrt(report.at("/stages/1/after/loss").asDouble()), error, 0.1 * error);
    assertTrue(Files.readString(out.resolve("report.html")).contains("as a share of its norm"));
    // Examples without labels have it by default, and nothing to fine-tune on.
    Files.writeString(map, Files.readString(map).replace(", loss: {output: 1}", ""));
    Path other = folder.resolve("other");
    Run.of("compress", map, "-o", other).done();
    assertArrayEquals(
        Files.readAllBytes(out.resolve("model-int8.onnx")),
        Files.readAllBytes(other.resolve("model-int8.onnx")));
    Files.writeString(map, Files.readString(map) + "  - {kind: fine-tune, steps: 4}\n");
    Run.refused(
        folder,
        new String[] {"the examples have none", "{output: 1}"},
        "compress",
        map,
        "-o",
        folder.resolve("labels"));
  }

  /** A model of token ids, a mask and features, as multimodal classifiers are; labels say which id came first. */
  @Test
  void aModelOfSeveralInputsLearnsFromLabels() throws IOException {
    Random random = new Random(4);
    GraphProto.Builder g =
        GraphProto.newBuilder()
            .setName("several")
            .addInput(SmallModels.value("ids", DataType.INT64, 1, 5))
            .addInput(SmallModels.value("mask", DataType.BOOL, 1, 5))
            .addInput(SmallModels.value("extra", DataType.FLOAT, 1, 3))
            .addInitializer(SmallModels.floats("table", random, 1, 9, 6))
            .addInitializer(SmallModels.floats("hidden", random, 0.4f, 33, 12))
            .addInitializer(SmallModels.floats("head", random, 0.4f, 12, 3))
            .addNode(SmallModels.node("Gather", "", List.of("table", "ids"), "rows"))
            .addNode(SmallModels.node("Cast", "", List.of("mask"), "kept", attribute("to", 1)))
            .addNode(SmallModels.node("Unsqueeze", "", List.of("kept", "two"), "column"))
            .addInitializer(
                SmallModels.tensor(
                    "two",
                    DataType.INT64,
                    ByteBuffer.allocate(8).order(ByteOrder.LITTLE_ENDIAN).putLong(0, 2),
                    1))
            .addNode(SmallModels.node("Mul", "", List.of("rows", "column"), "masked"))
            .addNode(
                SmallModels.node("Flatten", "", List.of("masked"), "flat", attribute("axis", 1)))
            .addNode(
                SmallModels.node(
                    "Concat", "", List.of("flat", "extra"), "all", attribute("axis", 1)))
            .addNode(SmallModels.node("MatMul", "", List.of("all", "hidden"), "h"))
            .addNode(SmallModels.node("Relu", "", List.of("h"), "r"))
            .addNode(SmallModels.node("MatMul", "", List.of("r", "head"), "y"))
            .addOutput(SmallModels.value("y", DataType.FLOAT, 1, 3));
    Files.write(folder.resolve("several.onnx"), SmallModels.model(13, g).toByteArray());
    int n = 480;
    ByteBuffer ids = ByteBuffer.allocate(8 * 5 * n).order(ByteOrder.LITTLE_ENDIAN);
    ByteBuffer mask = ByteBuffer.allocate(5 * n);
    ByteBuffer extra = ByteBuffer.allocate(4 * 3 * n).order(ByteOrder.LITTLE_ENDIAN);
    ByteBuffer labels = ByteBuffer.allocate(4 * n).order(ByteOrder.LITTLE_ENDIAN);
    for (int i = 0; i < n; i++) {
      for (int t = 0; t < 5; t++) {
        long id = random.nextInt(9);
        ids.putLong(id);
        mask.put((byte) (t < 3 ? 1 : 0));
        if (t == 0) {
          labels.putInt((int) (id / 3));
        }
      }
      for (int j = 0; j < 3; j++) {
        extra.putFloat((float) random.nextGaussian());
      }
    }
    Map<String, ByteBuffer> data = new LinkedHashMap<>();
    data.put("ids", ids);
    data.put("mask", mask);
    data.put("extra", extra);
    data.put("labels", labels);
    Map<String, TensorSpec> specs = new LinkedHashMap<>();
    specs.put("ids", new TensorSpec("ids", SafetensorsDtype.I64, List.of((long) n, 5L)));
    specs.put("mask", new TensorSpec("mask", SafetensorsDtype.BOOL, List.of((long) n, 5L)));
    specs.put("extra", new TensorSpec("extra", SafetensorsDtype.F32, List.of((long) n, 3L)));
    specs.put("labels", new TensorSpec("labels", SafetensorsDtype.I32, List.of((long) n)));
    Path examples = folder.resolve("several.safetensors");
    write(examples, specs, data);
    Path several =
        Files.writeString(
            folder.resolve("several.yaml"),
            """
            model: {file: several.onnx}
            data: {examples: several.safetensors, validation: 64, evaluation: 128, calibration: 64}
            stages:
              - {kind: fine-tune, steps: 150, batch: 16, learning-rate: 1e-2}
              - {kind: quantize, form: static, steps: 10, batch: 16}
            """);
    Path out = folder.resolve("out");
    JsonNode report = Run.of("compress", several, "-o", out, "--json").json();
    JsonNode fidelity = report.path("fidelity");
    assertTrue(fidelity.path("reference_accuracy").asDouble() < 0.6, fidelity.toString());
    assertTrue(fidelity.path("accuracy").asDouble() > 0.75, fidelity.toString());
    // The same file is understood by the other commands.
    Path model = folder.resolve("several.onnx");
    Path made = out.resolve("model-int8.onnx");
    JsonNode compared = Run.of("evaluate", model, made, "--examples", examples, "--json").json();
    assertEquals(n, compared.path("examples").asInt());
    compared =
        Run.of(
                "evaluate",
                folder.resolve("mlp.onnx"),
                folder.resolve("mlp.onnx"),
                "--examples",
                folder.resolve("examples.safetensors"),
                "--json")
            .json();
    assertEquals(256, compared.path("examples").asInt());

    Object[] again = {"recipe", "check", several};
    data.put("label", data.remove("labels"));
    specs.put("label", new TensorSpec("label", SafetensorsDtype.I32, List.of((long) n)));
    specs.remove("labels");
    write(examples, specs, data);
    Run.refused(folder, new String[] {"its loss has labels, and the examples have none"}, again);
    data.put("labels", labels);
    specs.put("labels", new TensorSpec("labels", SafetensorsDtype.I32, List.of((long) n)));
    write(examples, specs, data);
    Run.refused(folder, new String[] {"the tensor label", "no input", "[extra, ids"}, again);
    specs.remove("label");
    data.remove("label");
    data.put("mask", ByteBuffer.allocate(4 * 5 * n));
    specs.put("mask", new TensorSpec("mask", SafetensorsDtype.I32, List.of((long) n, 5L)));
    write(examples, specs, data);
    Run.refused(folder, new String[] {"several.onnx: the input mask is BOOL", "is I32"}, again);
    data.put("mask", mask);
    specs.put("mask", new TensorSpec("mask", SafetensorsDtype.BOOL, List.of(n / 2L, 10L)));
    write(examples, specs, data);
    Run.refused(folder, new String[] {"several.safetensors", "480 examples, mask 240"}, again);
    specs.remove("mask");
    data.remove("mask");
    write(examples, specs, data);
    Run.refused(folder, new String[] {"several.onnx", "[extra, ids]", "there is no mask"}, again);
    examples(64, 8, 4);
    Run.refused(
        folder,
        new String[] {"several.onnx", "tensors of these names"},
        "recipe",
        "check",
        several,
        "--set",
        "data={examples: examples.safetensors, validation: 8, evaluation: 8}");
  }

  private static void write(
      Path path, Map<String, TensorSpec> specs, Map<String, ByteBuffer> data) {
    try (AtomicFile file = AtomicFile.create(path)) {
      SafetensorsWriter writer = new SafetensorsWriter(file, List.copyOf(specs.values()), Map.of());
      data.forEach((name, bytes) -> writer.append(name, bytes.duplicate().clear()));
      writer.finish();
      file.commit();
    }
  }

  /** The integers and scales of both files are those that training saw. */
  @ParameterizedTest
  @CsvSource({"dynamic, false", "dynamic, true", "static, false", "static, true"})
  void compressedTensorsHoldTheIntegersOfTheOnnxModel(String form, boolean unsigned)
      throws IOException {
    Files.writeString(folder.resolve("mlp-config.json"), "{\"model_type\": \"bert\"}");
    Files.writeString(folder.resolve("config.json"), "{\"model_type\": \"gpt2\"}");
    Map<String, String> names = Map.of("w", "body.weight", "w2", "head.weight");
    ModelProto.Builder model = SmallModels.mlp().toBuilder();
    model
        .getGraphBuilder()
        .getInitializerBuilderList()
        .forEach(i -> i.setName(names.getOrDefault(i.getName(), i.getName())));
    for (NodeProto.Builder node : model.getGraphBuilder().getNodeBuilderList()) {
      for (int i = 0; i < node.getInputCount(); i++) {
        node.setInput(i, names.getOrDefault(node.getInput(i), node.getInput(i)));
      }
    }
    Files.write(folder.resolve("mlp.onnx"), model.build().toByteArray());
    Path out = folder.resolve("out");
    Run.of(
            "compress",
            recipe,
            "-o",
            out,
            "--set",
            "model.config=mlp-config.json",
            "--set",
            "quantize.form=" + form,
            "--set",
            "quantize.unsigned-weights=" + unsigned,
            "--set",
            "quantize.fit=false",
            "--set",
            "export.formats=[compressed-tensors, safetensors]")
        .done();
    Path made = out.resolve("compressed-tensors");
    assertTrue(Files.readString(made.resolve("config.json")).contains("int-quantized"));
    OnnxModel int8 = OnnxModel.read(out.resolve("model-int8.onnx"));
    try (SafetensorsFile file = SafetensorsFile.open(made.resolve("model.safetensors"))) {
      TensorInfo weight = file.tensor("body.weight");
      assertEquals(SafetensorsDtype.I8, weight.dtype());
      assertEquals(List.of(6L, 8L), weight.shape());
      ByteBuffer rows = ByteBuffer.allocateDirect(48);
      file.read(weight, 0, rows);
      ByteBuffer columns =
          int8.initializers().stream()
              .filter(i -> i.byteLength() == 48)
              .findFirst()
              .orElseThrow()
              .data();
      for (int o = 0; o < 6; o++) {
        for (int i = 0; i < 8; i++) {
          byte stored = columns.get(columns.position() + 6 * i + o);
          assertEquals((byte) (unsigned ? stored - 128 : stored), rows.get(8 * o + i));
        }
      }
      assertEquals(List.of(6L, 1L), file.tensor("body.weight_scale").shape());
      assertEquals(SafetensorsDtype.I8, file.tensor("head.weight").dtype());
    }
    Run.refused(
        folder,
        new String[] {"fit: false"},
        "compress",
        recipe,
        "-o",
        folder.resolve("x"),
        "--set",
        "export.formats=compressed-tensors");
  }

  /** Training sees the main graph; what a branch multiplies with is rounded, and nothing crashes. */
  @Test
  void weightsInABranchBecomeIntegersThatNothingTrains() throws IOException {
    Random random = new Random(6);
    GraphProto.Builder branch =
        GraphProto.newBuilder()
            .setName("branch")
            .addInitializer(SmallModels.floats("inner", random, 1, 6, 4))
            .addNode(SmallModels.node("MatMul", "inside", List.of("h", "inner"), "m"))
            .addOutput(SmallModels.value("m", DataType.FLOAT, -1, 4));
    GraphProto.Builder graph =
        GraphProto.newBuilder()
            .setName("branches")
            .addInput(SmallModels.value("x", DataType.FLOAT, -1, 8))
            .addInitializer(SmallModels.floats("zero", random, 1, 1))
            .addNode(
                SmallModels.node(
                    "ReduceSum", "sum", List.of("x"), "s", SmallModels.attribute("keepdims", 0)))
            .addNode(SmallModels.node("Greater", "greater", List.of("s", "zero"), "c"))
            .addNode(SmallModels.choice("choice", "c", "y", branch))
            .addOutput(SmallModels.value("y", DataType.FLOAT, -1, 4));
    GraphProto.Builder mixed = graph.clone();
    mixed
        .addInitializer(SmallModels.floats("outer", random, 1, 8, 6))
        .addNode(0, SmallModels.node("MatMul", "outside", List.of("x", "outer"), "h"));
    Files.write(folder.resolve("mlp.onnx"), SmallModels.model(13, mixed).toByteArray());
    String stages =
        "stages:\n  - {kind: quantize, form: FORM, steps: 6, batch: 16, learning-rate: 1e-3}\n"
            .replace("FORM", ExactProducts.form("dynamic"));
    Files.writeString(
        recipe,
        "model: {file: mlp.onnx}\n"
            + "data: {examples: examples.safetensors, validation: 32, evaluation: 64}\n"
            + stages);
    JsonNode report = Run.of("compress", recipe, "-o", folder.resolve("out"), "--json").json();
    assertTrue(report.at("/fidelity/cosine_mean").asDouble() > 0.999, report.toString());
    OnnxModel made = OnnxModel.read(folder.resolve("out/model-int8.onnx"));
    assertTrue(
        made.allProducers().values().stream().noneMatch(n -> n.getOpType().equals("MatMul")));

    // The same with nothing but the branch.
    graph.addNode(0, SmallModels.node("Slice", "cut", List.of("x", "from", "to", "axis"), "h"));
    graph
        .addInitializer(SmallModels.int64s("from", 0))
        .addInitializer(SmallModels.int64s("to", 6))
        .addInitializer(SmallModels.int64s("axis", 1));
    Files.write(folder.resolve("mlp.onnx"), SmallModels.model(13, graph).toByteArray());
    Run.refused(
        folder,
        new String[] {"stage quantize", "mlp.onnx has nothing to train", "steps: 0"},
        "compress",
        recipe,
        "-o",
        folder.resolve("other"));
    Run.of("compress", recipe, "-o", folder.resolve("other"), "--set", "quantize.steps=0").done();
  }

  /** A weight that a branch multiplies with too is one tensor until a stage quantizes, which is told. */
  @Test
  void whatHappensToWeightsThatABranchSharesIsTold() throws IOException {
    Random random = new Random(6);
    GraphProto.Builder branch =
        GraphProto.newBuilder()
            .setName("branch")
            .addNode(SmallModels.node("MatMul", "inside", List.of("h", "w"), "m"))
            .addOutput(SmallModels.value("m", DataType.FLOAT, -1, 8));
    GraphProto.Builder graph =
        GraphProto.newBuilder()
            .setName("shared")
            .addInput(SmallModels.value("x", DataType.FLOAT, -1, 8))
            .addInitializer(SmallModels.floats("zero", random, 1, 1))
            .addInitializer(SmallModels.floats("w", random, 1, 8, 8))
            .addNode(SmallModels.node("MatMul", "outside", List.of("x", "w"), "h"))
            .addNode(
                SmallModels.node(
                    "ReduceSum", "sum", List.of("x"), "s", SmallModels.attribute("keepdims", 0)))
            .addNode(SmallModels.node("Greater", "greater", List.of("s", "zero"), "c"))
            .addNode(SmallModels.choice("choice", "c", "y", branch))
            .addOutput(SmallModels.value("y", DataType.FLOAT, -1, 8));
    Files.write(folder.resolve("mlp.onnx"), SmallModels.model(13, graph).toByteArray());
    String head =
        "model: {file: mlp.onnx}\n"
            + "data: {examples: examples.safetensors, validation: 32, evaluation: 64}\n"
            + "stages:\n  - {kind: prune, sparsity: 0.5, steps: 8, batch: 16}\n";
    Files.writeString(recipe, head);
    Path out = folder.resolve("pruned");
    Run run = Run.of("compress", recipe, "-o", out, "--json");
    double cosine = run.json().at("/fidelity/cosine_mean").asDouble();
    assertTrue(cosine > 0.5, run.out());
    assertTrue(!run.err().contains("share"), run.err());
    OnnxModel made = OnnxModel.read(out.resolve("model.onnx"));
    assertEquals(1, made.initializers().stream().filter(i -> i.elements() == 64).count());
    FloatBuffer w = made.initializer("w").floats();
    assertEquals(32, IntStream.range(0, 64).filter(i -> w.get(i) == 0).count());

    Files.writeString(recipe, head + "  - {kind: quantize, steps: 8, batch: 16}\n");
    run = Run.of("compress", recipe, "-o", folder.resolve("int8"), "--json");
    assertTrue(run.json().at("/fidelity/cosine_mean").asDouble() > 0.5, run.out());
    assertTrue(
        run.err().contains("weights that the main graph and a branch or body share are two"),
        run.err());

    // A weight of the branch alone.
    branch.setNode(0, SmallModels.node("MatMul", "inside", List.of("x", "w"), "m"));
    graph.setNode(0, SmallModels.node("Relu", "outside", List.of("x"), "h"));
    graph.setNode(3, SmallModels.choice("choice", "c", "y", branch));
    Files.write(folder.resolve("mlp.onnx"), SmallModels.model(13, graph).toByteArray());
    Files.writeString(recipe, head.replace("steps: 8", "steps: 0"));
    Run.refused(
        folder,
        new String[] {"no weights that the plan could prune but those in branches of If"},
        "compress",
        recipe,
        "-o",
        folder.resolve("other"));
  }

  @Test
  void badInputIsRefusedBeforeAnythingIsWritten() throws IOException {
    Path out = folder.resolve("out");
    Files.writeString(folder.resolve("none.txt"), "\n \n");
    Object[][] cases = {
      {new String[] {"--set prune.sparsty=1", "'sparsty'", "'sparsity'"}, "prune.sparsty=1"},
      {new String[] {"there is no file", "none.onnx"}, "model.file=none.onnx"},
      {new String[] {"neither .onnx nor .pt"}, "model.file=examples.safetensors"},
      {new String[] {"none.safetensors"}, "data.examples=none.safetensors"},
      {new String[] {"mlp.onnx", "safetensors"}, "data.examples=mlp.onnx"},
      {new String[] {"256", "held out"}, "data.evaluation=300"},
      {new String[] {"256", "training"}, "data.train=200"},
      {new String[] {"'nothing.*' matches no weight", "'w'"}, "quantize.include=nothing.*"},
      {new String[] {"stage prune", "no weights"}, "prune.exclude=w*"},
      {new String[] {"refit", "it is for schedule: one-shot"}, "prune.refit=true"},
      {new String[] {"stage quantize", "no weights"}, "quantize.exclude=w*"},
    };
    for (Object[] c : cases) {
      Run.refused(folder, (String[]) c[0], "compress", recipe, "-o", out, "--set", c[1]);
    }
    Path dangling = Files.createSymbolicLink(folder.resolve("dangling"), folder.resolve("nowhere"));
    Run.refused(folder, new String[] {"not a folder"}, "compress", recipe, "-o", dangling);
    Run.refused(
        folder, new String[] {"does not exist"}, "compress", recipe, "-o", folder.resolve("a/b"));
    Run.refused(folder, new String[] {"not a folder"}, "compress", recipe, "-o", recipe);
    Run.refused(
        folder,
        new String[] {"--device gpu", "auto, cpu"},
        "compress",
        recipe,
        "-o",
        out,
        "--device",
        "gpu");
    Run.refused(
        folder,
        new String[] {"--device cuda:1", "libtorch sees no GPU", "-Pgpu"},
        "compress",
        recipe,
        "-o",
        out,
        "--device",
        "cuda:1");
    Path texts = folder.resolve("texts.yaml");
    Files.writeString(
        texts, "model: {file: mlp.onnx}\ndata: {texts: none.txt}\nstages: [{kind: quantize}]\n");
    Run.refused(folder, new String[] {"texts.yaml:2", "no text"}, "compress", texts, "-o", out);
  }

  /** What one example shows ends no run in its middle. */
  @Test
  void dataAndModelsThatDoNotFitAreRefusedBeforeAnythingIsWritten() throws IOException {
    Object[] run = {"compress", recipe, "-o", folder.resolve("out")};
    examples(256, 8, 5);
    Run.refused(folder, new String[] {"stage prune", "4 classes", "a label 4", "0 to 3"}, run);
    examples(256, 7, 4);
    Run.refused(folder, new String[] {"mlp.onnx", "the input x", "[3, 7]"}, run);
    examples(0, 8, 4);
    Run.refused(folder, new String[] {"examples.safetensors", "[0, 8]", "at least one"}, run);
    examples(256, 8, 4);
    Object[] taught = {"recipe", "check", recipe, "--set", "teacher.file=teacher.onnx"};
    ModelProto.Builder teacher = SmallModels.mlp().toBuilder();
    teacher
        .getGraphBuilder()
        .addNode(SmallModels.node("Concat", "", List.of("y", "y"), "yy", attribute("axis", 1)))
        .setOutput(0, SmallModels.value("yy", DataType.FLOAT, -1, 8));
    Files.write(folder.resolve("teacher.onnx"), teacher.build().toByteArray());
    Run.refused(folder, new String[] {"the teacher", "[1, 8]", "[1, 4]"}, taught);
    ModelProto.Builder bad = SmallModels.mlp().toBuilder();
    bad.getGraphBuilder()
        .addNode(SmallModels.node("Reshape", "", List.of("y", "shape"), "yy"))
        .addInitializer(
            SmallModels.tensor(
                "shape",
                DataType.INT64,
                ByteBuffer.allocate(24)
                    .order(ByteOrder.LITTLE_ENDIAN)
                    .putLong(-1)
                    .putLong(2)
                    .putLong(2)
                    .flip(),
                3))
        .setOutput(0, SmallModels.value("yy", DataType.FLOAT, -1, 2, 2));
    Files.write(folder.resolve("mlp.onnx"), bad.build().toByteArray());
    Run.refused(folder, new String[] {"[1, 2, 2]", "[examples, classes]", "{output: 1}"}, run);
    for (float value : new float[] {Float.NaN, Float.NEGATIVE_INFINITY}) {
      bad = SmallModels.mlp().toBuilder();
      ByteBuffer data = ByteBuffer.allocate(4 * 48).order(ByteOrder.LITTLE_ENDIAN);
      bad.getGraphBuilder()
          .setInitializer(
              0, SmallModels.tensor("w", DataType.FLOAT, data.putFloat(8, value), 8, 6));
      Files.write(folder.resolve("mlp.onnx"), bad.build().toByteArray());
      Run.refused(folder, new String[] {"mlp.onnx", "the weight w", "NaN"}, run);
    }
  }

  /** As similarities of images and texts are, of each with each. */
  @Test
  void anOutputOfAWholeBatchIsNotFollowed() throws IOException {
    examples(256, 8, 4);
    ModelProto.Builder pairs = SmallModels.mlp().toBuilder();
    pairs
        .getGraphBuilder()
        .addNode(SmallModels.node("Transpose", "", List.of("y"), "t"))
        .addNode(SmallModels.node("MatMul", "", List.of("y", "t"), "pairs"))
        .setOutput(0, SmallModels.value("pairs", DataType.FLOAT, -1, -1));
    Files.write(folder.resolve("mlp.onnx"), pairs.build().toByteArray());
    Files.writeString(
        recipe,
        """
        model: {file: mlp.onnx}
        data: {examples: examples.safetensors, validation: 64, evaluation: 64}
        stages: [{kind: quantize, steps: 5, loss: {output: 1}}]
        """);
    Run.refused(
        folder,
        new String[] {"first output pairs has the shape [", "must be of each example alone"},
        "compress",
        recipe,
        "-o",
        folder.resolve("out"));
  }

  /** What exporters write who were shown one example; what they gave a name stays as they wrote it. */
  @Test
  void aModelOfABatchOfOneIsTrainedInBatches() throws IOException {
    ModelProto.Builder model = SmallModels.mlp().toBuilder();
    model
        .getGraphBuilder()
        .setInput(0, SmallModels.value("x", DataType.FLOAT, 1, 8))
        .setOutput(0, SmallModels.value("y", DataType.FLOAT, 1, 4));
    Files.write(folder.resolve("mlp.onnx"), model.build().toByteArray());
    Path out = folder.resolve("out");
    Run.of("compress", recipe, "-o", out).done();
    OnnxModel made = OnnxModel.read(out.resolve("model-int8.onnx"));
    assertEquals(List.of(SmallModels.value("x", DataType.FLOAT, 1, 8)), made.inputs());
    // The batch is written into the nodes too.
    model
        .getGraphBuilder()
        .addNode(SmallModels.node("Reshape", "", List.of("y", "shape"), "z"))
        .addInitializer(
            SmallModels.tensor(
                "shape",
                DataType.INT64,
                ByteBuffer.allocate(16).order(ByteOrder.LITTLE_ENDIAN).putLong(1).putLong(4).flip(),
                2))
        .setOutput(0, SmallModels.value("z", DataType.FLOAT, 1, 4));
    Files.write(folder.resolve("mlp.onnx"), model.build().toByteArray());
    Run.refused(
        folder,
        new String[] {"mlp.onnx", "batches of any size"},
        "compress",
        recipe,
        "-o",
        folder.resolve("none"));
  }

  @Test
  void checkSaysWhatARunWouldDo() throws IOException {
    JsonNode found = Run.of("recipe", "check", recipe, "--json").json();
    assertEquals(30, found.path("steps").asInt());
    assertEquals(160, found.path("training_examples").asInt());
    Path bad = Files.writeString(folder.resolve("bad.yaml"), RECIPE.replace("seed: 3", "seed: x"));
    Run.refused(folder, new String[] {"bad.yaml:1", "seed"}, "recipe", "check", bad);
    Path made = folder.resolve("made.yaml");
    String told = Run.of("recipe", "init", "-o", made).done().err();
    for (String missing : List.of("model.onnx", "texts.txt")) {
      assertTrue(told.contains("there is no " + folder.resolve(missing) + " yet"), told);
    }
    Run.of("recipe", "check", "--keys-only", made).done();
    Run.refused(folder, new String[] {"exists"}, "recipe", "init", "-o", made);
    Path classifier = folder.resolve("classifier.yaml");
    examples(800, 8, 4);
    String data = "examples.safetensors";
    Object[] init = {"recipe", "init", "-o", classifier, "--model", "mlp.onnx", "--examples", data};
    assertEquals("", Run.of(init).done().err());
    found = Run.of("recipe", "check", classifier, "--json").json();
    assertEquals(200, found.path("steps").asInt());
    assertTrue(Run.of("recipe", "schema").done().out().contains("learning-rate"));
    assertTrue(Run.of("recipe", "schema", "--json").json().path("properties").has("stages"));
  }

  /** Convolutions need static ranges, and of 40 examples not 656 can be held out. */
  @Test
  void aRecipeFromInitFitsConvolutionsAndFewExamples() throws IOException {
    Files.write(folder.resolve("cnn.onnx"), SmallModels.cnn().toByteArray());
    ByteBuffer x = ByteBuffer.allocate(4 * 40 * 3 * 16 * 16).order(ByteOrder.LITTLE_ENDIAN);
    Random random = new Random(5);
    while (x.hasRemaining()) {
      x.putFloat((float) random.nextGaussian());
    }
    RawSafetensors.write(
        folder.resolve("images.safetensors"),
        Map.of(),
        Map.of(new TensorSpec("x", SafetensorsDtype.F32, List.of(40L, 3L, 16L, 16L)), x.array()));
    Path made = folder.resolve("made.yaml");
    Run.of("recipe", "init", "-o", made, "--model", "cnn.onnx", "--examples", "images.safetensors")
        .done();
    Object[] run = {
      "compress", made, "-o", folder.resolve("out"), "--json", "--set", "quantize.steps=2"
    };
    JsonNode report = Run.of(run).json();
    assertEquals(24, report.at("/data/training").asInt(), report.toString());
    assertEquals(8, report.at("/data/evaluation").asInt(), report.toString());
    assertTrue(report.at("/fidelity/relative_error").asDouble() < 0.1, report.toString());
  }

  /** Models that scale pixels themselves take bytes. */
  @Test
  void imagesMayBeBytes() throws IOException {
    ModelProto.Builder cnn = SmallModels.cnn().toBuilder();
    GraphProto.Builder g = cnn.getGraphBuilder();
    List<NodeProto> nodes = g.getNodeList();
    g.clearNode()
        .clearInput()
        .addInput(SmallModels.value("pixels", DataType.UINT8, -1, 3, 16, 16))
        .addInitializer(
            SmallModels.tensor(
                "scale",
                DataType.FLOAT,
                ByteBuffer.allocate(4).order(ByteOrder.LITTLE_ENDIAN).putFloat(0, 1 / 255f)))
        .addNode(
            SmallModels.node(
                "Cast", "", List.of("pixels"), "cast", attribute("to", DataType.FLOAT_VALUE)))
        .addNode(SmallModels.node("Mul", "", List.of("cast", "scale"), "x"))
        .addAllNode(nodes);
    Files.write(folder.resolve("pixels.onnx"), cnn.build().toByteArray());
    byte[] pixels = new byte[40 * 3 * 16 * 16];
    new Random(6).nextBytes(pixels);
    RawSafetensors.write(
        folder.resolve("pixels.safetensors"),
        Map.of(),
        Map.of(new TensorSpec("pixels", SafetensorsDtype.U8, List.of(40L, 3L, 16L, 16L)), pixels));
    Path made = folder.resolve("made.yaml");
    Object[] init = {
      "recipe", "init", "-o", made, "--model", "pixels.onnx", "--examples", "pixels.safetensors"
    };
    Run.of(init).done();
    Object[] run = {
      "compress", made, "-o", folder.resolve("out"), "--json", "--set", "quantize.steps=2"
    };
    JsonNode report = Run.of(run).json();
    assertTrue(report.at("/fidelity/relative_error").asDouble() < 0.1, report.toString());
  }

  /** Training and measuring take batches of other sizes, and what is written would have none of them. */
  @Test
  void aModelOfABatchOfSeveralIsRefusedWithWhatToDo() throws IOException {
    ModelProto.Builder model = SmallModels.mlp().toBuilder();
    model
        .getGraphBuilder()
        .setInput(0, SmallModels.value("x", DataType.FLOAT, 4, 8))
        .setOutput(0, SmallModels.value("y", DataType.FLOAT, 4, 4));
    Files.write(folder.resolve("mlp.onnx"), model.build().toByteArray());
    String[] said = {"mlp.onnx: the input x is of 4 examples at once", "of any size, or of 1"};
    Run.refused(folder, said, "compress", recipe, "-o", folder.resolve("out"));
    Run.refused(folder, said, "recipe", "check", recipe);
  }

  /** As exporters of pipelines write that were fitted to float64. */
  @Test
  void inputsMayBeFloat64() throws IOException {
    ModelProto.Builder model = SmallModels.mlp().toBuilder();
    GraphProto.Builder g = model.getGraphBuilder();
    List<NodeProto> nodes = g.getNodeList();
    g.clearNode()
        .clearInput()
        .addInput(SmallModels.value("features", DataType.DOUBLE, -1, 8))
        .addNode(
            SmallModels.node(
                "Cast", "", List.of("features"), "x", attribute("to", DataType.FLOAT_VALUE)))
        .addAllNode(nodes);
    Files.write(folder.resolve("mlp.onnx"), model.build().toByteArray());
    int n = 256;
    ByteBuffer wide = ByteBuffer.allocate(8 * 8 * n).order(ByteOrder.LITTLE_ENDIAN);
    Random random = new Random(7);
    while (wide.hasRemaining()) {
      wide.putDouble(random.nextGaussian());
    }
    TensorSpec spec = new TensorSpec("inputs", SafetensorsDtype.F64, List.of((long) n, 8L));
    Path examples = folder.resolve("examples.safetensors");
    RawSafetensors.write(examples, Map.of(), Map.of(spec, wide.array()));
    Files.writeString(
        recipe,
        """
        model: {file: mlp.onnx}
        data: {examples: examples.safetensors, validation: 32, evaluation: 64}
        stages:
          - {kind: quantize, form: static, steps: 4, batch: 16, optimizer: sgd}
        """);
    Path out = folder.resolve("out");
    JsonNode report = Run.of("compress", recipe, "-o", out, "--json").json();
    assertTrue(report.at("/fidelity/relative_error").asDouble() < 0.1, report.toString());
    OnnxModel made = OnnxModel.read(out.resolve("model-int8.onnx"));
    assertEquals(List.of(SmallModels.value("features", DataType.DOUBLE, -1, 8)), made.inputs());
    // Beyond what float32 has, the model sees infinity.
    for (int example = 0; example < 8; example++) {
      wide.putDouble(8 * 8 * example, 1e300);
    }
    RawSafetensors.write(examples, Map.of(), Map.of(spec, wide.array()));
    Run.refused(
        folder, new String[] {"mlp.onnx", "NaN"}, "compress", recipe, "-o", folder.resolve("no"));
  }

  /** A gradient grows with the square of what weights are multiplied with; that of values which the model scales does not. */
  @ParameterizedTest
  @CsvSource({"1e6, false", "1e12, false", "1e16, false", "1e6, true"})
  void inputsThatAreNotScaledAreNamedWhereTrainingBreaksDown(float scale, boolean scaled)
      throws IOException {
    Path examples = folder.resolve("examples.safetensors");
    ByteBuffer bytes = ByteBuffer.wrap(Files.readAllBytes(examples));
    bytes.order(ByteOrder.LITTLE_ENDIAN);
    for (int at = bytes.capacity() - 4 * 8 * 256; at < bytes.capacity(); at += 4) {
      bytes.putFloat(at, scale * bytes.getFloat(at));
    }
    Files.write(examples, bytes.array());
    ByteBuffer unit = ByteBuffer.allocate(4).order(ByteOrder.LITTLE_ENDIAN);
    GraphProto.Builder g =
        GraphProto.newBuilder()
            .setName("linear")
            .addInput(SmallModels.value("raw", DataType.FLOAT, -1, 8))
            .addOutput(SmallModels.value("y", DataType.FLOAT, -1, 1))
            .addInitializer(SmallModels.floats("w", new Random(3), 1, 8, 1))
            .addInitializer(
                SmallModels.tensor("unit", DataType.FLOAT, unit.putFloat(0, scaled ? scale : 1)))
            .addNode(SmallModels.node("Div", "", List.of("raw", "unit"), "x"))
            .addNode(SmallModels.node("MatMul", "", List.of("x", "w"), "y"));
    Files.write(folder.resolve("linear.onnx"), SmallModels.model(13, g).toByteArray());
    Files.writeString(
        recipe,
        """
        seed: 3
        model: {file: linear.onnx}
        data: {examples: examples.safetensors, validation: 32, evaluation: 64, task: regression}
        stages:
          - {kind: fine-tune, steps: 60, batch: 16, optimizer: sgd, learning-rate: %s}
        """
            .formatted(scaled ? "100" : "1e-2"));
    Object[] command = {"compress", recipe, "-o", folder.resolve("out")};
    if (scaled) { // it is the rate
      Run run = Run.of(command);
      assertEquals(1, run.code(), run.err());
      assertTrue(run.err().contains("a lower learning-rate"), run.err());
      return;
    }
    Run.refused(
        folder,
        new String[] {
          "linear.onnx: training broke down, and examples hold up to ",
          "in inputs, which the weight w is multiplied with as 3",
          "about 1 is right: normalise the inputs"
        },
        command);
  }

  /** Steps on them leave weights on which any batch breaks down, and losses that are not finite. */
  @ParameterizedTest
  @CsvSource({
    "'{kind: fine-tune, optimizer: sgd, loss: {labels: 1}}', y",
    "'{kind: prune, sparsity: 0.25, loss: {output: 1}}', y",
    "'{kind: fine-tune, optimizer: sgd, loss: {labels: 1}}', z",
  })
  void examplesThatTrainingBreaksDownOnAreBadInput(String stage, String output) throws IOException {
    if (output.equals("z")) {
      ModelProto.Builder model = SmallModels.mlp().toBuilder();
      model.getGraphBuilder().getNodeBuilder(3).setOutput(0, "z");
      model.getGraphBuilder().addNode(SmallModels.node("Softmax", "/s", List.of("z"), "y"));
      Files.write(folder.resolve("mlp.onnx"), model.build().toByteArray());
    }
    Files.writeString(
        recipe,
        """
        seed: 3
        model: {file: mlp.onnx}
        data: {examples: examples.safetensors, validation: 32, evaluation: 64}
        stages:
          - %s
        """
            .formatted(stage.replace("}}", "}, steps: 60, batch: 16, learning-rate: 1e-3}")));
    Object[] command = {"compress", recipe, "-o", folder.resolve("out")};
    Run.of("compress", recipe, "-o", folder.resolve("whole")).done();
    Path examples = folder.resolve("examples.safetensors");
    ByteBuffer bytes = ByteBuffer.wrap(Files.readAllBytes(examples));
    int inputs = bytes.capacity() - 4 * 8 * 256; // the file's last tensor
    bytes.order(ByteOrder.LITTLE_ENDIAN);
    for (int example = 0; example < 8; example++) {
      bytes.putFloat(inputs + 4 * 8 * example, 1e30f);
    }
    Files.write(examples, bytes.array());
    Run.refused(
        folder,
        new String[] {
          "mlp.onnx: the value " + output + " is as large as ",
          "for one of the training examples, which hold up to 1.0E30 in inputs",
          "about 1 is right"
        },
        command);
  }
}

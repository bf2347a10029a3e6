package org.espalier.torch.onnx;

import static org.espalier.format.onnx.SmallModels.attribute;
import static org.espalier.format.onnx.SmallModels.floats;
import static org.espalier.format.onnx.SmallModels.node;
import static org.espalier.format.onnx.SmallModels.value;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertNotEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import ai.onnx.proto.OnnxMl.AttributeProto;
import ai.onnx.proto.OnnxMl.GraphProto;
import ai.onnx.proto.OnnxMl.ModelProto;
import ai.onnx.proto.OnnxMl.NodeProto;
import ai.onnx.proto.OnnxMl.TensorProto.DataType;
import ai.onnx.proto.OnnxMl.ValueInfoProto;
import com.google.protobuf.ByteString;
import java.io.IOException;
import java.io.InputStream;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Collections;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Random;
import java.util.stream.Stream;
import org.bytedeco.javacpp.PointerScope;
import org.bytedeco.pytorch.NoGradGuard;
import org.bytedeco.pytorch.Tensor;
import org.bytedeco.pytorch.global.torch;
import org.espalier.InputException;
import org.espalier.format.onnx.OnnxModel;
import org.espalier.format.onnx.SmallModels;
import org.espalier.torch.Libtorch;
import org.espalier.torch.Parameter;
import org.espalier.torch.TorchScriptModel;
import org.espalier.torch.TrainableModel;
import org.junit.jupiter.api.BeforeEach;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;

/** Models that were ONNX graphs, written as TorchScript and loaded again. */
class GraphScriptTest {
  @TempDir Path folder;
  private Path file;

  @BeforeEach
  void load() {
    Libtorch.load();
    torch.manual_seed(3);
    file = folder.resolve("model.pt");
  }

  /** The outputs of both in order; inputs have the names of the graph. */
  private static void assertSame(OnnxGraph graph, TorchScriptModel script, Map<String, Tensor> in) {
    Map<String, Tensor> renamed = new LinkedHashMap<>();
    for (int i = 0; i < graph.inputNames().size(); i++) {
      renamed.put(script.inputNames().get(i), in.get(graph.inputNames().get(i)));
    }
    List<Tensor> expected = List.copyOf(graph.forward(in).values());
    List<Tensor> actual = List.copyOf(script.forward(renamed).values());
    assertEquals(expected.size(), actual.size());
    for (int i = 0; i < expected.size(); i++) {
      assertTrue(
          torch.equal(expected.get(i), actual.get(i)),
          () -> "differs on " + in.values().stream().map(t -> List.of(t.shape())).toList());
    }
  }

  @Test
  void miniLmGivesTheSameBitsForAllSizes() throws IOException {
    Path onnx = folder.resolve("minilm.onnx");
    try (InputStream in = getClass().getResourceAsStream("/all-minilm-l6-v2.onnx")) {
      Files.copy(in, onnx);
    }
    OnnxModel model = OnnxModel.read(onnx);
    GraphScript.write(model, file);
    try (NoGradGuard noGrad = new NoGradGuard();
        OnnxGraph graph = new OnnxGraph(model);
        TorchScriptModel script = TorchScriptModel.read(file)) {
      assertEquals(graph.inputNames(), script.inputNames());
      assertEquals(
          graph.parameters().stream().map(Parameter::name).sorted().toList(),
          script.parameters().stream().map(Parameter::name).sorted().toList());
      // libtorch rewrites the module after the first runs for the sizes that it saw; others follow.
      for (int[] size : new int[][] {{2, 9}, {2, 9}, {2, 9}, {1, 9}, {3, 24}, {5, 2}, {2, 9}}) {
        try (PointerScope scope = new PointerScope()) {
          assertSame(graph, script, OnnxGraphTest.tokens(size[0], size[1]));
        }
      }
    }
  }

  /** A square weight tells which way it lies by its values alone. */
  @Test
  void theWeightOfAGemmIsAsItLies() {
    Random random = new Random(8);
    for (int transposed = 0; transposed < 2; transposed++) {
      GraphProto.Builder g =
          GraphProto.newBuilder()
              .addInput(value("x", DataType.FLOAT, -1, 4))
              .addInitializer(floats("fc.weight", random, 1, 4, 4))
              .addInitializer(floats("fc.bias", random, 1, 4))
              .addNode(
                  node(
                      "Gemm",
                      "",
                      List.of("x", "fc.weight", "fc.bias"),
                      "y",
                      attribute("transB", transposed)))
              .addOutput(value("y", DataType.FLOAT, -1, 4));
      OnnxModel model = OnnxModel.of(SmallModels.model(13, g), "gemm");
      Path written = folder.resolve("gemm-" + transposed + ".pt");
      GraphScript.write(model, written);
      try (PointerScope scope = new PointerScope();
          NoGradGuard noGrad = new NoGradGuard();
          OnnxGraph graph = new OnnxGraph(model);
          TorchScriptModel script = TorchScriptModel.read(written)) {
        assertSame(graph, script, Map.of("x", torch.randn(3, 4)));
      }
    }
  }

  /** Conv, batch norm, padded pool, Dropout and Gemm, with the names of PyTorch's modules. */
  private static OnnxModel cnn() {
    Random random = new Random(4);
    GraphProto.Builder g =
        GraphProto.newBuilder()
            .addInput(value("x", DataType.FLOAT, -1, 3, -1, -1))
            .addInitializer(floats("conv.weight", random, 0.3f, 8, 3, 3, 3))
            .addInitializer(floats("conv.bias", random, 0.3f, 8))
            .addInitializer(floats("norm.weight", random, 1, 8))
            .addInitializer(floats("norm.bias", random, 1, 8))
            .addInitializer(floats("norm.running_mean", random, 0.1f, 8))
            .addInitializer(ones("norm.running_var", 8))
            .addInitializer(floats("fc.weight", random, 0.3f, 5, 8))
            .addInitializer(floats("fc.bias", random, 0.3f, 5))
            .addNode(
                node(
                    "Conv",
                    "",
                    List.of("x", "conv.weight", "conv.bias"),
                    "c",
                    attribute("pads", 1, 1, 1, 1)))
            .addNode(
                node(
                    "BatchNormalization",
                    "",
                    List.of(
                        "c", "norm.weight", "norm.bias", "norm.running_mean", "norm.running_var"),
                    "n"))
            .addNode(node("Relu", "", List.of("n"), "r"))
            .addNode(
                node(
                    "MaxPool",
                    "",
                    List.of("r"),
                    "p",
                    attribute("kernel_shape", 3, 3),
                    attribute("strides", 2, 2),
                    attribute("ceil_mode", 1)))
            .addNode(node("GlobalAveragePool", "", List.of("p"), "a"))
            .addNode(node("Flatten", "", List.of("a"), "f"))
            .addNode(node("Dropout", "", List.of("f"), "d"))
            .addNode(
                node("Gemm", "", List.of("d", "fc.weight", "fc.bias"), "y", attribute("transB", 1)))
            .addOutput(value("y", DataType.FLOAT, -1, 5));
    return OnnxModel.of(SmallModels.model(13, g), "cnn");
  }

  private static ai.onnx.proto.OnnxMl.TensorProto ones(String name, int n) {
    return ai.onnx.proto.OnnxMl.TensorProto.newBuilder()
        .setName(name)
        .setDataType(DataType.FLOAT.getNumber())
        .addDims(n)
        .addAllFloatData(Collections.nCopies(n, 1f))
        .build();
  }

  @Test
  void aWrittenNetworkTrainsAsTheGraphDoes() {
    OnnxModel model = cnn();
    GraphScript.write(model, file);
    try (OnnxGraph graph = new OnnxGraph(model);
        TorchScriptModel script = TorchScriptModel.read(file);
        PointerScope scope = new PointerScope()) {
      for (long size : new long[] {8, 8, 8, 13, 6}) {
        assertSame(graph, script, Map.of("x", torch.randn(2, 3, size, size + 1)));
      }
      Map<String, Parameter.Kind> kinds = new LinkedHashMap<>();
      script.parameters().forEach(p -> kinds.put(p.name(), p.kind()));
      assertEquals(Parameter.Kind.CONVOLUTION, kinds.get("conv.weight"));
      assertEquals(Parameter.Kind.LINEAR, kinds.get("fc.weight"));
      assertEquals(6, kinds.size(), kinds.toString());
      graph.train(true);
      script.train(true);
      Tensor x = torch.randn(4, 3, 9, 9);
      for (TrainableModel m : List.of(graph, script)) {
        torch.manual_seed(9);
        Tensor y = m.forward(Map.of("x", x)).values().iterator().next();
        y.mul(y).sum().backward();
      }
      Map<String, Tensor> gradients = new LinkedHashMap<>();
      graph.parameters().forEach(p -> gradients.put(p.name(), p.tensor().grad()));
      for (Parameter p : script.parameters()) {
        Tensor expected = gradients.get(p.name());
        double scale = expected.abs().max().item_double();
        double difference = p.tensor().grad().sub(expected).abs().max().item_double();
        // Sums of some hundred products in another order.
        assertTrue(difference <= 1e-5 * scale, p.name() + " " + difference + " of " + scale);
      }
      graph.train(false);
      script.train(false);
      // Both have moved their statistics.
      assertSame(graph, script, Map.of("x", x));
    }
  }

  @Test
  void namesCannotBeAnythingButNames() {
    String quote = "a\"]; import os; os.system('x') #\n    return x\n\"\"\"";
    List<String> names =
        List.of(
            quote,
            "torch",
            "class.weight",
            "a.b",
            "a/b",
            "a b",
            "0.1.weight",
            "self",
            "training",
            "",
            "ü.ß",
            ".",
            "..weight",
            "__init__",
            "forward.x",
            "constants.c0",
            "x".repeat(5000));
    Random random = new Random(2);
    GraphProto.Builder g =
        GraphProto.newBuilder()
            .addInput(value(quote + "in", DataType.FLOAT, -1, 4))
            .addInput(value("torch ", DataType.FLOAT, -1, 4))
            .addInput(value("none", DataType.FLOAT, -1, 4))
            .addInput(value("v0", DataType.FLOAT, -1, 4))
            .addInput(value("def", DataType.FLOAT, -1, 4));
    String at = quote + "in";
    for (String input : List.of("torch ", "none", "v0", "def")) {
      g.addNode(node("Sub", quote, List.of(at, input), at + "!"));
      at += "!";
    }
    int k = 0;
    for (String name : names) {
      if (!name.isEmpty()) {
        g.addInitializer(floats(name, random, 1, 4));
        g.addNode(node("Add", quote + k, List.of(at, name), quote + k));
        at = quote + k++;
      }
    }
    g.addOutput(value(at, DataType.FLOAT, -1, 4));
    OnnxModel model = OnnxModel.of(SmallModels.model(13, g), "hostile");
    GraphScript.write(model, file);
    try (PointerScope scope = new PointerScope();
        OnnxGraph graph = new OnnxGraph(model);
        TorchScriptModel script = TorchScriptModel.read(file)) {
      assertEquals(graph.parameters().size(), script.parameters().size());
      assertEquals(5, script.inputNames().size());
      Map<String, Tensor> inputs = new LinkedHashMap<>();
      graph.inputNames().forEach(n -> inputs.put(n, torch.randn(3, 4)));
      assertSame(graph, script, inputs);
      for (Parameter p : script.parameters()) {
        assertTrue(p.name().matches("[A-Za-z0-9_.]+"), p.name());
      }
      assertTrue(
          script.parameters().stream().map(Parameter::name).toList().contains("a_b_1"),
          script.parameters().stream().map(Parameter::name).toList().toString());
    }
  }

  private static ModelProto of(NodeProto.Builder node, ValueInfoProto... inputs) {
    GraphProto.Builder g =
        GraphProto.newBuilder()
            .addAllInput(List.of(inputs))
            .addInitializer(floats("w", new Random(1), 1, 4, 4))
            .addNode(node.addOutput("y"))
            .addOutput(value("y", DataType.FLOAT, -1, 4));
    return SmallModels.model(17, g);
  }

  private void refused(ModelProto model, String... parts) throws IOException {
    OnnxModel read = OnnxModel.of(model, "model.onnx");
    String message =
        assertThrows(InputException.class, () -> GraphScript.write(read, file)).getMessage();
    for (String part : parts) {
      assertTrue(message.contains(part), part + " is not in: " + message);
    }
    try (Stream<Path> left = Files.list(folder)) {
      assertEquals(List.of(), left.toList());
    }
  }

  @Test
  void whatCannotBeWrittenIsRefusedByNameBeforeAnythingIsWritten() throws IOException {
    ValueInfoProto x = value("x", DataType.FLOAT, -1, 4);
    ValueInfoProto steps = value("x", DataType.FLOAT, -1, 1, 4);
    ModelProto.Builder several =
        of(NodeProto.newBuilder().setOpType("LSTM").addAllInput(List.of("x", "x", "x")), steps)
            .toBuilder();
    several.getGraphBuilder().addNode(node("If", "", List.of("x"), "z"));
    several
        .getGraphBuilder()
        .addNode(node("Attention", "", List.of("x"), "u").toBuilder().setDomain("com.example"));
    refused(several.build(), "model.onnx", "LSTM", "If", "com.example.Attention");
    refused(
        of(NodeProto.newBuilder().setOpType("Relu").addInput("x"), untyped()), "x is no tensor");
    refused(
        of(
            NodeProto.newBuilder().setOpType("Relu").addInput("x"),
            value("x", DataType.UINT16, -1, 4)),
        "x has elements of UInt16");
    refused(
        of(
            NodeProto.newBuilder()
                .setOpType("Einsum")
                .addInput("x")
                .addInput("w")
                .addAttribute(
                    AttributeProto.newBuilder()
                        .setName("equation")
                        .setType(AttributeProto.AttributeType.STRING)
                        .setS(ByteString.copyFromUtf8("ij,jk->ik', [x]) #"))),
            x),
        "Einsum",
        "equation");
    refused(
        of(
            NodeProto.newBuilder()
                .setOpType("Relu")
                .addInput("x")
                .addAttribute(attribute("slope", 1)),
            x),
        "slope");
  }

  private static ValueInfoProto untyped() {
    return ValueInfoProto.newBuilder().setName("x").build();
  }

  @Test
  void equalModulesAreEqualFiles() throws IOException {
    GraphScript.write(cnn(), file);
    Path again = folder.resolve("another-name.pt");
    GraphScript.write(cnn(), again);
    assertEquals(-1, Files.mismatch(file, again));
    Path saved = folder.resolve("saved.pt");
    Path twice = folder.resolve("twice.pt");
    try (TorchScriptModel script = TorchScriptModel.read(file)) {
      script.save(saved);
    }
    try (TorchScriptModel script = TorchScriptModel.read(saved)) {
      script.save(twice);
      assertEquals(6, script.parameters().size());
    }
    assertEquals(-1, Files.mismatch(saved, twice));
  }

  @Test
  void aModuleIsWrittenInEvaluationAndDropoutFollowsIt() {
    GraphScript.write(cnn(), file);
    try (PointerScope scope = new PointerScope();
        TorchScriptModel script = TorchScriptModel.read(file)) {
      assertFalse(script.isTraining());
      Tensor x = torch.randn(4, 3, 9, 9);
      Tensor quiet = script.forward(Map.of("x", x)).get("output");
      assertTrue(torch.equal(quiet, script.forward(Map.of("x", x)).get("output")));
      script.train(true);
      Tensor one = script.forward(Map.of("x", x)).get("output");
      Tensor other = script.forward(Map.of("x", x)).get("output");
      assertNotEquals(0, one.sub(other).abs().max().item_double());
    }
  }
}

package org.espalier.torch.onnx;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import ai.onnx.proto.OnnxMl.GraphProto;
import ai.onnx.proto.OnnxMl.ModelProto;
import ai.onnx.proto.OnnxMl.NodeProto;
import ai.onnx.proto.OnnxMl.TensorProto;
import ai.onnx.proto.OnnxMl.TensorProto.DataType;
import com.google.protobuf.ByteString;
import java.io.IOException;
import java.io.InputStream;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.HashSet;
import java.util.List;
import java.util.Map;
import java.util.Random;
import java.util.Set;
import java.util.stream.Collectors;
import org.bytedeco.javacpp.FloatPointer;
import org.bytedeco.javacpp.PointerScope;
import org.bytedeco.pytorch.AbstractTensor;
import org.bytedeco.pytorch.NoGradGuard;
import org.bytedeco.pytorch.Scalar;
import org.bytedeco.pytorch.Tensor;
import org.bytedeco.pytorch.global.torch;
import org.bytedeco.pytorch.global.torch.ScalarType;
import org.espalier.InputException;
import org.espalier.compress.onnx.BlockQuantizer;
import org.espalier.format.onnx.ClickModel;
import org.espalier.format.onnx.OnnxModel;
import org.espalier.format.onnx.RuntimeModels;
import org.espalier.format.onnx.SmallModels;
import org.espalier.torch.Libtorch;
import org.espalier.torch.Parameter;
import org.espalier.torch.Parameter.Kind;
import org.espalier.torch.TensorView;
import org.espalier.torch.TrainableModel;
import org.junit.jupiter.api.BeforeAll;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;

class OnnxGraphTest {
  /** float32 through a dozen layers in another order of sums. */
  private static final double AGREEMENT = 1e-4;

  @TempDir static Path folder;

  @BeforeAll
  static void load() {
    Libtorch.load();
    torch.manual_seed(7);
  }

  private static OnnxModel model(ModelProto proto) {
    return OnnxModel.of(proto, "small");
  }

  private static Path miniLm() throws IOException {
    Path file = folder.resolve("minilm.onnx");
    if (!Files.exists(file)) {
      try (InputStream in = OnnxGraphTest.class.getResourceAsStream("/all-minilm-l6-v2.onnx")) {
        Files.copy(in, file);
      }
    }
    return file;
  }

  /** Token ids with padding: row b has {@code tokens - 4b} of them. */
  static Map<String, Tensor> tokens(int rows, int tokens) {
    Random random = new Random(1);
    long[] ids = new long[rows * tokens];
    long[] mask = new long[rows * tokens];
    for (int b = 0; b < rows; b++) {
      for (int t = 0; t < Math.max(2, tokens - 4 * b); t++) {
        ids[b * tokens + t] = t == 0 ? 101 : 1000 + random.nextInt(20000);
        mask[b * tokens + t] = 1;
      }
    }
    return Map.of(
        "input_ids", AbstractTensor.create(ids, rows, tokens),
        "attention_mask", AbstractTensor.create(mask, rows, tokens),
        "token_type_ids", AbstractTensor.create(new long[rows * tokens], rows, tokens));
  }

  @Test
  void miniLmAgreesWithOnnxRuntime() throws Exception {
    OnnxModel model = OnnxModel.read(miniLm());
    try (PointerScope scope = new PointerScope();
        OnnxGraph graph = new OnnxGraph(model)) {
      // Two shapes, the first of them again with what was kept for it.
      for (int[] shape : new int[][] {{8, 32}, {3, 11}, {8, 32}}) {
        Map<String, Tensor> inputs = tokens(shape[0], shape[1]);
        agrees(graph.forward(inputs), OnnxRuntime.run(model, inputs));
      }
    }
  }

  @Test
  void smallModelsAgreeWithOnnxRuntime() throws Exception {
    try (PointerScope scope = new PointerScope()) {
      OnnxModel mlp = model(SmallModels.mlp());
      OnnxModel cnn = model(SmallModels.cnn());
      try (OnnxGraph graph = new OnnxGraph(mlp)) {
        Map<String, Tensor> inputs = Map.of("x", torch.randn(5, 8));
        agrees(graph.forward(inputs), OnnxRuntime.run(mlp, inputs));
      }
      try (OnnxGraph graph = new OnnxGraph(cnn)) {
        Map<String, Tensor> inputs = Map.of("x", torch.randn(2, 3, 16, 16));
        agrees(graph.forward(inputs), OnnxRuntime.run(cnn, inputs));
      }
    }
  }

  private static void agrees(Map<String, Tensor> actual, Map<String, Tensor> expected) {
    assertEquals(new ArrayList<>(expected.keySet()), new ArrayList<>(actual.keySet()));
    expected.forEach(
        (name, e) -> {
          double difference = actual.get(name).detach().sub(e).abs().max().item_double();
          assertTrue(difference < AGREEMENT, name + " differs by " + difference);
        });
  }

  @Test
  void parametersAreNamedByTheirPlace() throws IOException {
    try (OnnxGraph graph = OnnxGraph.read(miniLm())) {
      List<String> names = graph.parameters().stream().map(Parameter::name).toList();
      assertEquals(names.size(), new HashSet<>(names).size());
      // 6 layers of 6 products, 6 biases and 2 norms; 3 tables with their norm; the pooler.
      assertEquals(6 * (6 + 6 + 4) + 5 + 2, names.size());
      assertEquals("embeddings.word_embeddings.weight", names.get(0));
      Parameter query = parameter(graph, "encoder.layer.0.attention.self.query.weight");
      assertEquals(Kind.LINEAR, query.kind());
      assertEquals(1, query.outputAxis());
      assertEquals(0, query.reductionAxis());
      assertEquals(1, query.nodes().size());
      assertTrue(query.tensor().is_leaf() && query.tensor().requires_grad());
      Parameter table = parameter(graph, "embeddings.word_embeddings.weight");
      assertEquals(Kind.EMBEDDING, table.kind());
      Parameter bias = parameter(graph, "encoder.layer.0.attention.self.query.bias");
      assertEquals(Kind.OTHER, bias.kind());
      assertEquals(37, graph.parameters().stream().filter(Parameter::isWeight).count());
    }
  }

  private static Parameter parameter(TrainableModel model, String name) {
    return model.parameters().stream().filter(p -> p.name().equals(name)).findFirst().orElseThrow();
  }

  /** One number is a parameter where it is the bias of one output, and else part of a formula. */
  @Test
  void theBiasOfOneOutputIsAParameter() {
    GraphProto.Builder g = ClickModel.graph(1, 5, 4, 3);
    g.addInitializer(SmallModels.floats("half", new float[] {0.5f}, 1));
    g.addInitializer(SmallModels.floats("shift", new float[] {0.5f}, 1));
    g.addNode(SmallModels.node("Mul", "", List.of("z", "half"), "scaled"));
    g.addNode(SmallModels.node("Add", "", List.of("scaled", "shift"), "y"));
    g.addOutput(SmallModels.value("y", DataType.FLOAT, -1, 1));
    // A bias that a formula reads too is a number of it.
    g.addInitializer(SmallModels.floats("w", new Random(2), 1, 3, 1));
    g.addNode(SmallModels.node("MatMul", "", List.of("both", "w"), "other"));
    g.addNode(SmallModels.node("Add", "", List.of("other", "half"), "w_out"));
    g.addOutput(SmallModels.value("w_out", DataType.FLOAT, -1, 1));
    try (OnnxGraph graph = new OnnxGraph(OnnxModel.of(SmallModels.model(13, g), "clicks"))) {
      assertEquals(
          Set.of("users", "items", "head", "bias", "w"),
          graph.parameters().stream().map(Parameter::name).collect(Collectors.toSet()));
    }
  }

  /** Outputs of millions have such a bias; what is added to a product of two activations is a mask. */
  @Test
  void aBiasAsLargeAsMillionsIsNoMask() {
    float[] millions = {3e6f, -2e6f, 5e5f, 0};
    GraphProto.Builder g = SmallModels.mlp().getGraph().toBuilder();
    g.setInitializer(3, SmallModels.floats("b2", millions, 4));
    g.addInitializer(SmallModels.floats("offset", millions, 4));
    g.addInitializer(SmallModels.floats("w3", new Random(3), 1, 4, 4));
    g.addNode(SmallModels.line("p MatMul y w3"));
    g.addNode(SmallModels.line("shifted Add offset p"));
    g.addNode(SmallModels.line("square Mul y y"));
    g.addInitializer(SmallModels.floats("mask", new float[] {0, 0, -1e4f, -1e4f}, 4));
    g.addNode(SmallModels.line("masked Add square mask"));
    g.addInitializer(SmallModels.floats("forbidden", new float[] {0, 0, 0, -1e9f}, 4));
    g.addNode(SmallModels.line("allowed Add p forbidden"));
    for (String output : List.of("shifted", "masked", "allowed")) {
      g.addOutput(SmallModels.value(output, DataType.FLOAT, -1, 4));
    }
    try (OnnxGraph graph = new OnnxGraph(OnnxModel.of(SmallModels.model(13, g), "large"))) {
      assertEquals(
          Set.of("w", "b", "w2", "b2", "w3", "offset"),
          graph.parameters().stream()
              .map(p -> graph.constantOf(p.name()))
              .collect(Collectors.toSet()));
    }
  }

  @Test
  void gradientsAgreeWithFiniteDifferences() throws IOException {
    try (PointerScope scope = new PointerScope()) {
      try (OnnxGraph mlp = new OnnxGraph(model(SmallModels.mlp()))) {
        checkGradients(mlp, Map.of("x", torch.randn(5, 8)), 1, 1e-3, 1e-3);
      }
      try (OnnxGraph cnn = new OnnxGraph(model(SmallModels.cnn()))) {
        checkGradients(cnn, Map.of("x", torch.randn(2, 3, 16, 16)), 1, 1e-3, 1e-3);
      }
      try (OnnxGraph miniLm = OnnxGraph.read(miniLm())) {
        // Sums of some thousand outputs: the last digits of float32 show.
        checkGradients(miniLm, tokens(2, 8), 17, 1e-2, 0.03);
      }
    }
  }

  /**
   * Moves each parameter along its own gradient, where the difference is largest against the
   * rounding of float32, by at most {@code relative} of its root mean square in any element. The
   * tolerance of 2 % is for that rounding and the third derivative.
   */
  private static void checkGradients(
      OnnxGraph graph, Map<String, Tensor> inputs, int every, double relative, double absolute) {
    try (PointerScope scope = new PointerScope()) {
      loss(graph, inputs).backward();
    }
    for (int i = 0; i < graph.parameters().size(); i += every) {
      Parameter p = graph.parameters().get(i);
      try (PointerScope scope = new PointerScope();
          NoGradGuard guard = new NoGradGuard()) {
        Tensor gradient = p.tensor().grad();
        assertTrue(gradient.defined(), p.name() + " has no gradient");
        double norm = gradient.to(ScalarType.Double).norm().item_double();
        if (norm < 1e-4) {
          // Softmax does not see what the bias of the keys adds to a row.
          assertTrue(p.name().endsWith("key.bias"), p.name() + " has no gradient");
          continue;
        }
        double root = p.tensor().norm().item_double() / Math.sqrt(p.tensor().numel());
        double h = relative * Math.max(1e-2, root) / gradient.abs().max().item_double() * norm;
        Tensor step = gradient.mul(new Scalar(h / norm));
        Tensor before = p.tensor().clone();
        p.tensor().copy_(before.add(step));
        double above = loss(graph, inputs).item_double();
        p.tensor().copy_(before.sub(step));
        double below = loss(graph, inputs).item_double();
        p.tensor().copy_(before);
        assertEquals(norm, (above - below) / (2 * h), 0.02 * norm + absolute, p.name());
      }
    }
  }

  /** A sum of the outputs, weighed at random but always alike, in float64. */
  private static Tensor loss(OnnxGraph graph, Map<String, Tensor> inputs) {
    torch.manual_seed(5);
    Tensor sum = null;
    for (Tensor output : graph.forward(inputs).values()) {
      Tensor part =
          output.to(ScalarType.Double).mul(torch.randn(output.shape()).to(ScalarType.Double)).sum();
      sum = sum == null ? part : sum.add(part);
    }
    return sum;
  }

  @Test
  void activationsOfProductsCanBeTransformed() throws IOException {
    try (PointerScope scope = new PointerScope();
        OnnxGraph graph = OnnxGraph.read(miniLm())) {
      List<String> sites = new ArrayList<>();
      Map<String, Tensor> inputs = tokens(2, 8);
      Tensor plain = graph.forward(inputs).get(graph.outputNames().get(0)).clone();
      graph.transformInputs(
          (node, input) -> {
            sites.add(node + ":" + input);
            return x -> x.mul(new Scalar(1.0));
          });
      // 37 products with weights, and two activations in each of the 12 products of attention.
      assertEquals(37 + 24, sites.size());
      assertTrue(
          sites.contains(
              parameter(graph, "encoder.layer.0.attention.self.query.weight").nodes().get(0)
                  + ":0"));
      Tensor same = graph.forward(inputs).get(graph.outputNames().get(0));
      assertEquals(0, plain.sub(same).abs().max().item_float());
      graph.transformInputs((node, input) -> x -> x.mul(new Scalar(0.5)));
      Tensor other = graph.forward(inputs).get(graph.outputNames().get(0));
      assertTrue(plain.sub(other).abs().max().item_float() > 0.01f);
      graph.transformInputs(null);
      Tensor again = graph.forward(inputs).get(graph.outputNames().get(0));
      assertEquals(0, plain.sub(again).abs().max().item_float());
    }
  }

  @Test
  void aGraphIsNotClosedAmidItsForward() throws Exception {
    try (PointerScope scope = new PointerScope();
        OnnxGraph graph = OnnxGraph.read(miniLm())) {
      Thread closing = new Thread(graph::close);
      graph.transformInputs(
          (node, input) ->
              x -> {
                if (closing.getState() == Thread.State.NEW) {
                  closing.start();
                  while (closing.getState() != Thread.State.BLOCKED && closing.isAlive()) {
                    Thread.onSpinWait();
                  }
                  assertTrue(closing.isAlive(), "closed amid the forward");
                }
                return x;
              });
      Map<String, Tensor> inputs = tokens(2, 8);
      graph.forward(inputs);
      closing.join();
      assertThrows(IllegalStateException.class, () -> graph.forward(inputs));
    }
  }

  @Test
  void aSavedModelHoldsThePresentWeights() throws Exception {
    Path file = folder.resolve("trained.onnx");
    try (PointerScope scope = new PointerScope();
        OnnxGraph graph = new OnnxGraph(model(SmallModels.cnn()))) {
      Map<String, Tensor> inputs = Map.of("x", torch.randn(2, 3, 16, 16));
      try (NoGradGuard guard = new NoGradGuard()) {
        for (Parameter p : graph.parameters()) {
          p.tensor().mul_(new Scalar(0.9));
        }
      }
      graph.save(file);
      agrees(graph.forward(inputs), OnnxRuntime.run(OnnxModel.read(file), inputs));
      try (OnnxGraph read = OnnxGraph.read(file)) {
        agrees(read.forward(inputs), graph.forward(inputs));
      }
    }
  }

  @Test
  void aKernelsWritesReachTheNextForwardPass() {
    try (PointerScope scope = new PointerScope();
        OnnxGraph graph = new OnnxGraph(model(SmallModels.mlp()))) {
      Map<String, Tensor> inputs = Map.of("x", torch.randn(5, 8));
      float before = graph.forward(inputs).get("y").sum().item_float();
      org.espalier.device.Tensor view = TensorView.of(parameter(graph, "b2").tensor());
      FloatPointer values = new FloatPointer(view.pointer());
      values.put(0, values.get(0) + 1);
      assertEquals(before + 5, graph.forward(inputs).get("y").sum().item_float(), 1e-4f);
    }
  }

  @Test
  void aSiblingEndsWithTheModelWhoseParametersItHas() {
    try (PointerScope scope = new PointerScope()) {
      OnnxGraph graph = new OnnxGraph(model(SmallModels.mlp()));
      try (OnnxGraph sibling = graph.sibling()) {
        Map<String, Tensor> inputs = Map.of("x", torch.randn(5, 8));
        assertEquals(5, sibling.forward(inputs).get("y").size(0));
        graph.close();
        assertEquals(
            "the model whose parameters this one has is closed",
            assertThrows(IllegalStateException.class, () -> sibling.forward(inputs)).getMessage());
      }
      assertThrows(IllegalStateException.class, () -> graph.differentiateLookUps(Set.of()));
    }
  }

  @Test
  void anAxisWithoutANameIsToldAsAny() {
    ModelProto.Builder mlp = SmallModels.mlp().toBuilder();
    mlp.getGraphBuilder()
        .getInputBuilder(0)
        .getTypeBuilder()
        .getTensorTypeBuilder()
        .getShapeBuilder()
        .getDimBuilder(0)
        .clearValue();
    try (PointerScope scope = new PointerScope();
        OnnxGraph graph = new OnnxGraph(model(mlp.build()))) {
      refused(
          "must have the shape [?, 8] but has [5, 7]",
          () -> graph.forward(Map.of("x", torch.randn(5, 7))));
    }
  }

  @Test
  void wrongInputsAreRefused() {
    try (PointerScope scope = new PointerScope();
        OnnxGraph graph = new OnnxGraph(model(SmallModels.mlp()))) {
      refused("needs the input x", () -> graph.forward(Map.of()));
      Tensor closed = torch.randn(5, 8);
      closed.close();
      refused("the tensor of the input x is closed", () -> graph.forward(Map.of("x", closed)));
      refused(
          "must be Float but is Double",
          () -> graph.forward(Map.of("x", torch.randn(5, 8).to(ScalarType.Double))));
      refused("but has [5, 7]", () -> graph.forward(Map.of("x", torch.randn(5, 7))));
      refused("but has [8]", () -> graph.forward(Map.of("x", torch.randn(8))));
      refused(
          "it got", () -> graph.forward(Map.of("x", torch.randn(5, 8), "other", torch.randn(1))));
      // What a failed run left behind does not disturb the next.
      assertEquals(2, graph.forward(Map.of("x", torch.randn(5, 8))).get("y").dim());
      graph.close();
      assertFalse(graph.isTraining());
      assertThrows(
          IllegalStateException.class, () -> graph.forward(Map.of("x", torch.randn(5, 8))));
    }
  }

  @Test
  void inputsThatDoNotFitAnOperatorAreRefusedInItsWords() {
    try (PointerScope scope = new PointerScope();
        OnnxGraph few = new OnnxGraph(slice(SmallModels.int64s("ends", 1), "starts", "ends"));
        OnnxGraph none = new OnnxGraph(slice(SmallModels.int64s("ends", 1, 1), "starts", ""))) {
      Map<String, Tensor> inputs = Map.of("x", torch.randn(5, 8));
      refused(
          "(output y) failed on (Float[5, 8], Long[2], Long[1]): an axis",
          () -> few.forward(inputs));
      refused("input 2 is missing", () -> none.forward(inputs));
    }
    GraphProto.Builder window =
        GraphProto.newBuilder()
            .setName("window")
            .addInput(SmallModels.value("n", DataType.INT64))
            .addNode(SmallModels.node("HannWindow", "window", List.of("n"), "y"))
            .addOutput(SmallModels.value("y", DataType.FLOAT, -1));
    try (PointerScope scope = new PointerScope();
        OnnxGraph endless = new OnnxGraph(model(SmallModels.model(17, window)))) {
      Tensor size = AbstractTensor.create(new long[] {Integer.MAX_VALUE}, new long[0]);
      refused("takes more memory than this JVM has", () -> endless.forward(Map.of("n", size)));
    }
    ModelProto untyped = SmallModels.withInputType(SmallModels.mlp(), 127);
    refused("no type that ONNX knows", () -> new OnnxGraph(model(untyped)));
  }

  /** libtorch holds integers of 4 bits as ones of 8, and would clamp to these. */
  @Test
  void quantizationToFourBitsIsRefused() {
    TensorProto zero =
        TensorProto.newBuilder()
            .setName("zero")
            .setDataType(DataType.INT4_VALUE)
            .setRawData(ByteString.copyFrom(new byte[] {0}))
            .build();
    for (List<String> inputs : List.of(List.of("x", "scale", "zero"), List.of("x", "scale"))) {
      NodeProto.Builder quantize =
          SmallModels.node("QuantizeLinear", "quantize", inputs, "q").toBuilder();
      if (inputs.size() == 2) {
        quantize.addAttribute(SmallModels.attribute("output_dtype", DataType.INT4_VALUE));
      }
      GraphProto.Builder graph =
          GraphProto.newBuilder()
              .setName("four bits")
              .addInput(SmallModels.value("x", DataType.FLOAT, -1, 8))
              .addInitializer(SmallModels.floats("scale", new float[] {1}))
              .addInitializer(zero)
              .addNode(quantize)
              .addNode(SmallModels.node("DequantizeLinear", "back", List.of("q", "scale"), "y"))
              .addOutput(SmallModels.value("y", DataType.FLOAT, -1, 8));
      refused(
          inputs.size() == 3 ? "a zero point of 4 bits" : "output_dtype = INT4",
          () -> new OnnxGraph(model(SmallModels.model(21, graph))));
    }
  }

  @Test
  void aModelThatWasQuantizedAlreadyIsCalledSo() {
    OnnxModel model = model(RuntimeModels.decoder(RuntimeModels.Form.PLAIN, 1, 41, 1));
    new BlockQuantizer(model, BlockQuantizer.Options.of(4)).apply();
    refused(
        "not supported: com.microsoft.MatMulNBits; it is quantized already",
        () -> new OnnxGraph(model));
  }

  /** x from the starts 0 and 0. */
  private static OnnxModel slice(TensorProto ends, String... inputs) {
    return model(
        SmallModels.model(
            13,
            GraphProto.newBuilder()
                .setName("slice")
                .addInput(SmallModels.value("x", DataType.FLOAT, -1, 8))
                .addInitializer(SmallModels.int64s("starts", 0, 0))
                .addInitializer(ends)
                .addNode(
                    SmallModels.node("Slice", "slice", List.of("x", inputs[0], inputs[1]), "y"))
                .addOutput(SmallModels.value("y", DataType.FLOAT, -1, 8))));
  }

  private static void refused(String part, Runnable call) {
    String message = assertThrows(InputException.class, call::run).getMessage();
    assertTrue(message.contains(part), message);
  }
}

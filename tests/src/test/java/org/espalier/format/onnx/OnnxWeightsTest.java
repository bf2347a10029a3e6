package org.espalier.format.onnx;

import static org.espalier.format.onnx.SmallModels.attribute;
import static org.espalier.format.onnx.SmallModels.floats;
import static org.espalier.format.onnx.SmallModels.node;
import static org.espalier.format.onnx.SmallModels.value;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertNull;
import static org.junit.jupiter.api.Assertions.assertTrue;

import ai.onnx.proto.OnnxMl.AttributeProto;
import ai.onnx.proto.OnnxMl.GraphProto;
import ai.onnx.proto.OnnxMl.NodeProto;
import ai.onnx.proto.OnnxMl.TensorProto.DataType;
import java.nio.ByteBuffer;
import java.util.List;
import java.util.Random;
import org.espalier.format.onnx.OnnxWeight.Kind;
import org.junit.jupiter.api.Test;

class OnnxWeightsTest {
  private final Random random = new Random(1);

  private static List<OnnxWeight> find(GraphProto.Builder graph) {
    return OnnxWeights.of(OnnxModel.of(SmallModels.model(13, graph), "test"));
  }

  private static GraphProto.Builder graph(NodeProto... nodes) {
    return GraphProto.newBuilder()
        .addInput(value("x", DataType.FLOAT, -1, 8))
        .addAllNode(List.of(nodes))
        .addOutput(value("y", DataType.FLOAT, -1, -1));
  }

  @Test
  void axesOfEachKind() {
    List<OnnxWeight> mlp = OnnxWeights.of(OnnxModel.of(SmallModels.mlp(), "mlp"));
    assertEquals(List.of("w", "w2"), mlp.stream().map(OnnxWeight::name).toList());
    assertEquals(1, mlp.get(0).outputAxis());
    assertEquals(0, mlp.get(0).reductionAxis());
    assertEquals(Kind.GEMM, mlp.get(1).uses().get(0).kind());
    assertEquals(0, mlp.get(1).outputAxis());
    assertEquals(1, mlp.get(1).reductionAxis());

    List<OnnxWeight> cnn = OnnxWeights.of(OnnxModel.of(SmallModels.cnn(), "cnn"));
    assertEquals(4, cnn.size());
    assertEquals(16, cnn.get(1).uses().get(0).groups());
    assertEquals(0, cnn.get(1).outputAxis());
    assertEquals(1, cnn.get(1).reductionAxis());
    assertFalse(cnn.get(1).isShared());
  }

  @Test
  void axesOfTransposedConvolutionsAndRecurrentLayers() {
    List<OnnxWeight> weights = OnnxWeights.of(OnnxModel.of(SmallModels.recurrent(), "recurrent"));
    assertEquals(
        List.of(
            "down.weight",
            "up.weight",
            "lstm.W",
            "lstm.R",
            "gru.W",
            "gru.R",
            "rnn.W",
            "rnn.R",
            "fc.weight"),
        weights.stream().map(OnnxWeight::name).toList());
    OnnxWeight up = weights.get(1);
    assertEquals(Kind.CONV_TRANSPOSE, up.uses().get(0).kind());
    assertEquals(1, up.outputAxis());
    assertEquals(0, up.reductionAxis());
    assertEquals(2, up.uses().get(0).groups());
    List<Kind> kinds = List.of(Kind.LSTM, Kind.LSTM, Kind.GRU, Kind.GRU, Kind.RNN, Kind.RNN);
    for (int i = 0; i < kinds.size(); i++) {
      OnnxWeight w = weights.get(2 + i);
      assertEquals(kinds.get(i), w.uses().get(0).kind(), w.name());
      assertEquals(1 + i % 2, w.uses().get(0).input(), w.name());
      assertEquals(1, w.outputAxis(), w.name());
      assertEquals(2, w.reductionAxis(), w.name());
      assertFalse(w.isShared(), w.name());
    }
  }

  @Test
  void anonymousWeightsAreNamedByTheirPlace() {
    List<OnnxWeight> found =
        find(
            graph(
                    node(
                        "MatMul", "/enc/layer.0/query/MatMul", List.of("x", "onnx::MatMul_1"), "a"),
                    node("MatMul", "MatMul_7", List.of("a", "885"), "/enc/key/MatMul_output_0"),
                    node("MatMul", "", List.of("/enc/key/MatMul_output_0", "886"), "c"),
                    node("MatMul", "/enc/MatMul_1", List.of("c", "887"), "d"),
                    node("MatMul", "/enc/key/MatMul", List.of("d", "888"), "y"))
                .addInitializer(floats("onnx::MatMul_1", random, 1, 8, 8))
                .addInitializer(floats("885", random, 1, 8, 8))
                .addInitializer(floats("886", random, 1, 8, 8))
                .addInitializer(floats("887", random, 1, 8, 8))
                .addInitializer(floats("888", random, 1, 8, 8)));
    assertEquals(
        List.of(
            "enc.layer.0.query.weight",
            "enc.key.weight",
            "c.weight",
            "enc.MatMul_1.weight",
            "enc.key.weight_1"),
        found.stream().map(OnnxWeight::name).toList());
    assertEquals("onnx::MatMul_1", found.get(0).value());
  }

  @Test
  void aTiedEmbeddingIsOneWeightWithTwoUses() {
    GraphProto.Builder g =
        graph(
            node("Gather", "/embed/Gather", List.of("table", "ids"), "e"),
            node("Identity", "", List.of("table"), "same"),
            node("Transpose", "", List.of("same"), "t", attribute("perm", 1, 0)),
            node("MatMul", "/head/MatMul", List.of("e", "t"), "y"));
    g.addInput(value("ids", DataType.INT64, -1)).addInitializer(floats("table", random, 1, 100, 8));
    List<OnnxWeight> found = find(g);
    assertEquals(1, found.size());
    OnnxWeight table = found.get(0);
    assertTrue(table.isShared());
    assertFalse(table.isEmbedding());
    assertEquals(0, table.otherUses());
    assertEquals(List.of("table", "same", "t"), table.uses().get(1).path());
    assertEquals(List.of(1, 0), table.uses().get(1).axes());
    // The head multiplies with the transposed table: its output channels are the rows.
    assertEquals(0, table.uses().get(1).outputAxis());
    assertEquals(1, table.uses().get(1).reductionAxis());

    g.addNode(node("ReduceMax", "", List.of("table"), "m"));
    assertEquals(1, find(g).get(0).otherUses());
  }

  @Test
  void aConstantNodeHoldsAWeight() {
    NodeProto constant =
        NodeProto.newBuilder()
            .setOpType("Constant")
            .addOutput("/fc/Constant_output_0")
            .addAttribute(
                AttributeProto.newBuilder()
                    .setName("value")
                    .setType(AttributeProto.AttributeType.TENSOR)
                    .setT(floats("", random, 1, 8, 4)))
            .build();
    OnnxModel model =
        OnnxModel.of(
            SmallModels.model(
                13,
                graph(
                    constant,
                    node("MatMul", "/fc/MatMul", List.of("x", "/fc/Constant_output_0"), "y"))),
            "test");
    OnnxWeight w = OnnxWeights.of(model).get(0);
    assertEquals("fc.weight", w.name());
    assertEquals(32, model.constant(w.value()).elements());
    model.replaceConstant(OnnxInitializer.floats(w.value(), new long[] {8, 4}, new float[32]));
    assertEquals(0f, model.constant(w.value()).data().getFloat(0));
  }

  @Test
  void whatIsNoWeight() {
    List<OnnxWeight> found =
        find(
            graph(
                    node("MatMul", "", List.of("x", "vector"), "a"),
                    node("MatMul", "", List.of("w1", "w2"), "constant"),
                    node("Gather", "", List.of("x", "i"), "b"),
                    node("Gather", "", List.of("w1", "i"), "fixed"),
                    node("Gather", "", List.of("integers", "ids"), "c"),
                    node("Identity", "", List.of("b"), "y"))
                .addInput(value("ids", DataType.INT64, -1))
                .addInitializer(floats("vector", random, 1, 8))
                .addInitializer(floats("w1", random, 1, 8, 8))
                .addInitializer(floats("w2", random, 1, 8, 8))
                .addInitializer(OnnxInitializer.int64s("i", new long[] {1}, 0).message())
                .addInitializer(
                    OnnxInitializer.int64s("integers", new long[] {1, 2}, 0, 1).message()));
    assertEquals(List.of(), found.stream().map(OnnxWeight::name).toList());
  }

  /** Branches have constants of their own, and read those of the graph around them. */
  @Test
  void matricesOfBranchesAreWeights() {
    GraphProto.Builder branch =
        GraphProto.newBuilder()
            .setName("branch")
            .addInitializer(floats("inner", random, 1, 8, 8))
            .addNode(node("MatMul", "", List.of("h", "outer"), "o"))
            .addNode(node("MatMul", "", List.of("o", "both"), "p"))
            .addNode(node("MatMul", "", List.of("p", "inner"), "q"))
            .addNode(node("Add", "", List.of("q", "bias"), "z"))
            .addOutput(value("z", DataType.FLOAT, -1, 8));
    GraphProto.Builder g =
        graph(
                node("MatMul", "", List.of("x", "both"), "h"),
                SmallModels.choice("choice", "c", "y", branch))
            .addInput(value("c", DataType.BOOL))
            .addInitializer(floats("outer", random, 1, 8, 8))
            .addInitializer(floats("both", random, 1, 8, 8))
            .addInitializer(floats("bias", random, 1, 8));
    OnnxModel model = OnnxModel.of(SmallModels.model(13, g), "test");
    List<OnnxWeight> found = OnnxWeights.of(model);
    assertEquals(
        List.of("both", "outer", "inner", "inner_1"),
        found.stream().map(OnnxWeight::name).toList());
    assertEquals(List.of(3, 2, 1, 1), found.stream().map(w -> w.uses().size()).toList());
    assertEquals(List.of(0, 0, 0, 0), found.stream().map(OnnxWeight::otherUses).toList());
    assertTrue(OnnxWeights.outOfReach(model).isEmpty());
  }

  /** What a loop hands to its body goes by another name there. */
  @Test
  void matricesThatLoopsHandToTheirBodiesAreTold() {
    GraphProto.Builder body =
        GraphProto.newBuilder()
            .setName("body")
            .addInput(value("i", DataType.INT64))
            .addInput(value("go", DataType.BOOL))
            .addInput(value("carried", DataType.FLOAT, 8, 8))
            .addNode(node("Identity", "", List.of("go"), "on"))
            .addNode(node("MatMul", "", List.of("carried", "carried"), "next"))
            .addOutput(value("on", DataType.BOOL))
            .addOutput(value("next", DataType.FLOAT, 8, 8));
    NodeProto loop =
        node("Loop", "", List.of("n", "", "w"), "s").toBuilder()
            .addAttribute(
                AttributeProto.newBuilder()
                    .setName("body")
                    .setType(AttributeProto.AttributeType.GRAPH)
                    .setG(body))
            .build();
    GraphProto.Builder g =
        graph(loop, node("MatMul", "", List.of("x", "s"), "y"))
            .addInitializer(OnnxInitializer.int64s("n", new long[0], 2).message())
            .addInitializer(floats("w", random, 1, 8, 8));
    assertEquals(
        "1 float matrix stays as it is, read by Loop",
        OnnxWeights.outOfReach(OnnxModel.of(SmallModels.model(13, g), "loop")).orElseThrow());
  }

  /** What a body is fed, or has no name, is no constant: a missing bias would be one. */
  @Test
  void onlyConstantsOfBranchesAreConstants() {
    GraphProto.Builder branch =
        GraphProto.newBuilder()
            .setName("branch")
            .addInput(value("fed", DataType.FLOAT, 8, 8))
            .addInitializer(floats("fed", random, 1, 8, 8))
            .addInitializer(floats("", random, 1, 8, 8))
            .addInitializer(floats("own", random, 1, 8, 8))
            .addNode(node("MatMul", "", List.of("x", "fed"), "o"))
            .addNode(node("Gemm", "", List.of("o", "own", ""), "z"))
            .addOutput(value("z", DataType.FLOAT, -1, 8));
    GraphProto.Builder g =
        graph(SmallModels.choice("choice", "c", "y", branch)).addInput(value("c", DataType.BOOL));
    OnnxModel model = OnnxModel.of(SmallModels.model(13, g), "test");
    assertNull(model.constant(""));
    assertNull(model.constant("fed"));
    assertEquals(
        List.of("own", "own_1"), OnnxWeights.of(model).stream().map(OnnxWeight::name).toList());
  }

  /** As deep as a message may be, each level with a weight of the same name. */
  @Test
  void weightsOfNestedBranchesAreFound() {
    int depth = 30;
    NodeProto inner = node("Relu", "", List.of("x"), "z");
    for (int level = 0; level < depth; level++) {
      GraphProto.Builder branch =
          GraphProto.newBuilder()
              .setName("branch")
              .addInitializer(floats("w", random, 1, 8, 8))
              .addNode(inner)
              .addNode(node("MatMul", "", List.of("z", "w"), "m"))
              .addOutput(value("m", DataType.FLOAT, -1, 8));
      inner =
          node("If", "", List.of("c"), "z").toBuilder()
              .addAttribute(
                  AttributeProto.newBuilder()
                      .setName("then_branch")
                      .setType(AttributeProto.AttributeType.GRAPH)
                      .setG(branch))
              .build();
    }
    GraphProto.Builder g =
        graph(inner, node("Identity", "", List.of("z"), "y")).addInput(value("c", DataType.BOOL));
    byte[] bytes = SmallModels.model(13, g).toByteArray();
    ByteBuffer direct = ByteBuffer.allocateDirect(bytes.length).put(bytes).flip();
    OnnxModel model = OnnxModel.read(direct, "nested");
    List<OnnxWeight> found = OnnxWeights.of(model);
    assertEquals(depth, found.size());
    assertEquals(depth, found.stream().map(OnnxWeight::value).distinct().count());
    OnnxWeight last = found.get(depth - 1);
    model.replaceConstant(OnnxInitializer.floats(last.value(), new long[] {8, 8}, new float[64]));
    OnnxModel again = OnnxModel.of(model.toProto(), "again");
    assertEquals(0, again.constant(last.value()).floats().get(63));
    assertTrue(again.constant(found.get(0).value()).floats().get(63) != 0);
  }

  @Test
  void matricesOfOperatorsThatAreNotLookedIntoAreTold() {
    NodeProto einsum =
        node("Einsum", "", List.of("x", "w"), "e", SmallModels.text("equation", "bi,ij->bj"));
    NodeProto fused =
        node("FusedMatMul", "", List.of("e", "v"), "y").toBuilder()
            .setDomain("com.microsoft")
            .build();
    GraphProto.Builder g =
        graph(einsum, fused)
            .addInitializer(floats("w", random, 1, 8, 8))
            .addInitializer(floats("v", random, 1, 8, 8));
    assertEquals(
        "2 float matrices stay as they are, read by Einsum, FusedMatMul",
        OnnxWeights.outOfReach(OnnxModel.of(SmallModels.model(13, g), "test")).orElseThrow());
    OnnxModel plain = OnnxModel.of(SmallModels.cnn(), "cnn");
    assertTrue(OnnxWeights.outOfReach(plain).isEmpty());
  }
}

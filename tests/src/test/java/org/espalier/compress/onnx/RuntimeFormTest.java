package org.espalier.compress.onnx;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertSame;

import ai.onnx.proto.OnnxMl.GraphProto;
import ai.onnx.proto.OnnxMl.NodeProto;
import ai.onnx.proto.OnnxMl.TensorProto.DataType;
import java.nio.FloatBuffer;
import java.util.ArrayList;
import java.util.List;
import org.espalier.format.onnx.Attributes;
import org.espalier.format.onnx.OnnxInitializer;
import org.espalier.format.onnx.OnnxModel;
import org.espalier.format.onnx.SmallModels;
import org.junit.jupiter.api.Test;

/** Which matrices behind a Transpose are turned. */
class RuntimeFormTest {
  private static final int OUT = 70;
  private static final int IN = 130;

  /** Neither side is whole tiles. */
  private static OnnxInitializer matrix() {
    float[] values = new float[OUT * IN];
    for (int i = 0; i < values.length; i++) {
      values[i] = i;
    }
    return OnnxInitializer.floats("w", new long[] {OUT, IN}, values);
  }

  private static OnnxModel model(List<String> outputs, NodeProto... nodes) {
    GraphProto.Builder g = GraphProto.newBuilder().setName("g");
    g.addInput(SmallModels.value("x", DataType.FLOAT, -1, IN));
    g.addInput(SmallModels.value("y", DataType.FLOAT, IN, 4));
    g.addInitializer(matrix().message()).addAllNode(List.of(nodes));
    outputs.forEach(o -> g.addOutput(SmallModels.value(o, DataType.FLOAT, -1, -2)));
    return OnnxModel.of(SmallModels.model(17, g), "turned");
  }

  private static NodeProto node(String op, String output, String... inputs) {
    return Nodes.node(op, output, inputs).build();
  }

  private static NodeProto turn(long... order) {
    NodeProto.Builder n = Nodes.node("Transpose", "t", "w");
    if (order.length > 0) {
      n.addAttribute(Attributes.attribute("perm", order));
    }
    return n.build();
  }

  @Test
  void matricesThatProductsReadAreTurned() {
    for (NodeProto turn : new NodeProto[] {turn(1, 0), turn()}) {
      NodeProto[] nodes = {turn, node("MatMul", "a", "x", "t"), node("MatMul", "b", "x", "t")};
      OnnxModel model = model(List.of("a", "b"), nodes);
      RuntimeForm.turnMatrices(model);
      List<List<String>> read = new ArrayList<>();
      model.nodes().forEach(n -> read.add(n.getInputList()));
      assertEquals(List.of(List.of("x", "w"), List.of("x", "w")), read);
      OnnxInitializer w = model.initializer("w");
      assertEquals(List.of((long) IN, (long) OUT), List.of(w.dims()[0], w.dims()[1]));
      FloatBuffer values = w.floats();
      for (int i = 0; i < IN; i++) {
        for (int o = 0; o < OUT; o++) {
          assertEquals(o * IN + i, values.get(i * OUT + o));
        }
      }
    }
  }

  /** What others read as it was, or what is given out, stays. */
  @Test
  void otherMatricesStay() {
    assertStays(
        List.of("a", "b"), turn(1, 0), node("MatMul", "a", "x", "t"), node("Neg", "b", "w"));
    assertStays(
        List.of("a", "b"), turn(1, 0), node("MatMul", "a", "x", "t"), node("Neg", "b", "t"));
    assertStays(List.of("a", "t"), turn(1, 0), node("MatMul", "a", "x", "t"));
    assertStays(List.of("a", "w"), turn(1, 0), node("MatMul", "a", "x", "t"));
    assertStays(List.of("a"), turn(1, 0), node("MatMul", "a", "t", "z"), node("Neg", "z", "y"));
    assertStays(List.of("a"), turn(0, 1), node("Neg", "a", "t"));
    assertStays(
        List.of("a"), turn(1, 0), node("Transpose", "s", "t"), node("MatMul", "a", "x", "t"));
  }

  private static void assertStays(List<String> outputs, NodeProto... nodes) {
    List<NodeProto> sorted = new ArrayList<>(List.of(nodes));
    sorted.sort((a, b) -> Boolean.compare(b.getOutput(0).equals("z"), a.getOutput(0).equals("z")));
    OnnxModel model = model(outputs, sorted.toArray(NodeProto[]::new));
    OnnxInitializer before = model.initializer("w");
    RuntimeForm.turnMatrices(model);
    assertSame(before, model.initializer("w"));
    assertEquals(sorted, model.nodes());
  }
}

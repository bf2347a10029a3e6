package org.espalier.compress.onnx;

import static org.espalier.format.onnx.SmallModels.attribute;
import static org.espalier.format.onnx.SmallModels.floats;
import static org.espalier.format.onnx.SmallModels.list;
import static org.espalier.format.onnx.SmallModels.node;
import static org.espalier.format.onnx.SmallModels.value;
import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertTrue;

import ai.onnx.proto.OnnxMl.AttributeProto;
import ai.onnx.proto.OnnxMl.GraphProto;
import ai.onnx.proto.OnnxMl.ModelProto;
import ai.onnx.proto.OnnxMl.NodeProto;
import ai.onnx.proto.OnnxMl.TensorProto.DataType;
import ai.onnxruntime.OnnxTensor;
import ai.onnxruntime.OrtException;
import java.nio.ByteBuffer;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.Random;
import java.util.Set;
import org.espalier.evaluate.ConstantRuntime;
import org.espalier.format.onnx.OnnxModel;
import org.espalier.format.onnx.OnnxWeight;
import org.espalier.format.onnx.OnnxWeights;
import org.espalier.format.onnx.SmallModels;
import org.junit.jupiter.api.Test;

class ComputedWeightsTest {
  private final Random random = new Random(12);

  private static ComputedWeights.Result fold(OnnxModel model) {
    return ComputedWeights.fold(model, new ConstantRuntime());
  }

  private static float[] run(OnnxModel model) throws OrtException {
    try (OnnxTensor x = RuntimeRuns.normal(new Random(13), 2, 4, 8)) {
      return RuntimeRuns.first(model, Map.of("x", x));
    }
  }

  private GraphProto.Builder graph(NodeProto... nodes) {
    return GraphProto.newBuilder()
        .setName("g")
        .addInput(value("x", DataType.FLOAT, -1, 4, 8))
        .addAllNode(List.of(nodes))
        .addOutput(value("y", DataType.FLOAT, -1, -1, -1));
  }

  private static OnnxModel model(GraphProto.Builder g) {
    return OnnxModel.of(SmallModels.model(13, g), "computed");
  }

  /** g · v / ‖v‖, with the norm over all axes but the first, as PyTorch exports weight_norm. */
  private static NodeProto[] normalized(String suffix) {
    return new NodeProto[] {
      node(
          "ReduceL2",
          "",
          List.of("v" + suffix),
          "norm" + suffix,
          list("axes", 1, 2),
          attribute("keepdims", 1)),
      node("Div", "", List.of("v" + suffix, "norm" + suffix), "unit" + suffix),
      node("Mul", "", List.of("unit" + suffix, "g" + suffix), "w" + suffix),
    };
  }

  /** A Conv with weight normalization, then a product with a low-rank change, both seen as weights afterwards. */
  @Test
  void weightNormAndLowRankChangesBecomeWeights() throws OrtException {
    GraphProto.Builder g =
        graph(normalized(""))
            .addNode(node("Conv", "/encoder/conv/Conv", List.of("x", "w"), "c", list("pads", 1, 1)))
            .addNode(node("MatMul", "", List.of("down", "up"), "change"))
            .addNode(node("Add", "", List.of("base", "change"), "changed"))
            .addNode(node("Transpose", "", List.of("changed"), "turned", list("perm", 1, 0)))
            .addNode(node("MatMul", "/head/MatMul", List.of("c", "turned"), "y"))
            .addInitializer(floats("v", random, 1, 6, 4, 3))
            .addInitializer(floats("g", random, 1, 6, 1, 1))
            .addInitializer(floats("base", random, 1, 5, 8))
            .addInitializer(floats("down", random, 1, 5, 2))
            .addInitializer(floats("up", random, 1, 2, 8));
    OnnxModel model = model(g);
    float[] expected = run(model);
    assertEquals(List.of(), OnnxWeights.of(model).stream().map(OnnxWeight::name).toList());
    ComputedWeights.Result result = fold(model);
    assertEquals(List.of("encoder.conv.weight", "head.weight"), result.computed());
    assertEquals(0, result.left());
    assertArrayEquals(expected, run(model));
    assertArrayEquals(new long[] {6, 4, 3}, model.initializer("onnx::w").dims());
    assertArrayEquals(new long[] {8, 5}, model.initializer("onnx::turned").dims());
    assertEquals(2, model.initializers().size(), "what made them is left");
    new DynamicQuantizer(model, DynamicQuantizer.Options.defaults()).apply();
    assertTrue(model.nodes().stream().anyMatch(n -> n.getOpType().equals("MatMulInteger")));
  }

  @Test
  void weightsOfBranchesAreComputedOnce() throws OrtException {
    GraphProto.Builder branch =
        GraphProto.newBuilder()
            .setName("branch")
            .addInitializer(floats("v_in", random, 1, 4, 4, 3))
            .addNode(
                node("Constant", "", List.of(), "g_in").toBuilder()
                    .addAttribute(
                        AttributeProto.newBuilder()
                            .setName("value_float")
                            .setType(AttributeProto.AttributeType.FLOAT)
                            .setF(0.5f)))
            .addAllNode(List.of(normalized("_in")))
            .addNode(node("Conv", "/in/Conv", List.of("x", "w_in"), "z"))
            .addOutput(value("z", DataType.FLOAT, -1, 4, -1));
    GraphProto.Builder g =
        graph(SmallModels.choice("choice", "condition", "y", branch))
            .addInitializer(
                SmallModels.tensor("condition", DataType.BOOL, ByteBuffer.wrap(new byte[] {1})));
    OnnxModel model = model(g);
    float[] expected = run(model);
    // Both branches compute the same.
    assertEquals(List.of("in.weight"), fold(model).computed());
    assertEquals(2, OnnxWeights.of(model).get(0).uses().size());
    assertArrayEquals(expected, run(model));
    assertEquals(
        Set.of("If", "Conv"),
        Set.copyOf(model.allNodes().stream().map(NodeProto::getOpType).toList()));
  }

  /** A few bytes may ask for any amount of memory, and some operators are not carried out here. */
  @Test
  void whatCannotBeComputedStaysAndIsTold() {
    List<GraphProto.Builder> graphs =
        List.of(
            graph(
                    node("ConstantOfShape", "", List.of("shape"), "w"),
                    node("MatMul", "", List.of("x", "w"), "y"))
                .addInitializer(SmallModels.int64s("shape", 8, 1L << 40)),
            graph(
                    node("Mul", "", List.of("column", "row"), "w"),
                    node("MatMul", "", List.of("x", "w"), "y"))
                .addInitializer(floats("column", random, 1, 1 << 15, 1))
                .addInitializer(floats("row", random, 1, 1, 1 << 15)),
            graph(node("Celu", "", List.of("v"), "w"), node("MatMul", "", List.of("x", "w"), "y"))
                .addInitializer(floats("v", random, 1, 8, 8)),
            graph(
                    node("Reshape", "", List.of("v", "nonsense"), "w"),
                    node("MatMul", "", List.of("x", "w"), "y"))
                .addInitializer(SmallModels.int64s("nonsense", 3, 3))
                .addInitializer(floats("v", random, 1, 8, 8)));
    List<String> operators = List.of("ConstantOfShape", "Mul", "Celu", "Reshape");
    for (int k = 0; k < graphs.size(); k++) {
      OnnxModel model = model(graphs.get(k));
      ModelProto before = model.toProto();
      ComputedWeights.Result result = fold(model);
      assertEquals(List.of(), result.computed());
      assertEquals(1, result.left(), operators.get(k));
      assertEquals(Set.of(operators.get(k)), result.operators());
      assertEquals(before, model.toProto());
    }
  }

  @Test
  void otherModelsStayAsTheyAre() {
    for (ModelProto proto :
        List.of(SmallModels.mlp(), SmallModels.cnn(), SmallModels.recurrent())) {
      OnnxModel model = OnnxModel.of(proto, "plain");
      ModelProto before = model.toProto();
      ComputedWeights.Result result =
          ComputedWeights.fold(
              model,
              (excerpt, values) -> {
                throw new AssertionError("nothing is to be computed");
              });
      assertEquals(new ComputedWeights.Result(List.of(), 0, Set.of()), result);
      assertEquals(before, model.toProto());
    }
  }

  /** Random values are no constants, and int8 weights of quantized models are to stay int8. */
  @Test
  void randomAndQuantizedWeightsAreNotTouched() {
    OnnxModel noise =
        model(
            graph(
                node("RandomNormal", "", List.of(), "w", list("shape", 8, 8)),
                node("MatMul", "", List.of("x", "w"), "y")));
    assertEquals(new ComputedWeights.Result(List.of(), 0, Set.of()), fold(noise));
    OnnxModel quantized = OnnxModel.of(SmallModels.mlp(), "quantized");
    StaticQuantizer quantizer = new StaticQuantizer(quantized, StaticQuantizer.Options.defaults());
    Map<String, ActivationRange> ranges = new HashMap<>();
    quantizer.activations().forEach(a -> ranges.put(a, new ActivationRange(-8, 8)));
    quantizer.apply(ranges);
    assertEquals(new ComputedWeights.Result(List.of(), 0, Set.of()), fold(quantized));
  }
}

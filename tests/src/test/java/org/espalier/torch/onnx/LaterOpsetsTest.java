package org.espalier.torch.onnx;

import static org.espalier.format.onnx.SmallModels.real;
import static org.espalier.torch.onnx.NodeCases.PROBLEMS;
import static org.espalier.torch.onnx.NodeCases.bools;
import static org.espalier.torch.onnx.NodeCases.floats;
import static org.espalier.torch.onnx.NodeCases.integer;
import static org.espalier.torch.onnx.NodeCases.integers;
import static org.espalier.torch.onnx.NodeCases.ints;
import static org.espalier.torch.onnx.NodeCases.longs;
import static org.espalier.torch.onnx.NodeCases.model;
import static org.espalier.torch.onnx.NodeCases.node;
import static org.espalier.torch.onnx.NodeCases.same;
import static org.espalier.torch.onnx.NodeCases.text;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import ai.onnx.proto.OnnxMl.AttributeProto;
import ai.onnx.proto.OnnxMl.NodeProto;
import com.google.protobuf.ByteString;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import org.bytedeco.javacpp.PointerScope;
import org.bytedeco.pytorch.AbstractTensor;
import org.bytedeco.pytorch.Scalar;
import org.bytedeco.pytorch.Tensor;
import org.bytedeco.pytorch.TensorOptions;
import org.bytedeco.pytorch.global.torch;
import org.bytedeco.pytorch.global.torch.ScalarType;
import org.espalier.InputException;
import org.espalier.format.onnx.OnnxModel;
import org.espalier.torch.Libtorch;
import org.espalier.torch.TorchDevice;
import org.junit.jupiter.api.BeforeAll;
import org.junit.jupiter.api.Test;

/**
 * What operator sets 18 to 22 changed or added, one node a case, against ONNX Runtime; and what the
 * table refuses.
 */
class LaterOpsetsTest {
  @BeforeAll
  static void load() {
    Libtorch.load();
    torch.manual_seed(11);
  }

  @Test
  void theyAgreeWithOnnxRuntime() {
    PROBLEMS.clear();
    try (PointerScope scope = new PointerScope()) {
      for (String op :
          List.of(
              "ReduceMean",
              "ReduceMax",
              "ReduceMin",
              "ReduceProd",
              "ReduceL1",
              "ReduceL2",
              "ReduceSumSquare",
              "ReduceLogSumExp",
              "ReduceSum")) {
        same(18, node(op), floats(2, 3, 4), longs(1));
        same(18, node(op, integer("keepdims", 0)), floats(2, 3, 4), longs(-1, 0));
        same(18, node(op, integer("noop_with_empty_axes", 1)), floats(2, 3), longs());
        same(21, node(op), floats(2, 3, 4));
      }
      same(18, node("ReduceLogSum"), torch.rand(2, 3, 4), longs(2));
      same(18, node("ReduceLogSum", integer("noop_with_empty_axes", 1)), torch.rand(2, 3), longs());
      same(18, node("ReduceSumSquare", integer("noop_with_empty_axes", 1)), floats(2, 3));
      same(18, node("ReduceL2", integer("noop_with_empty_axes", 1)), floats(2, 3), longs(1));
      same(18, node("Split", integer("num_outputs", 3), integer("axis", 1)), 3, floats(2, 7));
      same(18, node("Split", integer("axis", 0)), 2, floats(5, 3), longs(2, 3));
      same(18, node("Pad"), floats(2, 3), longs(1, 2), null, longs(1));
      same(19, node("Pad", text("mode", "wrap")), floats(3, 4), longs(1, 2, 2, 1));
      same(18, node("Pad", text("mode", "reflect")), floats(3, 4), longs(0, 2, 1, 1));
      same(21, node("Pad", text("mode", "edge")), floats(3, 4), longs(1, 2, 2, 1));
      for (String reduction : List.of("none", "add", "mul", "max", "min")) {
        same(
            18,
            node("ScatterElements", text("reduction", reduction), integer("axis", 1)),
            floats(2, 5),
            AbstractTensor.create(new long[] {0, 3, -1, 2}, 2, 2),
            floats(2, 2));
        same(
            18,
            node("ScatterND", text("reduction", reduction)),
            floats(4, 3, 2),
            AbstractTensor.create(new long[] {3, 1, 0, 2}, 2, 2),
            floats(2, 2));
      }
      same(18, node("Mish"), floats(3, 4));
      same(18, node("LpNormalization", integer("p", 1)), floats(3, 4));
      same(18, node("LpNormalization", integer("axis", 0)), floats(3, 4));
      same(18, node("BitwiseAnd"), ints(12, 10, -3), ints(10, 7, 5));
      same(18, node("BitwiseOr"), ints(12, 10, -3), ints(10, 7, 5));
      same(18, node("BitwiseXor"), ints(12, 10, -3), ints(10, 7, 5));
      same(18, node("BitwiseNot"), ints(12, 10, -3));
      same(
          21,
          node("GroupNormalization", integer("num_groups", 2), real("epsilon", 1e-3f)),
          floats(2, 6, 5),
          floats(6),
          floats(6));
      same(
          18,
          node(
              "LpPool", integers("kernel_shape", 2, 2), integers("strides", 2, 2), integer("p", 2)),
          floats(1, 2, 6, 6));
      same(
          19,
          node(
              "AveragePool",
              integers("kernel_shape", 3, 3),
              integers("strides", 2, 2),
              integers("pads", 1, 1, 1, 1),
              integer("ceil_mode", 1)),
          floats(1, 2, 7, 7));
      same(
          18,
          node("Resize", text("mode", "linear"), integers("axes", 2, 3)),
          floats(1, 2, 4, 4),
          null,
          null,
          longs(7, 6));
      same(
          19,
          node(
              "Resize",
              text("mode", "cubic"),
              text("coordinate_transformation_mode", "half_pixel")),
          floats(1, 2, 4, 5),
          null,
          AbstractTensor.create(1f, 1f, 2f, 1.6f));
      same(
          18,
          node(
              "Resize",
              text("mode", "nearest"),
              text("keep_aspect_ratio_policy", "not_larger"),
              integers("axes", 2, 3)),
          floats(1, 1, 4, 5),
          null,
          null,
          longs(8, 9));
      same(20, node("Gelu"), floats(3, 4));
      same(20, node("Gelu", text("approximate", "tanh")), floats(3, 4));
      Tensor infinite = AbstractTensor.create(1f, Float.POSITIVE_INFINITY, Float.NaN, -1f / 0);
      same(20, node("IsInf", integer("detect_negative", 0)), infinite);
      same(20, node("IsNaN"), infinite);
      same(20, node("ReduceMax"), bools(3, 4), longs(1));
      same(20, node("ReduceMin"), bools(3, 4), longs(0));
      same(
          20,
          node("GridSample", text("mode", "linear"), text("padding_mode", "border")),
          floats(1, 2, 4, 4),
          torch.rand(1, 3, 3, 2).mul(new Scalar(2)).sub(new Scalar(1)));
      same(20, node("ConstantOfShape"), longs(2, 3));
      same(19, node("Cast", integer("to", 6)), floats(3, 4).mul(new Scalar(5)));
      same(21, node("Cast", integer("to", 10)), floats(3, 4));
      same(19, node("Equal"), bools(3, 4), bools(3, 4));
      same(19, node("Reshape", integer("allowzero", 1)), floats(0, 3), longs(3, 0));
      same(21, node("Reshape"), floats(2, 6), longs(0, 3, -1));
      same(21, node("Shape", integer("start", 1), integer("end", -1)), floats(2, 3, 4, 5));
      same(21, node("Size"), floats(2, 3));
      same(21, node("Transpose", integers("perm", 1, 0)), floats(2, 3));
      same(21, node("Flatten", integer("axis", -1)), floats(2, 3, 4));
      same(21, node("Squeeze"), floats(2, 1, 4), longs(1));
      same(21, node("Unsqueeze"), floats(2, 4), longs(0, -1));
      same(21, node("Identity"), floats(2, 4));
      Tensor scale = AbstractTensor.create(0.1f);
      same(
          19,
          node("QuantizeLinear"),
          floats(3, 4),
          scale.reshape(new long[0]),
          torch.zeros(new long[0], new TensorOptions(ScalarType.Char)));
      same(
          21,
          node("QuantizeLinear", integer("output_dtype", 3)),
          floats(3, 4),
          scale.reshape(new long[0]));
      same(
          21,
          node("QuantizeLinear", integer("axis", 0)),
          floats(3, 4),
          torch.rand(3).add(new Scalar(0.1)),
          ints(1, 0, -3).to(ScalarType.Short));
      same(
          21,
          node("DequantizeLinear", integer("axis", 1)),
          ints(1, -200, 300, 4, 5, 6).to(ScalarType.Short).reshape(2, 3),
          torch.rand(3).add(new Scalar(0.1)),
          ints(1, 0, -3).to(ScalarType.Short));
      // Set 22 gave many operators bfloat16 and changed nothing else.
      for (String op : List.of("Cos", "Elu", "HardSwish", "Mish", "Round", "Softplus", "Tan")) {
        same(22, node(op), floats(3, 4));
      }
      same(
          22,
          node("Conv", integers("pads", 1, 1, 1, 1)),
          floats(1, 2, 5, 5),
          floats(3, 2, 3, 3),
          floats(3));
      same(
          22,
          node(
              "AveragePool",
              integers("kernel_shape", 3, 3),
              integers("strides", 2, 2),
              integers("pads", 1, 1, 1, 1),
              integer("count_include_pad", 1)),
          floats(1, 2, 7, 7));
      same(
          22,
          node("MaxPool", integers("kernel_shape", 3, 3), integers("strides", 2, 2)),
          floats(1, 2, 7, 7));
      same(
          22,
          node("LSTM", integer("hidden_size", 4)),
          3,
          floats(5, 2, 3),
          floats(1, 16, 3),
          floats(1, 16, 4));
      same(22, node("InstanceNormalization"), floats(2, 3, 5), floats(3), floats(3));
      same(22, node("GlobalAveragePool"), floats(2, 3, 5, 5));
      same(22, node("EyeLike"), floats(3, 4));
      same(
          17,
          node("LayerNormalization", integer("axis", 1)),
          floats(2, 3, 4),
          floats(3, 4),
          floats(3, 4));
      // ONNX Runtime has it in all sets.
      same(14, node("LayerNormalization"), floats(2, 3, 4), floats(4), floats(4));
    }
    assertEquals(List.of(), PROBLEMS);
  }

  @Test
  void whatIsNotSupportedIsRefusedByName() {
    try (PointerScope scope = new PointerScope()) {
      refused("NonMaxSuppression, Unknown", two("Unknown", "NonMaxSuppression", 17));
      refused("Slice of operator set 9", model(9, node("Slice"), 1, floats(2)));
      refused("operator set 27", model(27, node("Relu"), 1, floats(2)));
      refused(
          "antialias = 1",
          model(18, node("Resize", integer("antialias", 1)), 1, floats(2), null, floats(1)));
      refused("the attribute alpha", model(17, node("Relu", real("alpha", 1)), 1, floats(2)));
      refused(
          "the attribute broadcast",
          model(7, node("Add", integer("broadcast", 1)), 1, floats(2), floats(2)));
      refused(
          "mode = 'other'",
          model(17, node("Pad", text("mode", "other")), 1, floats(2), longs(1, 1)));
      refused(
          "activation Softsign",
          model(
              14,
              node(
                  "RNN",
                  AttributeProto.newBuilder()
                      .setName("activations")
                      .setType(AttributeProto.AttributeType.STRINGS)
                      .addStrings(ByteString.copyFromUtf8("Softsign"))
                      .build()),
              1,
              floats(2, 1, 3),
              floats(1, 4, 3),
              floats(1, 4, 4)));
      refused(
          "com.example.Attention",
          model(17, node("Attention").setDomain("com.example"), 1, floats(2)));
    }
  }

  private static OnnxModel two(String first, String second, int opset) {
    OnnxModel m = model(opset, node(first), 1, floats(2));
    List<NodeProto> nodes = new ArrayList<>(m.nodes());
    nodes.add(node(second).addInput("o0").addOutput("p").build());
    m.setNodes(nodes);
    return m;
  }

  private static void refused(String part, OnnxModel model) {
    String message =
        assertThrows(
                InputException.class, () -> new Program(model, Map.of(), TorchDevice.CPU).close())
            .getMessage();
    assertTrue(message.contains(part), message);
  }

  @Test
  void aFailureNamesTheNodeAndItsInputs() {
    try (PointerScope scope = new PointerScope();
        Program program =
            new Program(
                model(17, node("MatMul").setName("/a/MatMul"), 1, floats(2, 3), floats(2, 3)),
                Map.of(),
                TorchDevice.CPU)) {
      String message =
          assertThrows(
                  InputException.class,
                  () -> program.run(Map.of("i0", floats(2, 3), "i1", floats(2, 3)), false))
              .getMessage();
      assertTrue(message.contains("/a/MatMul"), message);
      assertTrue(message.contains("(Float[2, 3], Float[2, 3])"), message);
      assertTrue(!message.contains("\n"), message);
    }
  }

  /** 70000 · 70001 is more than an int holds: what is left of it there is a size that memory has. */
  @Test
  void anAxisThatIsTooLongToResizeIsRefused() {
    try (PointerScope scope = new PointerScope()) {
      for (String mode : List.of("linear", "nearest")) {
        long to = mode.equals("linear") ? 70001 : 1L << 31;
        Map<String, Tensor> inputs = Map.of("i0", floats(1, 70000), "i3", longs(to));
        NodeProto.Builder resize = node("Resize", text("mode", mode), integers("axes", 1));
        OnnxModel model = model(18, resize, 1, inputs.get("i0"), null, null, inputs.get("i3"));
        try (Program program = new Program(model, Map.of(), TorchDevice.CPU)) {
          String message =
              assertThrows(InputException.class, () -> program.run(inputs, false)).getMessage();
          assertTrue(message.contains("axis 1 of 70000 elements cannot become"), message);
          assertTrue(message.contains("at most 268435456"), message);
        }
      }
    }
  }
}

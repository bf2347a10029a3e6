package org.espalier.compress.onnx;

import static org.espalier.compress.onnx.RuntimeRuns.firstOfNodes;
import static org.espalier.compress.onnx.RuntimeRuns.normal;
import static org.espalier.format.onnx.SmallModels.attribute;
import static org.espalier.format.onnx.SmallModels.node;
import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import ai.onnx.proto.OnnxMl.ModelProto;
import ai.onnx.proto.OnnxMl.NodeProto;
import ai.onnx.proto.OnnxMl.TensorProto.DataType;
import ai.onnxruntime.OnnxTensor;
import ai.onnxruntime.OrtException;
import java.nio.ByteBuffer;
import java.nio.FloatBuffer;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.Random;
import java.util.Set;
import org.espalier.InputException;
import org.espalier.format.onnx.OnnxInitializer;
import org.espalier.format.onnx.OnnxModel;
import org.espalier.format.onnx.SmallModels;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.MethodSource;

/** int8 models as models of floats, checked in ONNX Runtime, and back. */
class Int8ModelTest {
  private static OnnxTensor input(long... dims) throws OrtException {
    return normal(new Random(1), dims);
  }

  private static OnnxModel fixed(ModelProto proto, OnnxTensor x) {
    return RuntimeRuns.fixed(proto, StaticQuantizer.Options.defaults(), List.of(Map.of("x", x)));
  }

  private static OnnxModel dynamic(ModelProto proto, WeightIntegers weights) {
    OnnxModel model = OnnxModel.of(proto, "dynamic");
    new DynamicQuantizer(model, new DynamicQuantizer.Options(weights, true, w -> true)).apply();
    return model;
  }

  private static float[] run(OnnxModel model, OnnxTensor x) throws OrtException {
    return firstOfNodes(model, Map.of("x", x));
  }

  private static Set<String> operators(OnnxModel model) {
    return RuntimeRuns.operators(model).keySet();
  }

  private static Map<String, float[]> values(Int8Model integers) {
    OnnxModel floats = integers.floats();
    Map<String, float[]> values = new HashMap<>();
    for (String name : integers.integers().keySet()) {
      FloatBuffer from = floats.constant(name).floats();
      float[] value = new float[from.remaining()];
      from.get(value);
      values.put(name, value);
    }
    return values;
  }

  /** Sums of products of integers are exact, of their floats nearly: 1e-5 of outputs of some units. */
  private static void answersTheSame(OnnxModel model, OnnxTensor x) throws OrtException {
    assertTrue(Int8Model.is(model));
    Int8Model integers = Int8Model.of(model);
    assertEquals(List.of(), integers.resting());
    assertArrayEquals(run(model, x), run(integers.floats(), x), 1e-5f);
    assertEquals(model.toBuffer(), integers.withValues(values(integers)).toBuffer());
    assertEquals(model.toBuffer(), integers.withValues(Map.of()).toBuffer());
  }

  @ParameterizedTest
  @MethodSource("org.espalier.ExactProducts#weights")
  void dynamicProductsBecomeProductsOfFloats(WeightIntegers weights) throws OrtException {
    OnnxTensor x = input(5, 8);
    OnnxModel model = dynamic(SmallModels.mlp(), weights);
    assertFalse(Int8Model.is(OnnxModel.of(SmallModels.mlp(), "floats")));
    answersTheSame(model, x);
    Int8Model integers = Int8Model.of(model);
    assertEquals(
        Set.of("Add", "DequantizeLinear", "DynamicQuantizeLinear", "MatMul", "Relu"),
        operators(integers.floats()));
    assertEquals(Set.of("w", "w2_transposed"), integers.integers().keySet());
    assertEquals(1, integers.integers().get("w").axis());
    assertEquals(6, integers.integers().get("w").scales().length);
    assertEquals(weights.type(), integers.integers().get("w").type());
    assertEquals(Byte.toUnsignedInt(weights.zeroPoint()), integers.integers().get("w").zero());
    OnnxModel signed = dynamic(SmallModels.mlp(), WeightIntegers.INT8);
    assertArrayEquals(
        values(Int8Model.of(signed)).get("w2_transposed"), values(integers).get("w2_transposed"));
  }

  @Test
  void convolutionsWithFixedRangesBecomeThoseOfFloats() throws OrtException {
    OnnxTensor x = input(4, 3, 16, 16);
    OnnxModel model = fixed(SmallModels.cnn(), x);
    answersTheSame(model, x);
    Int8Model integers = Int8Model.of(model);
    assertEquals(DataType.INT8, integers.integers().get("conv1.weight").type());
    assertEquals(0, integers.integers().get("conv1.weight").axis());
    assertEquals(DataType.INT32, integers.integers().get("fc.bias").type());
    assertEquals(7, integers.integers().size());
    assertTrue(operators(integers.floats()).contains("QuantizeLinear"));
  }

  /** In place of integers floats near them, which the model rounds: the same answers, and the same model of floats. */
  @Test
  void weightsThatTheModelRoundsAreThoseOfIntegers() throws OrtException {
    OnnxTensor x = input(4, 3, 16, 16);
    OnnxModel model = fixed(SmallModels.cnn(), x);
    Int8Model integers = Int8Model.of(model);
    OnnxModel rounding = model.copy();
    List<NodeProto> nodes = new ArrayList<>();
    Random random = new Random(7);
    Map<String, float[]> expected = values(integers);
    for (NodeProto n : model.nodes()) {
      String name = n.getInput(0).replaceFirst("_quantized$", "");
      Int8Model.Integers grid = integers.grid(name);
      if (!n.getOpType().equals("DequantizeLinear") || grid == null) {
        nodes.add(n);
        continue;
      }
      float[] floats = expected.get(name).clone();
      int inner = grid.axis() == 0 ? floats.length / grid.scales().length : 1;
      for (int i = 0; i < floats.length; i++) {
        floats[i] +=
            (random.nextFloat() - 0.5f) * 0.9f * grid.scales()[i / inner % grid.scales().length];
      }
      rounding.addInitializer(
          OnnxInitializer.floats(
              name + ".floats", integers.floats().constant(name).dims(), floats));
      nodes.add(
          n.toBuilder()
              .setOpType("QuantizeLinear")
              .setName(name + ".round")
              .setInput(0, name + ".floats")
              .setOutput(0, name + ".rounded")
              .build());
      nodes.add(n.toBuilder().setInput(0, name + ".rounded").build());
    }
    rounding.setNodes(nodes);
    RuntimeForm.removeUnused(rounding);
    assertArrayEquals(run(model, x), run(rounding, x));
    Int8Model same = Int8Model.of(rounding);
    assertEquals(List.of(), same.resting());
    assertEquals(integers.integers().size(), same.integers().size());
    values(same)
        .forEach(
            (name, value) ->
                assertArrayEquals(expected.get(name.replaceFirst("\\.floats$", "")), value, name));
  }

  /** Halves go to even, and what lies beyond the grid to its end. */
  @Test
  void otherValuesAreRoundedToTheirGrids() throws OrtException {
    OnnxModel model = fixed(SmallModels.cnn(), input(4, 3, 16, 16));
    Int8Model integers = Int8Model.of(model);
    float step = integers.integers().get("fc.weight").scales()[0];
    float[] weight = values(integers).get("fc.weight");
    weight[0] = 3.4f * step;
    weight[1] = -2.5f * step;
    weight[2] = 1000 * step;
    weight[3] = -1000 * step;
    float bias = integers.integers().get("fc.bias").scales()[0];
    float[] biases = values(integers).get("fc.bias");
    biases[0] = 70_000 * bias;
    OnnxModel changed = integers.withValues(Map.of("fc.weight", weight, "fc.bias", biases));
    ByteBuffer bytes = changed.constant("fc.weight_quantized").data();
    ByteBuffer before = model.constant("fc.weight_quantized").data();
    assertEquals(3, bytes.get(0));
    assertEquals(-2, bytes.get(1));
    assertEquals(127, bytes.get(2));
    assertEquals(-128, bytes.get(3));
    for (int i = 4; i < 320; i++) {
      assertEquals(before.get(i), bytes.get(i));
    }
    assertEquals(70_000, changed.constant("fc.bias_quantized").data().getInt(0));
    assertEquals(
        model.constant("fc.weight_scale").data(), changed.constant("fc.weight_scale").data());
    biases[0] = 1e30f;
    String told =
        assertThrows(InputException.class, () -> integers.withValues(Map.of("fc.bias", biases)))
            .getMessage();
    assertTrue(told.contains("1.0E30 of the bias fc.bias has no int32"), told);
  }

  private static String refused(OnnxModel model) {
    return assertThrows(InputException.class, () -> Int8Model.of(model)).getMessage();
  }

  @Test
  void whatCannotBeLearnedIsToldByName() throws OrtException {
    OnnxModel zeros = fixed(SmallModels.cnn(), input(4, 3, 16, 16));
    OnnxInitializer w = zeros.constant("fc.weight_quantized");
    byte[] bytes = new byte[320];
    Arrays.fill(bytes, (byte) 127);
    bytes[7] = -1;
    zeros.replaceConstant(OnnxInitializer.bytes(w.name(), DataType.UINT8, w.dims(), bytes));
    String zero = "";
    for (NodeProto n : zeros.nodes()) {
      zero = n.getInput(0).equals(w.name()) ? n.getInput(2) : zero;
    }
    byte[] of127 = new byte[(int) zeros.constant(zero).elements()];
    Arrays.fill(of127, (byte) 127);
    zeros.replaceConstant(
        OnnxInitializer.bytes(zero, DataType.UINT8, zeros.constant(zero).dims(), of127));
    assertEquals(
        List.of(
            "1 weight stays as it is: integers of 255, beyond the grid ('fc.weight_quantized')"),
        Int8Model.of(zeros).resting());

    OnnxModel unsigned = dynamic(SmallModels.mlp(), WeightIntegers.INT8);
    for (String name : List.of("w_quantized", "w2_transposed_quantized")) {
      OnnxInitializer q = unsigned.constant(name);
      unsigned.replaceConstant(
          OnnxInitializer.bytes(name, DataType.UINT8, q.dims(), new byte[(int) q.elements()]));
    }
    assertTrue(Int8Model.is(unsigned));
    String told = refused(unsigned);
    assertTrue(told.contains("MatMulInteger"), told);
    assertTrue(
        told.contains("2 weights stay as they are: a zero point of 0 in place of 127 or 128"),
        told);

    OnnxModel between = fixed(SmallModels.cnn(), input(4, 3, 16, 16));
    List<NodeProto> nodes = new ArrayList<>(between.nodes());
    int place = 0;
    while (!nodes.get(place).getOpType().equals("QuantizeLinear")) {
      place++;
    }
    String quantized = nodes.get(place).getOutput(0);
    nodes.set(place, nodes.get(place).toBuilder().clearOutput().addOutput("before").build());
    nodes.add(
        place + 1,
        node("Transpose", "turn", List.of("before"), quantized, attribute("perm", 0, 1, 2, 3)));
    between.setNodes(nodes);
    told = refused(between);
    assertTrue(told.contains("Transpose reads the integers before, so no gradient passes"), told);
  }
}

package org.espalier.format.onnx;

import static org.espalier.format.onnx.SmallModels.floats;
import static org.espalier.format.onnx.SmallModels.node;
import static org.espalier.format.onnx.SmallModels.value;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import ai.onnx.proto.OnnxMl.AttributeProto;
import ai.onnx.proto.OnnxMl.GraphProto;
import ai.onnx.proto.OnnxMl.ModelProto;
import ai.onnx.proto.OnnxMl.NodeProto;
import ai.onnx.proto.OnnxMl.OperatorSetIdProto;
import ai.onnx.proto.OnnxMl.TensorProto;
import ai.onnx.proto.OnnxMl.TensorProto.DataType;
import ai.onnx.proto.OnnxMl.TypeProto;
import ai.onnx.proto.OnnxMl.ValueInfoProto;
import ai.onnxruntime.OnnxJavaType;
import ai.onnxruntime.OnnxTensor;
import ai.onnxruntime.OrtEnvironment;
import ai.onnxruntime.OrtException;
import ai.onnxruntime.OrtSession;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.FloatBuffer;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.HashMap;
import java.util.HashSet;
import java.util.List;
import java.util.Map;
import java.util.Random;
import java.util.Set;
import java.util.TreeMap;
import java.util.stream.LongStream;
import org.espalier.InputException;
import org.espalier.compress.onnx.ActivationRange;
import org.espalier.compress.onnx.DynamicQuantizer;
import org.espalier.compress.onnx.RuntimeRuns;
import org.espalier.compress.onnx.StaticQuantizer;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.ValueSource;

/** Models of 16-bit floats compute in float32 afterwards, with the inputs, outputs and answers that they had. */
class HalfPrecisionTest {
  private static final OrtEnvironment ENVIRONMENT = OrtEnvironment.getEnvironment();

  /** Ten bits of fraction a value, and sums of some dozen of them between nodes. */
  private static final double HALF_TOLERANCE = 0.01;

  private static final List<ModelProto> MODELS =
      List.of(SmallModels.mlp(), SmallModels.cnn(), SmallModels.recurrent(), branches());

  /** x·w, by a branch that holds a matrix and captures another and the input, plus a constant output. */
  private static ModelProto branches() {
    Random random = new Random(4);
    GraphProto.Builder branch =
        GraphProto.newBuilder()
            .setName("branch")
            .addInitializer(floats("inner", random, 0.5f, 8, 8))
            .addNode(node("MatMul", "", List.of("h", "outer"), "o"))
            .addNode(node("MatMul", "", List.of("o", "inner"), "p"))
            .addNode(node("Add", "", List.of("p", "x"), "z"))
            .addOutput(value("z", DataType.FLOAT, -1, 8));
    GraphProto.Builder g =
        GraphProto.newBuilder()
            .setName("branches")
            .addInput(value("x", DataType.FLOAT, -1, 8))
            .addInitializer(floats("w", random, 0.5f, 8, 8))
            .addInitializer(floats("outer", random, 0.5f, 8, 8))
            .addInitializer(SmallModels.tensor("c", DataType.BOOL, ByteBuffer.wrap(new byte[] {1})))
            .addNode(node("MatMul", "", List.of("x", "w"), "h"))
            .addNode(SmallModels.choice("choice", "c", "y", branch))
            .addOutput(value("y", DataType.FLOAT, -1, 8))
            .addOutput(value("outer", DataType.FLOAT, 8, 8));
    return SmallModels.model(13, g);
  }

  private static List<float[]> run(OnnxModel model) throws OrtException {
    List<float[]> outputs = new ArrayList<>();
    try (OrtSession session = ENVIRONMENT.createSession(model.toBuffer())) {
      Map<String, OnnxTensor> inputs = new HashMap<>();
      for (ValueInfoProto input : model.inputs()) {
        long[] shape =
            input.getType().getTensorType().getShape().getDimList().stream()
                .mapToLong(d -> d.hasDimValue() ? d.getDimValue() : 5)
                .toArray();
        inputs.put(input.getName(), tensor(input, shape));
      }
      try (OrtSession.Result result = session.run(inputs)) {
        result.forEach(
            e -> {
              FloatBuffer values = ((OnnxTensor) e.getValue()).getFloatBuffer();
              float[] copy = new float[values.remaining()];
              values.get(copy);
              outputs.add(copy);
            });
      } finally {
        inputs.values().forEach(OnnxTensor::close);
      }
    }
    return outputs;
  }

  private static OnnxTensor tensor(ValueInfoProto input, long[] shape) throws OrtException {
    DataType type = DataType.forNumber(input.getType().getTensorType().getElemType());
    Random random = new Random(11);
    float[] values = new float[(int) LongStream.of(shape).reduce(1, (a, b) -> a * b)];
    for (int i = 0; i < values.length; i++) {
      values[i] = (float) random.nextGaussian();
    }
    OnnxInitializer floats = OnnxInitializer.floats("x", shape, values);
    ByteBuffer bytes = (type == DataType.FLOAT ? floats : floats.rounded(type)).data();
    ByteBuffer copy =
        ByteBuffer.allocateDirect(bytes.remaining()).order(ByteOrder.nativeOrder()).put(bytes);
    return OnnxTensor.createTensor(
        ENVIRONMENT, copy.flip(), shape, OnnxJavaType.valueOf(type.name()));
  }

  private static void assertNear(List<float[]> expected, List<float[]> actual, double tolerance) {
    assertEquals(expected.size(), actual.size());
    for (int k = 0; k < expected.size(); k++) {
      double difference = 0;
      double square = 0;
      for (int i = 0; i < expected.get(k).length; i++) {
        difference += Math.pow(expected.get(k)[i] - actual.get(k)[i], 2);
        square += Math.pow(expected.get(k)[i], 2);
      }
      assertTrue(square > 0.01, "the output says nothing");
      double error = Math.sqrt(difference / square);
      assertTrue(error <= tolerance, "output " + k + " differs by " + error);
    }
  }

  /** Types of inputs and outputs, in order. */
  private static List<Integer> types(OnnxModel model) {
    List<Integer> types = new ArrayList<>();
    model.inputs().forEach(v -> types.add(v.getType().getTensorType().getElemType()));
    model.outputs().forEach(v -> types.add(v.getType().getTensorType().getElemType()));
    return types;
  }

  private static Set<String> operators(OnnxModel model) {
    Set<String> operators = new HashSet<>();
    model.allNodes().forEach(n -> operators.add(n.getOpType()));
    return operators;
  }

  @Test
  void everyHalfComesBackAndOtherValuesGoToTheNearest() {
    ByteBuffer all = ByteBuffer.allocateDirect(2 << 16).order(ByteOrder.LITTLE_ENDIAN);
    for (int i = 0; i < 1 << 16; i++) {
      all.putShort(2 * i, (short) i);
    }
    for (DataType type : List.of(DataType.FLOAT16, DataType.BFLOAT16)) {
      OnnxInitializer halves = OnnxInitializer.of("h", type, new long[] {1 << 16}, all);
      FloatBuffer values = halves.asFloat32().floats();
      ByteBuffer back = halves.asFloat32().rounded(type).data();
      for (int i = 0; i < 1 << 16; i++) {
        if (!Float.isNaN(values.get(i))) {
          assertEquals((short) i, back.getShort(2 * i), "of " + values.get(i));
        }
      }
      // Between neighbours: the middle goes to the even one, what is beside it to the nearer.
      int largest = type == DataType.FLOAT16 ? 0x7bff : 0x7f7f;
      for (int i = 0; i < largest; i++) {
        double low = values.get(i);
        double high = values.get(i + 1);
        float middle = (float) ((low + high) / 2);
        if (middle != (low + high) / 2) {
          continue; // between the smallest of bfloat16 there is nothing
        }
        float[] three = {Math.nextDown(middle), middle, Math.nextUp(middle)};
        ByteBuffer bits = OnnxInitializer.floats("t", new long[] {3}, three).rounded(type).data();
        assertEquals(i, bits.getShort(0), "below " + middle);
        assertEquals(i + (i & 1), bits.getShort(2), "at " + middle);
        assertEquals(i + 1, bits.getShort(4), "above " + middle);
      }
      float[] special = {65536, Float.NaN, Float.NEGATIVE_INFINITY, -0f};
      FloatBuffer rounded =
          OnnxInitializer.floats("s", new long[] {4}, special).rounded(type).floats();
      assertEquals(type == DataType.FLOAT16 ? Float.POSITIVE_INFINITY : 65536f, rounded.get(0));
      assertTrue(Float.isNaN(rounded.get(1)));
      assertEquals(Float.NEGATIVE_INFINITY, rounded.get(2));
      assertEquals(-0f, rounded.get(3));
    }
  }

  @Test
  void widenedModelsAnswerAsBeforeThroughTheSameTypes() throws OrtException {
    for (ModelProto proto : MODELS) {
      OnnxModel whole = OnnxModel.of(HalfModels.of(proto, DataType.FLOAT16), "whole");
      List<OnnxModel> models = new ArrayList<>(List.of(whole));
      if (!operators(whole).contains("If")) {
        models.add(OnnxModel.of(HalfModels.inside(proto, DataType.FLOAT16), "inside"));
      }
      for (OnnxModel model : models) {
        List<float[]> expected = run(model);
        List<Integer> types = types(model);
        assertTrue(HalfPrecision.isIn(model));
        assertTrue(HalfPrecision.widen(model));
        assertEquals(types, types(model));
        assertNear(expected, run(model), HALF_TOLERANCE);
        assertEquals(model == whole, HalfPrecision.isIn(model));
        if (model != whole) {
          assertFalse(operators(model).contains("Cast"), "Casts from float32 to float32 are left");
        }
      }
    }
  }

  /** Exporters have norms compute in float32. */
  @ParameterizedTest
  @ValueSource(strings = {"SkipSimplifiedLayerNormalization", "RMSNormalization"})
  void castsAroundNormsGo(String norm) throws OrtException {
    boolean own = norm.startsWith("RMS");
    Random random = new Random(9);
    GraphProto.Builder g =
        GraphProto.newBuilder()
            .addInput(value("x", DataType.FLOAT, -1, 8))
            .addInitializer(floats("w", random, 0.5f, 8, 8))
            .addInitializer(floats("v", random, 0.5f, 8, 4))
            .addInitializer(floats("scale", random, 1, 8))
            .addNode(node("MatMul", "", List.of("x", "w"), "a"))
            .addNode(
                node(norm, "", own ? List.of("a", "scale") : List.of("a", "x", "scale"), "n")
                    .toBuilder()
                    .setDomain(own ? "" : "com.microsoft"))
            .addNode(node("MatMul", "", List.of("n", "v"), "y"))
            .addOutput(value("y", DataType.FLOAT, -1, 4));
    ModelProto half = HalfModels.of(SmallModels.model(own ? 23 : 17, g), DataType.FLOAT16);
    ModelProto.Builder cast =
        half.toBuilder()
            .addOpsetImport(
                OperatorSetIdProto.newBuilder().setDomain("com.microsoft").setVersion(1));
    GraphProto.Builder graph = cast.getGraphBuilder().clearNode();
    for (NodeProto n : half.getGraph().getNodeList()) {
      NodeProto.Builder wider = n.toBuilder();
      if (!n.getOpType().equals(norm)) {
        graph.addNode(n);
        continue;
      }
      for (int i = 0; i < n.getInputCount(); i++) {
        String wide = n.getInput(i) + "_wide";
        graph.addNode(
            node("Cast", "", List.of(n.getInput(i)), wide, SmallModels.attribute("to", 1)));
        wider.setInput(i, wide);
      }
      graph.addNode(wider.setOutput(0, "n_wide"));
      graph.addNode(node("Cast", "", List.of("n_wide"), "n", SmallModels.attribute("to", 10)));
    }
    OnnxModel model = OnnxModel.of(cast.build(), "norms in float32");
    List<float[]> expected = run(model);
    assertTrue(HalfPrecision.widen(model));
    assertNear(expected, run(model), HALF_TOLERANCE);
    // Those of the input and the output are left.
    assertEquals(2, model.nodes().stream().filter(n -> n.getOpType().equals("Cast")).count());
  }

  /** What computes in 16 bits because an attribute says so computes in float32 then. */
  @Test
  void precisionsBecomeFloat32() {
    GraphProto.Builder graph =
        GraphProto.newBuilder()
            .addInput(value("x", DataType.FLOAT16, 1, 2, 3, 4))
            .addInitializer(floats("scale", new float[] {0.5f}))
            .addNode(
                node("Attention", "", List.of("x", "x", "x"), "a").toBuilder()
                    .addAttribute(SmallModels.attribute("softmax_precision", 10)))
            .addNode(
                node("QuantizeLinear", "", List.of("a", "scale"), "y").toBuilder()
                    .addAttribute(SmallModels.attribute("precision", 10)))
            .addOutput(value("y", DataType.UINT8, 1, 2, 3, 4));
    OnnxModel model = OnnxModel.of(SmallModels.model(23, graph), "precise");
    assertTrue(HalfPrecision.widen(model));
    Map<String, Long> precisions = new TreeMap<>();
    for (NodeProto n : model.nodes()) {
      n.getAttributeList().forEach(a -> precisions.put(a.getName(), a.getI()));
    }
    assertEquals(Map.of("to", 1L, "softmax_precision", 1L, "precision", 1L), precisions);
  }

  /** ONNX Runtime has no products of bfloat16 on a CPU: widened, such models run where they did not. */
  @Test
  void bfloat16RunsOnceItIsWidened() throws OrtException {
    ModelProto proto = SmallModels.mlp();
    OnnxModel model = OnnxModel.of(HalfModels.of(proto, DataType.BFLOAT16), "bfloat16");
    assertThrows(OrtException.class, () -> run(model));
    HalfPrecision.widen(model);
    // Seven bits of fraction.
    assertNear(run(OnnxModel.of(proto, "mlp")), run(model), 0.05);
    assertEquals(List.of(DataType.BFLOAT16_VALUE, DataType.BFLOAT16_VALUE), types(model));
  }

  @Test
  void float32ModelsStayAsTheyAre() {
    for (ModelProto proto : MODELS) {
      OnnxModel model = OnnxModel.of(proto, "float32");
      ModelProto before = model.toProto();
      assertFalse(HalfPrecision.widen(model));
      assertEquals(before, model.toProto());
    }
  }

  /** Every value that 16 bits hold is stored in them; what they do not hold stays. */
  @Test
  void narrowingLosesNothing() throws OrtException {
    Random random = new Random(9);
    NodeProto constant =
        node("Constant", "", List.of(), "k", constantOf(floats("", random, 0.2f, 32, 32)));
    GraphProto.Builder g =
        GraphProto.newBuilder()
            .setName("narrow")
            .addInput(value("x", DataType.FLOAT, -1, 32))
            .addInitializer(floats("w", random, 0.2f, 32, 32))
            .addNode(node("MatMul", "", List.of("x", "w"), "h"))
            .addNode(constant)
            .addNode(node("MatMul", "", List.of("h", "k"), "y"))
            .addOutput(value("y", DataType.FLOAT, -1, 32));
    ModelProto proto = SmallModels.model(13, g);
    OnnxModel exact = OnnxModel.of(HalfModels.inside(proto, DataType.FLOAT16), "exact");
    HalfPrecision.widen(exact);
    List<float[]> expected = run(exact);
    HalfPrecision.narrow(exact);
    assertEquals(DataType.FLOAT16, exact.constant("w_half").type());
    assertEquals(DataType.FLOAT16, exact.constant("k_half").type());
    assertNear(expected, run(exact), 0);
    OnnxModel inexact = OnnxModel.of(proto, "inexact");
    ModelProto before = inexact.toProto();
    HalfPrecision.narrow(inexact);
    assertEquals(before, inexact.toProto());
  }

  /** Large values, which float16 does not hold, go to bfloat16 where the operator set has it. */
  @Test
  void bfloat16IsUsedWhereCastKnowsIt() throws OrtException {
    for (int opset : new int[] {12, 13}) {
      float[] values = new float[32 * 32];
      Arrays.fill(values, 0x1p20f);
      GraphProto.Builder g =
          GraphProto.newBuilder()
              .setName("large")
              .addInput(value("x", DataType.FLOAT, -1, 32))
              .addInitializer(OnnxInitializer.floats("w", new long[] {32, 32}, values).message())
              .addNode(node("MatMul", "", List.of("x", "w"), "y"))
              .addOutput(value("y", DataType.FLOAT, -1, 32));
      OnnxModel model = OnnxModel.of(SmallModels.model(opset, g), "large");
      List<float[]> expected = run(model);
      HalfPrecision.narrow(model);
      assertEquals(opset == 13, model.initializer("w_half") != null);
      assertNear(expected, run(model), 0);
    }
  }

  private static AttributeProto constantOf(TensorProto tensor) {
    return AttributeProto.newBuilder()
        .setName("value")
        .setType(AttributeProto.AttributeType.TENSOR)
        .setT(tensor)
        .build();
  }

  @Test
  void halfModelsAreQuantized() throws OrtException {
    for (DataType type : List.of(DataType.FLOAT16, DataType.BFLOAT16)) {
      for (ModelProto proto : List.of(SmallModels.mlp(), SmallModels.cnn())) {
        ModelProto half = HalfModels.of(proto, type);
        List<float[]> expected = run(OnnxModel.of(proto, "float32"));
        OnnxModel dynamic = OnnxModel.of(half, "dynamic");
        List<Integer> types = types(dynamic);
        new DynamicQuantizer(dynamic, RuntimeRuns.exactDynamic()).apply();
        assertTrue(operators(dynamic).contains("MatMulInteger"));
        assertEquals(types, types(dynamic));
        assertNear(expected, run(dynamic), 0.08);
        OnnxModel fixed = OnnxModel.of(half, "static");
        StaticQuantizer quantizer = new StaticQuantizer(fixed, RuntimeRuns.exactStatic());
        Map<String, ActivationRange> ranges = new HashMap<>();
        quantizer.activations().forEach(a -> ranges.put(a, new ActivationRange(-8, 8)));
        quantizer.apply(ranges);
        assertTrue(operators(fixed).contains("QuantizeLinear"));
        assertEquals(types, types(fixed));
        assertNear(expected, run(fixed), 0.15);
      }
    }
  }

  @Test
  void sequencesOfHalvesAreRefused() {
    TypeProto.Builder type = TypeProto.newBuilder();
    type.getSequenceTypeBuilder().setElemType(value("", DataType.FLOAT16, -1, 8).getType());
    GraphProto.Builder g =
        GraphProto.newBuilder()
            .setName("sequence")
            .addInput(ValueInfoProto.newBuilder().setName("x").setType(type))
            .addInitializer(SmallModels.tensor("0", DataType.INT64, ByteBuffer.allocate(8)))
            .addNode(node("SequenceAt", "", List.of("x", "0"), "y"))
            .addOutput(value("y", DataType.FLOAT16, -1, 8));
    OnnxModel model = OnnxModel.of(SmallModels.model(13, g), "sequence");
    InputException e = assertThrows(InputException.class, () -> HalfPrecision.widen(model));
    assertTrue(e.getMessage().contains("sequence: x holds a sequence"), e.getMessage());
  }

  /** Branches may name their values as others do, or hide what is around them. */
  @Test
  void valuesOfBranchesGetNamesOfTheirOwn() throws OrtException {
    Random random = new Random(5);
    GraphProto.Builder branch =
        GraphProto.newBuilder()
            .setName("branch")
            .addInitializer(floats("w", random, 0.5f, 8, 8))
            .addNode(node("MatMul", "", List.of("h", "w"), "o"))
            .addNode(node("Relu", "", List.of("o"), "z"))
            .addOutput(value("z", DataType.FLOAT, -1, 8));
    GraphProto.Builder g =
        GraphProto.newBuilder()
            .setName("hiding")
            .addInput(value("x", DataType.FLOAT, -1, 8))
            .addInput(value("c", DataType.BOOL))
            .addInitializer(floats("w", random, 0.5f, 8, 8))
            .addNode(node("MatMul", "", List.of("x", "w"), "h"))
            .addNode(SmallModels.choice("choice", "c", "y", branch))
            .addOutput(value("y", DataType.FLOAT, -1, 8));
    OnnxModel model = OnnxModel.of(SmallModels.model(13, g), "hiding");
    List<String> made = new ArrayList<>();
    model.allNodes().forEach(n -> made.addAll(n.getOutputList()));
    assertEquals(6, made.size());
    assertEquals(6, Set.copyOf(made).size(), made.toString());
    assertFalse(model.constant("w").data().equals(model.constant("w_1").data()), "w of the branch");
    assertEquals(model.constant("w_1").data(), model.constant("w_2").data());
    try (OrtSession one = ENVIRONMENT.createSession(SmallModels.model(13, g).toByteArray());
        OrtSession other = ENVIRONMENT.createSession(model.toBuffer())) {
      FloatBuffer x = FloatBuffer.wrap(new float[] {1, 2, -3, 4, -5, 6, 7, -8});
      try (OnnxTensor input = OnnxTensor.createTensor(ENVIRONMENT, x, new long[] {1, 8});
          OnnxTensor condition = OnnxTensor.createTensor(ENVIRONMENT, true)) {
        Map<String, OnnxTensor> inputs = Map.of("x", input, "c", condition);
        try (OrtSession.Result a = one.run(inputs);
            OrtSession.Result b = other.run(inputs)) {
          assertEquals(
              ((OnnxTensor) a.get(0)).getFloatBuffer(), ((OnnxTensor) b.get(0)).getFloatBuffer());
        }
      }
    }
  }
}

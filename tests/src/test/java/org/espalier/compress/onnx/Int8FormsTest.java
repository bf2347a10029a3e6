package org.espalier.compress.onnx;

import static org.espalier.format.onnx.SmallModels.attribute;
import static org.espalier.format.onnx.SmallModels.choice;
import static org.espalier.format.onnx.SmallModels.floats;
import static org.espalier.format.onnx.SmallModels.line;
import static org.espalier.format.onnx.SmallModels.number;
import static org.espalier.format.onnx.SmallModels.tensor;
import static org.espalier.format.onnx.SmallModels.value;
import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import ai.onnx.proto.OnnxMl.GraphProto;
import ai.onnx.proto.OnnxMl.NodeProto;
import ai.onnx.proto.OnnxMl.StringStringEntryProto;
import ai.onnx.proto.OnnxMl.TensorProto;
import ai.onnx.proto.OnnxMl.TensorProto.DataLocation;
import ai.onnx.proto.OnnxMl.TensorProto.DataType;
import ai.onnxruntime.OnnxTensor;
import ai.onnxruntime.OrtException;
import java.io.IOException;
import java.io.RandomAccessFile;
import java.nio.ByteBuffer;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.List;
import java.util.Map;
import java.util.Random;
import org.espalier.InputException;
import org.espalier.format.onnx.OnnxInitializer;
import org.espalier.format.onnx.OnnxModel;
import org.espalier.format.onnx.SmallDecoder;
import org.espalier.format.onnx.SmallModels;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;
import org.junit.jupiter.params.provider.ValueSource;

/** int8 models as other quantizers write them, and odd ones. */
class Int8FormsTest {
  private static final int SIDE = 4;
  private static final String OTHERS = "other nodes read the integers in another way";

  private static TensorProto bytes(String name, DataType type, int zero, long seed) {
    Random random = new Random(seed);
    ByteBuffer data = ByteBuffer.allocate(SIDE * SIDE);
    while (data.hasRemaining()) {
      data.put((byte) (zero + random.nextInt(255) - 127));
    }
    return tensor(name, type, data.flip(), SIDE, SIDE);
  }

  private static TensorProto one(String name, DataType type, int value) {
    return tensor(name, type, ByteBuffer.wrap(new byte[] {(byte) value}));
  }

  /** x and y [2, 4], the integers w [4, 4] of int8 and v of uint8 about 128, and scales of one and of four. */
  private static OnnxModel model(int opset, NodeProto... nodes) {
    GraphProto.Builder graph =
        GraphProto.newBuilder()
            .setName("forms")
            .addInput(value("x", DataType.FLOAT, 2, SIDE))
            .addOutput(value("y", DataType.FLOAT, 2, SIDE))
            .addInitializer(bytes("w", DataType.INT8, 0, 1))
            .addInitializer(bytes("v", DataType.UINT8, 128, 2))
            .addInitializer(one("128", DataType.UINT8, 128))
            .addInitializer(
                tensor(
                    "128s",
                    DataType.UINT8,
                    ByteBuffer.wrap(new byte[] {-128, -128, -128, -128}),
                    4))
            .addInitializer(one("3", DataType.INT8, 3))
            .addInitializer(one("-1", DataType.INT8, -1))
            .addInitializer(
                tensor("-1s", DataType.INT8, ByteBuffer.wrap(new byte[] {-1, -1, -1, -1}), 4))
            .addInitializer(tensor("zeros", DataType.INT8, ByteBuffer.wrap(new byte[SIDE]), SIDE))
            .addInitializer(SmallModels.int64s("longs", 0, 0, 0, 0))
            .addInitializer(number("s", 0.02f))
            .addInitializer(number("same", 0.02f))
            .addInitializer(number("t", 0.03f))
            .addInitializer(floats("four", new float[] {0.01f, 0.02f, 0.03f, 0.04f}, SIDE))
            .addInitializer(floats("f", new Random(3), 1, SIDE, SIDE))
            .addInitializer(floats("bias", new float[] {1, 2, 3, 4}, SIDE))
            .addInitializer(tensor("yes", DataType.BOOL, ByteBuffer.wrap(new byte[] {1})))
            .addAllNode(List.of(nodes));
    OnnxModel model = OnnxModel.of(SmallModels.model(opset, graph), "forms");
    RuntimeForm.removeUnused(model);
    return model;
  }

  private static float[] run(OnnxModel model) throws OrtException {
    try (OnnxTensor x =
        RuntimeRuns.tensor(new float[] {1, -2, 3, 0.5f, 0.25f, 4, -1, 2}, 2, SIDE)) {
      return RuntimeRuns.firstOfNodes(model, Map.of("x", x));
    }
  }

  /**
   * What the model of floats answers is what the model answers, with its own weights and with others: 1e-5 of outputs of some
   * units.
   */
  private static Int8Model same(OnnxModel model) throws OrtException {
    assertTrue(Int8Model.is(model));
    Int8Model integers = Int8Model.of(model);
    assertArrayEquals(run(model), run(integers.floats()), 1e-5f);
    assertEquals(model.toBuffer(), integers.withValues(Map.of()).toBuffer());
    for (Map.Entry<String, Int8Model.Integers> e : integers.integers().entrySet()) {
      float[] values = SmallModels.values(integers.floats(), e.getKey());
      assertEquals(model.toBuffer(), integers.withValues(Map.of(e.getKey(), values)).toBuffer());
      for (int i = 0; i < values.length; i++) {
        values[i] *= -1;
      }
      Int8Model other = Int8Model.of(integers.withValues(Map.of(e.getKey(), values)));
      assertArrayEquals(values, SmallModels.values(other.floats(), e.getKey()));
    }
    return integers;
  }

  private static String refused(OnnxModel model) {
    return assertThrows(InputException.class, () -> Int8Model.of(model)).getMessage();
  }

  private static void rests(String why, OnnxModel model) {
    String told = refused(model);
    assertTrue(told.contains("has no int8 weights that can be learned: 1 weight stays"), told);
    assertTrue(told.contains("as it is: " + why), told);
  }

  @ParameterizedTest
  @CsvSource({"w, s, -", "w, four, -", "w, s, -1", "v, s, 128", "v, four, 128s"})
  void weightsOfOtherQuantizers(String integers, String scale, String zero) throws OrtException {
    String key = integers + " " + scale + " " + zero;
    NodeProto weight = line("float DequantizeLinear " + key);
    Int8Model fixed = same(model(13, weight, line("y MatMul x float")));
    assertEquals(List.of(), fixed.resting());
    assertEquals(1, fixed.integers().size());
    same(
        model(
            13,
            weight,
            line("turned Transpose float", attribute("perm", 1, 0)),
            line("y Gemm x turned bias")));
    NodeProto range =
        line("q DynamicQuantizeLinear x").toBuilder().addOutput("step").addOutput("zero").build();
    Int8Model dynamic =
        same(
            model(
                13,
                range,
                line("sums MatMulInteger q " + integers + " zero " + zero),
                line("cast Cast sums", attribute("to", DataType.FLOAT.getNumber())),
                line("steps Mul step " + scale),
                line("y Mul cast steps")));
    assertEquals(List.of(), dynamic.resting());
  }

  @Test
  void zeroPointsApartFromTheMiddle() {
    rests(
        "a zero point of 3 in place of 0",
        model(13, line("float DequantizeLinear w s 3"), line("y MatMul x float")));
    rests(
        "a zero point of 0 in place of 127 or 128",
        model(13, line("float DequantizeLinear v s"), line("y MatMul x float")));
  }

  @ParameterizedTest
  @ValueSource(longs = {2, 7, -3, -9, Integer.MIN_VALUE})
  void axesThatTheWeightDoesNotHave(long axis) {
    rests(
        "scales that are no floats, or neither one nor one for each output",
        model(
            13,
            line("float DequantizeLinear w four", attribute("axis", axis)),
            line("y MatMul x float")));
  }

  @ParameterizedTest
  @ValueSource(floats = {0, -1, Float.NaN, Float.POSITIVE_INFINITY, Float.MIN_VALUE})
  void scalesThatMakeNoGrid(float scale) {
    OnnxModel model = model(13, line("float DequantizeLinear w s"), line("y MatMul x float"));
    model.replaceConstant(OnnxInitializer.floats("s", new long[0], scale));
    rests("a scale of " + scale, model);
  }

  /** Learned as one, they would have to be two. */
  @Test
  void integersThatAreReadInTwoWays() throws OrtException {
    NodeProto first = line("a DequantizeLinear w four");
    NodeProto product = line("p MatMul x a");
    NodeProto sum = line("y MatMul p b");
    rests(OTHERS, model(13, first, line("b DequantizeLinear w s"), product, sum));
    rests(
        OTHERS,
        model(13, first, line("b DequantizeLinear w four", attribute("axis", 0)), product, sum));
    OnnxModel zeros =
        model(13, line("a DequantizeLinear w s"), line("b DequantizeLinear w s -1"), product, sum);
    rests(OTHERS, zeros);
    Int8Model twice = same(model(13, first, line("b DequantizeLinear w four"), product, sum));
    assertEquals(1, twice.integers().size());
    assertEquals(List.of(), twice.resting());
  }

  @Test
  void integersThatBranchesRead() throws OrtException {
    GraphProto.Builder ofIntegers =
        GraphProto.newBuilder()
            .setName("branch")
            .addNode(line("inside DequantizeLinear w s"))
            .addNode(line("chosen MatMul p inside"))
            .addOutput(value("chosen", DataType.FLOAT, 2, SIDE));
    NodeProto first = line("a DequantizeLinear w s");
    NodeProto product = line("p MatMul x a");
    rests(OTHERS, model(13, first, product, choice("if", "yes", "y", ofIntegers)));
    GraphProto.Builder ofFloats =
        GraphProto.newBuilder()
            .setName("branch")
            .addNode(line("chosen MatMul p a"))
            .addOutput(value("chosen", DataType.FLOAT, 2, SIDE));
    OnnxModel model =
        model(
            13,
            first,
            line("c DequantizeLinear v s 128"),
            line("z MatMul x c"),
            line("p MatMul z a"),
            choice("if", "yes", "y", ofFloats));
    Int8Model other = same(model);
    assertEquals(List.of("v_1"), List.copyOf(other.integers().keySet()));
    assertEquals(1, other.resting().size());
    assertTrue(
        other.resting().get(0).contains("a branch reads its floats"), other.resting().get(0));
  }

  @Test
  void aHeadThatIsTheTable() {
    OnnxModel model = OnnxModel.of(SmallDecoder.tied(1, 50, 32, 1), "tied");
    new DynamicQuantizer(model, DynamicQuantizer.Options.defaults()).apply();
    String told = refused(model);
    assertTrue(
        told.contains("multiplies with the integers of a table that rows are looked up in too"),
        told);
  }

  @Test
  void productsThatEndInAnotherType() {
    OnnxModel model =
        model(
            13,
            line("q DynamicQuantizeLinear x").toBuilder()
                .addOutput("step")
                .addOutput("zero")
                .build(),
            line("sums MatMulInteger q w zero"),
            line("cast Cast sums", attribute("to", DataType.DOUBLE.getNumber())),
            line("wide Cast step", attribute("to", DataType.DOUBLE.getNumber())),
            line("steps Mul wide wide"),
            line("product Mul cast steps"),
            line("y Cast product", attribute("to", DataType.FLOAT.getNumber())));
    String told = refused(model);
    assertTrue(told.contains("MatMulInteger /sums computes with integers in another way"), told);
  }

  @Test
  void activationsThatAreReadWithOtherSteps() throws OrtException {
    NodeProto weight = line("float DequantizeLinear w s");
    NodeProto product = line("y MatMul rounded float");
    String told =
        refused(
            model(
                13,
                line("q QuantizeLinear x s"),
                line("rounded DequantizeLinear q t"),
                weight,
                product));
    assertTrue(told.contains("DequantizeLinear reads the integers q with other steps"), told);
    told =
        refused(
            model(
                13,
                line("q QuantizeLinear x four"),
                line("rounded DequantizeLinear q four"),
                weight,
                product));
    assertTrue(told.contains("DequantizeLinear reads the integers q with other steps"), told);
    same(
        model(
            13,
            line("q QuantizeLinear x s"),
            line("rounded DequantizeLinear q s"),
            weight,
            product));
  }

  /** Floats that are rounded to int8 or uint8 with one step or several stay what the model rounds, on its grid. */
  @ParameterizedTest
  @CsvSource({"s, -1", "four, -1s", "four, zeros", "s, 128"})
  void weightsThatTheModelItselfRounds(String scale, String zero) throws OrtException {
    String grid = " " + scale + " " + zero;
    OnnxModel model =
        model(
            13,
            line("q QuantizeLinear f" + grid),
            line("a DequantizeLinear q" + grid),
            line("y MatMul x a"));
    assertTrue(Int8Model.is(model));
    Int8Model integers = Int8Model.of(model);
    assertEquals(List.of(), integers.resting());
    assertTrue(integers.grid("f").areRounded());
    assertArrayEquals(run(model), run(integers.floats()), 1e-5f);
    assertEquals(model.toBuffer(), integers.withValues(Map.of()).toBuffer());
    float[] values = SmallModels.values(integers.floats(), "f");
    OnnxModel onGrid = integers.withValues(Map.of("f", values));
    assertEquals(model.nodes(), onGrid.nodes());
    assertArrayEquals(values, SmallModels.values(onGrid, "f"));
    assertArrayEquals(run(model), run(onGrid));
    for (int i = 0; i < values.length; i++) {
      values[i] *= -1.3f;
    }
    OnnxModel other = integers.withValues(Map.of("f", values));
    float[] published = SmallModels.values(other, "f");
    assertArrayEquals(published, SmallModels.values(Int8Model.of(other).floats(), "f"));
    for (int i = 0; i < values.length; i++) {
      float step = integers.grid("f").scales()[i / (scale.equals("s") ? SIDE : 1) % SIDE];
      float nearest = Math.max(-128 * step, Math.min(127 * step, values[i]));
      assertEquals(nearest, published[i], 0.5001f * step);
    }
  }

  /** Steps may be two constants. */
  @Test
  void weightsThatAreTakenBackWithEqualConstants() throws OrtException {
    Int8Model integers =
        Int8Model.of(
            model(
                13,
                line("xq QuantizeLinear x s -1"),
                line("xd DequantizeLinear xq same -1"),
                line("q QuantizeLinear f s -1"),
                line("a DequantizeLinear q same -1"),
                line("y MatMul xd a")));
    assertEquals(List.of(), integers.resting());
    assertTrue(integers.grid("f").areRounded());
  }

  /** As PyTorch may write zero points. */
  @Test
  void zeroPointsThatAreCast() throws OrtException {
    OnnxModel model =
        model(
            13,
            line("z Cast longs", attribute("to", DataType.INT8.getNumber())),
            line("q QuantizeLinear f four z"),
            line("a DequantizeLinear q four z"),
            line("y MatMul x a"));
    Int8Model integers = Int8Model.of(model);
    assertEquals(List.of(), integers.resting());
    assertArrayEquals(run(model), run(integers.floats()), 1e-5f);
    assertEquals(model.toBuffer(), integers.withValues(Map.of()).toBuffer());
  }

  /** What is told and not learned. */
  @Test
  void weightsThatTheModelRoundsInOtherWays() {
    NodeProto q = line("q QuantizeLinear f s -1");
    NodeProto a = line("a DequantizeLinear q s -1");
    NodeProto product = line("p MatMul x a");
    NodeProto sum = line("y MatMul p b");
    String twice = "other nodes read the floats or their integers in another way";
    rests(twice, model(13, q, a, product, line("y Add p f")));
    rests(twice, model(13, q, a, product, line("b DequantizeLinear q four -1s"), sum));
    rests(
        "a zero point of 0 in place of 127 or 128",
        model(
            13,
            line("q QuantizeLinear f s"),
            line("a DequantizeLinear q s"),
            line("y MatMul x a")));
    rests(
        "floats that the model itself rounds to integers in another way",
        model(13, q, line("a DequantizeLinear q t -1"), line("y MatMul x a")));
    rests(
        "floats that the model itself rounds to integers in another way",
        model(
            13, q, line("c Clip q -1 3"), line("a DequantizeLinear c s -1"), line("y MatMul x a")));
    OnnxModel infinite = model(13, q, a, line("y MatMul x a"));
    float[] values = SmallModels.values(infinite, "f");
    values[5] = Float.NEGATIVE_INFINITY;
    infinite.replaceConstant(OnnxInitializer.floats("f", new long[] {SIDE, SIDE}, values));
    rests("floats that are not finite", infinite);
  }

  /** Then the weights that are floats learn. */
  @Test
  void integersThatRestBesideWeightsOfFloats() throws OrtException {
    OnnxModel model =
        model(13, line("a DequantizeLinear w s 3"), line("p MatMul x a"), line("y MatMul p f"));
    Int8Model integers = same(model);
    assertEquals(Map.of(), integers.integers());
    assertEquals(1, integers.resting().size());
  }

  /** A file with a hole of half a GiB, whose floats would have 2 GiB. */
  @Test
  void weightsWhoseFloatsAreTooLarge(@TempDir Path folder) throws IOException {
    long rows = 1 << 28;
    TensorProto large =
        TensorProto.newBuilder()
            .setName("large")
            .setDataType(DataType.INT8.getNumber())
            .addDims(2)
            .addDims(rows)
            .setDataLocation(DataLocation.EXTERNAL)
            .addExternalData(
                StringStringEntryProto.newBuilder().setKey("location").setValue("hole"))
            .build();
    try (RandomAccessFile hole = new RandomAccessFile(folder.resolve("hole").toFile(), "rw")) {
      hole.setLength(2 * rows);
    }
    GraphProto.Builder graph =
        GraphProto.newBuilder()
            .setName("large")
            .addInput(value("x", DataType.FLOAT, 1, 2))
            .addOutput(value("y", DataType.FLOAT, 1, rows))
            .addInitializer(large)
            .addInitializer(number("s", 1))
            .addNode(line("float DequantizeLinear large s"))
            .addNode(line("y MatMul x float"));
    Path file = folder.resolve("large.onnx");
    Files.write(file, SmallModels.model(13, graph).toByteArray());
    rests("more than 536870911 elements", OnnxModel.read(file));
  }
}

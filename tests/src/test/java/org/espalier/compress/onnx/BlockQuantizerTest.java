package org.espalier.compress.onnx;

import static org.espalier.compress.onnx.OutputErrors.error;
import static org.espalier.format.onnx.SmallModels.attribute;
import static org.espalier.format.onnx.SmallModels.floats;
import static org.espalier.format.onnx.SmallModels.node;
import static org.espalier.format.onnx.SmallModels.value;
import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import ai.onnx.proto.OnnxMl.AttributeProto;
import ai.onnx.proto.OnnxMl.AttributeProto.AttributeType;
import ai.onnx.proto.OnnxMl.GraphProto;
import ai.onnx.proto.OnnxMl.ModelProto;
import ai.onnx.proto.OnnxMl.NodeProto;
import ai.onnx.proto.OnnxMl.TensorProto.DataType;
import ai.onnxruntime.OnnxTensor;
import ai.onnxruntime.OrtEnvironment;
import ai.onnxruntime.OrtException;
import ai.onnxruntime.OrtSession;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.FloatBuffer;
import java.nio.LongBuffer;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.Collection;
import java.util.List;
import java.util.Map;
import java.util.Random;
import java.util.Set;
import org.espalier.InputException;
import org.espalier.format.onnx.HalfPrecision;
import org.espalier.format.onnx.OnnxInitializer;
import org.espalier.format.onnx.OnnxModel;
import org.espalier.format.onnx.SmallModels;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;
import org.junit.jupiter.params.provider.ValueSource;

/** Models of 4-bit weights run in ONNX Runtime and answer as the originals. */
class BlockQuantizerTest {
  private static final OrtEnvironment ENVIRONMENT = OrtEnvironment.getEnvironment();

  /** No multiple of a block. */
  private static final int WIDTH = 72;

  private static final int HIDDEN = 96;

  /** x [n, 72] through a MatMul with a bias, Tanh and a Gemm to y [n, 10]. */
  private static ModelProto mlp() {
    Random random = new Random(1);
    return SmallModels.model(
        13,
        GraphProto.newBuilder()
            .setName("mlp")
            .addInput(value("x", DataType.FLOAT, -1, WIDTH))
            .addInitializer(floats("w1", random, 0.2f, WIDTH, HIDDEN))
            .addInitializer(floats("b1", random, 0.3f, HIDDEN))
            .addInitializer(floats("w2", random, 0.2f, 10, HIDDEN))
            .addInitializer(floats("b2", random, 0.3f, 10))
            .addNode(node("Identity", "start", List.of("x"), "xi"))
            .addNode(node("MatMul", "m1", List.of("xi", "w1"), "p1"))
            .addNode(node("Add", "a1", List.of("p1", "b1"), "h1"))
            .addNode(node("Tanh", "t", List.of("h1"), "t1"))
            .addNode(node("Gemm", "g", List.of("t1", "w2", "b2"), "y", attribute("transB", 1)))
            .addOutput(value("y", DataType.FLOAT, -1, 10)));
  }

  /** Rows whose channels share a few factors, off centre. */
  private static FloatBuffer rows(long seed, int n) {
    Random mixing = new Random(99);
    float[][] mix = new float[6][WIDTH];
    for (float[] m : mix) {
      for (int i = 0; i < WIDTH; i++) {
        m[i] = (float) mixing.nextGaussian();
      }
    }
    Random random = new Random(seed);
    float[] x = new float[n * WIDTH];
    for (int r = 0; r < n; r++) {
      for (float[] m : mix) {
        float f = (float) random.nextGaussian() + 0.5f;
        for (int i = 0; i < WIDTH; i++) {
          x[r * WIDTH + i] += f * m[i];
        }
      }
      for (int i = 0; i < WIDTH; i++) {
        x[r * WIDTH + i] += 0.3f * (float) random.nextGaussian();
      }
    }
    return FloatBuffer.wrap(x);
  }

  private static void examples(
      OnnxModel model, Collection<String> activations, ActivationSource.Receiver receiver) {
    try (OrtSession session =
        ENVIRONMENT.createSession(model.withOutputs(activations).toBuffer())) {
      for (int e = 0; e < 30; e++) {
        try (OnnxTensor x =
                OnnxTensor.createTensor(ENVIRONMENT, rows(e, 20), new long[] {20, WIDTH});
            OrtSession.Result r = session.run(Map.of("x", x), Set.copyOf(activations))) {
          for (String a : activations) {
            OnnxTensor value = (OnnxTensor) r.get(a).orElseThrow();
            receiver.accept(a, value.getInfo().getShape(), value.getFloatBuffer());
          }
        }
      }
    } catch (OrtException e) {
      throw new IllegalStateException(e);
    }
  }

  private static float[] run(OnnxModel model) throws OrtException {
    return run(model, rows(1000, 64));
  }

  private static float[] run(OnnxModel model, FloatBuffer rows) throws OrtException {
    try (OnnxTensor x = OnnxTensor.createTensor(ENVIRONMENT, rows, new long[] {64, WIDTH})) {
      return RuntimeRuns.first(model, Map.of("x", x));
    }
  }

  private static OnnxModel quantized(ModelProto proto, boolean calibrated, int block) {
    return quantized(proto, calibrated, 4, block);
  }

  private static OnnxModel quantized(ModelProto proto, boolean calibrated, int bits, int block) {
    OnnxModel model = OnnxModel.of(proto, "model");
    BlockQuantizer q =
        new BlockQuantizer(model, new BlockQuantizer.Options(bits, block, true, w -> true));
    if (calibrated) {
      q.calibrate(BlockQuantizerTest::examples);
    }
    q.apply();
    return model;
  }

  private static List<NodeProto> products(OnnxModel model) {
    return model.nodes().stream().filter(n -> n.getOpType().equals("MatMulNBits")).toList();
  }

  /** What the runtime makes of the integers is what they stand for. */
  @ParameterizedTest
  @CsvSource({"4, 16", "4, 32", "4, 64", "8, 16", "8, 32", "8, 64"})
  void theRuntimeReadsWhatWasMeant(int bits, int block) throws OrtException {
    OnnxModel model = quantized(mlp(), true, bits, block);
    assertEquals(2, products(model).size());
    assertEquals(1, model.opset("com.microsoft"));
    OnnxModel real = model.copy();
    List<NodeProto> nodes =
        model.nodes().stream()
            .map(
                n ->
                    n.getOpType().equals("MatMulNBits")
                        ? node(
                            "MatMul",
                            n.getName(),
                            List.of(n.getInput(0), dequantized(real, n, bits, block)),
                            n.getOutput(0))
                        : n)
            .toList();
    real.setNodes(nodes);
    double error = error(run(real), run(model));
    assertTrue(error < 0.02, "activations of 8 bits change the outputs by " + error);
  }

  private static String dequantized(OnnxModel model, NodeProto n, int bits, int block) {
    OnnxInitializer packed = model.constant(n.getInput(1));
    FloatBuffer scales = model.constant(n.getInput(2)).floats();
    int columns = (int) packed.dims()[0];
    int blocks = (int) packed.dims()[1];
    assertEquals(block * bits / 8, packed.dims()[2]);
    int rows = 0;
    for (AttributeProto a : n.getAttributeList()) {
      rows = a.getName().equals("K") ? (int) a.getI() : rows;
    }
    float[] w = new float[rows * columns];
    for (int k = 0; k < rows; k++) {
      for (int c = 0; c < columns; c++) {
        int at = c * blocks * block + k;
        int stored =
            bits == 8
                ? packed.data().get(at) & 255
                : packed.data().get(at / 2) >> 4 * (at % 2) & 15;
        w[k * columns + c] = (stored - (1 << bits - 1)) * scales.get(c * blocks + k / block);
      }
    }
    String name = n.getInput(1) + "_real";
    model.addInitializer(OnnxInitializer.floats(name, new long[] {rows, columns}, w));
    return name;
  }

  /** Products of the largest integers on either side: sums of two of them, 255 · 127 each, have no place in 16 bits. */
  @ParameterizedTest
  @CsvSource({"4, 16", "4, 32", "4, 128", "8, 16", "8, 32", "8, 128"})
  void productsDoNotSaturate(int bits, int block) throws OrtException {
    for (float value : new float[] {1, -1}) {
      float[] w = new float[256 * 64];
      Arrays.fill(w, value);
      ByteBuffer data = ByteBuffer.allocate(4 * w.length).order(ByteOrder.LITTLE_ENDIAN);
      data.asFloatBuffer().put(w);
      ModelProto proto =
          SmallModels.model(
              17,
              GraphProto.newBuilder()
                  .setName("ones")
                  .addInput(value("x", DataType.FLOAT, -1, 256))
                  .addInitializer(SmallModels.tensor("w", DataType.FLOAT, data, 256, 64))
                  .addNode(node("MatMul", "m", List.of("x", "w"), "y"))
                  .addOutput(value("y", DataType.FLOAT, -1, 64)));
      OnnxModel model = quantized(proto, false, bits, block);
      for (int rows : new int[] {1, 40}) {
        float[] ones = new float[256 * rows];
        Arrays.fill(ones, 1);
        float[] expected = new float[64 * rows];
        Arrays.fill(expected, 256 * value);
        try (OnnxTensor x = RuntimeRuns.tensor(ones, rows, 256)) {
          assertArrayEquals(expected, RuntimeRuns.first(model, Map.of("x", x)), 0.01f);
        }
      }
    }
  }

  /** What one row is rounded to does not depend on how large others are, as it does with one step for all. */
  @Test
  void aLargeRowFalsifiesNoOthers() throws OrtException {
    FloatBuffer x = rows(1000, 64);
    for (int i = 0; i < WIDTH; i++) {
      x.put(i, 50 * x.get(i));
    }
    OnnxModel columns = OnnxModel.of(mlp(), "mlp");
    DynamicQuantizer dynamic = new DynamicQuantizer(columns, DynamicQuantizer.Options.defaults());
    dynamic.calibrate(BlockQuantizerTest::examples);
    dynamic.apply();
    OnnxModel blocks = quantized(mlp(), true, 8, 64);
    float[] expected = others(OnnxModel.of(mlp(), "mlp"), x);
    double error = error(expected, others(blocks, x));
    assertTrue(error < 0.02, "error " + error);
    double spoilt = error(expected, others(columns, x));
    assertTrue(error < 0.2 * spoilt, error + " of " + spoilt);
  }

  /** The answers to all rows but the first. */
  private static float[] others(OnnxModel model, FloatBuffer rows) throws OrtException {
    float[] all = run(model, rows);
    return Arrays.copyOfRange(all, 10, all.length);
  }

  @Test
  void calibrationTakesAwayMostOfTheError() throws OrtException {
    float[] expected = run(OnnxModel.of(mlp(), "mlp"));
    double plain = error(expected, run(quantized(mlp(), false, 32)));
    double fitted = error(expected, run(quantized(mlp(), true, 32)));
    assertTrue(plain < 0.2, "error " + plain);
    assertTrue(fitted < 0.6 * plain, fitted + " of " + plain);
  }

  @Test
  void calibrationIsDeterministicAndKeepsTheFloatModel() throws OrtException {
    assertEquals(quantized(mlp(), true, 32).toBuffer(), quantized(mlp(), true, 32).toBuffer());
    OnnxModel model = OnnxModel.of(mlp(), "mlp");
    new BlockQuantizer(model, BlockQuantizer.Options.of(4)).calibrate(BlockQuantizerTest::examples);
    assertTrue(error(run(OnnxModel.of(mlp(), "mlp")), run(model)) < 1e-6);
  }

  @Test
  void weightsThatWerePrunedStayZero() {
    float[] w = new float[WIDTH * HIDDEN];
    Random random = new Random(5);
    for (int i = 0; i < w.length; i++) {
      w[i] = i % 2 == 0 ? (float) random.nextGaussian() : 0;
    }
    OnnxModel changed = OnnxModel.of(mlp(), "mlp");
    changed.replaceConstant(OnnxInitializer.floats("w1", new long[] {WIDTH, HIDDEN}, w));
    BlockQuantizer q = new BlockQuantizer(changed, BlockQuantizer.Options.of(4));
    q.calibrate(BlockQuantizerTest::examples);
    q.apply();
    FloatBuffer real =
        changed.constant(dequantized(changed, products(changed).get(0), 4, 32)).floats();
    for (int i = 1; i < w.length; i += 2) {
      assertEquals(0, real.get(i));
    }
  }

  @Test
  void sixteenBitModelsStaySmall() throws OrtException {
    OnnxModel model = OnnxModel.of(mlp(), "mlp");
    float[] expected = run(model);
    OnnxModel half = OnnxModel.of(mlp(), "mlp");
    for (String name : List.of("w1", "b1", "w2", "b2")) {
      half.replaceConstant(half.constant(name).rounded(DataType.FLOAT16));
    }
    List<NodeProto> nodes =
        half.nodes().stream()
            .map(
                n ->
                    n.getName().equals("m1")
                        ? n.toBuilder().setInput(0, "x16").build()
                        : n.getName().equals("g") ? n.toBuilder().setOutput(0, "y16").build() : n)
            .toList();
    List<NodeProto> all = new ArrayList<>(nodes);
    all.add(0, node("Cast", "in", List.of("x"), "x16", attribute("to", 10)));
    all.add(node("Cast", "out", List.of("y16"), "y", attribute("to", 1)));
    half.setNodes(all);
    assertTrue(HalfPrecision.isIn(half));
    new BlockQuantizer(half, BlockQuantizer.Options.of(4)).apply();
    assertEquals(2, products(half).size());
    assertTrue(error(expected, run(half)) < 0.2);
  }

  /** ids [n] through a table [3000, 64] that is the last product too: y [n, 3000]. */
  private static ModelProto tied() {
    return SmallModels.model(
        13,
        GraphProto.newBuilder()
            .setName("tied")
            .addInput(value("ids", DataType.INT64, -1))
            .addInitializer(floats("table", new Random(3), 1, 3000, 64))
            .addNode(node("Gather", "look", List.of("table", "ids"), "e"))
            .addNode(node("Tanh", "t", List.of("e"), "h"))
            .addNode(node("Transpose", "turn", List.of("table"), "turned", ints("perm", 1, 0)))
            .addNode(node("MatMul", "head", List.of("h", "turned"), "y"))
            .addOutput(value("y", DataType.FLOAT, -1, 3000)));
  }

  private static AttributeProto ints(String name, long... values) {
    AttributeProto.Builder b =
        AttributeProto.newBuilder().setName(name).setType(AttributeType.INTS);
    for (long v : values) {
      b.addInts(v);
    }
    return b.build();
  }

  /** A language model's embedding that is its last product too. */
  @ParameterizedTest
  @CsvSource({"4, 32", "4, 64", "8, 64"})
  void anEmbeddingThatIsAProductTooIsStoredOnce(int bits, int block) throws OrtException {
    OnnxModel before = OnnxModel.of(tied(), "tied");
    OnnxModel model = OnnxModel.of(tied(), "tied");
    BlockQuantizer q =
        new BlockQuantizer(model, new BlockQuantizer.Options(bits, block, true, w -> true));
    assertEquals(List.of("table"), q.quantized());
    q.apply();
    assertFalse(model.initializers().stream().anyMatch(i -> i.name().equals("table")));
    assertEquals(1, products(model).size());
    double size = (double) model.initializerBytes() / before.initializerBytes();
    assertEquals((bits + 32. / block) / 32, size, 0.001);
    float[][] answers = new float[2][];
    for (int i = 0; i < 2; i++) {
      try (OrtSession session = ENVIRONMENT.createSession((i == 0 ? before : model).toBuffer());
          OnnxTensor ids =
              OnnxTensor.createTensor(
                  ENVIRONMENT, LongBuffer.wrap(new long[] {0, 7, 2999}), new long[] {3});
          OrtSession.Result r = session.run(Map.of("ids", ids))) {
        answers[i] = new float[3 * 3000];
        ((OnnxTensor) r.get(0)).getFloatBuffer().get(answers[i]);
      }
    }
    double error = error(answers[0], answers[1]);
    assertTrue(error < (bits == 4 ? 0.2 : 0.02), "error " + error);

    OnnxModel floatRows = OnnxModel.of(tied(), "tied");
    BlockQuantizer left =
        new BlockQuantizer(floatRows, new BlockQuantizer.Options(4, 32, false, w -> true));
    left.apply();
    assertEquals(Map.of("table", "embeddings are left as they are"), left.skipped());
    assertTrue(floatRows.initializers().stream().anyMatch(i -> i.name().equals("table")));
  }

  /** As many as fit: none, the second product, the first, both. */
  @ParameterizedTest
  @CsvSource({"0, 0", "479, 0", "480, 1", "4607, 1", "4608, 1", "5088, 2", "99999, 2"})
  void whatFitsHasEightBits(int room, int wide) throws OrtException {
    float[] expected = run(OnnxModel.of(mlp(), "model"));
    OnnxModel model = OnnxModel.of(mlp(), "model");
    BlockQuantizer q =
        new BlockQuantizer(model, new BlockQuantizer.Options(4, 32, true, w -> true));
    q.calibrate(BlockQuantizerTest::examples);
    long least = q.requireRoom(Long.MAX_VALUE);
    assertThrows(
        InputException.class, () -> q.widen(BlockQuantizerTest::examples, List.of("y"), least - 1));
    List<String> names = q.widen(BlockQuantizerTest::examples, List.of("y"), least + room);
    assertEquals(wide, names.size(), names.toString());
    assertEquals(wide, q.wide().size());
    q.apply();
    long bytes = model.inlineSize();
    assertTrue(bytes <= least + room + 32, bytes + " bytes, at least " + least);
    List<Long> bits =
        products(model).stream()
            .map(
                n ->
                    n.getAttributeList().stream()
                        .filter(a -> a.getName().equals("bits"))
                        .findFirst()
                        .orElseThrow()
                        .getI())
            .toList();
    assertEquals(wide, bits.stream().filter(b -> b == 8).count(), bits.toString());
    double error = error(expected, run(model));
    assertTrue(error < (wide == 2 ? 0.012 : 0.09), "error " + error);
  }

  /** A table of rows that are whole blocks, and one of rows that are not. */
  @ParameterizedTest
  @ValueSource(ints = {64, 40})
  void tablesAreLookedUpIn(int width) throws OrtException {
    ModelProto proto =
        SmallModels.model(
            13,
            GraphProto.newBuilder()
                .setName("table")
                .addInput(value("ids", DataType.INT64, -1, -1))
                .addInitializer(floats("table", new Random(3), 1, 3000, width))
                .addInitializer(floats("w", new Random(4), 1, width, 16))
                .addNode(node("Gather", "look", List.of("table", "ids"), "e"))
                .addNode(node("MatMul", "head", List.of("e", "w"), "y"))
                .addOutput(value("y", DataType.FLOAT, -1, -1, 16)));
    OnnxModel model = OnnxModel.of(proto, "table");
    BlockQuantizer q = new BlockQuantizer(model, BlockQuantizer.Options.of(4));
    assertEquals(Set.of("table", "w"), Set.copyOf(q.quantized()));
    q.apply();
    boolean blocks = width % 32 == 0;
    assertEquals(
        blocks, model.nodes().stream().anyMatch(n -> n.getOpType().equals("GatherBlockQuantized")));
    float[][] answers = new float[2][];
    for (int i = 0; i < 2; i++) {
      OnnxModel run = i == 0 ? OnnxModel.of(proto, "table") : model;
      try (OrtSession session = ENVIRONMENT.createSession(run.toBuffer());
          OnnxTensor ids =
              OnnxTensor.createTensor(
                  ENVIRONMENT, LongBuffer.wrap(new long[] {0, 7, 2999, 5}), new long[] {2, 2});
          OrtSession.Result r = session.run(Map.of("ids", ids))) {
        answers[i] = new float[4 * 16];
        ((OnnxTensor) r.get(0)).getFloatBuffer().get(answers[i]);
      }
    }
    double error = error(answers[0], answers[1]);
    assertTrue(error < 0.15, "error " + error);
  }

  /** Two products of one weight, one of them in a branch. */
  @Test
  void weightsInBranchesAreQuantized() throws OrtException {
    GraphProto.Builder then =
        GraphProto.newBuilder()
            .setName("then")
            .addNode(node("MatMul", "inner", List.of("x", "w1"), "pi"))
            .addOutput(value("pi", DataType.FLOAT, -1, HIDDEN));
    GraphProto.Builder other =
        GraphProto.newBuilder()
            .setName("else")
            .addNode(node("Identity", "same", List.of("p1"), "pe"))
            .addOutput(value("pe", DataType.FLOAT, -1, HIDDEN));
    ModelProto.Builder model = mlp().toBuilder();
    GraphProto.Builder graph = model.getGraphBuilder();
    graph
        .addInitializer(SmallModels.tensor("yes", DataType.BOOL, ByteBuffer.wrap(new byte[] {1})))
        .addNode(
            2,
            node("If", "if", List.of("yes"), "chosen").toBuilder()
                .addAttribute(graph("then_branch", then))
                .addAttribute(graph("else_branch", other)));
    graph.setNode(3, graph.getNode(3).toBuilder().setInput(0, "chosen"));
    float[] expected = run(OnnxModel.of(model.build(), "branches"));
    OnnxModel quantized = quantized(model.build(), true, 32);
    assertEquals(2, products(quantized).size());
    assertEquals(0, quantized.initializers().stream().filter(i -> i.name().equals("w1")).count());
    assertTrue(error(expected, run(quantized)) < 0.2);
  }

  private static AttributeProto graph(String name, GraphProto.Builder g) {
    return AttributeProto.newBuilder().setName(name).setType(AttributeType.GRAPH).setG(g).build();
  }

  @Test
  void whatIsShorterThanABlockStaysFloat() {
    OnnxModel model = OnnxModel.of(mlp(), "mlp");
    model.replaceConstant(OnnxInitializer.floats("w2", new long[] {10, 20}, new float[200]));
    model.replaceConstant(
        OnnxInitializer.floats("w1", new long[] {WIDTH, 20}, new float[WIDTH * 20]));
    BlockQuantizer q = new BlockQuantizer(model, BlockQuantizer.Options.of(4));
    assertEquals(List.of("w1"), q.quantized());
    assertEquals(
        List.of("it has fewer input channels than a block"), List.copyOf(q.skipped().values()));
    InputException none =
        assertThrows(
            InputException.class,
            () ->
                new BlockQuantizer(
                    OnnxModel.of(mlp(), "mlp"),
                    new BlockQuantizer.Options(4, 128, true, w -> true)));
    assertTrue(none.getMessage().contains("fewer input channels than a block"), none.getMessage());
  }

  @Test
  void otherBlocksAreRefused() {
    for (int block : new int[] {0, 8, 48, 512, -32}) {
      assertThrows(
          InputException.class, () -> new BlockQuantizer.Options(4, block, true, w -> true));
    }
  }

  @Test
  void aPlanIsOfOneUse() {
    OnnxModel model = OnnxModel.of(mlp(), "mlp");
    BlockQuantizer q = new BlockQuantizer(model, BlockQuantizer.Options.of(4));
    q.apply();
    assertThrows(IllegalStateException.class, q::apply);
    assertThrows(IllegalStateException.class, () -> q.calibrate(BlockQuantizerTest::examples));
    InputException again =
        assertThrows(
            InputException.class, () -> new BlockQuantizer(model, BlockQuantizer.Options.of(4)));
    assertTrue(again.getMessage().contains("MatMulNBits"), again.getMessage());
  }

  @Test
  void weightsThatAreNotFiniteAreNamed() {
    for (boolean calibrated : new boolean[] {false, true}) {
      OnnxModel model = OnnxModel.of(mlp(), "mlp");
      float[] w = new float[WIDTH * HIDDEN];
      w[5] = Float.NaN;
      model.replaceConstant(OnnxInitializer.floats("w1", new long[] {WIDTH, HIDDEN}, w));
      BlockQuantizer q = new BlockQuantizer(model, BlockQuantizer.Options.of(4));
      InputException e =
          assertThrows(
              InputException.class,
              () -> {
                if (calibrated) {
                  q.calibrate(BlockQuantizerTest::examples);
                }
                q.apply();
              });
      assertTrue(e.getMessage().contains("w1"), e.getMessage());
    }
  }
}

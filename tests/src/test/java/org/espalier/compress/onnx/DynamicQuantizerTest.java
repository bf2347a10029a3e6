package org.espalier.compress.onnx;

import static org.espalier.compress.onnx.RuntimeRuns.operators;
import static org.espalier.format.onnx.SmallModels.attribute;
import static org.espalier.format.onnx.SmallModels.floats;
import static org.espalier.format.onnx.SmallModels.node;
import static org.espalier.format.onnx.SmallModels.value;
import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertNotNull;
import static org.junit.jupiter.api.Assertions.assertNull;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import ai.onnx.proto.OnnxMl.AttributeProto;
import ai.onnx.proto.OnnxMl.GraphProto;
import ai.onnx.proto.OnnxMl.ModelProto;
import ai.onnx.proto.OnnxMl.NodeProto;
import ai.onnx.proto.OnnxMl.TensorProto;
import ai.onnx.proto.OnnxMl.TensorProto.DataType;
import ai.onnxruntime.OnnxTensor;
import ai.onnxruntime.OrtEnvironment;
import ai.onnxruntime.OrtException;
import ai.onnxruntime.OrtSession;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.FloatBuffer;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Collection;
import java.util.Collections;
import java.util.List;
import java.util.Map;
import java.util.Random;
import java.util.Set;
import java.util.TreeMap;
import java.util.stream.LongStream;
import org.espalier.ExactProducts;
import org.espalier.InputException;
import org.espalier.evaluate.ExampleActivations;
import org.espalier.evaluate.ExampleTensors;
import org.espalier.format.onnx.OnnxInitializer;
import org.espalier.format.onnx.OnnxModel;
import org.espalier.format.onnx.SmallModels;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.function.Executable;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.EnumSource;
import org.junit.jupiter.params.provider.MethodSource;

/** Dynamically quantized models run in ONNX Runtime, in the form it fuses, and answer as the originals. */
class DynamicQuantizerTest {
  private static final OrtEnvironment ENVIRONMENT = OrtEnvironment.getEnvironment();
  private static final int WIDTH = 16;

  /** Channel 3 of the normalised activation is this much larger than the others, and off centre. */
  private static final float OUTLIER = 40;

  /**
   * A block in the style of a transformer: a = x·gamma + beta feeds two products and a residual
   * addition; every product has its bias first, as exporters write it.
   *
   * @param extraReader an operator that reads a too, or null
   */
  private static ModelProto block(String extraReader) {
    Random random = new Random(7);
    float[] gamma = new float[WIDTH];
    float[] beta = new float[WIDTH];
    for (int i = 0; i < WIDTH; i++) {
      gamma[i] = i == 3 ? OUTLIER : 1;
      beta[i] = i == 3 ? 2 * OUTLIER : 0.3f * i;
    }
    GraphProto.Builder g =
        GraphProto.newBuilder()
            .setName("block")
            .addInput(value("x", DataType.FLOAT, -1, WIDTH))
            .addInitializer(vector("gamma", gamma))
            .addInitializer(vector("beta", beta))
            .addInitializer(floats("wq", random, 0.2f, WIDTH, 24))
            .addInitializer(floats("bq", random, 1, 24))
            .addInitializer(floats("wk", random, 0.2f, WIDTH, 24))
            .addInitializer(floats("bk", random, 1, 24))
            .addInitializer(floats("wo", random, 0.3f, 24, WIDTH))
            .addInitializer(floats("bo", random, 1, WIDTH))
            .addNode(node("Mul", "norm", List.of("x", "gamma"), "n"))
            .addNode(node("Add", "norm_end", List.of("n", "beta"), "a"))
            .addNode(node("MatMul", "mq", List.of("a", "wq"), "pq"))
            .addNode(node("Add", "aq", List.of("bq", "pq"), "q"))
            .addNode(node("MatMul", "mk", List.of("a", "wk"), "pk"))
            .addNode(node("Add", "ak", List.of("bk", "pk"), "k"))
            .addNode(node("Mul", "qk", List.of("q", "k"), "m"))
            .addNode(node("Tanh", "act", List.of("m"), "t"))
            .addNode(node("MatMul", "mo", List.of("t", "wo"), "po"))
            .addNode(node("Add", "ao", List.of("bo", "po"), "o"))
            .addNode(node("Add", "residual", List.of("o", "a"), "y"))
            .addOutput(value("y", DataType.FLOAT, -1, WIDTH));
    if (extraReader != null) {
      g.addNode(node(extraReader, "extra", List.of("a"), "z"))
          .addOutput(value("z", DataType.FLOAT, -1, WIDTH));
    }
    return SmallModels.model(13, g);
  }

  private static TensorProto vector(String name, float... values) {
    return matrix(name, values, values.length);
  }

  private static TensorProto matrix(String name, float[] values, long... dims) {
    ByteBuffer data = ByteBuffer.allocate(4 * values.length).order(ByteOrder.LITTLE_ENDIAN);
    for (float v : values) {
      data.putFloat(v);
    }
    return SmallModels.tensor(name, DataType.FLOAT, data.flip(), dims);
  }

  private static FloatBuffer rows(long seed, int n, int width) {
    Random random = new Random(seed);
    float[] v = new float[n * width];
    for (int i = 0; i < v.length; i++) {
      v[i] = (float) random.nextGaussian();
    }
    return FloatBuffer.wrap(v);
  }

  /** Twenty examples of twelve rows. */
  private static void examples(
      OnnxModel model, Collection<String> activations, ActivationSource.Receiver receiver) {
    OnnxModel tapped = model.withOutputs(activations);
    try (OrtSession session = ENVIRONMENT.createSession(tapped.toBuffer())) {
      for (int e = 0; e < 20; e++) {
        try (OnnxTensor x =
                OnnxTensor.createTensor(ENVIRONMENT, rows(e, 12, WIDTH), new long[] {12, WIDTH});
            OrtSession.Result r = session.run(Map.of("x", x), Set.copyOf(activations))) {
          for (String a : activations) {
            OnnxTensor value = (OnnxTensor) r.get(a).orElseThrow();
            receiver.accept(a, value.getInfo().getShape(), value.getFloatBuffer());
          }
        }
      }
    } catch (OrtException e) {
      throw new AssertionError(e);
    }
  }

  private static float[] run(OnnxModel model) throws OrtException {
    try (OnnxTensor x = RuntimeRuns.normal(new Random(1000), 12, WIDTH)) {
      return RuntimeRuns.first(model, Map.of("x", x));
    }
  }

  private static double error(float[] expected, float[] actual) {
    assertEquals(expected.length, actual.length);
    double difference = 0;
    for (int i = 0; i < expected.length; i++) {
      // The outlier channel of the residual would hide the products.
      if (i % WIDTH != 3) {
        difference += Math.pow(expected[i] - actual[i], 2);
      }
    }
    return Math.sqrt(difference / expected.length);
  }

  private static OnnxModel quantized(ModelProto proto, boolean calibrated, WeightIntegers weights) {
    OnnxModel model = OnnxModel.of(proto, "test");
    DynamicQuantizer q =
        new DynamicQuantizer(model, new DynamicQuantizer.Options(weights, true, w -> true));
    if (calibrated) {
      q.calibrate(DynamicQuantizerTest::examples);
    }
    q.apply();
    return model;
  }

  @Test
  void equalizationKeepsTheFloatOutput() throws OrtException {
    OnnxModel original = OnnxModel.of(block(null), "block");
    OnnxModel model = OnnxModel.of(block(null), "block");
    new DynamicQuantizer(model, DynamicQuantizer.Options.defaults())
        .calibrate(DynamicQuantizerTest::examples);
    // Shifted at its end, scaled by one Mul, both in float32.
    assertNotNull(model.initializer("beta_fitted"));
    assertNotNull(model.initializer("a_factor"));
    assertNotNull(model.initializer("wq_scaled"));
    assertTrue(model.initializer("wq_scaled").floats().get(3 * 24) != 0);
    assertFalse(operators(model).containsKey("MatMulInteger"));
    float[] expected = run(original);
    float[] actual = run(model);
    // Values reach some 200; float32 sums of 16 products of that size differ by 1e-5 of it.
    assertArrayEquals(expected, actual, 2e-3f);
    float beta = model.initializer("beta_fitted").floats().get(3);
    assertTrue(Math.abs(beta) < OUTLIER / 2, "the outlier channel is centred, but at " + beta);
  }

  /** The same block with LayerNormalization, whose bias is an input. */
  @Test
  void aLayerNormalizationIsShifted() throws OrtException {
    GraphProto.Builder g = block(null).getGraph().toBuilder();
    g.setNode(0, node("Identity", "same", List.of("x"), "n"));
    g.setNode(1, node("LayerNormalization", "ln", List.of("n", "gamma", "beta"), "a"));
    ModelProto proto = SmallModels.model(17, g);
    OnnxModel model = OnnxModel.of(proto, "norm");
    new DynamicQuantizer(model, DynamicQuantizer.Options.defaults())
        .calibrate(DynamicQuantizerTest::examples);
    assertNotNull(model.initializer("beta_fitted"));
    assertArrayEquals(run(OnnxModel.of(proto, "norm")), run(model), 2e-3f);
  }

  @ParameterizedTest
  @MethodSource("org.espalier.ExactProducts#weights")
  void calibrationTakesAwayMostOfTheError(WeightIntegers weights) throws OrtException {
    float[] expected = run(OnnxModel.of(block(null), "block"));
    double plain = error(expected, run(quantized(block(null), false, weights)));
    double fitted = error(expected, run(quantized(block(null), true, weights)));
    assertTrue(plain > 0.05, "plain error " + plain);
    assertTrue(fitted < plain / 4, "error " + fitted + " after calibration, " + plain + " before");
  }

  @Test
  void calibrationIsDeterministic() {
    OnnxModel a = quantized(block(null), true, WeightIntegers.INT8);
    OnnxModel b = quantized(block(null), true, WeightIntegers.INT8);
    assertEquals(a.toProto(), b.toProto());
  }

  @Test
  void anActivationThatSomethingElseReadsIsNotShifted() throws OrtException {
    OnnxModel model = OnnxModel.of(block("Relu"), "block");
    new DynamicQuantizer(model, DynamicQuantizer.Options.defaults())
        .calibrate(DynamicQuantizerTest::examples);
    assertNull(model.initializer("beta_fitted"));
    assertNotNull(model.initializer("a_factor"), "scaling is possible all the same");
    assertArrayEquals(run(OnnxModel.of(block("Relu"), "block")), run(model), 2e-3f);
  }

  @ParameterizedTest
  @EnumSource(WeightIntegers.class)
  void theRuntimeFusesEveryProductWithItsBias(WeightIntegers weights, @TempDir Path folder)
      throws Exception {
    for (boolean calibrated : new boolean[] {false, true}) {
      Path optimized = folder.resolve(calibrated + ".onnx");
      try (OrtSession.SessionOptions options = new OrtSession.SessionOptions()) {
        options.setOptimizedModelFilePath(optimized.toString());
        ENVIRONMENT
            .createSession(quantized(block(null), calibrated, weights).toBuffer(), options)
            .close();
      }
      Map<String, Integer> ops = new TreeMap<>();
      ModelProto.parseFrom(Files.readAllBytes(optimized))
          .getGraph()
          .getNodeList()
          .forEach(n -> ops.merge(n.getOpType(), 1, Integer::sum));
      // Two products share an activation and its one quantization; the third has its own.
      assertEquals(2, ops.get("MatMulIntegerToFloat"), ops.toString());
      assertEquals(1, ops.get("DynamicQuantizeMatMul"), ops.toString());
      assertEquals(1, ops.get("DynamicQuantizeLinear"), ops.toString());
      // The end of the norm and the residual; the three biases are inside the products.
      assertEquals(2, ops.get("Add"), ops.toString());
    }
  }

  @Test
  void integersAndScalesAreThoseOfTheGrid() {
    float[] w = {1.27f, 0, -2.54f, -0.635f, 0, 0.02f, 0.004f, 0, 2.54f};
    GraphProto.Builder g =
        GraphProto.newBuilder()
            .setName("g")
            .addInput(value("x", DataType.FLOAT, -1, 3))
            .addInitializer(matrix("w", w, 3, 3))
            .addNode(node("MatMul", "m", List.of("x", "w"), "y"))
            .addOutput(value("y", DataType.FLOAT, -1, 3));
    OnnxModel q = quantized(SmallModels.model(13, g), false, WeightIntegers.INT8);
    assertArrayEquals(
        new byte[] {127, 0, -127, -64, 0, 1, 0, 0, 127}, bytes(q.initializer("w_quantized")));
    FloatBuffer scales = q.initializer("w_scale").floats();
    assertEquals(1.27f / 127, scales.get(0));
    assertEquals(2.54f / 127, scales.get(1), "a channel of zeros");
    assertEquals(2.54f / 127, scales.get(2));
    OnnxModel reduced = quantized(SmallModels.model(13, g), false, WeightIntegers.INT7);
    assertArrayEquals(
        new byte[] {63, 0, -63, -32, 0, 0, 0, 0, 63}, bytes(reduced.initializer("w_quantized")));
    OnnxModel unsigned = quantized(SmallModels.model(13, g), false, WeightIntegers.UINT8);
    byte zero = (byte) 128;
    assertEquals(DataType.UINT8, unsigned.initializer("w_quantized").type());
    assertArrayEquals(
        new byte[] {(byte) 255, zero, 1, 64, zero, (byte) 129, zero, zero, (byte) 255},
        bytes(unsigned.initializer("w_quantized")));
    assertArrayEquals(new byte[] {zero}, bytes(unsigned.initializer("weight_zero_point")));
    assertEquals(scales.get(2), unsigned.initializer("w_scale").floats().get(2));
  }

  private static byte[] bytes(OnnxInitializer i) {
    byte[] b = new byte[(int) i.byteLength()];
    i.data().get(b);
    return b;
  }

  @ParameterizedTest
  @MethodSource("org.espalier.ExactProducts#weights")
  void aChannelOfZerosStaysZeroAfterCalibration(WeightIntegers weights) throws OrtException {
    ModelProto.Builder proto = block(null).toBuilder();
    GraphProto.Builder g = proto.getGraphBuilder();
    for (int i = 0; i < g.getInitializerCount(); i++) {
      if (g.getInitializer(i).getName().equals("wq")) {
        g.setInitializer(i, matrix("wq", new float[WIDTH * 24], WIDTH, 24));
      }
    }
    OnnxModel q = quantized(proto.build(), true, weights);
    for (float v : run(q)) {
      assertTrue(Float.isFinite(v));
    }
    double error = error(run(OnnxModel.of(proto.build(), "zeros")), run(q));
    assertTrue(error < 0.05, "error " + error);
  }

  @Test
  void weightsThatAreNotFiniteAreNamed() {
    for (float bad : new float[] {Float.NaN, Float.POSITIVE_INFINITY}) {
      ModelProto.Builder proto = block(null).toBuilder();
      float[] w = new float[24 * WIDTH];
      w[17] = bad;
      GraphProto.Builder g = proto.getGraphBuilder();
      for (int i = 0; i < g.getInitializerCount(); i++) {
        if (g.getInitializer(i).getName().equals("wo")) {
          g.setInitializer(i, matrix("wo", w, 24, WIDTH));
        }
      }
      InputException plain =
          assertThrows(
              InputException.class, () -> quantized(proto.build(), false, WeightIntegers.INT8));
      assertTrue(plain.getMessage().contains("wo"), plain.getMessage());
      InputException fitted =
          assertThrows(
              InputException.class, () -> quantized(proto.build(), true, WeightIntegers.INT8));
      assertTrue(fitted.getMessage().contains("wo"), fitted.getMessage());
    }
  }

  /** What a bad weight makes is not blamed on the examples, in either form, whether it is quantized or not. */
  @Test
  void weightsAreNamedWhereActivationsAreNotFinite() {
    ModelProto.Builder proto = block(null).toBuilder();
    float[] w = new float[24 * WIDTH];
    w[17] = Float.NaN;
    GraphProto.Builder g = proto.getGraphBuilder();
    for (int i = 0; i < g.getInitializerCount(); i++) {
      if (g.getInitializer(i).getName().equals("wq")) {
        g.setInitializer(i, matrix("wq", w, WIDTH, 24));
      }
    }
    String problem = "test: the weights wq hold NaN at element 17";
    for (boolean all : new boolean[] {true, false}) {
      DynamicQuantizer dynamic =
          new DynamicQuantizer(
              OnnxModel.of(proto.build(), "test"),
              new DynamicQuantizer.Options(
                  WeightIntegers.INT8, true, c -> all || !c.name().equals("wq")));
      InputException e =
          assertThrows(
              InputException.class, () -> dynamic.calibrate(DynamicQuantizerTest::examples));
      assertTrue(e.getMessage().startsWith(problem), e.getMessage());
      StaticQuantizer fixed =
          new StaticQuantizer(
              OnnxModel.of(proto.build(), "test"),
              new StaticQuantizer.Options(
                  WeightIntegers.INT8, true, c -> all || !c.name().equals("wq")));
      e =
          assertThrows(
              InputException.class,
              () -> fixed.calibrate(DynamicQuantizerTest::examples, new Clipping.MinMax()));
      assertTrue(e.getMessage().startsWith(problem), e.getMessage());
    }
  }

  @Test
  void otherConstantsAreNamedWhereActivationsAreNotFinite() {
    ModelProto.Builder proto = block(null).toBuilder();
    float[] b = new float[24];
    b[5] = Float.NaN;
    GraphProto.Builder g = proto.getGraphBuilder();
    for (int i = 0; i < g.getInitializerCount(); i++) {
      if (g.getInitializer(i).getName().equals("bk")) {
        g.setInitializer(i, vector("bk", b));
      }
    }
    InputException e =
        assertThrows(
            InputException.class, () -> quantized(proto.build(), true, WeightIntegers.INT8));
    assertTrue(
        e.getMessage().contains("the constant bk is NaN at element 5, which may be why"),
        e.getMessage());
  }

  @Test
  void activationsThatAreNotFiniteAreNamed() {
    OnnxModel model = OnnxModel.of(block(null), "block");
    DynamicQuantizer q = new DynamicQuantizer(model, DynamicQuantizer.Options.defaults());
    ActivationSource broken =
        (m, names, receiver) ->
            names.forEach(
                n -> {
                  float[] v = new float[48];
                  v[5] = n.equals("t") ? Float.NaN : 1;
                  receiver.accept(n, new long[] {48 / WIDTH, WIDTH}, FloatBuffer.wrap(v));
                });
    InputException e = assertThrows(InputException.class, () -> q.calibrate(broken));
    assertTrue(e.getMessage().contains(" t is NaN in channel 5"), e.getMessage());
  }

  @Test
  void aQuantizedModelIsNotQuantizedAgain() throws OrtException {
    OnnxModel model = OnnxModel.of(block(null), "block");
    DynamicQuantizer q = new DynamicQuantizer(model, DynamicQuantizer.Options.defaults());
    q.apply();
    float[] once = run(model);
    for (Executable call :
        List.<Executable>of(
            q::apply,
            q::products,
            q::tables,
            q::prepareTraining,
            () -> q.calibrate(DynamicQuantizerTest::examples),
            () -> q.quantizedCopy(copy -> {}))) {
      String said = assertThrows(IllegalStateException.class, call).getMessage();
      assertTrue(said.startsWith("block was quantized already"), said);
    }
    assertArrayEquals(once, run(model));
  }

  @Test
  void calibrationWithoutExamplesIsRefused() {
    OnnxModel model = OnnxModel.of(block(null), "block");
    DynamicQuantizer q = new DynamicQuantizer(model, DynamicQuantizer.Options.defaults());
    assertThrows(InputException.class, () -> q.calibrate((m, names, receiver) -> {}));
  }

  /** One row varies in nothing: its moments are what rounding leaves of 0. */
  @Test
  void calibrationOnOneRowOrOnEqualOnesRoundsWeightsAsTheyAre() throws OrtException {
    OnnxModel original = OnnxModel.of(SmallModels.mlp(), "mlp");
    float[] row = new float[8];
    rows(3, 1, 8).get(row);
    for (int repeats : new int[] {1, 70}) {
      OnnxModel model = original.copy();
      DynamicQuantizer q = new DynamicQuantizer(model, RuntimeRuns.exactDynamic());
      q.calibrate(
          new ExampleActivations(
              ExampleTensors.of(Collections.nCopies(repeats, row), List.of(8L)), 1));
      q.apply();
      try (OrtSession a = ENVIRONMENT.createSession(original.toBuffer());
          OrtSession b = ENVIRONMENT.createSession(model.toBuffer());
          OnnxTensor x = OnnxTensor.createTensor(ENVIRONMENT, rows(8, 64, 8), new long[] {64, 8});
          OrtSession.Result right = a.run(Map.of("x", x));
          OrtSession.Result made = b.run(Map.of("x", x))) {
        FloatBuffer expected = ((OnnxTensor) right.get(0)).getFloatBuffer();
        FloatBuffer actual = ((OnnxTensor) made.get(0)).getFloatBuffer();
        double error = 0;
        double square = 0;
        while (expected.hasRemaining()) {
          float y = expected.get();
          error += Math.pow(actual.get() - y, 2);
          square += y * y;
        }
        assertTrue(Math.sqrt(error / square) < 0.02, Math.sqrt(error / square) + "");
      }
    }
  }

  /** They may become unequal when they are trained. */
  @Test
  void equalBiasesStayTwo() {
    Random random = new Random(4);
    GraphProto.Builder g =
        GraphProto.newBuilder().setName("towers").addInput(value("x", DataType.FLOAT, -1, 6));
    for (int width : new int[] {1, 4}) {
      for (String tower : List.of("a", "b")) {
        String name = tower + width;
        g.addInitializer(floats("w" + name, random, 1, 6, width));
        g.addInitializer(SmallModels.floats("bias" + name, new float[width], width));
        g.addNode(node("MatMul", "m" + name, List.of("x", "w" + name), "p" + name));
        g.addNode(node("Add", "s" + name, List.of("p" + name, "bias" + name), name));
        g.addOutput(value(name, DataType.FLOAT, -1, width));
      }
    }
    OnnxModel model = OnnxModel.of(SmallModels.model(13, g), "towers");
    new DynamicQuantizer(model, DynamicQuantizer.Options.defaults());
    for (String name : List.of("biasa1", "biasb1", "biasa4", "biasb4")) {
      assertNotNull(model.initializer(name), name);
    }
  }

  @Test
  void aGemmAndAnEmbeddingAreQuantizedAndConvIsNot() throws OrtException {
    OnnxModel mlp = quantized(SmallModels.mlp(), false, WeightIntegers.INT8);
    assertEquals(2, operators(mlp).get("MatMulInteger"));
    assertFalse(operators(mlp).containsKey("Gemm"));
    OnnxModel cnn = OnnxModel.of(SmallModels.cnn(), "cnn");
    DynamicQuantizer q = new DynamicQuantizer(cnn, DynamicQuantizer.Options.defaults());
    assertEquals(List.of("fc.weight_transposed"), q.quantized());
    assertTrue(q.skipped().get("conv1.weight").contains("Conv"), q.skipped().toString());
    q.apply();
    assertEquals(3, operators(cnn).get("Conv"));
  }

  @Test
  void anEmbeddingHasHalfScalesWhereTheyAreNormalNumbers() throws OrtException {
    int rows = 1100;
    int width = 64;
    for (float size : new float[] {1, 1e-3f, 1e8f}) {
      ByteBuffer table = ByteBuffer.allocate(4 * rows * width).order(ByteOrder.LITTLE_ENDIAN);
      Random random = new Random(3);
      for (int i = 0; i < rows * width; i++) {
        table.putFloat(4 * i, size * (float) random.nextGaussian());
      }
      GraphProto.Builder g =
          GraphProto.newBuilder()
              .setName("g")
              .addInput(value("x", DataType.FLOAT, 1, width))
              .addInput(value("ids", DataType.INT64, rows))
              .addInitializer(SmallModels.tensor("table", DataType.FLOAT, table, rows, width))
              .addInitializer(floats("w", random, 1, width, 8))
              .addNode(node("Gather", "look", List.of("table", "ids"), "looked"))
              .addNode(node("Add", "add", List.of("looked", "x"), "sum"))
              .addNode(node("MatMul", "product", List.of("sum", "w"), "y"))
              .addOutput(value("y", DataType.FLOAT, rows, 8))
              .addOutput(value("looked", DataType.FLOAT, rows, width));
      OnnxModel model = OnnxModel.of(SmallModels.model(13, g), "table");
      new DynamicQuantizer(model, DynamicQuantizer.Options.defaults()).apply();
      assertEquals(
          size == 1 ? DataType.FLOAT16 : DataType.FLOAT, model.constant("table_scale").type());
      try (OrtSession session = ENVIRONMENT.createSession(model.toBuffer());
          OnnxTensor x =
              OnnxTensor.createTensor(
                  ENVIRONMENT, FloatBuffer.allocate(width), new long[] {1, width});
          OnnxTensor ids =
              OnnxTensor.createTensor(ENVIRONMENT, LongStream.range(0, rows).toArray());
          OrtSession.Result r = session.run(Map.of("x", x, "ids", ids), Set.of("looked"))) {
        float[][] looked = (float[][]) r.get(0).getValue();
        for (int i = 0; i < rows; i++) {
          float absmax = 0;
          for (int j = 0; j < width; j++) {
            absmax = Math.max(absmax, Math.abs(table.getFloat(4 * (i * width + j))));
          }
          // Half a step, which rounding up to a float16 makes larger by a thousandth.
          float bound = absmax / 127 * 0.5006f;
          for (int j = 0; j < width; j++) {
            assertEquals(table.getFloat(4 * (i * width + j)), looked[i][j], bound);
          }
        }
      }
    }
  }

  /** The block, whose activation is multiplied with a table that is looked up in too: z [n, 40 + 16]. */
  private static ModelProto tied() {
    GraphProto.Builder g = block(null).getGraph().toBuilder();
    g.addInitializer(floats("table", new Random(9), 0.5f, 40, WIDTH))
        .addNode(
            node(
                "ArgMax",
                "ids",
                List.of("x"),
                "ids",
                attribute("axis", 1),
                attribute("keepdims", 0)))
        .addNode(node("Gather", "look", List.of("table", "ids"), "looked"))
        .addNode(node("Transpose", "turn", List.of("table"), "turned", attribute("perm", 1, 0)))
        .addNode(node("MatMul", "head", List.of("a", "turned"), "scores"))
        .addNode(node("Concat", "z", List.of("scores", "looked"), "z", attribute("axis", 1)))
        .clearOutput()
        .addOutput(value("z", DataType.FLOAT, -1, 40 + WIDTH))
        .addOutput(value("y", DataType.FLOAT, -1, WIDTH));
    return SmallModels.model(13, g);
  }

  @ParameterizedTest
  @MethodSource("org.espalier.ExactProducts#weights")
  void anEmbeddingThatIsAProductTooIsStoredOnce(WeightIntegers weights) throws OrtException {
    for (boolean calibrated : new boolean[] {false, true}) {
      storesOnce(weights, calibrated);
    }
  }

  private static void storesOnce(WeightIntegers weights, boolean calibrated) throws OrtException {
    float[] expected = run(OnnxModel.of(tied(), "tied"));
    OnnxModel model = OnnxModel.of(tied(), "tied");
    DynamicQuantizer q =
        new DynamicQuantizer(model, new DynamicQuantizer.Options(weights, true, w -> true));
    assertTrue(q.skipped().isEmpty(), q.skipped().toString());
    assertEquals(1, Collections.frequency(q.quantized(), "table"));
    if (calibrated) {
      q.calibrate(DynamicQuantizerTest::examples);
      assertNotNull(model.initializer("table_scaled"));
      assertArrayEquals(expected, run(model), 2e-3f);
    }
    q.apply();
    assertStoredOnce(model, weights.type());
    float[] found = run(model);
    double[] squares = new double[2];
    double[] errors = new double[2];
    for (int i = 0; i < found.length; i++) {
      int part = i % (40 + WIDTH) < 40 ? 0 : 1;
      squares[part] += expected[i] * expected[i];
      errors[part] += Math.pow(expected[i] - found[i], 2);
    }
    assertTrue(Math.sqrt(errors[0] / squares[0]) < 0.02, "of the product: " + errors[0]);
    // Scaled for the product, which sees the third channel forty times as large as the others.
    double bound = calibrated ? 0.05 : 0.01;
    assertTrue(Math.sqrt(errors[1] / squares[1]) < bound, "of the rows: " + errors[1]);
  }

  private static void assertStoredOnce(OnnxModel model, DataType type) {
    List<OnnxInitializer> large =
        model.initializers().stream().filter(i -> i.elements() == 40 * WIDTH).toList();
    assertEquals(1, large.size(), large.toString());
    assertEquals(type, large.get(0).type());
  }

  /** Training sees the rows as they are exported: what the product and the look-ups read is one tensor. */
  @Test
  void trainedLookUpsReadTheProductsWeights() throws OrtException {
    float[] expected = run(OnnxModel.of(tied(), "tied"));
    OnnxModel model = OnnxModel.of(tied(), "tied");
    DynamicQuantizer q = new DynamicQuantizer(model, DynamicQuantizer.Options.defaults());
    q.calibrate(DynamicQuantizerTest::examples);
    q.prepareTraining();
    // Biases have taken up the mean errors of rounding.
    assertArrayEquals(expected, run(model), 0.5f);
    long large = model.initializers().stream().filter(i -> i.elements() == 40 * WIDTH).count();
    assertEquals(1, large);
    QuantizedProduct product =
        q.products().stream().filter(p -> p.name().equals("table")).findFirst().orElseThrow();
    byte[] integers = new byte[product.integers().length];
    for (int i = 0; i < integers.length; i++) {
      integers[i] = (byte) (i % 251 - 125);
    }
    q.setWeights(product.output(), integers, product.scales());
    float[] working = new float[integers.length];
    for (int i = 0; i < working.length; i++) {
      working[i] = integers[i] * product.scales()[i % 40];
    }
    long[] dims = model.constant(product.weight()).dims();
    model.replaceConstant(OnnxInitializer.floats(product.weight(), dims, working));
    OnnxModel exported = q.quantizedCopy(copy -> {});
    assertStoredOnce(exported, DataType.INT8);
    float[] trained = run(model);
    float[] shipped = run(exported);
    for (int i = 0; i < trained.length; i++) {
      if (i % (40 + WIDTH) >= 40) {
        assertEquals(trained[i], shipped[i], 1e-5f * Math.max(1, Math.abs(trained[i])));
      }
    }
  }

  @Test
  void aModelWithNothingToQuantizeIsRefused() {
    GraphProto.Builder g =
        GraphProto.newBuilder()
            .setName("g")
            .addInput(value("x", DataType.FLOAT, -1, 3))
            .addNode(node("Relu", "r", List.of("x"), "y"))
            .addOutput(value("y", DataType.FLOAT, -1, 3));
    OnnxModel model = OnnxModel.of(SmallModels.model(13, g), "relu");
    InputException e =
        assertThrows(
            InputException.class,
            () -> new DynamicQuantizer(model, DynamicQuantizer.Options.defaults()));
    assertTrue(e.getMessage().contains("relu has no weights to quantize"), e.getMessage());
    assertFalse(e.getMessage().contains("branches"), e.getMessage());
  }

  /**
   * Speech models choose by If between networks for two rates. Branches share a matrix of the graph around them, one
   * of which reads the activation of a product outside, and have their own, as initializer and as Constant.
   */
  @Test
  void weightsInBranchesAreQuantized() throws OrtException {
    Random random = new Random(3);
    List<GraphProto.Builder> branches = new ArrayList<>();
    for (String op : List.of("Relu", "Tanh")) {
      branches.add(
          GraphProto.newBuilder()
              .setName(op)
              .addInitializer(floats("own", random, 0.3f, WIDTH, WIDTH))
              .addInitializer(floats("own_bias", random, 0.3f, WIDTH))
              .addNode(
                  node("Constant", "", List.of(), "k").toBuilder()
                      .addAttribute(
                          AttributeProto.newBuilder()
                              .setName("value")
                              .setType(AttributeProto.AttributeType.TENSOR)
                              .setT(floats("", random, 0.3f, WIDTH, WIDTH)))
                      .build())
              .addNode(node("MatMul", "", List.of("t", "shared"), "a"))
              .addNode(node("MatMul", "", List.of("a", "k"), "b"))
              .addNode(
                  node("Gemm", "", List.of("b", "own", "own_bias"), "c", attribute("transB", 1)))
              .addNode(node(op, "", List.of("c"), "z"))
              .addOutput(value("z", DataType.FLOAT, -1, WIDTH)));
    }
    NodeProto.Builder choice = node("If", "choice", List.of("condition"), "m").toBuilder();
    for (int k = 0; k < 2; k++) {
      choice.addAttribute(
          AttributeProto.newBuilder()
              .setName(k == 0 ? "then_branch" : "else_branch")
              .setType(AttributeProto.AttributeType.GRAPH)
              .setG(branches.get(k)));
    }
    for (boolean condition : new boolean[] {true, false}) {
      GraphProto.Builder g =
          GraphProto.newBuilder()
              .setName("g")
              .addInput(value("x", DataType.FLOAT, -1, WIDTH))
              .addInitializer(floats("shared", random, 0.3f, WIDTH, WIDTH))
              .addInitializer(floats("w", random, 0.3f, WIDTH, WIDTH))
              .addInitializer(
                  SmallModels.tensor(
                      "condition",
                      DataType.BOOL,
                      ByteBuffer.wrap(new byte[] {(byte) (condition ? 1 : 0)})))
              .addNode(node("Tanh", "", List.of("x"), "t"))
              .addNode(choice)
              .addNode(node("MatMul", "", List.of("t", "w"), "h"))
              .addNode(node("Add", "", List.of("m", "h"), "y"))
              .addOutput(value("y", DataType.FLOAT, -1, WIDTH));
      ModelProto proto = SmallModels.model(13, g);
      for (boolean calibrated : new boolean[] {false, true}) {
        OnnxModel model = quantized(proto, calibrated, ExactProducts.first());
        long products =
            model.allNodes().stream().filter(n -> n.getOpType().equals("MatMulInteger")).count();
        assertEquals(7, products);
        assertTrue(
            model.allNodes().stream()
                .map(NodeProto::getOpType)
                .noneMatch(Set.of("MatMul", "Gemm", "Constant")::contains));
        // Six matrices, the shared one once, are bytes; nothing of them is left in the branches.
        assertTrue(model.toProto().getSerializedSize() < 6 * 4 * WIDTH * WIDTH);
        float[] expected = run(OnnxModel.of(proto, "float"));
        double size = error(expected, new float[expected.length]);
        assertTrue(error(expected, run(model)) < 0.03 * size, "calibrated " + calibrated);
      }
    }
  }

  @Test
  void aQuantizedModelIsSaidToBeOne() {
    GraphProto.Builder g =
        GraphProto.newBuilder()
            .setName("g")
            .addInput(value("x", DataType.UINT8, -1, 3))
            .addInitializer(SmallModels.tensor("w", DataType.INT8, ByteBuffer.allocate(9), 3, 3))
            .addNode(node("MatMulInteger", "", List.of("x", "w"), "y"))
            .addOutput(value("y", DataType.INT32, -1, 3));
    OnnxModel model = OnnxModel.of(SmallModels.model(13, g), "int8");
    InputException e =
        assertThrows(
            InputException.class,
            () -> new DynamicQuantizer(model, DynamicQuantizer.Options.defaults()));
    assertTrue(
        e.getMessage()
            .endsWith(
                "it is quantized already, with MatMulInteger; quantize the model that it was made"
                    + " of"),
        e.getMessage());
  }

  @Test
  void reasonsAreToldOnceEach() {
    assertEquals(
        List.of("1 weight stays float: small ('c')", "2 weights stay float: Conv ('a', 'b')"),
        FloatWeights.lines(Map.of("a", "Conv", "c", "small", "b", "Conv")).stream()
            .sorted()
            .toList());
  }

  /** x [n, m, 8] reshaped to its first two dimensions, 2 and 4, by way of Shape as exporters do it. */
  private static ModelProto reshape(String shapeOf) {
    List<String> parts = new ArrayList<>();
    GraphProto.Builder g =
        GraphProto.newBuilder()
            .setName("g")
            .addInput(value("x", DataType.FLOAT, -1, -1, 8))
            .addInput(value("other", DataType.FLOAT, -1, -1, 8))
            .addInitializer(floats("w", new Random(1), 1, 8, 8))
            .addInitializer(int64("zero", 0))
            .addInitializer(int64("axis", 0))
            .addInitializer(int64("one", 1))
            .addInitializer(int64("two", 2))
            .addInitializer(int64("four", 4))
            .addNode(node("MatMul", "m", List.of("x", "w"), "p"));
    for (String index : List.of("zero", "one")) {
      g.addNode(node("Shape", "s" + index, List.of(shapeOf), "shape" + index))
          .addNode(
              node(
                  "Gather",
                  "g" + index,
                  List.of("shape" + index, index + "_scalar"),
                  "dim" + index))
          .addNode(node("Unsqueeze", "u" + index, List.of("dim" + index, "axis"), "part" + index));
      g.addInitializer(scalar(index + "_scalar", index.equals("zero") ? 0 : 1));
      parts.add("part" + index);
    }
    parts.add("two");
    parts.add("four");
    return SmallModels.model(
        13,
        g.addNode(node("Concat", "c", parts, "target", attribute("axis", 0)))
            .addNode(node("Reshape", "r", List.of("p", "target"), "y"))
            .addOutput(value("y", DataType.FLOAT, -1, -1, 2, 4)));
  }

  private static TensorProto int64(String name, long value) {
    return SmallModels.tensor(name, DataType.INT64, longs(value), 1);
  }

  private static TensorProto scalar(String name, long value) {
    return SmallModels.tensor(name, DataType.INT64, longs(value));
  }

  private static ByteBuffer longs(long value) {
    return ByteBuffer.allocate(8).order(ByteOrder.LITTLE_ENDIAN).putLong(0, value);
  }

  @Test
  void aReshapeToItsOwnDimensionsNeedsNoShape() {
    OnnxModel model = quantized(reshape("p"), false, WeightIntegers.INT8);
    assertFalse(operators(model).containsKey("Shape"), operators(model).toString());
    assertArrayEquals(
        new long[] {0, 0, 2, 4},
        longs(model.initializer("shape")),
        "0 stands for «as in the data»");
    OnnxModel other = quantized(reshape("other"), false, WeightIntegers.INT8);
    assertEquals(2, operators(other).get("Shape"), "dimensions of another value are not its own");
  }

  @Test
  void equalSmallConstantsBecomeOne() {
    OnnxModel model = quantized(reshape("other"), false, WeightIntegers.INT8);
    List<String> names = model.initializers().stream().map(OnnxInitializer::name).toList();
    // zero and axis are both [0]; the scalars have another shape.
    assertTrue(names.contains("zero") != names.contains("axis"), names.toString());
    assertTrue(names.contains("zero_scalar") && names.contains("one_scalar"), names.toString());
  }

  private static long[] longs(OnnxInitializer i) {
    long[] v = new long[(int) i.elements()];
    i.data().asLongBuffer().get(v);
    return v;
  }
}

package org.espalier.compress.onnx;

import static org.espalier.compress.onnx.OutputErrors.error;
import static org.espalier.compress.onnx.RuntimeRuns.first;
import static org.espalier.compress.onnx.RuntimeRuns.fixed;
import static org.espalier.compress.onnx.RuntimeRuns.normal;
import static org.espalier.compress.onnx.RuntimeRuns.operators;
import static org.espalier.format.onnx.SmallModels.attribute;
import static org.espalier.format.onnx.SmallModels.floats;
import static org.espalier.format.onnx.SmallModels.node;
import static org.espalier.format.onnx.SmallModels.number;
import static org.espalier.format.onnx.SmallModels.value;
import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import ai.onnx.proto.OnnxMl.AttributeProto;
import ai.onnx.proto.OnnxMl.GraphProto;
import ai.onnx.proto.OnnxMl.ModelProto;
import ai.onnx.proto.OnnxMl.NodeProto;
import ai.onnx.proto.OnnxMl.TensorProto.DataType;
import ai.onnxruntime.OnnxTensor;
import ai.onnxruntime.OrtEnvironment;
import ai.onnxruntime.OrtException;
import ai.onnxruntime.OrtSession;
import com.google.protobuf.ByteString;
import java.io.IOException;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.FloatBuffer;
import java.nio.LongBuffer;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.Random;
import java.util.Set;
import org.espalier.ExactProducts;
import org.espalier.InputException;
import org.espalier.evaluate.TensorActivations;
import org.espalier.format.onnx.OnnxInitializer;
import org.espalier.format.onnx.OnnxModel;
import org.espalier.format.onnx.SmallModels;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.function.Executable;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;
import org.junit.jupiter.params.provider.MethodSource;

/** Quantized models run in ONNX Runtime and answer as the originals do. */
class StaticQuantizerTest {
  private static final OrtEnvironment ENVIRONMENT = OrtEnvironment.getEnvironment();

  @TempDir private Path folder;

  private static StaticQuantizer.Options options(WeightIntegers weights) {
    return new StaticQuantizer.Options(weights, true, w -> true);
  }

  @ParameterizedTest
  @MethodSource("org.espalier.ExactProducts#weights")
  void aConvolutionalNetworkRunsAndIsClose(WeightIntegers weights) throws OrtException {
    OnnxModel original = OnnxModel.of(SmallModels.cnn(), "cnn");
    Map<String, OnnxTensor> in = Map.of("x", normal(new Random(1), 4, 3, 16, 16));
    OnnxModel q = fixed(SmallModels.cnn(), options(weights), List.of(in));
    // x, r1, c2, r3, p and f.
    assertEquals(6, operators(q).get("QuantizeLinear"));
    assertEquals(weights.type(), q.initializer("conv1.weight_quantized").type());
    assertEquals(16, q.initializer("conv2.weight_scale").elements());
    assertEquals(DataType.INT32, q.initializer("fc.bias_quantized").type());
    assertEquals(null, q.initializer("conv1.weight"));
    double error = error(first(original, in), first(q, in));
    assertTrue(error > 1e-6 && error < 0.03, "error " + error);
  }

  /**
   * Sixteen Convs: the first makes a channel that the second hardly reads, and what stands between them keeps the one
   * from making it smaller for the other.
   *
   * @param factor how much larger that channel is than the others
   */
  private static ModelProto unevenChannels(float factor) {
    Random random = new Random(8);
    GraphProto.Builder g =
        GraphProto.newBuilder()
            .setName("uneven")
            .addInput(value("v0", DataType.FLOAT, -1, 8, 6, 6))
            .addOutput(value("v16", DataType.FLOAT, -1, 8, 6, 6));
    for (int k = 1; k <= 16; k++) {
      float[] w = new float[64];
      for (int i = 0; i < w.length; i++) {
        float scale = k == 1 && i / 8 == 0 ? factor : k == 2 && i % 8 == 0 ? 0.01f / factor : 1;
        w[i] = (float) random.nextGaussian() * 0.4f * scale;
      }
      g.addInitializer(floats("w" + k, w, 8, 8, 1, 1));
      g.addNode(node("Conv", "", List.of(k == 2 ? "n" : "v" + (k - 1), "w" + k), "v" + k));
      if (k == 1) {
        g.addNode(node("Neg", "", List.of("v1"), "n"));
      }
    }
    return SmallModels.model(13, g);
  }

  @Test
  void convsThatAloneSpoilTheOutputsStayFloat() throws OrtException {
    Map<String, OnnxTensor> in = Map.of("v0", normal(new Random(3), 1, 8, 6, 6));
    ActivationSource source = new TensorActivations(List.of(in), 1);
    for (float factor : new float[] {1, 1000}) {
      ModelProto proto = unevenChannels(factor);
      float[] expected = first(OnnxModel.of(proto, "float"), in);
      OnnxModel all = OnnxModel.of(proto, "all");
      StaticQuantizer quantizer = new StaticQuantizer(all, RuntimeRuns.exactStatic());
      Map<String, ActivationRange> ranges = quantizer.calibrate(source, new Clipping.MinMax());
      quantizer.apply(ranges);
      double spoilt = error(expected, first(all, in));

      OnnxModel model = OnnxModel.of(proto, "some");
      quantizer = new StaticQuantizer(model, RuntimeRuns.exactStatic());
      quantizer.setRanges(quantizer.calibrate(source, new Clipping.MinMax()));
      Map<String, Double> left = quantizer.leaveSensitive(new OutputError(model, source));
      quantizer.apply(quantizer.ranges());
      double error = error(expected, first(model, in));
      if (factor == 1) {
        assertEquals(Map.of(), left);
        assertEquals(16, quantizer.quantized().size());
        assertEquals(spoilt, error);
      } else {
        // What the first makes is what the second takes.
        assertEquals(Set.of("w1", "w2"), left.keySet());
        assertEquals(14, quantizer.quantized().size());
        assertTrue(left.values().stream().allMatch(e -> e > 0.14), left.toString());
        assertTrue(spoilt > 0.2, "error " + spoilt);
        assertTrue(error < 0.06, "error " + error);
      }
    }
  }

  /** An image of a few large values among many: they count as all others do, are noise that nothing reads, or are all. */
  @ParameterizedTest
  @CsvSource({"Neg, mse", "Tanh, percentile:99.9", "GlobalMaxPool, minmax"})
  void takesTheRangesThatCostLess(String reader, String clip) throws OrtException {
    Random random = new Random(4);
    float[] x = new float[8 * 4096];
    for (int i = 0; i < x.length; i++) {
      x[i] = (float) random.nextGaussian() * (i % 4096 == 0 ? 30 : 1);
    }
    float[] w = new float[64];
    for (int i = 0; i < 64; i++) {
      w[i] = i / 8 == i % 8 ? 1 : 0;
    }
    GraphProto.Builder g =
        GraphProto.newBuilder()
            .setName("clip")
            .addInput(value("x", DataType.FLOAT, 1, 8, 64, 64))
            .addOutput(value("y", DataType.FLOAT, -1, -2, -3, -4))
            .addInitializer(floats("w", w, 8, 8, 1, 1))
            .addNode(node("Conv", "", List.of("x", "w"), "c"))
            .addNode(node(reader, "", List.of("c"), "y"));
    OnnxModel model = OnnxModel.of(SmallModels.model(13, g), "test");
    OrtEnvironment environment = OrtEnvironment.getEnvironment();
    OnnxTensor tensor =
        OnnxTensor.createTensor(environment, FloatBuffer.wrap(x), new long[] {1, 8, 64, 64});
    ActivationSource source = new TensorActivations(List.of(Map.of("x", tensor)), 1);
    StaticQuantizer q = new StaticQuantizer(model, StaticQuantizer.Options.defaults());
    OutputError error = new OutputError(model, source);
    Map<String, ActivationRange> best = q.calibrate(source, error);
    for (String other : List.of("mse", "minmax", "percentile:99.9")) {
      Map<String, ActivationRange> ranges = q.ranges(source, Clipping.parse(other));
      assertEquals(other.equals(clip), ranges.equals(best), other + ": " + ranges);
    }
  }

  /**
   * A mask, and the features that it is made of beside it. One example has a pixel so large that the features are little
   * else, while the mask is 0 there however large it is.
   */
  private static ModelProto maskAndFeatures() {
    float[] same = new float[16];
    for (int i = 0; i < 4; i++) {
      same[5 * i] = 1;
    }
    GraphProto.Builder g =
        GraphProto.newBuilder()
            .setName("mask")
            .addInput(value("x", DataType.FLOAT, 1, 4, 32, 32))
            .addOutput(value("mask", DataType.FLOAT, 1, 1, 32, 32))
            .addOutput(value("features", DataType.FLOAT, 1, 4, 32, 32))
            .addInitializer(floats("same", same, 4, 4, 1, 1))
            .addInitializer(floats("head", new float[] {-1, -0.5f, -1, -0.5f}, 1, 4, 1, 1))
            .addNode(node("Conv", "", List.of("x", "same"), "features"))
            .addNode(node("Conv", "", List.of("features", "head"), "logits"))
            .addNode(node("Sigmoid", "", List.of("logits"), "mask"));
    return SmallModels.model(13, g);
  }

  @Test
  void rangesServeTheAnswersNotWhatTheyAreMadeOf() throws OrtException {
    List<Map<String, OnnxTensor>> examples = new ArrayList<>();
    for (int e = 0; e < 4; e++) {
      OnnxTensor x = normal(new Random(20 + e), 1, 4, 32, 32);
      for (int c = 0; e == 0 && c < 4; c++) {
        x.getBufferRef().map(FloatBuffer.class::cast).orElseThrow().put(1024 * c + 77, 300);
      }
      examples.add(Map.of("x", x));
    }
    ActivationSource source = new TensorActivations(examples, 1);
    Map<String, OnnxTensor> unseen = Map.of("x", normal(new Random(30), 1, 4, 32, 32));
    float[] expected = first(OnnxModel.of(maskAndFeatures(), "float"), unseen);
    double[] errors = new double[2];
    for (int i = 0; i < 2; i++) {
      OnnxModel model = OnnxModel.of(maskAndFeatures(), "int8");
      OutputError error =
          i == 0
              ? new OutputError(model, source)
              : new OutputError(model, List.of("features"), source);
      StaticQuantizer q = new StaticQuantizer(model, RuntimeRuns.exactStatic());
      Map<String, ActivationRange> ranges = q.calibrate(source, error);
      boolean cut = ranges.get("features").max() < 10;
      assertEquals(i == 0, cut, ranges.toString());
      q.apply(ranges);
      errors[i] = error(expected, first(model, unseen));
    }
    assertTrue(errors[0] < 0.03 && errors[1] > 0.2, Arrays.toString(errors));
  }

  /** Where a heatmap is largest: calibration has seen a peak at few of its 256 places. */
  @Test
  void sharesOfASoftmaxMayPeakWhereCalibrationSawNone() throws OrtException {
    float[] places = new float[2 * 256];
    for (int i = 0; i < 256; i++) {
      places[2 * i] = i % 16;
      places[2 * i + 1] = i / 16;
    }
    GraphProto.Builder g =
        GraphProto.newBuilder()
            .setName("soft-argmax")
            .addInput(value("x", DataType.FLOAT, -1, 256))
            .addInitializer(floats("places", places, 256, 2))
            .addInitializer(number("ten", 10))
            .addNode(node("Mul", "/Mul", List.of("x", "ten"), "heat"))
            .addNode(node("Softmax", "/Softmax", List.of("heat"), "share", attribute("axis", -1)))
            .addNode(node("MatMul", "/MatMul", List.of("share", "places"), "y"))
            .addOutput(value("y", DataType.FLOAT, -1, 2));
    ModelProto proto = SmallModels.model(13, g);
    OnnxModel model = OnnxModel.of(proto, "int8");
    StaticQuantizer q = new StaticQuantizer(model, StaticQuantizer.Options.defaults());
    q.apply(
        q.calibrate(
            new TensorActivations(List.of(Map.of("x", normal(new Random(1), 60, 256))), 1),
            new Clipping.MinMax()));
    assertEquals(List.of("places"), q.quantized());
    Map<String, OnnxTensor> unseen = Map.of("x", normal(new Random(2), 300, 256));
    double error = error(first(OnnxModel.of(proto, "float"), unseen), first(model, unseen));
    assertTrue(error < 0.05, "error " + error);
  }

  /** A model may call a weight of its own what others would call factors of channels. */
  @Test
  void aWeightIsOneWhateverItIsCalled() {
    Random random = new Random(2);
    GraphProto.Builder g =
        GraphProto.newBuilder()
            .setName("names")
            .addInput(value("x", DataType.FLOAT, 1, 8, 4, 4))
            .addOutput(value("y", DataType.FLOAT, 1, 8, 4, 4))
            .addInitializer(floats("a_channelwise", random, 1, 8, 1, 1, 1))
            .addNode(node("Conv", "", List.of("x", "a_channelwise"), "y", attribute("group", 8)));
    OnnxModel model = OnnxModel.of(SmallModels.model(13, g), "names");
    StaticQuantizer q = new StaticQuantizer(model, StaticQuantizer.Options.defaults());
    assertEquals(List.of("a_channelwise"), q.quantized());
  }

  @ParameterizedTest
  @MethodSource("org.espalier.ExactProducts#weights")
  void matMulAndGemmRunAndAreClose(WeightIntegers weights) throws OrtException {
    OnnxModel original = OnnxModel.of(SmallModels.mlp(), "mlp");
    Map<String, OnnxTensor> in = Map.of("x", normal(new Random(1), 64, 8));
    OnnxModel q = fixed(SmallModels.mlp(), options(weights), List.of(in));
    double full = error(first(original, in), first(q, in));
    assertTrue(full > 1e-6 && full < 0.02, "error " + full);
    OnnxModel r = fixed(SmallModels.mlp(), options(WeightIntegers.INT7), List.of(in));
    assertEquals(63, max(r.initializer("w_quantized"), WeightIntegers.INT7));
    assertEquals(127, max(q.initializer("w_quantized"), weights));
    double seven = error(first(original, in), first(r, in));
    assertTrue(seven < 0.03, "error " + seven);
  }

  /**
   * ONNX Runtime makes a Gemm of a product and the vector that is added to it, of lengths that are fixed where there are more
   * than two axes, and an int8 one only of an int32 bias: else it reads all weights back in each run.
   */
  @ParameterizedTest
  @CsvSource({"2, 1, QGemm", "2, 2, QGemm", "3, 1, MatMulIntegerToFloat"})
  void theRuntimeRunsProductsWithABiasOnIntegers(int axes, int biasAxes, String operator)
      throws OrtException, IOException {
    for (WeightIntegers weights : ExactProducts.weights()) {
      runsProductsWithABias(weights, axes, biasAxes, operator);
    }
  }

  private void runsProductsWithABias(
      WeightIntegers weights, int axes, int biasAxes, String operator)
      throws OrtException, IOException {
    Random random = new Random(6);
    long[] x = axes == 2 ? new long[] {24, 40} : new long[] {4, 6, 40};
    GraphProto.Builder g =
        GraphProto.newBuilder()
            .setName("bias")
            .addInput(value("x", DataType.FLOAT, x))
            .addInitializer(floats("w", random, 0.2f, 40, 16))
            .addInitializer(
                floats("b", random, 1, biasAxes == 1 ? new long[] {16} : new long[] {1, 16}))
            .addNode(node("MatMul", "/head/MatMul", List.of("x", "w"), "h"))
            .addNode(node("Add", "/head/Add", List.of("b", "h"), "y"))
            .addOutput(
                value(
                    "y", DataType.FLOAT, axes == 2 ? new long[] {24, 16} : new long[] {4, 6, 16}));
    ModelProto proto = SmallModels.model(13, g);
    Map<String, OnnxTensor> in = Map.of("x", normal(new Random(4), x));
    OnnxModel model = OnnxModel.of(proto, "bias");
    StaticQuantizer q = new StaticQuantizer(model, options(weights));
    q.apply(q.calibrate(new TensorActivations(List.of(in), 1), new Clipping.MinMax()));
    Path optimized = folder.resolve("optimized.onnx");
    try (OrtSession.SessionOptions options = new OrtSession.SessionOptions()) {
      options.setOptimizedModelFilePath(optimized.toString());
      ENVIRONMENT.createSession(model.toBuffer(), options).close();
    }
    Map<String, Integer> runtime = operators(OnnxModel.read(optimized));
    assertEquals(1, runtime.get(operator), runtime.toString());
    assertFalse(runtime.containsKey("DequantizeLinear"), runtime.toString());
    double error = error(first(OnnxModel.of(proto, "float"), in), first(model, in));
    assertTrue(error > 1e-6 && error < 0.01, "error " + error);
  }

  private static float max(FloatBuffer values) {
    float max = 0;
    while (values.hasRemaining()) {
      max = Math.max(max, values.get());
    }
    return max;
  }

  private static int max(OnnxInitializer integers, WeightIntegers weights) {
    ByteBuffer bytes = integers.data();
    int max = 0;
    while (bytes.hasRemaining()) {
      max = Math.max(max, Math.abs((byte) (bytes.get() - weights.zeroPoint())));
    }
    return max;
  }

  /**
   * An old model: Softmax and Unsqueeze changed after version 11, transposed and shared weights.
   */
  private GraphProto.Builder oldGraph() {
    Random random = new Random(5);
    return GraphProto.newBuilder()
        .setName("old")
        .addInput(value("ids", DataType.INT64, -1))
        .addInitializer(floats("table", random, 1, 50, 8))
        .addInitializer(floats("w", random, 1, 8, 8))
        .addInitializer(floats("0", random, 1, 8, 4))
        .addNode(node("Gather", "/embed/Gather", List.of("table", "ids"), "e"))
        .addNode(node("Transpose", "t", List.of("w"), "wt", attribute("perm", 1, 0)))
        .addNode(node("MatMul", "/a/MatMul", List.of("e", "wt"), "a"))
        .addNode(node("MatMul", "/b/MatMul", List.of("a", "wt"), "b"))
        .addNode(node("MatMul", "/c/MatMul", List.of("b", "w"), "c"))
        .addNode(node("Unsqueeze", "u", List.of("c"), "u", axes(0)))
        .addNode(node("Softmax", "s", List.of("u"), "s", attribute("axis", 1)))
        .addNode(node("MatMul", "/d/MatMul", List.of("s", "0"), "y"))
        .addOutput(value("y", DataType.FLOAT, -1, -1, 4));
  }

  private static AttributeProto axes(long axis) {
    return attribute("axes", axis, axis).toBuilder().clearInts().addInts(axis).build();
  }

  @Test
  void anOldModelIsRaisedAndItsEmbeddingsQuantized() throws OrtException {
    ModelProto proto = SmallModels.model(11, oldGraph());
    OnnxModel original = OnnxModel.of(proto, "old");
    OnnxTensor ids =
        OnnxTensor.createTensor(
            ENVIRONMENT, LongBuffer.wrap(new long[] {3, 49, 0, 7, 7}), new long[] {5});
    Map<String, OnnxTensor> in = Map.of("ids", ids);
    OnnxModel q = fixed(proto, StaticQuantizer.Options.defaults(), List.of(in));
    assertEquals(13, q.opset(""));
    assertEquals(2, operators(q).get("Gather"));
    assertFalse(operators(q).containsKey("Transpose"));
    assertEquals(null, q.initializer("w"));
    assertEquals(null, q.initializer("table"));
    // wt once for its two nodes, and w itself for the third.
    assertEquals(
        2, q.initializers().stream().filter(i -> i.name().startsWith("w_quantized")).count());
    double error = error(first(original, in), first(q, in));
    assertTrue(error > 1e-6 && error < 0.05, "error " + error);
  }

  /** Over the last axis, where the model says that it is the last, a Softmax stays a single operator. */
  @ParameterizedTest
  @CsvSource({"1, 2, false", "0, 2, true", "1, 3, true", "2, 3, false"})
  void aSoftmaxOverTheLastAxisIsRaisedAsOne(int axis, int rank, boolean several)
      throws OrtException {
    Random random = new Random(6);
    long[] inner = rank == 2 ? new long[] {-1, 8} : new long[] {-1, 3, 8};
    GraphProto.Builder g =
        GraphProto.newBuilder()
            .setName("g")
            .addInput(value("x", DataType.FLOAT, inner))
            .addInitializer(floats("w", random, 1, 8, 8))
            .addNode(node("MatMul", "m", List.of("x", "w"), "z"))
            .addNode(node("Softmax", "s", List.of("z"), "y", attribute("axis", axis)))
            .addOutput(value("y", DataType.FLOAT, inner));
    OnnxModel old = OnnxModel.of(SmallModels.model(11, g), "old");
    OnnxModel raised = old.copy();
    OpsetUpgrade.raise(raised, OpsetUpgrade.TARGET);
    assertEquals(several, operators(raised).containsKey("Flatten"));
    float[] values = new float[rank == 2 ? 5 * 8 : 5 * 3 * 8];
    for (int i = 0; i < values.length; i++) {
      values[i] = (float) random.nextGaussian();
    }
    long[] shape = inner.clone();
    shape[0] = 5;
    Map<String, OnnxTensor> in =
        Map.of("x", OnnxTensor.createTensor(ENVIRONMENT, FloatBuffer.wrap(values), shape));
    assertTrue(error(first(old, in), first(raised, in)) < 1e-6);
  }

  /** As the older exporters write what makes pictures larger; a Resize may make them smaller too. */
  @ParameterizedTest
  @CsvSource({
    "8,Upsample,nearest,2.5,2",
    "9,Upsample,nearest,2.5,2",
    "9,Upsample,linear,2.5,2",
    "10,Resize,nearest,2.5,2",
    "10,Resize,linear,2.5,2",
    "10,Resize,nearest,0.5,0.7",
    "10,Resize,nearest,0.7,2.3",
    "10,Resize,linear,0.7,2.3"
  })
  void oldResizesAreRaised(int opset, String operator, String mode, float rows, float columns)
      throws OrtException {
    Random random = new Random(6);
    ByteBuffer scales = ByteBuffer.allocate(16).order(ByteOrder.LITTLE_ENDIAN);
    scales.putFloat(1).putFloat(1).putFloat(rows).putFloat(columns).flip();
    NodeProto.Builder resize = node(operator, "/up", List.of("h"), "y").toBuilder();
    resize.addAttribute(
        AttributeProto.newBuilder()
            .setName("mode")
            .setType(AttributeProto.AttributeType.STRING)
            .setS(ByteString.copyFromUtf8(mode)));
    GraphProto.Builder g =
        GraphProto.newBuilder()
            .setName("old")
            .addInput(value("x", DataType.FLOAT, -1, 3, 6, 5))
            .addInitializer(floats("w", random, 0.4f, 4, 3, 1, 1))
            .addNode(node("Conv", "/c", List.of("x", "w"), "h"))
            .addOutput(value("y", DataType.FLOAT, -1, 4, (int) (6 * rows), (int) (5 * columns)));
    if (opset < 9) {
      resize.addAttribute(
          AttributeProto.newBuilder()
              .setName("scales")
              .setType(AttributeProto.AttributeType.FLOATS)
              .addAllFloats(List.of(1f, 1f, rows, columns)));
    } else {
      resize.addInput("scales");
      g.addInitializer(SmallModels.tensor("scales", DataType.FLOAT, scales, 4));
    }
    OnnxModel original = OnnxModel.of(SmallModels.model(opset, g.addNode(resize)), "old");
    OnnxModel raised = original.copy();
    OpsetUpgrade.raise(raised, 13);
    Map<String, OnnxTensor> in = Map.of("x", normal(new Random(1), 2, 3, 6, 5));
    assertEquals(0, error(first(original, in), first(raised, in)), 1e-6);
    OnnxModel q = fixed(original.toProto(), RuntimeRuns.exactStatic(), List.of(in));
    double error = error(first(original, in), first(q, in));
    assertTrue(error < 0.02, "error " + error);
  }

  /** As exporters write the bias of one output. */
  @Test
  void aBiasWithoutAxesIsNoVector() throws OrtException {
    Random random = new Random(8);
    GraphProto.Builder g =
        GraphProto.newBuilder()
            .setName("head")
            .addInput(value("x", DataType.FLOAT, -1, 64))
            .addInitializer(floats("w", random, 0.4f, 64, 32))
            .addInitializer(floats("head", random, 0.4f, 32, 1))
            .addInitializer(floats("b", random, 1))
            .addNode(node("MatMul", "/m", List.of("x", "w"), "h"))
            .addNode(node("Gemm", "/g", List.of("h", "head", "b"), "y"))
            .addOutput(value("y", DataType.FLOAT, -1, 1));
    OnnxModel original = OnnxModel.of(SmallModels.model(17, g), "head");
    Map<String, OnnxTensor> in = Map.of("x", normal(new Random(1), 50, 64));
    OnnxModel q = fixed(original.toProto(), RuntimeRuns.exactStatic(), List.of(in));
    double error = error(first(original, in), first(q, in));
    assertTrue(error > 0 && error < 0.05, "error " + error);
  }

  @Test
  void whatCannotBeRaisedIsRefusedByName() {
    GraphProto.Builder g = oldGraph();
    g.addNode(node("Upsample", "up", List.of("y"), "z", attribute("scales", 1, 1)));
    InputException e =
        assertThrows(
            InputException.class,
            () ->
                new StaticQuantizer(
                    OnnxModel.of(SmallModels.model(9, g), "old"),
                    StaticQuantizer.Options.defaults()));
    assertTrue(e.getMessage().contains("Upsample 'up'"), e.getMessage());
    InputException older =
        assertThrows(
            InputException.class,
            () ->
                new StaticQuantizer(
                    OnnxModel.of(SmallModels.model(6, oldGraph()), "older"),
                    StaticQuantizer.Options.defaults()));
    assertTrue(older.getMessage().contains("operator set 6"), older.getMessage());
  }

  @Test
  void aChannelOfZerosHasAScaleAndALargeBiasWidensOne() throws OrtException {
    OnnxModel model = OnnxModel.of(SmallModels.mlp(), "mlp");
    float[] w = new float[48];
    model.initializer("w").floats().get(w);
    for (int i = 0; i < 8; i++) {
      w[i * 6 + 2] = 0;
    }
    model.replaceInitializer(OnnxInitializer.floats("w", new long[] {8, 6}, w));
    float[] w2 = new float[24];
    model.initializer("w2").floats().get(w2);
    for (int i = 0; i < 6; i++) {
      w2[i] *= 1e-9f;
    }
    model.replaceInitializer(OnnxInitializer.floats("w2", new long[] {4, 6}, w2));
    Map<String, OnnxTensor> in = Map.of("x", normal(new Random(1), 64, 8));
    OnnxModel q = fixed(model.toProto(), RuntimeRuns.exactStatic(), List.of(in));
    assertEquals(max(q.initializer("w_scale").floats()), q.initializer("w_scale").floats().get(2));
    assertEquals(ExactProducts.first().zeroPoint(), q.initializer("w_quantized").data().get(2));
    int bias = q.initializer("b2_quantized").data().getInt(0);
    assertTrue(Math.abs(bias) > 1 << 29 && Math.abs(bias) <= (1 << 30) + 128, "bias " + bias);
    double error = error(first(model, in), first(q, in));
    assertTrue(error < 0.02, "error " + error);
  }

  /** 1e7 in steps of the product's scale is more than 2^31. */
  @Test
  void aBiasThatTrainingMovedTooFarStaysFloat() throws OrtException {
    OnnxModel model = OnnxModel.of(SmallModels.mlp(), "mlp");
    Map<String, OnnxTensor> in = Map.of("x", normal(new Random(1), 64, 8));
    StaticQuantizer quantizer = new StaticQuantizer(model, RuntimeRuns.exactStatic());
    quantizer.setRanges(
        quantizer.ranges(new TensorActivations(List.of(in), 1), new Clipping.MinMax()));
    quantizer.prepareTraining();
    quantizer.products().forEach(p -> quantizer.setWeights(p.output(), p.integers(), p.scales()));
    float[] far = {1e7f, 1, 2, 3};
    OnnxInitializer moved = OnnxInitializer.floats("b2", new long[] {4}, far);
    OnnxModel near = quantizer.quantizedCopy(m -> {});
    OnnxModel q = quantizer.quantizedCopy(m -> m.replaceConstant(moved));
    assertEquals(DataType.INT32, near.initializer("b2_quantized").type());
    assertEquals(null, q.initializer("b2_quantized"));
    assertEquals(DataType.FLOAT, q.initializer("b2").type());
    model.replaceConstant(moved);
    double error = error(otherColumns(first(model, in)), otherColumns(first(q, in)));
    assertTrue(error < 0.02, "error " + error);
  }

  /** Without the first of four columns. */
  private static float[] otherColumns(float[] y) {
    float[] result = new float[y.length / 4 * 3];
    for (int i = 0; i < result.length; i++) {
      result[i] = y[i / 3 * 4 + 1 + i % 3];
    }
    return result;
  }

  @Test
  void aNormalizationIsFoldedIntoItsConvolution() throws OrtException {
    Random random = new Random(7);
    GraphProto.Builder g =
        GraphProto.newBuilder()
            .setName("normalized")
            .addInput(value("x", DataType.FLOAT, -1, 3, 8, 8))
            .addInitializer(floats("w", random, 1, 6, 3, 3, 3))
            .addInitializer(floats("b", random, 1, 6))
            .addInitializer(floats("w2", random, 1, 4, 6, 1, 1));
    for (int i = 0; i < 2; i++) {
      int channels = 6 - 2 * i;
      g.addInitializer(floats("scale" + i, random, 1, channels))
          .addInitializer(floats("shift" + i, random, 1, channels))
          .addInitializer(floats("mean" + i, random, 3, channels));
      float[] variance = new float[channels];
      for (int c = 0; c < channels; c++) {
        variance[c] = random.nextFloat() * 9;
      }
      ByteBuffer raw = ByteBuffer.allocate(4 * channels).order(ByteOrder.LITTLE_ENDIAN);
      raw.asFloatBuffer().put(variance);
      g.addInitializer(SmallModels.tensor("variance" + i, DataType.FLOAT, raw, channels));
    }
    g.addNode(node("Conv", "c1", List.of("x", "w", "b"), "c1"))
        .addNode(
            node(
                "BatchNormalization",
                "n1",
                List.of("c1", "scale0", "shift0", "mean0", "variance0"),
                "n1"))
        .addNode(node("Relu", "r", List.of("n1"), "r"))
        .addNode(node("Conv", "c2", List.of("r", "w2"), "c2"))
        .addNode(
            node(
                "BatchNormalization",
                "n2",
                List.of("c2", "scale1", "shift1", "mean1", "variance1"),
                "y"))
        .addOutput(value("y", DataType.FLOAT, -1, 4, 6, 6));
    ModelProto proto = SmallModels.model(13, g);
    OnnxModel original = OnnxModel.of(proto, "normalized");
    OnnxModel folded = OnnxModel.of(proto, "folded");
    BatchNormFolding.apply(folded);
    assertFalse(operators(folded).containsKey("BatchNormalization"));
    Map<String, OnnxTensor> in = Map.of("x", normal(new Random(1), 4, 3, 8, 8));
    assertTrue(error(first(original, in), first(folded, in)) < 1e-5);
    OnnxModel q = fixed(proto, RuntimeRuns.exactStatic(), List.of(in));
    double error = error(first(original, in), first(q, in));
    assertTrue(error > 1e-6 && error < 0.03, "error " + error);

    // A convolution that something else reads too keeps its normalization.
    g.addOutput(value("c1", DataType.FLOAT, -1, 6, 6, 6));
    OnnxModel read = OnnxModel.of(SmallModels.model(13, g), "read");
    BatchNormFolding.apply(read);
    assertEquals(1, operators(read).get("BatchNormalization"));
  }

  /**
   * One channel of a hundred times the others spoils a step that all share, unless it is fitted.
   */
  @Test
  void fittingTakesAnOutlierChannelAway() throws OrtException {
    ModelProto.Builder proto = SmallModels.mlp().toBuilder();
    float[] w = new float[48];
    OnnxModel plain = OnnxModel.of(proto.build(), "mlp");
    plain.initializer("w").floats().get(w);
    for (int j = 0; j < 6; j++) {
      w[3 * 6 + j] /= 100;
    }
    plain.replaceInitializer(OnnxInitializer.floats("w", new long[] {8, 6}, w));
    float[] x = new float[256 * 8];
    Random random = new Random(3);
    for (int i = 0; i < x.length; i++) {
      x[i] = (float) random.nextGaussian() * (i % 8 == 3 ? 100 : 1);
    }
    Map<String, OnnxTensor> in =
        Map.of("x", OnnxTensor.createTensor(ENVIRONMENT, FloatBuffer.wrap(x), new long[] {256, 8}));
    TensorActivations source = new TensorActivations(List.of(in), 1);
    OnnxModel unfitted = plain.copy();
    StaticQuantizer u = new StaticQuantizer(unfitted, StaticQuantizer.Options.defaults());
    u.apply(u.ranges(source, new Clipping.MinMax()));
    OnnxModel fitted = plain.copy();
    StaticQuantizer f = new StaticQuantizer(fitted, StaticQuantizer.Options.defaults());
    Map<String, ActivationRange> ranges = f.calibrate(source, new Clipping.MinMax());
    assertEquals(List.of("w", "w2"), f.quantized());
    double before = error(first(plain, in), first(fitted, in));
    assertTrue(before < 1e-5, "fitting alone changes nothing: " + before);
    f.apply(ranges);
    double with = error(first(plain, in), first(fitted, in));
    double without = error(first(plain, in), first(unfitted, in));
    assertTrue(with < 0.25 * without, with + " with fitting, " + without + " without");
  }

  @Test
  void aQuantizedModelIsNotQuantizedAgain() {
    OnnxModel model = OnnxModel.of(SmallModels.mlp(), "mlp");
    StaticQuantizer q = new StaticQuantizer(model, StaticQuantizer.Options.defaults());
    assertThrows(IllegalArgumentException.class, () -> q.apply(Map.of())); // which changes nothing
    Map<String, ActivationRange> ranges = new HashMap<>();
    q.activations().forEach(a -> ranges.put(a, new ActivationRange(-1, 1)));
    q.apply(ranges);
    ByteBuffer once = model.toBuffer();
    ActivationSource none = (m, names, receiver) -> {};
    for (Executable call :
        List.<Executable>of(
            () -> q.apply(ranges),
            q::products,
            q::tables,
            q::prepareTraining,
            () -> q.calibrate(none, new Clipping.MinMax()),
            () -> q.ranges(none, new Clipping.MinMax()),
            () -> q.leaveSensitive(null),
            () -> q.leaveImprecise(null),
            () -> q.quantizedCopy(copy -> {}))) {
      String said = assertThrows(IllegalStateException.class, call).getMessage();
      assertTrue(said.startsWith("mlp was quantized already"), said);
    }
    assertEquals(once, model.toBuffer());
  }

  @Test
  void weightsThatAreNotFiniteAreNamed() {
    OnnxModel model = OnnxModel.of(SmallModels.mlp(), "mlp");
    float[] w = new float[48];
    w[13] = Float.NaN;
    model.replaceInitializer(OnnxInitializer.floats("w", new long[] {8, 6}, w));
    StaticQuantizer q = new StaticQuantizer(model, StaticQuantizer.Options.defaults());
    Map<String, ActivationRange> ranges = new HashMap<>();
    q.activations().forEach(a -> ranges.put(a, new ActivationRange(-1, 1)));
    InputException e = assertThrows(InputException.class, () -> q.apply(ranges));
    assertTrue(e.getMessage().contains("the weights w: element 13 is NaN"), e.getMessage());
  }

  @Test
  void whatTheRuntimeHasNoIntegersForStaysFloat() throws OrtException {
    OnnxModel model = OnnxModel.of(SmallModels.recurrent(), "recurrent");
    StaticQuantizer q = new StaticQuantizer(model, RuntimeRuns.exactStatic());
    OnnxModel other = OnnxModel.of(SmallModels.recurrent(), "recurrent");
    DynamicQuantizer d = new DynamicQuantizer(other, RuntimeRuns.exactDynamic());
    for (Map<String, String> skipped : List.of(q.skipped(), d.skipped())) {
      assertEquals("ONNX Runtime has no int8 ConvTranspose", skipped.get("up.weight"));
      assertEquals("no form has an int8 LSTM", skipped.get("lstm.R"));
      assertEquals("ONNX Runtime has no int8 GRU", skipped.get("gru.W"));
      assertEquals("ONNX Runtime has no int8 RNN", skipped.get("rnn.W"));
    }
    assertTrue(q.quantized().contains("down.weight"), q.quantized().toString());
    try (OnnxTensor x = normal(new Random(1), 4, 3, 8);
        OrtSession before = ENVIRONMENT.createSession(SmallModels.recurrent().toByteArray());
        OrtSession.Result expected = before.run(Map.of("x", x))) {
      q.apply(q.ranges(new TensorActivations(List.of(Map.of("x", x)), 1), new Clipping.MinMax()));
      try (OrtSession after = ENVIRONMENT.createSession(model.toBuffer());
          OrtSession.Result got = after.run(Map.of("x", x))) {
        float[][] y = (float[][]) expected.get(0).getValue();
        float[][] z = (float[][]) got.get(0).getValue();
        for (int i = 0; i < y.length; i++) {
          assertArrayEquals(y[i], z[i], 0.1f);
        }
      }
    }
  }

  @Test
  void excludedAndUnfitWeightsStayAndAreReported() {
    ModelProto.Builder proto = SmallModels.mlp().toBuilder();
    NodeProto gemm = proto.getGraph().getNode(3);
    proto
        .getGraphBuilder()
        .setNode(
            3,
            gemm.toBuilder()
                .addAttribute(attribute("alpha", 1).toBuilder().setF(2).clearI().build())
                .build());
    OnnxModel model = OnnxModel.of(proto.build(), "mlp");
    StaticQuantizer q = new StaticQuantizer(model, StaticQuantizer.Options.defaults());
    assertEquals(List.of("w"), q.quantized());
    assertEquals(List.of("w2"), new ArrayList<>(q.skipped().keySet()));
    InputException e =
        assertThrows(
            InputException.class,
            () ->
                new StaticQuantizer(
                    model,
                    new StaticQuantizer.Options(
                        WeightIntegers.INT8, true, w -> w.name().equals("w2"))));
    assertTrue(e.getMessage().contains("no weights to quantize"), e.getMessage());
  }

  @Test
  void aRunThatYieldsNaNStopsCalibration() throws OrtException {
    OnnxModel model = OnnxModel.of(SmallModels.mlp(), "mlp");
    float[] x = {Float.NaN, 0, 0, 0, 0, 0, 0, 0};
    StaticQuantizer q = new StaticQuantizer(model, StaticQuantizer.Options.defaults());
    try (OnnxTensor t =
        OnnxTensor.createTensor(ENVIRONMENT, FloatBuffer.wrap(x), new long[] {1, 8})) {
      TensorActivations source = new TensorActivations(List.of(Map.of("x", t)), 1);
      InputException e =
          assertThrows(InputException.class, () -> q.ranges(source, new Clipping.MinMax()));
      assertTrue(e.getMessage().contains("the activation x holds 1 NaN"), e.getMessage());
    }
    assertThrows(InputException.class, () -> new TensorActivations(List.of(), 1));
    ActivationSource silent = (m, activations, receiver) -> {};
    assertThrows(InputException.class, () -> q.ranges(silent, new Clipping.MinMax()));
  }
}

package org.espalier.compress.onnx;

import static org.espalier.compress.onnx.RuntimeRuns.first;
import static org.espalier.compress.onnx.RuntimeRuns.fixed;
import static org.espalier.compress.onnx.RuntimeRuns.normal;
import static org.espalier.format.onnx.SmallModels.attribute;
import static org.espalier.format.onnx.SmallModels.floats;
import static org.espalier.format.onnx.SmallModels.int64s;
import static org.espalier.format.onnx.SmallModels.node;
import static org.espalier.format.onnx.SmallModels.real;
import static org.espalier.format.onnx.SmallModels.text;
import static org.espalier.format.onnx.SmallModels.value;
import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertTrue;

import ai.onnx.proto.OnnxMl.GraphProto;
import ai.onnx.proto.OnnxMl.ModelProto;
import ai.onnx.proto.OnnxMl.NodeProto;
import ai.onnx.proto.OnnxMl.TensorProto.DataType;
import ai.onnxruntime.OnnxTensor;
import ai.onnxruntime.OrtEnvironment;
import ai.onnxruntime.OrtException;
import ai.onnxruntime.OrtSession;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.List;
import java.util.Map;
import java.util.Random;
import java.util.Set;
import java.util.TreeMap;
import java.util.function.Predicate;
import org.espalier.ExactProducts;
import org.espalier.evaluate.TensorActivations;
import org.espalier.format.onnx.OnnxModel;
import org.espalier.format.onnx.OnnxWeight;
import org.espalier.format.onnx.SmallModels;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;
import org.junit.jupiter.params.provider.ValueSource;

/** What ONNX Runtime makes of the operators between int8 Convs: the graph that it runs, and its answers. */
class IntegerOperatorsTest {
  private static final OrtEnvironment ENVIRONMENT = OrtEnvironment.getEnvironment();
  private static final Predicate<OnnxWeight> ALL = weight -> true;

  @TempDir private Path folder;
  private final Random random = new Random(3);

  private GraphProto.Builder graph(long channels, long outputChannels, long side, long outputSide) {
    return GraphProto.newBuilder()
        .setName("g")
        .addInput(value("x", DataType.FLOAT, 1, channels, side, side))
        .addOutput(value("y", DataType.FLOAT, 1, outputChannels, outputSide, outputSide));
  }

  /** A Conv of one pixel. */
  private void conv(GraphProto.Builder g, String from, String to, long in, long out) {
    float deviation = (float) (1 / Math.sqrt(in));
    g.addInitializer(floats("w_" + to, random, deviation, out, in, 1, 1))
        .addInitializer(floats("b_" + to, random, 0.3f, out))
        .addNode(node("Conv", "/" + to, List.of(from, "w_" + to, "b_" + to), to));
  }

  private void depthwise(GraphProto.Builder g, String from, String to, long channels) {
    g.addInitializer(floats("w_" + to, random, 0.4f, channels, 1, 3, 3))
        .addNode(
            node(
                "Conv",
                "/" + to,
                List.of(from, "w_" + to),
                to,
                attribute("group", channels),
                attribute("pads", 1, 1, 1, 1)));
  }

  private static void number(GraphProto.Builder g, String name, float value, long... dims) {
    g.addInitializer(floats(name, new float[] {value}, dims));
  }

  private static Map<String, OnnxTensor> input(long channels, long side) throws OrtException {
    return Map.of("x", normal(new Random(9), 1, channels, side, side));
  }

  private static OnnxModel quantize(
      ModelProto proto, Map<String, OnnxTensor> in, Predicate<OnnxWeight> include) {
    OnnxModel model =
        fixed(
            proto, new StaticQuantizer.Options(ExactProducts.first(), true, include), List.of(in));
    model.check();
    return model;
  }

  private static double error(ModelProto expected, OnnxModel actual, Map<String, OnnxTensor> in)
      throws OrtException {
    return OutputErrors.error(first(OnnxModel.of(expected, "float"), in), first(actual, in));
  }

  /** The operators that ONNX Runtime runs, each with how many there are. */
  private Map<String, Integer> runtime(OnnxModel model) throws OrtException, IOException {
    Path optimized = folder.resolve("optimized.onnx");
    try (OrtSession.SessionOptions options = new OrtSession.SessionOptions()) {
      options.setOptimizedModelFilePath(optimized.toString());
      ENVIRONMENT.createSession(model.toBuffer(), options).close();
    }
    Map<String, Integer> count = new TreeMap<>();
    ModelProto.parseFrom(Files.readAllBytes(optimized))
        .getGraph()
        .getNodeList()
        .forEach(n -> count.merge(n.getOpType(), 1, Integer::sum));
    return count;
  }

  @Test
  void operatorsBetweenConvsRunOnIntegersInOneLayout() throws OrtException, IOException {
    GraphProto.Builder g = graph(4, 16, 16, 4);
    conv(g, "x", "a", 4, 16);
    g.addNode(node("Relu", "/r", List.of("a"), "r"));
    conv(g, "r", "b", 16, 16);
    g.addNode(node("Add", "/s", List.of("r", "b"), "s"))
        .addNode(node("Relu", "/t", List.of("s"), "t"))
        .addNode(
            node(
                "MaxPool",
                "/m",
                List.of("t"),
                "m",
                attribute("kernel_shape", 2, 2),
                attribute("strides", 2, 2)));
    conv(g, "m", "c", 16, 8);
    g.addNode(node("LeakyRelu", "/l", List.of("c"), "l", real("alpha", 0.1f)));
    conv(g, "l", "d", 8, 16);
    g.addNode(node("Concat", "/k", List.of("m", "d"), "k", attribute("axis", 1)))
        .addNode(
            node(
                "AveragePool",
                "/p",
                List.of("k"),
                "p",
                attribute("kernel_shape", 2, 2),
                attribute("strides", 2, 2)));
    conv(g, "p", "y", 32, 16);
    ModelProto proto = SmallModels.model(13, g);
    Map<String, OnnxTensor> in = input(4, 16);
    OnnxModel q = quantize(proto, in, ALL);
    assertEquals(
        new TreeMap<>(
            Map.of(
                "QuantizeLinear", 1,
                "DequantizeLinear", 1,
                "QLinearConv", 5,
                "QLinearAdd", 1,
                "QLinearConcat", 1,
                "QLinearLeakyRelu", 1,
                "QLinearAveragePool", 1,
                "NhwcMaxPool", 1,
                "Transpose", 2)),
        runtime(q));
    double error = error(proto, q, in);
    assertTrue(error > 1e-6 && error < 0.03, "error " + error);
  }

  @Test
  void whatLeadsToAnOutputAloneStaysFloat() throws OrtException, IOException {
    GraphProto.Builder g = graph(4, 16, 8, 8);
    conv(g, "x", "a", 4, 16);
    conv(g, "a", "b", 16, 16);
    g.addNode(node("Add", "/s", List.of("a", "b"), "y"));
    OnnxModel q = quantize(SmallModels.model(13, g), input(4, 8), ALL);
    Map<String, Integer> runs = runtime(q);
    assertEquals(1, runs.get("Add"), runs.toString());
    assertFalse(runs.containsKey("QLinearAdd"), runs.toString());
  }

  /** Behind a float Conv too, what adds to its image keeps the layout of the int8 Convs. */
  @Test
  void anImageThatAFloatConvMakesIsLaidOutAsTheOthers() throws OrtException, IOException {
    GraphProto.Builder g = graph(4, 16, 8, 8);
    conv(g, "x", "v0", 4, 16);
    for (int k = 0; k < 4; k++) {
      depthwise(g, "v" + k, "d" + k, 16);
      conv(g, "d" + k, "e" + k, 16, 16);
      g.addNode(node("Add", "/v" + (k + 1), List.of("v" + k, "e" + k), "v" + (k + 1)));
    }
    conv(g, "v4", "y", 16, 16);
    ModelProto proto = SmallModels.model(13, g);
    Map<String, OnnxTensor> in = input(4, 8);
    OnnxModel q = quantize(proto, in, weight -> !weight.name().equals("w_v0"));
    Map<String, Integer> runs = runtime(q);
    assertEquals(4, runs.get("QLinearAdd"), runs.toString());
    assertEquals(2, runs.get("Transpose"), runs.toString());
    double error = error(proto, q, in);
    assertTrue(error > 1e-6 && error < 0.03, "error " + error);
  }

  @ParameterizedTest
  @ValueSource(strings = {"HardSwish", "HardSigmoid", "Clip", "ClipFirst"})
  void hardSwishRunsAsASumAndAProduct(String form) throws OrtException, IOException {
    GraphProto.Builder g = graph(4, 16, 8, 8);
    conv(g, "x", "a", 4, 16);
    number(g, "three", 3);
    number(g, "zero", 0);
    number(g, "six", 6);
    switch (form) {
      case "HardSwish" -> g.addNode(node("HardSwish", "/h", List.of("a"), "h"));
      case "HardSigmoid" ->
          g.addNode(node("HardSigmoid", "/g", List.of("a"), "g", real("alpha", 1 / 6f)))
              .addNode(node("Mul", "/h", List.of("a", "g"), "h"));
      default -> {
        boolean first = form.equals("ClipFirst");
        g.addNode(node("Add", "/s", List.of("a", "three"), "s"))
            .addNode(node("Clip", "/c", List.of("s", "zero", "six"), "c"))
            .addNode(
                first
                    ? node("Div", "/p", List.of("c", "six"), "p")
                    : node("Mul", "/p", List.of("a", "c"), "p"))
            .addNode(
                first
                    ? node("Mul", "/h", List.of("a", "p"), "h")
                    : node("Div", "/h", List.of("p", "six"), "h"));
      }
    }
    conv(g, "h", "y", 16, 16);
    gateRuns(SmallModels.model(14, g), "QLinearAdd");
  }

  /** Whether a gate between two Convs runs as a product and one operator more. */
  private void gateRuns(ModelProto proto, String operator) throws OrtException, IOException {
    Map<String, OnnxTensor> in = input(4, 8);
    OnnxModel q = quantize(proto, in, ALL);
    assertEquals(
        new TreeMap<>(
            Map.of(
                "QuantizeLinear",
                1,
                "DequantizeLinear",
                1,
                "QLinearConv",
                2,
                operator,
                1,
                "QLinearMul",
                1,
                "Transpose",
                2)),
        runtime(q));
    double error = error(proto, q, in);
    assertTrue(error > 1e-6 && error < 0.03, "error " + error);
  }

  @ParameterizedTest
  @ValueSource(floats = {1, 1.7f})
  void swishRunsAsASigmoidAndAProduct(float alpha) throws OrtException, IOException {
    GraphProto.Builder g = graph(4, 16, 8, 8);
    conv(g, "x", "a", 4, 16);
    g.addNode(node("Swish", "/h", List.of("a"), "h", real("alpha", alpha)));
    conv(g, "h", "y", 16, 16);
    gateRuns(SmallModels.model(24, g), "QLinearSigmoid");
  }

  /** Channels that differ by orders of magnitude: the gate and the sum become Convs, and no more nodes than before. */
  @Test
  void equalizedGatesRunAsConvs() throws OrtException, IOException {
    GraphProto.Builder g = graph(4, 16, 8, 8);
    float[] uneven = new float[64];
    float[] even = new float[256];
    for (int i = 0; i < 64; i++) {
      uneven[i] = (float) Math.scalb(random.nextGaussian(), 2 - i / 8);
    }
    for (int i = 0; i < 256; i++) {
      even[i] = (float) Math.scalb(random.nextGaussian(), i % 16 / 2 - 5);
    }
    g.addInitializer(floats("u", uneven, 16, 4, 1, 1))
        .addInitializer(floats("e", even, 16, 16, 1, 1));
    number(g, "b", 0.05f);
    g.addNode(node("Conv", "/a", List.of("x", "u"), "a"))
        .addNode(node("HardSwish", "/h", List.of("a"), "h"))
        .addNode(node("Add", "/s", List.of("h", "b"), "s"))
        .addNode(node("Conv", "/y", List.of("s", "e"), "y"));
    ModelProto proto = SmallModels.model(14, g);
    Map<String, OnnxTensor> in = input(4, 8);
    TensorActivations source = new TensorActivations(List.of(in), 1);
    OnnxModel model = OnnxModel.of(proto, "test");
    StaticQuantizer q = new StaticQuantizer(model, RuntimeRuns.exactStatic());
    double plain = error(proto, quantize(proto, in, ALL), in);
    q.apply(q.calibrate(source, new Clipping.MinMax()));
    assertEquals(List.of("u", "e"), q.quantized());
    assertEquals(
        new TreeMap<>(
            Map.of(
                "QuantizeLinear", 1,
                "DequantizeLinear", 1,
                "QLinearConv", 4,
                "QLinearMul", 1,
                "Transpose", 2)),
        runtime(model));
    double error = error(proto, model, in);
    assertTrue(error < 0.5 * plain, plain + " became " + error);
  }

  /** Relu6 and a bound below 0: the grid ends where they do. */
  @ParameterizedTest
  @CsvSource({"0, 6", "-0.4, 1e9", "-0.4, 0.3", "-1, 0"})
  void theGridClipsAsClipDoes(float low, float high) throws OrtException, IOException {
    GraphProto.Builder g = graph(4, 16, 8, 8);
    conv(g, "x", "a", 4, 16);
    number(g, "low", low);
    number(g, "high", high);
    g.addNode(node("Clip", "/c", List.of("a", "low", "high"), "c"));
    conv(g, "c", "y", 16, 16);
    ModelProto proto = SmallModels.model(13, g);
    Map<String, OnnxTensor> in = input(4, 8);
    OnnxModel q = quantize(proto, in, ALL);
    Map<String, Integer> runs = runtime(q);
    assertFalse(runs.containsKey("Clip"), runs.toString());
    double error = error(proto, q, in);
    assertTrue(error > 1e-6 && error < 0.03, "error " + error);
  }

  /** Ranges that training moved: a grid that ends just behind a bound would have ONNX Runtime drop what it looks for afterwards. */
  @ParameterizedTest
  @ValueSource(floats = {5.5f, 6.001f, 6.01f, 6.02f, 7})
  void learnedRangesEndAtTheBounds(float end) throws OrtException {
    GraphProto.Builder g = graph(4, 8, 8, 8);
    number(g, "low", 0);
    number(g, "high", 6);
    conv(g, "x", "a", 4, 8);
    g.addNode(node("Clip", "/b", List.of("a", "low", "high"), "b"));
    depthwise(g, "b", "c", 8);
    g.addNode(node("Clip", "/d", List.of("c", "low", "high"), "d"));
    conv(g, "d", "y", 8, 8);
    ModelProto proto = SmallModels.model(13, g);
    Map<String, OnnxTensor> in = input(4, 8);
    OnnxModel model = OnnxModel.of(proto, "test");
    StaticQuantizer q = new StaticQuantizer(model, RuntimeRuns.exactStatic());
    TensorActivations source = new TensorActivations(List.of(in), 1);
    Map<String, ActivationRange> ranges = new TreeMap<>(q.ranges(source, new Clipping.MinMax()));
    Set<String> clipped = Set.of("b", "d");
    assertTrue(ranges.keySet().containsAll(clipped), ranges.toString());
    ranges.replaceAll((a, range) -> clipped.contains(a) ? new ActivationRange(0, end) : range);
    q.apply(ranges);
    clipped.forEach(a -> assertTrue(q.ranges().get(a).max() <= 6, q.ranges().toString()));
    assertTrue(error(proto, model, in) < 0.05);
  }

  @Test
  void aRangeWithinBoundsIsNearTheOneThatWasSeen() {
    Random bounds = new Random(5);
    int changed = 0;
    for (int i = 0; i < 20_000; i++) {
      float low = -bounds.nextFloat() * (bounds.nextBoolean() ? 1 : 100);
      float high = bounds.nextFloat() * (bounds.nextBoolean() ? 1 : 100);
      float min = bounds.nextBoolean() ? low : low * bounds.nextFloat();
      ActivationRange seen = new ActivationRange(min, high * bounds.nextFloat());
      ActivationRange range = seen.within(low, high);
      float step = range.scale();
      String text = low + ", " + high + ": " + range;
      boolean belowAStep = -seen.min() < seen.scale();
      assertTrue(belowAStep || range.min() <= 0.7f * seen.min(), text);
      assertTrue(range.max() >= 0.7f * seen.max(), text);
      if (range.equals(seen)) {
        continue;
      }
      changed++;
      // What ONNX Runtime asks before it leaves out a Clip.
      assertTrue(-range.zeroPoint() * step >= low - 1.1e-7f, text);
      assertTrue((255 - range.zeroPoint()) * step <= high + 1.1e-7f, text);
    }
    assertTrue(changed > 5_000, changed + " changed");
  }

  @Test
  void aMaximumWithANumberIsAClip() throws OrtException, IOException {
    GraphProto.Builder g = graph(4, 16, 8, 8);
    conv(g, "x", "a", 4, 16);
    number(g, "low", -0.4f, 1, 1, 1, 1);
    g.addNode(node("LeakyRelu", "/l", List.of("a"), "l", real("alpha", 0.3f)))
        .addNode(node("Max", "/m", List.of("l", "low"), "m"));
    conv(g, "m", "y", 16, 16);
    ModelProto proto = SmallModels.model(13, g);
    Map<String, OnnxTensor> in = input(4, 8);
    OnnxModel q = quantize(proto, in, ALL);
    Map<String, Integer> runs = runtime(q);
    assertEquals(
        Set.of(
            "QuantizeLinear", "DequantizeLinear", "QLinearConv", "QLinearLeakyRelu", "Transpose"),
        runs.keySet());
    double error = error(proto, q, in);
    assertTrue(error > 1e-6 && error < 0.03, "error " + error);
  }

  @ParameterizedTest
  @ValueSource(booleans = {false, true})
  void aPadWithZerosIsThePaddingOfTheConv(boolean inParts) throws OrtException {
    GraphProto.Builder g = graph(4, 8, 8, 4);
    conv(g, "x", "a", 4, 16);
    if (inParts) {
      g.addInitializer(int64s("all", 0, 0, 0, 0, 0, 1, 0, 2))
          .addInitializer(int64s("one", 0, 1))
          .addNode(
              node("Split", "/split", List.of("all"), "s0").toBuilder()
                  .addAllOutput(List.of("s1", "s2", "s3", "s4", "s5", "s6", "s7"))
                  .build())
          .addNode(
              node(
                  "Concat",
                  "/concat",
                  List.of("s0", "s1", "s2", "s3", "s4", "s6", "s5", "s7"),
                  "amounts",
                  attribute("axis", 0)));
    } else {
      g.addInitializer(int64s("amounts", 0, 0, 0, 0, 0, 0, 1, 2));
    }
    g.addNode(node("Pad", "/pad", List.of("a", "amounts"), "p", text("mode", "constant")))
        .addInitializer(floats("w", random, 0.2f, 8, 16, 3, 4))
        .addNode(
            node(
                "Conv",
                "/y",
                List.of("p", "w"),
                "y",
                attribute("strides", 2, 2),
                attribute("pads", 0, 1, 0, 0)));
    ModelProto proto = SmallModels.model(13, g);
    Map<String, OnnxTensor> in = input(4, 8);
    OnnxModel q = quantize(proto, in, ALL);
    List<NodeProto> pads =
        q.nodes().stream().filter(n -> Set.of("Pad", "Split").contains(n.getOpType())).toList();
    assertEquals(List.of(), pads);
    double error = error(proto, q, in);
    assertTrue(error > 1e-6 && error < 0.03, "error " + error);
  }

  /**
   * Depthwise Convs of 24 channels get 32, as all that they are tied to: an addition, a pool, a Concat with
   * zeros, a Conv that stays float.
   */
  @ParameterizedTest
  @ValueSource(booleans = {false, true})
  void depthwiseConvsGetChannelsForTheFastKernel(boolean floatConv) throws OrtException {
    GraphProto.Builder g = graph(4, 6, 8, 4);
    conv(g, "x", "a", 4, 24);
    depthwise(g, "a", "b", 24);
    conv(g, "b", "c", 24, 24);
    g.addNode(node("Add", "/s", List.of("a", "c"), "s"))
        .addNode(
            node(
                "MaxPool",
                "/m",
                List.of("s"),
                "m",
                attribute("kernel_shape", 2, 2),
                attribute("strides", 2, 2)))
        .addInitializer(int64s("shape", 1, 4, 4, 4))
        .addNode(node("ConstantOfShape", "/z", List.of("shape"), "z"))
        .addNode(node("Concat", "/k", List.of("m", "z"), "k", attribute("axis", 1)));
    depthwise(g, "k", "d", 28);
    conv(g, "d", "e", 28, 28);
    g.addNode(node("Add", "/t", List.of("k", "e"), "t"));
    conv(g, "t", "y", 28, 6);
    ModelProto proto = SmallModels.model(13, g);
    Map<String, OnnxTensor> in = input(4, 8);
    OnnxModel q = quantize(proto, in, weight -> !floatConv || !weight.name().equals("w_c"));
    assertArrayEquals(new long[] {32, 1, 3, 3}, q.initializer("w_b_quantized").dims());
    assertArrayEquals(
        new long[] {32, 32, 1, 1}, q.initializer(floatConv ? "w_c_wide" : "w_c_quantized").dims());
    assertArrayEquals(new long[] {32, 1, 3, 3}, q.initializer("w_d_quantized").dims());
    assertArrayEquals(new long[] {6, 32, 1, 1}, q.initializer("w_y_quantized").dims());
    double error = error(proto, q, in);
    assertTrue(error > 1e-6 && error < 0.03, "error " + error);
  }

  /** An output of the model keeps its channels, and so does all that is tied to it. */
  @Test
  void whatOthersSeeKeepsItsChannels() throws OrtException {
    GraphProto.Builder g = graph(4, 6, 8, 8);
    conv(g, "x", "a", 4, 24);
    depthwise(g, "a", "b", 24);
    conv(g, "b", "y", 24, 6);
    g.addOutput(value("a", DataType.FLOAT, 1, 24, 8, 8));
    ModelProto proto = SmallModels.model(13, g);
    OnnxModel q = quantize(proto, input(4, 8), ALL);
    assertArrayEquals(new long[] {24, 1, 3, 3}, q.initializer("w_b_quantized").dims());
  }

  @Test
  void productsAndSumsWithConstantsAreFoldedIntoTheConv() throws OrtException {
    GraphProto.Builder g = graph(4, 8, 8, 8);
    conv(g, "x", "a", 4, 8);
    number(g, "two", 2, 1);
    g.addInitializer(floats("factors", random, 1, 1, 8, 1, 1))
        .addInitializer(floats("shifts", random, 1, 8, 1, 1))
        .addNode(node("Mul", "/m", List.of("two", "a"), "m"))
        .addNode(node("Add", "/s", List.of("m", "shifts"), "s"))
        .addNode(node("Div", "/d", List.of("s", "factors"), "d"))
        .addNode(node("Sub", "/y", List.of("d", "two"), "y"));
    ModelProto proto = SmallModels.model(13, g);
    OnnxModel folded = OnnxModel.of(proto, "folded");
    BatchNormFolding.apply(folded);
    assertEquals(List.of("Conv"), folded.nodes().stream().map(NodeProto::getOpType).toList());
    assertTrue(error(proto, folded, input(4, 8)) < 1e-5);
  }

  /** A gate whose few large values take the grid from all others: where the rest is right, it stays float. */
  @ParameterizedTest
  @ValueSource(booleans = {false, true})
  void productsOfTwoImagesStayFloatWhereTheyCostTooMuch(boolean uneven) throws OrtException {
    GraphProto.Builder g = graph(4, 8, 8, 8);
    conv(g, "x", "a", 4, 8);
    float[] shift = new float[8];
    shift[0] = uneven ? 9 : 0;
    float[] small = {uneven ? 1e-4f : 1, 1, 1, 1, 1, 1, 1, 1};
    g.addInitializer(floats("shift", shift, 8, 1, 1))
        .addInitializer(floats("small", small, 8, 1, 1));
    conv(g, "x", "b", 4, 8);
    g.addNode(node("Tanh", "/h", List.of("b"), "h"))
        .addNode(node("Add", "/s", List.of("h", "shift"), "s"))
        .addNode(node("Exp", "/e", List.of("s"), "e"))
        .addNode(node("Mul", "/n", List.of("a", "small"), "n"))
        .addNode(node("Mul", "/m", List.of("n", "e"), "m"));
    float[] weights = new float[64];
    for (int i = 0; i < weights.length; i++) {
      // Nothing reads the channel with the large values.
      weights[i] = i % 8 == 0 ? 0 : 0.4f * (float) random.nextGaussian();
    }
    g.addInitializer(floats("w_y", weights, 8, 8, 1, 1))
        .addNode(node("Conv", "/y", List.of("m", "w_y"), "y"));
    ModelProto proto = SmallModels.model(13, g);
    TensorActivations source = new TensorActivations(List.of(input(4, 8)), 1);
    OnnxModel model = OnnxModel.of(proto, "test");
    StaticQuantizer q = new StaticQuantizer(model, RuntimeRuns.exactStatic());
    q.setRanges(q.calibrate(source, new Clipping.MinMax()));
    OutputError error = new OutputError(model, source);
    assertEquals(uneven ? Set.of("Mul") : Set.of(), q.leaveImprecise(error));
    q.apply(q.ranges());
    assertTrue(error.of(model) < 0.03, "error " + error.of(model));
  }
}

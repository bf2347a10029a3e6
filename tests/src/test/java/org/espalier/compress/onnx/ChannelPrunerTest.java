package org.espalier.compress.onnx;

import static org.espalier.format.onnx.SmallModels.attribute;
import static org.espalier.format.onnx.SmallModels.floats;
import static org.espalier.format.onnx.SmallModels.line;
import static org.espalier.format.onnx.SmallModels.number;
import static org.espalier.format.onnx.SmallModels.value;
import static org.junit.jupiter.api.Assertions.assertEquals;
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
import java.nio.ByteBuffer;
import java.nio.FloatBuffer;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.Collections;
import java.util.List;
import java.util.Map;
import java.util.Random;
import java.util.Set;
import java.util.stream.Collectors;
import java.util.stream.IntStream;
import org.espalier.InputException;
import org.espalier.compress.Progress;
import org.espalier.compress.onnx.ChannelPruner.Allocation;
import org.espalier.evaluate.TensorActivations;
import org.espalier.format.onnx.HalfModels;
import org.espalier.format.onnx.HalfPrecision;
import org.espalier.format.onnx.OnnxInitializer;
import org.espalier.format.onnx.OnnxModel;
import org.espalier.format.onnx.SmallModels;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.EnumSource;
import org.junit.jupiter.params.provider.ValueSource;

/**
 * Models whose hidden channels all occur twice: half of them tell what the others do, so that half can go and the
 * answers stay.
 */
class ChannelPrunerTest {
  private static final int CHANNELS = 32;

  /** What damping leaves: by a hundredth of the mean of the squares a channel's twin is told too small. */
  private static final double TWINS = 0.06;

  private final Random random = new Random(3);

  /** Numbers [outer, channels, inner] of which the second half of the channels repeats the first. */
  private TensorProto twins(String name, float deviation, int axis, long... dims) {
    int inner = 1;
    for (int i = axis + 1; i < dims.length; i++) {
      inner *= (int) dims[i];
    }
    int outer = 1;
    for (int i = 0; i < axis; i++) {
      outer *= (int) dims[i];
    }
    int half = CHANNELS / 2 * inner;
    float[] values = new float[outer * CHANNELS * inner];
    for (int o = 0; o < outer; o++) {
      for (int i = 0; i < half; i++) {
        float v = (float) random.nextGaussian() * deviation;
        values[2 * o * half + i] = v;
        values[(2 * o + 1) * half + i] = v;
      }
    }
    return floats(name, values, dims);
  }

  private static float[] ones() {
    float[] ones = new float[CHANNELS];
    Arrays.fill(ones, 1);
    return ones;
  }

  /** x [n, 8] → w1 → h, what the lines make of it, z → w2 → y [n, 6]. */
  private ModelProto perceptron(String... lines) {
    GraphProto.Builder g =
        GraphProto.newBuilder()
            .setName("perceptron")
            .addInput(value("x", DataType.FLOAT, -1, 8))
            .addOutput(value("y", DataType.FLOAT, -1, 6))
            .addInitializer(twins("w1", 0.5f, 1, 8, CHANNELS))
            .addInitializer(twins("wg", 0.5f, 1, 8, CHANNELS))
            .addInitializer(twins("wt", 0.5f, 0, CHANNELS, 8))
            .addInitializer(twins("b1", 0.5f, 0, CHANNELS))
            .addInitializer(twins("wide", 0.5f, 1, 1, CHANNELS))
            .addInitializer(floats("w2", random, 0.3f, CHANNELS, 6))
            .addInitializer(floats("w2t", random, 0.3f, 6, CHANNELS))
            .addInitializer(floats("w3", random, 0.3f, CHANNELS, 6))
            .addInitializer(floats("b2", random, 0.5f, 6))
            .addInitializer(SmallModels.int64s("texts", -1, 1, CHANNELS))
            .addInitializer(SmallModels.int64s("matrix", -1, CHANNELS))
            .addInitializer(twins("scale", 0.5f, 0, CHANNELS))
            .addInitializer(twins("mean", 0.5f, 0, CHANNELS))
            .addInitializer(floats("variance", ones(), CHANNELS))
            .addInitializer(number("half", 0.5f))
            .addInitializer(number("one", 1))
            .addInitializer(number("root", 1.41421354f))
            .addInitializer(twins("wm", 0.2f, 1, CHANNELS, CHANNELS))
            .addInitializer(twins("b3", 0.5f, 0, CHANNELS));
    return model(g, lines);
  }

  /** x [1, 3, 8, 8] → conv1 → a, what the lines make of it. */
  private ModelProto images(String... lines) {
    GraphProto.Builder g =
        GraphProto.newBuilder()
            .setName("images")
            .addInput(value("x", DataType.FLOAT, 1, 3, 8, 8))
            .addOutput(
                lines[lines.length - 1].contains(" Conv ")
                    ? value("y", DataType.FLOAT, 1, 6, -1, -2)
                    : value("y", DataType.FLOAT, 1, 6))
            .addInitializer(twins("conv1", 0.4f, 0, CHANNELS, 3, 3, 3))
            .addInitializer(twins("b1", 0.5f, 0, CHANNELS))
            .addInitializer(twins("deep", 0.5f, 0, CHANNELS, 1, 3, 3))
            .addInitializer(twins("slopes", 0.3f, 0, CHANNELS, 1, 1))
            .addInitializer(twins("scale", 0.5f, 0, CHANNELS))
            .addInitializer(twins("mean", 0.5f, 0, CHANNELS))
            .addInitializer(floats("variance", ones(), CHANNELS))
            .addInitializer(floats("conv2", random, 0.2f, 6, CHANNELS, 3, 3))
            .addInitializer(floats("point", random, 0.2f, 6, CHANNELS, 1, 1))
            .addInitializer(floats("b2", random, 0.5f, 6))
            .addInitializer(number("six", 6))
            .addInitializer(floats("fc", random, 0.2f, 6, CHANNELS))
            .addInitializer(floats("fcp", random, 0.2f, 6, CHANNELS * 4))
            .addInitializer(floats("pfc", random, 0.2f, CHANNELS * 4, 6))
            .addInitializer(twins("trunk", 0.1f, 0, CHANNELS, CHANNELS, 1, 1))
            .addInitializer(floats("squeeze", random, 0.2f, 8, CHANNELS, 1, 1))
            .addInitializer(twins("excite", 0.4f, 0, CHANNELS, 8, 1, 1))
            .addInitializer(SmallModels.int64s("rows", 0, -1));
    return model(g, lines);
  }

  private static ModelProto model(GraphProto.Builder g, String... lines) {
    for (String l : lines) {
      List<AttributeProto> attributes = new ArrayList<>();
      switch (l.split(" ")[1]) {
        case "Conv" -> {
          if (l.contains(" conv") || l.contains(" deep")) {
            attributes.add(attribute("pads", 1, 1, 1, 1));
          }
          if (l.contains(" deep")) {
            attributes.add(attribute("group", CHANNELS));
          }
        }
        case "MaxPool" -> {
          attributes.add(attribute("kernel_shape", 4, 4));
          attributes.add(attribute("strides", 4, 4));
        }
        case "Gemm" -> {
          if (l.contains(" wt") || l.contains(" w2t") || l.contains(" fc")) {
            attributes.add(attribute("transB", 1));
          }
        }
        default -> {}
      }
      g.addNode(line(l, attributes.toArray(AttributeProto[]::new)));
    }
    OnnxModel model = OnnxModel.of(SmallModels.model(16, g), "model");
    model.removeUnusedInitializers();
    return model.toProto();
  }

  private TensorActivations examples(ModelProto proto, int count) throws OrtException {
    boolean image = proto.getGraph().getName().equals("images");
    long[] shape = image ? new long[] {1, 3, 8, 8} : new long[] {16, 8};
    int n = (int) (shape[0] * shape[1] * (image ? 64 : 1));
    List<Map<String, OnnxTensor>> examples = new ArrayList<>();
    for (int e = 0; e < count; e++) {
      float[] x = new float[n];
      for (int i = 0; i < n; i++) {
        x[i] = (float) random.nextGaussian();
      }
      examples.add(
          Map.of(
              "x",
              OnnxTensor.createTensor(
                  OrtEnvironment.getEnvironment(), FloatBuffer.wrap(x), shape)));
    }
    return new TensorActivations(examples, 1);
  }

  /** Half of the channels go; how far the answers to other examples move, as a share of their norm. */
  private double errorOfHalf(ModelProto proto, boolean calibrated) throws OrtException {
    OnnxModel model = OnnxModel.of(proto, "model");
    List<ChannelPruner.Narrowed> narrowed =
        new ChannelPruner(model, 0.5, Allocation.UNIFORM, name -> !name.equals("squeeze"))
            .prune(calibrated ? examples(proto, 64) : null, Progress.NONE);
    assertEquals(
        List.of(CHANNELS / 2), narrowed.stream().map(ChannelPruner.Narrowed::after).toList());
    assertTrue(
        model.toBuffer().remaining() < 0.8 * proto.getSerializedSize(),
        model.toBuffer().remaining() + " of " + proto.getSerializedSize());
    return new OutputError(OnnxModel.of(proto, "original"), examples(proto, 4)).of(model);
  }

  @ParameterizedTest
  @ValueSource(
      strings = {
        "h MatMul x w1; s Add h b1; z Relu s; p MatMul z w2; y Add p b2",
        "h MatMul x w1; z Tanh h; y MatMul z w2",
        "h Gemm x wt b1; z Relu h; y Gemm z w2t b2",
        "h Gemm x w1 b1; z Sigmoid h; y Gemm z w2",
        // GELU as exporters spell it
        "h MatMul x w1; s Add b1 h; q Div s root; e Erf q; f Add e one; g Mul s f; z Mul g half;"
            + " p MatMul z w2; y Add b2 p",
        // a gate
        "h MatMul x w1; k MatMul x wg; s Sigmoid k; z Mul h s; p MatMul z w2; y Add p b2",
        // constants along the channels that others read too, and two products that read them
        "h MatMul x w1; s Add h wide; u Mul s wide; z Relu u; p MatMul z w2; q MatMul z w3;"
            + " y Sub p q",
        "h MatMul x w1; s Add h b1; t Relu s; z Add t b1; p MatMul t w3; q MatMul z w2; y Add p q",
        "h Gemm x w1 b1; n BatchNormalization h scale b1 mean variance; z Relu n; y Gemm z w2 b2",
        // products of matrices between operators on texts
        "m Gemm x w1 b1; h Reshape m texts; r Relu h; z Reshape r matrix; y Gemm z w2 b2",
      })
  void whatProductsReadBecomesSmaller(String lines) throws OrtException {
    ModelProto proto = perceptron(lines.split("; "));
    double error = errorOfHalf(proto, true);
    assertTrue(error < TWINS, "error " + error);
    // By magnitude nobody knows of twins.
    double blind = errorOfHalf(proto, false);
    assertTrue(blind > 3 * TWINS, "error " + blind);
  }

  @ParameterizedTest
  @ValueSource(
      strings = {
        "a Conv x conv1 b1; z Relu a; y Conv z conv2 b2",
        "a Conv x conv1; z PRelu a slopes; y Conv z point b2",
        "a Conv x conv1 b1; r Relu a; d Conv r deep; z Relu d; y Conv z point b2",
        "a Conv x conv1 b1; n BatchNormalization a scale b1 mean variance; z MaxPool n; y Conv z"
            + " point",
        "a Conv x conv1 b1; r Relu a; g GlobalAveragePool r; f Flatten g; y Gemm f fc b2",
        "a Conv x conv1 b1; r Relu a; m MaxPool r; f Flatten m; y Gemm f fcp b2",
        "a Conv x conv1 b1; r Relu a; m MaxPool r; f Reshape m rows; y MatMul f pfc",
        // a trunk
        "a Conv x conv1 b1; c Conv a trunk b1; r Relu c; s Add a r; z Relu s; y Conv z point b2",
        // squeeze and excite, whose inner channels are a set of their own that is left out
        "a Conv x conv1 b1; r Clip a - six; g GlobalAveragePool r; s Conv g squeeze; t Relu s;"
            + " e Conv t excite; w Sigmoid e; z Mul r w; y Conv z point b2",
      })
  void whatConvolutionsReadBecomesSmaller(String lines) throws OrtException {
    ModelProto proto = images(lines.split("; "));
    double error = errorOfHalf(proto, true);
    assertTrue(error < TWINS, "error " + error);
  }

  /** What is of 16 bits stays so, and is fitted as in 32. */
  @ParameterizedTest
  @EnumSource(
      value = DataType.class,
      names = {"FLOAT16", "BFLOAT16"})
  void halfPrecisionStays(DataType half) throws OrtException {
    ModelProto proto = perceptron("h Gemm x wt b1", "z Relu h", "p MatMul z w2", "y Add p b2");
    OnnxModel model = OnnxModel.of(HalfModels.inside(proto, half), "model");
    new ChannelPruner(model, 0.5, Allocation.GLOBAL, name -> true)
        .prune(examples(proto, 64), Progress.NONE);
    assertEquals(
        Set.of(half),
        model.initializers().stream().map(OnnxInitializer::type).collect(Collectors.toSet()));
    assertEquals(
        CHANNELS / 2,
        model.initializers().stream().mapToLong(i -> i.dims()[0]).max().orElseThrow());
    HalfPrecision.widen(model); // ONNX Runtime has no products of bfloat16
    double error = new OutputError(OnnxModel.of(proto, "original"), examples(proto, 4)).of(model);
    assertTrue(error < TWINS + 0.01, "error " + error);
  }

  /** Where others count the channels, or see them, they stay. */
  @ParameterizedTest
  @ValueSource(
      strings = {
        "h MatMul x w1; z Softmax h; y MatMul z w2",
        "h MatMul x w1; m ReduceMean h; z Sub h m; y MatMul z w2",
        "h MatMul x w1; t Transpose h; u Transpose t; y MatMul u w2",
        "h MatMul x w1; k MatMul x w1; z Mul h k; y MatMul z w2",
        "y MatMul x w1",
        "h MatMul x w1; z Relu h; y MatMul w2t z",
        "h MatMul x w1; s Shape h; z Reshape h s; y MatMul z w2",
      })
  void channelsThatOthersKnowOfStay(String lines) {
    ModelProto proto = perceptron(lines.split("; "));
    refused("no channels lie between", proto, 0.5, true);
  }

  private static void refused(String word, ModelProto proto, double amount, boolean chosen) {
    OnnxModel model = OnnxModel.of(proto, "model");
    InputException e =
        assertThrows(
            InputException.class,
            () -> new ChannelPruner(model, amount, Allocation.GLOBAL, name -> chosen));
    assertTrue(e.getMessage().contains(word), e.getMessage());
  }

  @Test
  void outputsStayWhole() {
    ModelProto proto = perceptron("h MatMul x w1", "z Relu h", "y MatMul z w2");
    ModelProto seen =
        proto.toBuilder()
            .setGraph(
                proto.getGraph().toBuilder().addOutput(value("z", DataType.FLOAT, -1, CHANNELS)))
            .build();
    refused("no channels lie between", seen, 0.5, true);
  }

  @Test
  void magnitudeTakesTheSmallest() {
    // Channel c is made with 1 + c and read with 1.
    float[] made = new float[8 * CHANNELS];
    float[] read = new float[CHANNELS * 6];
    for (int i = 0; i < made.length; i++) {
      made[i] = 1 + (i * 5 + 3) % CHANNELS;
    }
    Arrays.fill(read, 1);
    GraphProto.Builder g =
        GraphProto.newBuilder()
            .setName("perceptron")
            .addInput(value("x", DataType.FLOAT, -1, 8))
            .addOutput(value("y", DataType.FLOAT, -1, 6))
            .addInitializer(floats("w1", made, 8, CHANNELS))
            .addInitializer(floats("w2", read, CHANNELS, 6));
    ModelProto proto = model(g, "h MatMul x w1", "z Relu h", "y MatMul z w2");
    OnnxModel model = OnnxModel.of(proto, "model");
    new ChannelPruner(model, 0.75, Allocation.GLOBAL, name -> true).prune(null, Progress.NONE);
    FloatBuffer left = model.constant("w1").floats();
    float[] expected = new float[8];
    int n = 0;
    for (int c = 0; c < CHANNELS; c++) {
      if (made[c] > 0.75 * CHANNELS) {
        expected[n++] = made[c];
      }
    }
    float[] first = new float[8];
    left.get(first);
    assertEquals(
        IntStream.range(0, 8).mapToObj(i -> expected[i]).toList(),
        IntStream.range(0, 8).mapToObj(i -> first[i]).toList());
  }

  @Test
  void sharesOutsideOfWhatIsPossibleAreRefused() {
    ModelProto proto = perceptron("h MatMul x w1", "z Relu h", "y MatMul z w2");
    for (double amount : new double[] {-0.1, 1.0, Double.NaN}) {
      refused("a share of " + amount, proto, amount, true);
    }
    refused("chosen", proto, 0.5, false);
  }

  @Test
  void weightsThatAreNotFiniteAreNamed() {
    ModelProto proto = perceptron("h MatMul x w1", "z Relu h", "y MatMul z w2");
    OnnxModel model = OnnxModel.of(proto, "model");
    FloatBuffer old = model.constant("w2").floats();
    float[] values = new float[old.remaining()];
    old.get(values);
    values[9] = Float.NaN;
    model.replaceConstant(OnnxInitializer.floats("w2", new long[] {CHANNELS, 6}, values));
    InputException e =
        assertThrows(
            InputException.class,
            () ->
                new ChannelPruner(model, 0.5, Allocation.UNIFORM, n -> true)
                    .prune(null, Progress.NONE));
    assertTrue(e.getMessage().contains("w2") && e.getMessage().contains("NaN"), e.getMessage());
  }

  @Test
  void aModelIsMadeNarrowerOnce() {
    OnnxModel model =
        OnnxModel.of(perceptron("h MatMul x w1", "z Relu h", "y MatMul z w2"), "model");
    ChannelPruner pruner = new ChannelPruner(model, 0.5, Allocation.UNIFORM, name -> true);
    pruner.prune(null, Progress.NONE);
    ByteBuffer once = model.toBuffer();
    IllegalStateException e =
        assertThrows(IllegalStateException.class, () -> pruner.prune(null, Progress.NONE));
    assertTrue(e.getMessage().startsWith("model was made narrower already"), e.getMessage());
    assertEquals(once, model.toBuffer());
  }

  @Test
  void severalImagesAtOnceAreRefused() throws OrtException {
    ModelProto proto = images("a Conv x conv1 b1", "z Relu a", "y Conv z point b2");
    ModelProto.Builder fixed = proto.toBuilder();
    fixed
        .getGraphBuilder()
        .setInput(0, value("x", DataType.FLOAT, 2, 3, 8, 8))
        .setOutput(0, value("y", DataType.FLOAT, 2, 6, 8, 8));
    ChannelPruner pruner =
        new ChannelPruner(
            OnnxModel.of(fixed.build(), "model"), 0.5, Allocation.GLOBAL, name -> true);
    TensorActivations examples = examples(proto, 1);
    InputException e =
        assertThrows(InputException.class, () -> pruner.prune(examples, Progress.NONE));
    assertTrue(e.getMessage().contains("input x is of 2 images"), e.getMessage());
    assertEquals(1, pruner.prune(null, Progress.NONE).size());
  }

  /** Two sets one after the other: the bias that the first one's reader gets is the second one's to cut. */
  @Test
  void setsInARowBecomeSmaller() throws OrtException {
    ModelProto proto =
        perceptron("h Gemm x wt b1", "z Relu h", "k Gemm z wm b3", "t Relu k", "y Gemm t w2t b2");
    OnnxModel model = OnnxModel.of(proto, "model");
    List<ChannelPruner.Narrowed> narrowed =
        new ChannelPruner(model, 0.5, Allocation.UNIFORM, name -> true)
            .prune(examples(proto, 64), Progress.NONE);
    assertEquals(List.of(16, 16), counts(narrowed));
    double error = new OutputError(OnnxModel.of(proto, "original"), examples(proto, 4)).of(model);
    assertTrue(error < 2 * TWINS, "error " + error);
  }

  /** Exporters write constants as nodes too; the bias that was there before the fitted one goes. */
  @Test
  void noConstantIsLeftBehind() throws OrtException {
    ModelProto proto = perceptron("h Gemm x wt b1", "z Relu h", "y Gemm z w2t b2");
    GraphProto.Builder g = proto.getGraph().toBuilder();
    for (int i = 0; i < g.getInitializerCount(); i++) {
      if (g.getInitializer(i).getName().equals("b2")) {
        g.addNode(
            0,
            NodeProto.newBuilder()
                .setOpType("Constant")
                .addOutput("b2")
                .addAttribute(
                    AttributeProto.newBuilder()
                        .setName("value")
                        .setType(AttributeProto.AttributeType.TENSOR)
                        .setT(g.getInitializer(i))));
        g.removeInitializer(i);
        break;
      }
    }
    OnnxModel model = OnnxModel.of(SmallModels.model(16, g), "model");
    assertEquals(4, model.nodes().size());
    new ChannelPruner(model, 0.5, Allocation.UNIFORM, name -> true)
        .prune(examples(proto, 8), Progress.NONE);
    assertEquals(3, model.nodes().size());
  }

  private static List<Integer> counts(List<ChannelPruner.Narrowed> narrowed) {
    return narrowed.stream().map(ChannelPruner.Narrowed::after).toList();
  }

  @Test
  void tellsHowFarItIs() throws OrtException {
    ModelProto proto = twoBlocks(0.1f);
    List<String> heard = new ArrayList<>();
    new ChannelPruner(OnnxModel.of(proto, "model"), 0.5, Allocation.GLOBAL, name -> true)
        .prune(
            examples(proto, 3),
            (phase, done, total) -> heard.add(phase + " " + done + " of " + total));
    List<String> each = new ArrayList<>();
    for (int example = 0; example < 3; example++) {
      // The blocks are seen one after the other.
      each.addAll(Collections.nCopies(2, "CALIBRATE " + example + " of 3"));
    }
    assertEquals(each, heard.subList(0, 6));
    assertEquals(List.of("MEASURE 0 of 2", "MEASURE 1 of 2"), heard.subList(6, 8));
  }

  /** y = relu(x · wa) · va + relu(x · wb) · vb, the second part of a tenth or of all of the first one's size. */
  private ModelProto twoBlocks(float second) {
    GraphProto.Builder g =
        GraphProto.newBuilder()
            .setName("blocks")
            .addInput(value("x", DataType.FLOAT, -1, 8))
            .addOutput(value("y", DataType.FLOAT, -1, 6))
            .addInitializer(floats("wa", random, 0.5f, 8, CHANNELS))
            .addInitializer(floats("va", random, 0.3f, CHANNELS, 6))
            .addInitializer(floats("wb", random, 0.5f, 8, CHANNELS))
            .addInitializer(floats("vb", random, 0.3f * second, CHANNELS, 6));
    return model(
        g,
        "h MatMul x wa",
        "s Relu h",
        "p MatMul s va",
        "k MatMul x wb",
        "t Relu k",
        "q MatMul t vb",
        "y Add p q");
  }

  private List<Integer> counts(
      ModelProto proto, double amount, Allocation allocation, TensorActivations examples) {
    OnnxModel model = OnnxModel.of(proto, "model");
    return counts(
        new ChannelPruner(model, amount, allocation, name -> true).prune(examples, Progress.NONE));
  }

  /** As much is left to do, and the outputs move less. */
  @Test
  void whatTheOutputsMissLessLosesMore() throws OrtException {
    ModelProto proto = twoBlocks(0.1f);
    TensorActivations seen = examples(proto, 64);
    OutputError error = new OutputError(OnnxModel.of(proto, "original"), examples(proto, 4));
    double[] errors = new double[2];
    for (Allocation allocation : Allocation.values()) {
      OnnxModel model = OnnxModel.of(proto, "model");
      List<Integer> counts =
          counts(
              new ChannelPruner(model, 0.5, allocation, name -> true).prune(seen, Progress.NONE));
      assertEquals(allocation == Allocation.GLOBAL ? List.of(24, 8) : List.of(16, 16), counts);
      errors[allocation.ordinal()] = error.of(model);
    }
    assertTrue(errors[0] < 0.7 * errors[1], Arrays.toString(errors));
  }

  /** The blocks of which one is small are alike where each is an output that counts, and not where their sum alone does. */
  @Test
  void whatIsMissedIsMissedByTheAnswers() throws OrtException {
    ModelProto.Builder proto = twoBlocks(0.1f).toBuilder();
    proto
        .getGraphBuilder()
        .addOutput(value("p", DataType.FLOAT, -1, 6))
        .addOutput(value("q", DataType.FLOAT, -1, 6));
    TensorActivations seen = examples(proto.build(), 64);
    for (Set<String> outputs : List.of(Set.<String>of(), Set.of("p", "q"))) {
      OnnxModel model = OnnxModel.of(proto.build(), "model");
      ChannelPruner pruner = new ChannelPruner(model, 0.5, Allocation.GLOBAL, name -> true);
      if (!outputs.isEmpty()) {
        pruner.measureBy(outputs);
      }
      List<Integer> counts = counts(pruner.prune(seen, Progress.NONE));
      assertEquals(outputs.isEmpty() ? List.of(24, 8) : List.of(16, 16), counts);
    }
  }

  @Test
  void sharesAreTheSameWhereNothingTellsSetsApart() throws OrtException {
    ModelProto uneven = twoBlocks(0.1f);
    assertEquals(List.of(16, 16), counts(uneven, 0.5, Allocation.GLOBAL, null));
    ModelProto even = twoBlocks(1);
    assertEquals(List.of(16, 16), counts(even, 0.5, Allocation.GLOBAL, examples(even, 64)));
    assertEquals(List.of(32, 32), counts(uneven, 0, Allocation.GLOBAL, examples(uneven, 64)));
  }

  /**
   * Two blocks of the same weights, one subtracted: alone the smaller one is missed less, but where both lose the same
   * what they do wrong cancels out in part.
   */
  @Test
  void sharesAreTheSameWhereThatIsBetterInAll() throws OrtException {
    ModelProto proto = twoBlocks(1);
    GraphProto.Builder g = proto.getGraph().toBuilder();
    TensorProto va = g.getInitializer(1);
    FloatBuffer read = OnnxInitializer.ofMessage(va).floats();
    float[] less = new float[CHANNELS * 6];
    for (int i = 0; i < less.length; i++) {
      less[i] = -0.3f * read.get(i);
    }
    g.setInitializer(2, g.getInitializer(0).toBuilder().setName("wb"));
    g.setInitializer(3, floats("vb", less, CHANNELS, 6));
    ModelProto opposed = SmallModels.model(16, g);
    assertEquals(List.of(16, 16), counts(opposed, 0.5, Allocation.GLOBAL, examples(opposed, 64)));
  }
}

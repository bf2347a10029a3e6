package org.espalier.compress.onnx;

import static org.espalier.format.onnx.SmallModels.attribute;
import static org.espalier.format.onnx.SmallModels.floats;
import static org.espalier.format.onnx.SmallModels.line;
import static org.espalier.format.onnx.SmallModels.node;
import static org.espalier.format.onnx.SmallModels.number;
import static org.espalier.format.onnx.SmallModels.value;
import static org.espalier.format.onnx.SmallModels.values;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertTrue;

import ai.onnx.proto.OnnxMl.GraphProto;
import ai.onnx.proto.OnnxMl.ModelProto;
import ai.onnx.proto.OnnxMl.NodeProto;
import ai.onnx.proto.OnnxMl.TensorProto;
import ai.onnx.proto.OnnxMl.TensorProto.DataType;
import ai.onnxruntime.OnnxTensor;
import ai.onnxruntime.OrtEnvironment;
import ai.onnxruntime.OrtException;
import java.nio.FloatBuffer;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import java.util.Random;
import java.util.Set;
import java.util.stream.Collectors;
import org.espalier.evaluate.TensorActivations;
import org.espalier.format.onnx.OnnxModel;
import org.espalier.format.onnx.SmallModels;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.ValueSource;

/** Which Convs are scaled, that answers stay, and what it does to the error of int8. */
class ConvEqualizationTest {
  private static final int CHANNELS = 8;

  private final Random random = new Random(11);

  /**
   * A Conv whose output channels differ by orders of magnitude, what stands in the lines, and a Conv that reads it.
   *
   * @param lines «OUTPUT OPERATOR INPUTS»; the first Conv gives a, another one b, the last Conv reads z
   */
  private ModelProto model(String... lines) {
    GraphProto.Builder g =
        GraphProto.newBuilder()
            .setName("g")
            .addInput(value("x", DataType.FLOAT, 1, 4, 8, 8))
            .addOutput(value("y", DataType.FLOAT, 1, 4, -1, -2))
            .addInitializer(uneven("w_a"))
            .addInitializer(floats("bias_a", random, 0.1f, CHANNELS))
            .addInitializer(uneven("w_b"))
            .addInitializer(compensating("w_y", 4, CHANNELS))
            .addInitializer(compensating("w_d", CHANNELS, 1))
            .addInitializer(compensating("w_g", CHANNELS, 4))
            .addInitializer(number("zero", 0))
            .addInitializer(number("six", 6))
            .addInitializer(number("third", 1f / 3))
            .addInitializer(number("minus", -6))
            .addInitializer(number("tiny", 0.002f))
            .addInitializer(floats("slopes", random, 0.5f, CHANNELS, 1, 1))
            .addInitializer(floats("scales", new float[] {1, 1, 2, 2}, 4))
            .addNode(node("Conv", "/a", List.of("x", "w_a", "bias_a"), "a"))
            .addNode(node("Conv", "/b", List.of("x", "w_b"), "b"));
    for (String line : lines) {
      g.addNode(
          switch (line.split(" ")[1]) {
            case "MaxPool", "AveragePool" -> line(line, attribute("kernel_shape", 2, 2));
            case "Conv" -> line(line, attribute("group", line.endsWith(" w_d") ? 8 : 2));
            default -> line(line);
          });
    }
    return SmallModels.model(14, g.addNode(node("Conv", "/y", List.of("z", "w_y"), "y")));
  }

  /** What output channel c has is 2^-c times what the first has. */
  private TensorProto uneven(String name) {
    float[] w = new float[CHANNELS * 4];
    for (int i = 0; i < w.length; i++) {
      w[i] = (float) Math.scalb(random.nextGaussian(), -(i / 4));
    }
    return floats(name, w, CHANNELS, 4, 1, 1);
  }

  /** What takes of each channel of such an image as much as of the others. */
  private TensorProto compensating(String name, int outputs, int inputs) {
    float[] w = new float[outputs * inputs];
    for (int i = 0; i < w.length; i++) {
      int channel =
          inputs == CHANNELS ? i % CHANNELS : inputs == 1 ? i : i / inputs / 4 * 4 + i % inputs;
      w[i] = (float) Math.scalb(random.nextGaussian(), channel);
    }
    return floats(name, w, outputs, inputs, 1, 1);
  }

  private TensorActivations examples() throws OrtException {
    List<Map<String, OnnxTensor>> examples = new ArrayList<>();
    for (int e = 0; e < 4; e++) {
      float[] x = new float[4 * 64];
      for (int i = 0; i < x.length; i++) {
        x[i] = (float) random.nextGaussian();
      }
      long[] shape = {1, 4, 8, 8};
      OrtEnvironment environment = OrtEnvironment.getEnvironment();
      examples.add(Map.of("x", OnnxTensor.createTensor(environment, FloatBuffer.wrap(x), shape)));
    }
    return new TensorActivations(examples, 1);
  }

  private static double error(ModelProto proto, TensorActivations source, boolean equalized) {
    OnnxModel model = OnnxModel.of(proto, "test");
    StaticQuantizer q = new StaticQuantizer(model, RuntimeRuns.exactStatic());
    Clipping all = new Clipping.MinMax();
    q.setRanges(equalized ? q.calibrate(source, all) : q.ranges(source, all));
    OutputError error = new OutputError(OnnxModel.of(proto, "float"), source);
    return error.of(q.quantizedCopy(copy -> {}));
  }

  private static OnnxModel equalized(ModelProto proto, TensorActivations source) {
    OnnxModel model = OnnxModel.of(proto, "test");
    Set<String> convs =
        model.nodes().stream()
            .filter(n -> n.getOpType().equals("Conv"))
            .map(n -> n.getOutput(0))
            .collect(Collectors.toSet());
    ConvEqualization.apply(model, convs, 127, source);
    model.check();
    return model;
  }

  @ParameterizedTest
  @ValueSource(
      strings = {
        "z Identity a",
        "z Relu a",
        "z LeakyRelu a",
        "z PRelu a slopes",
        "z MaxPool a",
        "z AveragePool a",
        "z GlobalAveragePool a",
        "z Resize a - scales",
        "z Clip a zero",
        "z Clip a zero six",
        "r Relu a;z Mul third r",
        "z Div a six",
        "r Relu a;m Mul r third;s Add tiny m;z MaxPool s",
        "s Add a six;c Clip s zero six;h Mul a c;z Div h six",
        "m Mul a third;s Add third m;c Clip s zero third;z Mul c a",
        "c Clip a zero six;z Mul a c",
        "k Clip a minus;s Add k six;c Clip s zero six;z Mul k c",
        "s Add a b;z Relu s",
        "r Relu a;s Add r b;t Relu s;z Add t b",
        "p GlobalAveragePool a;d Conv p w_d;g Sigmoid d;z Mul a g",
        "p GlobalAveragePool a;d Conv p w_d;g HardSigmoid d;z Mul g a",
        "d Conv a w_d;z Relu d",
        "d Conv a w_g;z Relu d",
        "s Shape a;z Relu a",
      })
  void answersStayAndErrorsFall(String lines) throws OrtException {
    ModelProto proto = model(lines.split(";"));
    TensorActivations source = examples();
    OutputError error = new OutputError(OnnxModel.of(proto, "float"), source);
    OnnxModel model = equalized(proto, source);
    assertTrue(error.of(model) < 1e-5, "error " + error.of(model));
    double before = error(proto, source, false);
    double after = error(proto, source, true);
    assertTrue(after < 0.6 * before, before + " became " + after);
  }

  /** What does not commute, or is read elsewhere, keeps its weights. */
  @ParameterizedTest
  @ValueSource(
      strings = {
        "z Tanh a",
        "z HardSwish a",
        "z Add a i",
        "s Add a six;c Clip s zero six;h Mul a c;t Tanh a;z Relu h",
        "s Add a six;c Clip s zero six;h Mul a c;z Mul h c",
        "s Add a six;c Clip s six six;z Mul a c",
        "k Clip a third;s Add k six;c Clip s zero six;z Mul k c",
        "z Mul a b",
        "z Clip a six six",
        "z Clip a third six",
        "z Softmax a",
        "t Tanh a;z Relu a",
        "z Concat a",
        "t Relu a;u Reshape a f;z Identity t",
        "r Relu held;s Add a r;z Identity s",
        "m Mul a wide;r Reshape m back;z Identity r",
      })
  void leavesTheRest(String lines) throws OrtException {
    ModelProto.Builder proto = model(lines.split(";")).toBuilder();
    proto
        .getGraphBuilder()
        .addInitializer(SmallModels.int64s("f", 1, -1))
        .addInitializer(SmallModels.int64s("back", 1, CHANNELS, 8, 8))
        .addInitializer(floats("held", random, 1, 1, CHANNELS, 8, 8))
        .addInitializer(floats("wide", new float[] {2}, 1, 1, 1, 1, 1))
        .addInput(value("i", DataType.FLOAT, 1, CHANNELS, 8, 8));
    for (NodeProto.Builder n : proto.getGraphBuilder().getNodeBuilderList()) {
      if (n.getOpType().equals("Concat")) {
        n.addAttribute(attribute("axis", 1));
      }
    }
    OnnxModel before = OnnxModel.of(proto.build(), "before");
    OnnxModel model = OnnxModel.of(proto.build(), "test");
    // No example runs, since no image can be changed.
    ConvEqualization.apply(
        model,
        Set.of("a", "b", "y"),
        127,
        (m, activations, receiver) -> {
          throw new AssertionError("ran for " + activations);
        });
    for (String w : List.of("w_a", "bias_a", "w_b", "w_y")) {
      assertEquals(before.constant(w).floats(), model.constant(w).floats());
    }
  }

  @Test
  void leavesSharedWeightsOutputsAndFloatReaders() {
    ModelProto shared = model("c Conv x w_a", "s Add a c", "z Relu s");
    ModelProto.Builder output = model("z Relu a").toBuilder();
    output.getGraphBuilder().addOutput(value("a", DataType.FLOAT, 1, CHANNELS, 8, 8));
    ActivationSource none =
        (m, activations, receiver) -> {
          throw new AssertionError("ran for " + activations);
        };
    ConvEqualization.apply(OnnxModel.of(shared, "shared"), Set.of("a", "c", "y"), 127, none);
    ConvEqualization.apply(OnnxModel.of(output.build(), "out"), Set.of("a", "y"), 127, none);
    ModelProto plain = model("z Relu a");
    ConvEqualization.apply(OnnxModel.of(plain, "float"), Set.of("a", "b"), 127, none);
  }

  @Test
  void aLongChainIsNoDeepOne() {
    String[] chain = new String[20_000];
    for (int i = 0; i < chain.length; i++) {
      String output = i == chain.length - 1 ? "z" : "r" + i;
      chain[i] = output + " Relu " + (i == 0 ? "a" : "r" + (i - 1));
    }
    boolean[] ran = new boolean[1];
    ConvEqualization.apply(
        OnnxModel.of(model(chain), "chain"), Set.of("y"), 127, (m, a, r) -> ran[0] = true);
    assertTrue(ran[0]);
  }

  /** A channel that reaches the bound is cut off there as before, the others not before what was seen. */
  @Test
  void keepsRelu6OnExamples() throws OrtException {
    ModelProto.Builder proto = model("z Clip a zero six").toBuilder();
    for (TensorProto.Builder t : proto.getGraphBuilder().getInitializerBuilderList()) {
      if (t.getName().equals("bias_a")) {
        t.setRawData(floats("", new float[] {8, 1, 1, 1, 1, 1, 1, 1}, 8).getRawData());
      }
    }
    TensorActivations source = examples();
    OutputError error = new OutputError(OnnxModel.of(proto.build(), "float"), source);
    OnnxModel model = equalized(proto.build(), source);
    assertTrue(values(model, "bias_a")[7] > 3, "bias " + values(model, "bias_a")[7]);
    assertEquals(8, values(model, "bias_a")[0]);
    assertTrue(error.of(model) < 1e-5, "error " + error.of(model));
  }

  @Test
  void zerosStayAndHugeWeightsAreLeft() throws OrtException {
    ModelProto.Builder proto = model("z Relu a").toBuilder();
    TensorProto.Builder w = proto.getGraphBuilder().getInitializerBuilder(0);
    float[] values = values(OnnxModel.of(proto.build(), "w"), "w_a");
    values[5] = 0;
    values[30] = 0;
    w.setRawData(floats("", values, values.length).getRawData());
    float[] after = values(equalized(proto.build(), examples()), "w_a");
    assertEquals(0, after[5]);
    assertEquals(0, after[30]);
    assertTrue(Math.abs(after[31]) > 10 * Math.abs(values[31]));
    values[0] = 1e37f;
    w.setRawData(floats("", values, values.length).getRawData());
    assertEquals(values[31], values(equalized(proto.build(), examples()), "w_a")[31]);
  }
}

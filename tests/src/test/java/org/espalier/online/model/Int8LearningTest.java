package org.espalier.online.model;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import ai.onnx.proto.OnnxMl.GraphProto;
import ai.onnx.proto.OnnxMl.TensorProto;
import ai.onnx.proto.OnnxMl.TensorProto.DataType;
import ai.onnxruntime.OnnxTensor;
import ai.onnxruntime.OrtEnvironment;
import ai.onnxruntime.OrtException;
import ai.onnxruntime.OrtSession;
import java.io.ByteArrayInputStream;
import java.io.ByteArrayOutputStream;
import java.io.IOException;
import java.io.InputStream;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.FloatBuffer;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.Collections;
import java.util.List;
import java.util.Map;
import java.util.Random;
import java.util.stream.IntStream;
import org.bytedeco.pytorch.global.torch.ScalarType;
import org.espalier.ExactProducts;
import org.espalier.InputException;
import org.espalier.compress.onnx.Clipping;
import org.espalier.compress.onnx.DynamicQuantizer;
import org.espalier.compress.onnx.Int8Model;
import org.espalier.compress.onnx.RuntimeRuns;
import org.espalier.compress.onnx.StaticQuantizer;
import org.espalier.compress.onnx.WeightIntegers;
import org.espalier.evaluate.TensorActivations;
import org.espalier.format.onnx.OnnxInitializer;
import org.espalier.format.onnx.OnnxModel;
import org.espalier.format.onnx.PyTorchInt8;
import org.espalier.format.onnx.SmallModels;
import org.espalier.online.Event;
import org.espalier.online.Example;
import org.espalier.online.ExampleInput;
import org.espalier.online.Guard;
import org.espalier.online.Learnable;
import org.espalier.online.LearningRate;
import org.espalier.online.Loss;
import org.espalier.online.OnlineLearner;
import org.espalier.online.OnlineSettings;
import org.espalier.online.Streams;
import org.espalier.torch.Libtorch;
import org.junit.jupiter.api.BeforeEach;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;
import org.junit.jupiter.params.provider.ValueSource;

/** int8 models learn and stay int8: what the learner answers is what ONNX Runtime answers with the model that it gives. */
class Int8LearningTest {
  private static final OrtEnvironment ENVIRONMENT = OrtEnvironment.getEnvironment();
  private static final int FEATURES = 8;

  enum Form {
    DYNAMIC,
    STATIC
  }

  @BeforeEach
  void load() {
    Libtorch.load();
  }

  private static OnnxModel quantized(Form form) throws OrtException {
    OnnxModel model = OnnxModels.perceptron(FEATURES, 32, 2);
    if (form == Form.DYNAMIC) {
      new DynamicQuantizer(model, RuntimeRuns.exactDynamic()).apply();
    } else {
      StaticQuantizer quantizer = new StaticQuantizer(model, RuntimeRuns.exactStatic());
      List<Map<String, OnnxTensor>> inputs = new ArrayList<>();
      for (Example e : stream(64, 5)) {
        inputs.add(Map.of("x", OnnxTensor.createTensor(ENVIRONMENT, new float[][] {e.features()})));
      }
      quantizer.apply(quantizer.ranges(new TensorActivations(inputs, 1), new Clipping.MinMax()));
    }
    return model;
  }

  private static List<Example> stream(int n, long seed) {
    return Streams.plane(n, FEATURES, 0, seed, 9);
  }

  private static TorchLearnable learnable(OnnxModel model) {
    return TorchLearnable.of(Int8Model.of(model), List.of(ExampleInput.floats("x", FEATURES)), 2);
  }

  private static Learnable learnable(OnnxModel model, boolean byLibtorch) {
    return byLibtorch ? learnable(model) : Perceptron.of(Int8Model.of(model)).orElseThrow();
  }

  private static OnlineSettings.Builder settings() {
    return Streams.crossEntropy(0.05).batch(8);
  }

  private static float[] run(OnnxModel model, float[] features) throws OrtException {
    return run(model, new float[][] {features});
  }

  /** What ONNX Runtime answers, node by node. */
  static float[] run(OnnxModel model, float[][] rows) throws OrtException {
    return run(model, OnnxTensor.createTensor(ENVIRONMENT, rows));
  }

  private static float[] run(OnnxModel model, OnnxTensor input) throws OrtException {
    try (OrtSession.SessionOptions options = new OrtSession.SessionOptions()) {
      options.setOptimizationLevel(OrtSession.SessionOptions.OptLevel.NO_OPT);
      try (OrtSession session = ENVIRONMENT.createSession(model.toBuffer(), options);
          OnnxTensor x = input;
          OrtSession.Result result = session.run(Map.of("x", x))) {
        FloatBuffer b = ((OnnxTensor) result.get(0)).getFloatBuffer();
        float[] v = new float[b.remaining()];
        b.get(v);
        return v;
      }
    }
  }

  /**
   * Nearly all answers differ by what float sums differ by and by the rounding of biases to int32, 1e-4. An activation that lies
   * between two integers may fall on the other side: a step of it times a weight.
   */
  private static void answersAs(OnnxModel model, OnlineLearner learner) throws OrtException {
    answersAs(model, learner, 0.03);
  }

  private static void answersAs(OnnxModel model, OnlineLearner learner, double step)
      throws OrtException {
    List<Float> differences = new ArrayList<>();
    for (Example e : stream(40, 77)) {
      float[] expected = run(model, e.features());
      float[] actual = learner.predict(e.features()).outputs();
      for (int i = 0; i < expected.length; i++) {
        differences.add(Math.abs(expected[i] - actual[i]));
      }
    }
    Collections.sort(differences);
    assertTrue(differences.get(59) < 1e-4, differences.toString());
    assertTrue(differences.get(79) < step, differences.toString());
  }

  private static ByteBuffer constant(OnnxModel model, String part) {
    return model
        .constant(
            model.initializers().stream()
                .map(i -> i.name())
                .filter(name -> name.startsWith("first.weight") && name.endsWith(part))
                .findFirst()
                .orElseThrow())
        .data();
  }

  @ParameterizedTest
  @CsvSource({"DYNAMIC, false", "DYNAMIC, true", "STATIC, false", "STATIC, true"})
  void whatIsLearnedIsInt8Again(Form form, boolean byLibtorch) throws OrtException {
    OnnxModel model = quantized(form);
    try (Learnable learnable = learnable(model, byLibtorch);
        OnlineLearner learner = new OnlineLearner(learnable, settings().build())) {
      answersAs(model, learner);
      OnlineLearner.Report first = learner.learn(stream(8, 1));
      for (int i = 2; i < 200; i++) {
        learner.learn(stream(8, i));
      }
      OnnxModel learned = learner.toOnnx();
      answersAs(learned, learner);
      assertEquals(constant(model, "_scale"), constant(learned, "_scale"));
      assertFalse(constant(model, "_quantized").equals(constant(learned, "_quantized")));
      int right = 0;
      for (Example e : stream(400, 1000)) {
        float[] y = run(learned, e.features());
        right += (y[1] > y[0] ? 1 : 0) == e.label() ? 1 : 0;
      }
      assertTrue(right > 380, right + " of 400 are right, after a loss of " + first.loss());
    }
  }

  @ParameterizedTest
  @CsvSource({"DYNAMIC, false", "DYNAMIC, true", "STATIC, false", "STATIC, true"})
  void itGoesOnInTheSameBitsAndTakesOverOthers(Form form, boolean byLibtorch)
      throws OrtException, IOException {
    OnnxModel model = quantized(form);
    OnlineSettings settings = settings().momentum(0.9).build();
    try (Learnable whole = learnable(model, byLibtorch);
        OnlineLearner learner = new OnlineLearner(whole, settings);
        Learnable again = learnable(model, byLibtorch);
        OnlineLearner resumed = new OnlineLearner(again, settings);
        Learnable third = learnable(model, byLibtorch);
        OnlineLearner adopting = new OnlineLearner(third, settings)) {
      learner.learn(stream(80, 1));
      ByteArrayOutputStream state = new ByteArrayOutputStream();
      learner.save(state);
      OnnxModel between = learner.toOnnx();
      learner.learn(stream(80, 2));
      resumed.load(new ByteArrayInputStream(state.toByteArray()));
      assertEquals(between.toBuffer(), resumed.toOnnx().toBuffer());
      resumed.learn(stream(80, 2));
      assertEquals(learner.toOnnx().toBuffer(), resumed.toOnnx().toBuffer());

      adopting.learn(stream(80, 3));
      try (Learnable other = learnable(between, byLibtorch)) {
        adopting.adopt(other);
      }
      assertEquals(between.toBuffer(), adopting.toOnnx().toBuffer());
      adopting.learn(stream(80, 4));
      assertEquals(constant(model, "_scale"), constant(adopting.toOnnx(), "_scale"));
      answersAs(adopting.toOnnx(), adopting);
    }
  }

  @ParameterizedTest
  @ValueSource(booleans = {false, true})
  void zerosStayZerosWhereTheyShall(boolean byLibtorch) throws OrtException {
    OnnxModel model = OnnxModels.perceptron(FEATURES, 32, 2);
    float[] values = new float[FEATURES * 32];
    model.constant("first.weight").floats().get(values);
    for (int i = 0; i < values.length; i += 2) {
      values[i] = 0;
    }
    model.replaceConstant(
        OnnxInitializer.floats("first.weight", new long[] {FEATURES, 32}, values));
    new DynamicQuantizer(model, RuntimeRuns.exactDynamic()).apply();
    try (Learnable learnable = learnable(model, byLibtorch);
        OnlineLearner learner = new OnlineLearner(learnable, settings().keepZeros(true).build())) {
      learner.learn(stream(400, 1));
      ByteBuffer now = constant(learner.toOnnx(), "_quantized");
      ByteBuffer before = constant(model, "_quantized");
      byte zero = (byte) (ExactProducts.first() == WeightIntegers.UINT8 ? 128 : 0);
      int others = 0;
      for (int i = 0; i < now.remaining(); i++) {
        if (i % 2 == 0) {
          assertEquals(zero, now.get(i));
        } else {
          others += now.get(i) != before.get(i) ? 1 : 0;
        }
      }
      assertTrue(others > 10, others + " have changed");
    }
  }

  /** A graph from x [batch, features] to y [batch, 2] with the integers w and no node yet. */
  private static GraphProto.Builder withIntegers(int features, byte[] integers, long... dims) {
    return GraphProto.newBuilder()
        .setName("steps") // part of what learner-3.state fits
        .addInput(SmallModels.value("x", DataType.FLOAT, -1, features))
        .addOutput(SmallModels.value("y", DataType.FLOAT, -1, 2))
        .addInitializer(SmallModels.tensor("w", DataType.INT8, ByteBuffer.wrap(integers), dims));
  }

  /** x [batch, 1] to y [batch, 2] by steps of 0.01. */
  private static OnnxModel steps(int... integers) {
    byte[] bytes = {(byte) integers[0], (byte) integers[1]};
    GraphProto.Builder graph =
        withIntegers(1, bytes, 1, 2)
            .addInitializer(SmallModels.number("s", 0.01f))
            .addNode(SmallModels.line("wd DequantizeLinear w s"))
            .addNode(SmallModels.line("y MatMul x wd"));
    return OnnxModel.of(SmallModels.model(13, graph), "steps");
  }

  private static Learnable ofSteps(OnnxModel model, boolean byLibtorch) {
    Int8Model integers = Int8Model.of(model);
    return byLibtorch
        ? TorchLearnable.of(integers, List.of(ExampleInput.floats("x", 1)), 2)
        : Perceptron.of(integers).orElseThrow();
  }

  private static void learn(OnlineLearner learner, float first, float second) {
    for (int i = 0; i < 60; i++) {
      learner.learn(List.of(Example.of(new float[] {1}, new float[] {first, second})));
    }
  }

  /** They go to −128 again where they began there, and others to −127, in a learner that goes on too. */
  @ParameterizedTest
  @ValueSource(booleans = {false, true})
  void weightsOfMinus128Learn(boolean byLibtorch) throws IOException {
    OnlineSettings settings =
        OnlineSettings.builder(new Loss.Squared(), new LearningRate.Constant(0.1)).batch(1).build();
    OnnxModel full = steps(-128, 5);
    ByteBuffer upper = ByteBuffer.wrap(new byte[] {-100, 50});
    try (Learnable model = ofSteps(full, byLibtorch);
        OnlineLearner learner = new OnlineLearner(model, settings)) {
      assertEquals(-1.28f, learner.predict(new float[] {1}).outputs()[0]);
      assertEquals(full.toBuffer(), learner.toOnnx().toBuffer());
      learn(learner, -1, 0.5f);
      assertEquals(upper, learner.toOnnx().constant("w").data());
      ByteArrayOutputStream state = new ByteArrayOutputStream();
      learner.save(state);
      for (boolean withState : new boolean[] {true, false}) {
        try (Learnable next = ofSteps(learner.toOnnx(), byLibtorch);
            OnlineLearner resumed = new OnlineLearner(next, settings)) {
          if (withState) {
            resumed.load(new ByteArrayInputStream(state.toByteArray()));
          }
          learn(resumed, -2, 2);
          byte lowest = (byte) (withState ? -128 : -127);
          OnnxModel learned = resumed.toOnnx();
          assertEquals(ByteBuffer.wrap(new byte[] {lowest, 127}), learned.constant("w").data());
          assertEquals(lowest * 0.01f, resumed.predict(new float[] {1}).outputs()[0]);
          try (Learnable other = ofSteps(full, byLibtorch)) {
            resumed.adopt(other);
          }
          assertEquals(full.toBuffer(), resumed.toOnnx().toBuffer());
        }
      }
    }
  }

  /** What was made for products that saturate (quantize --reduce-range) stays so, in a learner that goes on too. */
  @ParameterizedTest
  @CsvSource({
    "-63, 63, false",
    "-63, 63, true",
    "64, 64, false",
    "62, 127, false",
    "65, 127, false",
    "127, 127, false"
  })
  void weightsOfSevenBitsStayWithin(int largest, int end, boolean byLibtorch) throws IOException {
    OnlineSettings settings =
        OnlineSettings.builder(new Loss.Squared(), new LearningRate.Constant(0.1)).batch(1).build();
    OnnxModel model = steps(largest, 5);
    ByteBuffer ends = ByteBuffer.wrap(new byte[] {(byte) -end, (byte) end});
    try (Learnable learnable = ofSteps(model, byLibtorch);
        OnlineLearner learner = new OnlineLearner(learnable, settings)) {
      assertEquals(model.toBuffer(), learner.toOnnx().toBuffer());
      learn(learner, -0.3f, 0.2f);
      assertEquals(ByteBuffer.wrap(new byte[] {-30, 20}), learner.toOnnx().constant("w").data());
      ByteArrayOutputStream state = new ByteArrayOutputStream();
      learner.save(state);
      try (Learnable next = ofSteps(learner.toOnnx(), byLibtorch);
          OnlineLearner resumed = new OnlineLearner(next, settings)) {
        resumed.load(new ByteArrayInputStream(state.toByteArray()));
        learn(resumed, -2, 2);
        assertEquals(ends, resumed.toOnnx().constant("w").data());
        assertEquals(-end * 0.01f, resumed.predict(new float[] {1}).outputs()[0]);
      }
    }
  }

  /** Rows of steps of 0.01 and 0.1 that end at −127 each, go no further, and come back when they shall. */
  @ParameterizedTest
  @ValueSource(booleans = {false, true})
  void weightsAtTheEndComeBack(boolean byLibtorch) {
    byte[] lowest = {-127, -127, -127, -127};
    GraphProto.Builder graph =
        withIntegers(2, lowest, 2, 2)
            .addInitializer(SmallModels.floats("s", new float[] {0.01f, 0.1f}, 2))
            .addNode(SmallModels.line("wd DequantizeLinear w s", SmallModels.attribute("axis", 0)))
            .addNode(SmallModels.line("y Gemm x wd", SmallModels.attribute("transB", 1)));
    OnnxModel model = OnnxModel.of(SmallModels.model(13, graph), "rows");
    OnlineSettings settings =
        OnlineSettings.builder(new Loss.Squared(), new LearningRate.Constant(0.1)).batch(1).build();
    Int8Model integers = Int8Model.of(model);
    try (Learnable learnable =
            byLibtorch
                ? TorchLearnable.of(integers, List.of(ExampleInput.floats("x", 2)), 2)
                : Perceptron.of(integers).orElseThrow();
        OnlineLearner learner = new OnlineLearner(learnable, settings)) {
      for (int i = 0; i < 20; i++) {
        learner.learn(List.of(Example.of(new float[] {1, 1}, new float[] {-9, -90})));
      }
      assertEquals(ByteBuffer.wrap(lowest), learner.toOnnx().constant("w").data());
      // Wherever the twenty steps would have led to, one that leads back begins at the end.
      learner.learn(List.of(Example.of(new float[] {1, 1}, new float[] {0, 0})));
      ByteBuffer back = learner.toOnnx().constant("w").data();
      assertEquals(ByteBuffer.wrap(new byte[] {-102, -102, -102, -102}), back);
    }
  }

  /**
   * learner-3.state was saved in format 3, after five steps with momentum from integers of −90 and 5 towards −2 and 0.5, the
   * first of which is clipped; three more towards −1 and 0.5 begin at the end of its grid, with the momentum beyond it.
   */
  @ParameterizedTest
  @ValueSource(booleans = {false, true})
  void statesOfBeforeGoOn(boolean byLibtorch) throws IOException {
    OnlineSettings settings =
        OnlineSettings.builder(new Loss.Squared(), new LearningRate.Constant(0.1))
            .momentum(0.5)
            .batch(1)
            .build();
    try (Learnable model = ofSteps(steps(-127, 34), byLibtorch);
        OnlineLearner learner = new OnlineLearner(model, settings);
        InputStream state = getClass().getResourceAsStream("learner-3.state")) {
      learner.load(state);
      assertArrayEquals(new float[] {-1.27f, 0.34f}, learner.predict(new float[] {1}).outputs());
      for (int i = 0; i < 3; i++) {
        learner.learn(List.of(Example.of(new float[] {1}, new float[] {-1, 0.5f})));
      }
      assertArrayEquals(
          new float[] {-1.2f, 0.44f}, learner.predict(new float[] {1}).outputs(), 1e-6f);
      assertEquals(8, learner.learned());
    }
  }

  /** What follows from latent weights is in no state: that of an int8 model is as large as that of the floats that it was. */
  @Test
  void statesAreOfLatentWeights() throws OrtException, IOException {
    int[] sizes = new int[2];
    for (int k = 0; k < 2; k++) {
      OnnxModel floats = OnnxModels.perceptron(FEATURES, 32, 2);
      try (Learnable model =
              k == 0
                  ? Perceptron.of(floats).orElseThrow()
                  : learnable(quantized(Form.DYNAMIC), false);
          OnlineLearner learner = new OnlineLearner(model, settings().momentum(0.9).build())) {
        learner.learn(stream(80, 1));
        ByteArrayOutputStream state = new ByteArrayOutputStream();
        learner.save(state);
        sizes[k] = state.size();
      }
    }
    assertEquals(sizes[0], sizes[1]);
  }

  /**
   * As static quantizers write it: activations rounded before and behind each operator, to uint8 and to int8 of which 0 is an
   * end, weights of int8 and of uint8 about 128, one of them behind a Transpose, and a bias of int32.
   */
  private static OnnxModel ofOtherMakers(int opset) {
    Random random = new Random(6);
    byte[] first = new byte[16 * FEATURES];
    byte[] second = new byte[32 * 2];
    for (byte[] weight : List.of(first, second)) {
      for (int i = 0; i < weight.length; i++) {
        weight[i] = (byte) (random.nextInt(255) - 127 + (weight == second ? 128 : 0));
      }
    }
    ByteBuffer bias = ByteBuffer.allocate(64).order(ByteOrder.LITTLE_ENDIAN);
    for (int i = 0; i < 16; i++) {
      bias.putInt(4 * i, random.nextInt(2000) - 1000);
    }
    GraphProto.Builder graph =
        GraphProto.newBuilder()
            .setName("static")
            .addInput(SmallModels.value("x", DataType.FLOAT, -1, FEATURES))
            .addOutput(SmallModels.value("y", DataType.FLOAT, -1, 2))
            .addInitializer(
                SmallModels.tensor("w1", DataType.INT8, ByteBuffer.wrap(first), 16, FEATURES))
            .addInitializer(
                SmallModels.tensor("w2", DataType.UINT8, ByteBuffer.wrap(second), 2, 32))
            .addInitializer(SmallModels.tensor("b1", DataType.INT32, bias, 16))
            .addInitializer(SmallModels.number("s", 0.03f))
            .addInitializer(SmallModels.number("ws", 0.01f))
            .addInitializer(SmallModels.number("bs", 0.0003f))
            .addInitializer(SmallModels.number("ss", 1 / 255f))
            .addInitializer(one(DataType.UINT8, "128", 128))
            .addInitializer(one(DataType.INT8, "low", -128));
    round(graph, "x", "s 128");
    graph
        .addNode(SmallModels.line("w1d DequantizeLinear w1 ws"))
        .addNode(SmallModels.line("b1d DequantizeLinear b1 bs"))
        .addNode(SmallModels.line("a Gemm xd w1d b1d", SmallModels.attribute("transB", 1)));
    round(graph, "a", "s 128");
    graph.addNode(SmallModels.line("c Sigmoid ad"));
    round(graph, "c", "ss low");
    graph
        .addNode(SmallModels.line("ce DequantizeLinear cq ss low"))
        .addNode(SmallModels.line("e Add cd ad"));
    round(graph, "e", "s 128");
    graph.addNode(SmallModels.line("f Concat ed ce", SmallModels.attribute("axis", 1)));
    round(graph, "f", "s 128");
    graph
        .addNode(SmallModels.line("w2d DequantizeLinear w2 ws 128"))
        .addNode(SmallModels.line("w2t Transpose w2d", SmallModels.attribute("perm", 1, 0)))
        .addNode(SmallModels.line("y MatMul fd w2t"));
    return OnnxModel.of(SmallModels.model(opset, graph), "static");
  }

  /** Rounds a value v to vq, which is vd as a float. */
  private static void round(GraphProto.Builder graph, String value, String grid) {
    graph
        .addNode(SmallModels.line(value + "q QuantizeLinear " + value + " " + grid))
        .addNode(SmallModels.line(value + "d DequantizeLinear " + value + "q " + grid));
  }

  private static TensorProto one(DataType type, String name, int value) {
    return SmallModels.tensor(name, type, ByteBuffer.wrap(new byte[] {(byte) value}));
  }

  @ParameterizedTest
  @ValueSource(ints = {10, 11, 13, 19, 21, 22})
  void modelsOfOtherMakers(int opset) throws OrtException {
    OnnxModel model = ofOtherMakers(opset);
    try (TorchLearnable learnable = learnable(model);
        OnlineLearner learner = new OnlineLearner(learnable, settings().build())) {
      answersAs(model, learner, 0.1); // steps of 0.03 times weights up to 1.3, of two layers
      double before = learner.learn(stream(8, 1)).loss();
      for (int i = 2; i < 100; i++) {
        learner.learn(stream(8, i));
      }
      OnnxModel learned = learner.toOnnx();
      for (String weight : List.of("w1", "w2", "b1")) {
        assertFalse(model.constant(weight).data().equals(learned.constant(weight).data()), weight);
      }
      answersAs(learned, learner, 0.1);
      assertTrue(learner.learn(stream(400, 1000)).loss() < before / 2);
    }
  }

  /**
   * Floats that the graph rounds go on being floats that it rounds, on their grid: 1e-4 as ever, and outputs are steps of 20 / 127
   * themselves, of which one in 20 may lie between two.
   */
  @ParameterizedTest
  @ValueSource(booleans = {false, true})
  void modelsThatRoundTheirOwnWeights(boolean byLibtorch) throws OrtException, IOException {
    OnnxModel model = PyTorchInt8.model(FEATURES);
    assertEquals(List.of(), Int8Model.of(model).resting());
    try (Learnable learnable = learnable(model, byLibtorch);
        OnlineLearner learner = new OnlineLearner(learnable, settings().build())) {
      assertEquals(
          List.of("net.0.weight", "net.0.bias", "net.2.weight", "net.2.bias"),
          List.copyOf(learner.weights().keySet()));
      float[] scales = SmallModels.values(model, "net.0.weight_scale");
      float[] weight = learner.weights().get("net.0.weight");
      assertTrue(
          IntStream.range(0, weight.length)
              .anyMatch(i -> weight[i] == -128 * scales[i / FEATURES]));
      answersAs(model, learner, 20 / 127f + 1e-4);
      double before = learner.learn(stream(8, 1)).loss();
      for (int i = 2; i < 200; i++) {
        learner.learn(stream(8, i));
      }
      OnnxModel learned = learner.toOnnx();
      assertEquals(model.nodes(), learned.nodes());
      answersAs(learned, learner, 20 / 127f + 1e-4);
      for (Map.Entry<String, float[]> e : learner.weights().entrySet()) {
        assertArrayEquals(e.getValue(), SmallModels.values(learned, e.getKey()), e.getKey());
        assertFalse(Arrays.equals(e.getValue(), SmallModels.values(model, e.getKey())));
      }
      assertTrue(learner.learn(stream(400, 1000)).loss() < before / 2);
      ByteArrayOutputStream state = new ByteArrayOutputStream();
      learner.save(state);
      try (Learnable next = learnable(learner.toOnnx(), byLibtorch);
          OnlineLearner resumed = new OnlineLearner(next, settings().build())) {
        resumed.load(new ByteArrayInputStream(state.toByteArray()));
        resumed.learn(stream(80, 7));
        learner.learn(stream(80, 7));
        assertEquals(learner.toOnnx().toBuffer(), resumed.toOnnx().toBuffer());
      }
    }
  }

  /** x [n, 3], whole numbers, of a table [1000, 32] of int8, which plain descent would learn by rows were it of floats. */
  private static OnnxModel tableModel() {
    Random random = new Random(4);
    byte[] table = new byte[1000 * 32];
    random.nextBytes(table);
    for (int i = 0; i < table.length; i++) {
      table[i] = (byte) Math.max(-127, table[i]);
    }
    GraphProto.Builder graph =
        GraphProto.newBuilder()
            .setName("table")
            .addInput(SmallModels.value("x", DataType.INT64, -1, 3))
            .addOutput(SmallModels.value("y", DataType.FLOAT, -1, 2))
            .addInitializer(
                SmallModels.tensor("table", DataType.INT8, ByteBuffer.wrap(table), 1000, 32))
            .addInitializer(SmallModels.number("step", 0.01f))
            .addInitializer(SmallModels.floats("weight", random, 0.1f, 96, 2))
            .addNode(SmallModels.line("floats DequantizeLinear table step"))
            .addNode(SmallModels.line("rows Gather floats x"))
            .addNode(SmallModels.line("flat Flatten rows"))
            .addNode(SmallModels.line("y MatMul flat weight"));
    return OnnxModel.of(SmallModels.model(13, graph), "table");
  }

  /** 1e-5: sums of 96 products of some tenths. */
  @Test
  void tablesStayOnTheirGrids() throws OrtException {
    OnnxModel model = tableModel();
    try (TorchLearnable learnable =
            TorchLearnable.of(
                Int8Model.of(model), List.of(new ExampleInput("x", ScalarType.Long, 3)), 2);
        OnlineLearner learner = new OnlineLearner(learnable, settings().build())) {
      for (int i = 0; i < 100; i++) {
        float[] x = {i, 2 * i + 1, 999 - i};
        learner.learn(List.of(Example.of(x, i % 2)));
      }
      OnnxModel learned = learner.toOnnx();
      assertFalse(model.constant("table").data().equals(learned.constant("table").data()));
      for (int i = 0; i < 100; i++) {
        long[][] x = {{i, 2 * i + 1, 999 - i}};
        float[] y = run(learned, OnnxTensor.createTensor(ENVIRONMENT, x));
        float[] same = {x[0][0], x[0][1], x[0][2]};
        assertArrayEquals(y, learner.predict(same).outputs(), 1e-5f);
      }
    }
  }

  /** What is taken back are latent weights, and the integers with them. */
  @ParameterizedTest
  @CsvSource({"DYNAMIC, false", "DYNAMIC, true", "STATIC, false", "STATIC, true"})
  void aRollbackTakesTheIntegersBack(Form form, boolean byLibtorch) throws OrtException {
    Guard guard = new Guard(null, null, new Guard.Quality(4, 50, 200, 0.1));
    try (Learnable learnable = learnable(quantized(form), byLibtorch);
        OnlineLearner learner =
            new OnlineLearner(learnable, settings().momentum(0.5).guard(guard).build())) {
      List<Event.Kind> events = new ArrayList<>();
      learner.onEvent(event -> events.add(event.kind()));
      learner.learn(stream(400, 1));
      OnnxModel good = learner.toOnnx();
      List<Example> wrong = new ArrayList<>();
      List<Example> right = stream(200, 2);
      for (int i = 0; i < right.size(); i++) {
        Example e = right.get(i); // whose held-out ones, each fourth, are as ever
        wrong.add(i % 4 == 3 ? e : Example.of(e.features(), 1 - e.label()));
      }
      learner.learn(wrong);
      assertEquals(List.of(Event.Kind.ROLLBACK), events);
      assertEquals(good.toBuffer(), learner.toOnnx().toBuffer());
      answersAs(good, learner);
      learner.learn(stream(80, 3));
      assertFalse(good.toBuffer().equals(learner.toOnnx().toBuffer()));
      answersAs(learner.toOnnx(), learner);
    }
  }

  @Test
  void whatDoesNotGoWithIntegersIsRefused() throws OrtException {
    OnnxModel model = quantized(Form.DYNAMIC);
    try (TorchLearnable learnable = learnable(model)) {
      String told =
          assertThrows(
                  IllegalArgumentException.class,
                  () -> new OnlineLearner(learnable, settings().averaging(0.9).build()))
              .getMessage();
      assertTrue(told.contains("first.weight lies on: no averaging"), told);
    }
    OnnxModel other = quantized(Form.DYNAMIC);
    String scale =
        other.initializers().stream()
            .filter(i -> i.type() == DataType.FLOAT && i.name().equals("first.weight_scale"))
            .findFirst()
            .orElseThrow()
            .name();
    float[] scales = new float[32];
    other.constant(scale).floats().get(scales);
    scales[3] *= 2;
    other.replaceConstant(OnnxInitializer.floats(scale, new long[] {32}, scales));
    try (TorchLearnable learnable = learnable(model);
        TorchLearnable differing = learnable(other);
        OnlineLearner learner = new OnlineLearner(learnable, settings().build())) {
      String told = assertThrows(InputException.class, () -> learner.adopt(differing)).getMessage();
      assertTrue(told.contains("it is another model than the one that is learned"), told);
    }
  }
}

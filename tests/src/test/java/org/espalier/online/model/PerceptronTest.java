package org.espalier.online.model;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import ai.onnx.proto.OnnxMl.GraphProto;
import ai.onnx.proto.OnnxMl.NodeProto;
import ai.onnx.proto.OnnxMl.TensorProto.DataType;
import java.io.ByteArrayInputStream;
import java.io.ByteArrayOutputStream;
import java.io.IOException;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.Random;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.concurrent.Future;
import java.util.function.Consumer;
import org.espalier.format.onnx.OnnxInitializer;
import org.espalier.format.onnx.OnnxModel;
import org.espalier.format.onnx.SmallModels;
import org.espalier.online.Example;
import org.espalier.online.Guard;
import org.espalier.online.Learnable;
import org.espalier.online.Loss;
import org.espalier.online.OnlineLearner;
import org.espalier.online.OnlineSettings;
import org.espalier.online.Streams;
import org.espalier.online.Weight;
import org.espalier.online.memory.Floats;
import org.espalier.online.privacy.Privacy;
import org.espalier.op.Activation;
import org.espalier.op.Variants;
import org.espalier.torch.onnx.OnnxGraph;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.ValueSource;

/** A multilayer perceptron without libtorch, beside the same with it. */
class PerceptronTest {
  private static final int FEATURES = 37;
  private static final int OUTPUTS = 3;

  /** Layers as exporters write them: [outputs, features] with Gemm, [features, outputs] with MatMul and Add or no bias. */
  private static OnnxModel model() {
    GraphProto.Builder graph =
        GraphProto.newBuilder()
            .setName("layers")
            .addInput(SmallModels.value("x", DataType.FLOAT, -1, FEATURES))
            .addOutput(SmallModels.value("y", DataType.FLOAT, -1, OUTPUTS))
            .addNode(SmallModels.line("x1 Sub x mean"))
            .addNode(SmallModels.line("x2 Div x1 deviation"))
            .addNode(SmallModels.line("x3 Mul two x2"))
            .addNode(SmallModels.line("f Flatten x3"))
            .addNode(SmallModels.line("a MatMul f first.weight"))
            .addNode(SmallModels.line("b Add first.bias a"))
            .addNode(SmallModels.line("c Relu b"))
            .addNode(SmallModels.line("d Dropout c"))
            .addNode(SmallModels.line("e MatMul d second.weight"))
            .addNode(SmallModels.line("g Tanh e"))
            .addNode(gemm("h", "g", "third.weight", "third.bias"))
            .addNode(SmallModels.line("i LeakyRelu h", SmallModels.real("alpha", 0.2f)))
            .addNode(SmallModels.line("j MatMul i fourth.weight"))
            .addNode(SmallModels.line("k Add j fourth.bias"))
            .addNode(SmallModels.line("l Sigmoid k"))
            .addNode(gemm("y", "l", "fifth.weight", "fifth.bias"));
    Random random = new Random(8);
    float[] deviations = new float[FEATURES];
    for (int j = 0; j < FEATURES; j++) {
      deviations[j] = 1.5f + random.nextFloat();
    }
    graph
        .addInitializer(SmallModels.floats("mean", random, 0.3f, FEATURES))
        .addInitializer(SmallModels.floats("deviation", deviations, 1, FEATURES))
        .addInitializer(SmallModels.number("two", 2));
    add(graph, random, "first", 21, FEATURES, 21);
    graph.addInitializer(SmallModels.floats("second.weight", random, 0.4f, 21, 9));
    add(graph, random, "third", 70, 70, 9);
    graph.addInitializer(SmallModels.floats("fourth.weight", random, 0.2f, 70, 16));
    graph.addInitializer(SmallModels.floats("fourth.bias", random, 0.2f, 1, 16));
    add(graph, random, "fifth", OUTPUTS, OUTPUTS, 16);
    return OnnxModel.of(SmallModels.model(17, graph), "layers");
  }

  private static NodeProto gemm(String output, String... inputs) {
    return SmallModels.line(
        output + " Gemm " + String.join(" ", inputs), SmallModels.attribute("transB", 1));
  }

  private static void add(
      GraphProto.Builder graph, Random random, String layer, long outputs, long... dims) {
    float deviation = (float) Math.sqrt(3.0 * outputs / (dims[0] * dims[1]));
    graph.addInitializer(SmallModels.floats(layer + ".weight", random, deviation, dims));
    graph.addInitializer(SmallModels.floats(layer + ".bias", random, 0.2f, outputs));
  }

  private static Perceptron perceptron() {
    return Perceptron.of(model()).orElseThrow();
  }

  private static TorchLearnable byTorch() {
    OnnxModel model = model();
    return new TorchLearnable(
        new OnnxGraph(model), () -> new OnnxGraph(model), new long[] {FEATURES}, OUTPUTS);
  }

  private static List<Example> examples(int n, long seed) {
    Random random = new Random(seed);
    List<Example> list = new ArrayList<>();
    for (int i = 0; i < n; i++) {
      float[] x = new float[FEATURES];
      for (int j = 0; j < FEATURES; j++) {
        x[j] = (float) random.nextGaussian();
      }
      list.add(Example.of(x, x[0] * x[1] > 0 ? 0 : x[2] > 0 ? 1 : 2));
    }
    return list;
  }

  private static float[][] rows(int n) {
    return examples(n, 3).stream().map(Example::features).toArray(float[][]::new);
  }

  private static Map<String, float[]> gradients(Learnable model) {
    Map<String, float[]> all = new HashMap<>();
    for (Weight w : model.weights()) {
      float[] copy = new float[(int) w.gradient().elements()];
      Floats.of(w.gradient()).get(0, copy);
      all.put(w.name(), copy);
    }
    return all;
  }

  @ParameterizedTest
  @ValueSource(ints = {1, 2, 33})
  void givesWhatAutogradGives(int count) {
    float[][] x = rows(count);
    float[] slope = new float[count * OUTPUTS];
    Random random = new Random(5);
    for (int i = 0; i < slope.length; i++) {
      slope[i] = (float) random.nextGaussian();
    }
    try (Perceptron ours = perceptron();
        TorchLearnable theirs = byTorch()) {
      assertEquals(theirs.features(), ours.features());
      assertEquals(theirs.outputs(), ours.outputs());
      assertEquals(theirs.identity(), ours.identity());
      assertEquals(
          theirs.weights().stream().map(PerceptronTest::told).toList(),
          ours.weights().stream().map(PerceptronTest::told).toList());
      float[] expected = new float[slope.length];
      theirs.forward(x, count, expected);
      float[] out = new float[slope.length];
      ours.forward(x, count, out);
      assertArrayEquals(expected, out, 1e-5f);
      theirs.backward(slope, count);
      ours.backward(slope, count);
      assertNear(gradients(theirs), gradients(ours), 1e-5);
      for (double bound : new double[] {1e6, 0.5}) {
        theirs.forward(x, count, expected);
        ours.forward(x, count, out);
        int clipped = theirs.backwardClipped(slope, count, bound);
        assertEquals(clipped, ours.backwardClipped(slope, count, bound));
        assertEquals(bound < 1, clipped > 0);
        assertNear(gradients(theirs), gradients(ours), 1e-5);
      }
    }
  }

  private static String told(Weight w) {
    return w.name() + " " + w.latent() + " " + w.isMatrix() + " " + w.scaleAxis();
  }

  private static void assertNear(
      Map<String, float[]> expected, Map<String, float[]> actual, double error) {
    assertEquals(expected.keySet(), actual.keySet());
    expected.forEach(
        (name, values) -> {
          double largest = 1;
          for (float v : values) {
            largest = Math.max(largest, Math.abs(v));
          }
          assertArrayEquals(values, actual.get(name), (float) (error * largest), name);
        });
  }

  /** The norm over all layers, of the floats that are written. */
  @Test
  void noClippedExampleIsLongerThanTheBound() {
    try (Perceptron model = perceptron()) {
      for (int seed = 0; seed < 100; seed++) {
        float[][] x = {examples(1, seed).get(0).features()};
        float[] slope = {seed, 1 - seed, 0.25f};
        double bound = 0.01 * (1 + seed);
        model.forward(x, 1, new float[OUTPUTS]);
        assertEquals(1, model.backwardClipped(slope, 1, bound));
        double square = 0;
        for (float[] values : gradients(model).values()) {
          for (float v : values) {
            square += (double) v * v;
          }
        }
        assertTrue(Math.sqrt(square) <= bound && Math.sqrt(square) > bound * (1 - 1e-5));
      }
    }
  }

  private static OnlineSettings.Builder settings(int batch) {
    return Streams.crossEntropy(0.05).batch(batch);
  }

  /** Without a gradient in memory, and, because a rule asks for norms, with one. */
  @Test
  void aStepOnOneExampleHasTheBitsOfTheGeneralOne() {
    List<Example> stream = examples(300, 1);
    Guard asks = new Guard(new Guard.Norm(1e6, 1, false, Double.MAX_VALUE), null, null);
    Map<String, float[]> plain = learned(settings(1).build(), stream);
    assertSame(plain, learned(settings(1).guard(asks).build(), stream));
    Variants.each(
        new int[] {1, 2},
        (isa, threads) -> assertSame(plain, learned(settings(1).build(), stream)));
  }

  private static Map<String, float[]> learned(OnlineSettings settings, List<Example> stream) {
    try (Perceptron model = perceptron();
        OnlineLearner learner = new OnlineLearner(model, settings)) {
      learner.learn(stream);
      return learner.weights();
    }
  }

  private static void assertSame(Map<String, float[]> expected, Map<String, float[]> actual) {
    assertEquals(expected.keySet(), actual.keySet());
    expected.forEach((name, values) -> assertArrayEquals(values, actual.get(name), name));
  }

  @Test
  void learnsAsLibtorchDoes() {
    List<Example> stream = examples(400, 2);
    List<Consumer<OnlineSettings.Builder>> ways =
        List.of(
            s -> {},
            s -> s.momentum(0.9).weightDecay(1e-3),
            s -> s.adamW(OnlineSettings.AdamW.DEFAULTS),
            s -> s.int8(true),
            s -> s.averaging(0.9),
            s -> s.keepZeros(true),
            s -> s.replay(new OnlineSettings.Replay(50, 4)));
    for (Consumer<OnlineSettings.Builder> way : ways) {
      OnlineSettings.Builder settings = settings(8);
      way.accept(settings);
      try (Perceptron ours = perceptron();
          TorchLearnable theirs = byTorch();
          OnlineLearner mine = new OnlineLearner(ours, settings.build());
          OnlineLearner other = new OnlineLearner(theirs, settings.build())) {
        mine.learn(stream);
        other.learn(stream);
        assertNear(other.weights(), mine.weights(), 2e-3);
        float[] x = stream.get(0).features();
        assertArrayEquals(other.predict(x).outputs(), mine.predict(x).outputs(), 5e-3f);
        assertEquals(other.metrics().get("accuracy"), mine.metrics().get("accuracy"), 0.02);
        // And what is written computes what it predicts.
        try (OnnxGraph graph = new OnnxGraph(mine.toOnnx());
            TorchLearnable written =
                new TorchLearnable(
                    graph, () -> new OnnxGraph(mine.toOnnx()), new long[] {FEATURES}, OUTPUTS)) {
          float[] out = new float[OUTPUTS];
          written.forward(new float[][] {x}, 1, out);
          assertArrayEquals(mine.predict(x).outputs(), out, 1e-5f);
        }
      }
    }
  }

  @Test
  void learnsPrivatelyAsLibtorchDoes() {
    OnlineSettings settings = settings(16).privacy(Privacy.forEpsilon(8, 1e-5, 0.5, 1)).build();
    List<Example> stream = examples(160, 2);
    try (Perceptron ours = perceptron();
        TorchLearnable theirs = byTorch();
        OnlineLearner mine = new OnlineLearner(ours, settings, 7L);
        OnlineLearner other = new OnlineLearner(theirs, settings, 7L)) {
      mine.learn(stream);
      other.learn(stream);
      assertNear(other.weights(), mine.weights(), 1e-4);
    }
  }

  /** Learned on from a state of either, in the other. */
  @Test
  void statesAreTheSameAsLibtorchsAndGoOnBitForBit() throws IOException {
    List<Example> stream = examples(200, 4);
    OnlineSettings settings = settings(8).momentum(0.9).build();
    ByteArrayOutputStream saved = new ByteArrayOutputStream();
    Map<String, float[]> whole;
    try (Perceptron model = perceptron();
        OnlineLearner learner = new OnlineLearner(model, settings)) {
      learner.learn(stream.subList(0, 96));
      learner.save(saved);
      learner.learn(stream.subList(96, 200));
      whole = learner.weights();
    }
    try (Perceptron model = perceptron();
        OnlineLearner learner = new OnlineLearner(model, settings)) {
      learner.load(new ByteArrayInputStream(saved.toByteArray()));
      learner.learn(stream.subList(96, 200));
      assertSame(whole, learner.weights());
    }
    try (TorchLearnable model = byTorch();
        OnlineLearner learner = new OnlineLearner(model, settings)) {
      learner.load(new ByteArrayInputStream(saved.toByteArray()));
      learner.learn(stream.subList(96, 200));
      assertNear(whole, learner.weights(), 2e-3);
    }
  }

  @Test
  void anExampleThatASaturatedLayerHidesIsTakenOut() {
    try (Perceptron model = perceptron();
        OnlineLearner learner = new OnlineLearner(model, settings(4).build())) {
      List<Example> batch = new ArrayList<>(examples(3, 1));
      float[] x = batch.get(0).features().clone();
      x[5] = Float.POSITIVE_INFINITY;
      batch.add(Example.of(x, 1));
      assertEquals(3, learner.learn(batch).learned());
      learner.weights().values().forEach(PerceptronTest::assertFinite);
      assertEquals(0, learner.learn(List.of(Example.of(x, 1))).learned());
    }
  }

  /** Finite features whose products with a slope are not. */
  @Test
  void aGradientThatIsNotFiniteIsNotLearned() {
    GraphProto.Builder graph =
        GraphProto.newBuilder()
            .setName("large")
            .addInput(SmallModels.value("x", DataType.FLOAT, -1, 1))
            .addOutput(SmallModels.value("y", DataType.FLOAT, -1, 2))
            .addNode(SmallModels.line("h MatMul x first"))
            .addNode(SmallModels.line("r Relu h"))
            .addNode(SmallModels.line("y MatMul r second"))
            .addInitializer(SmallModels.floats("first", new float[] {0.5f}, 1, 1))
            .addInitializer(SmallModels.floats("second", new float[] {2, -2}, 1, 2));
    OnnxModel large = OnnxModel.of(SmallModels.model(17, graph), "large");
    try (Perceptron model = Perceptron.of(large).orElseThrow();
        OnlineLearner learner = new OnlineLearner(model, settings(1).build())) {
      Map<String, float[]> before = learner.weights();
      float[] x = {3e38f}; // times a slope of 4
      assertEquals(0, learner.learn(List.of(Example.of(x, 1))).learned());
      assertSame(before, learner.weights());
      assertEquals(1, learner.learn(List.of(Example.of(new float[] {3}, 1))).learned());
    }
  }

  private static void assertFinite(float[] values) {
    for (float v : values) {
      assertTrue(Float.isFinite(v));
    }
  }

  /** Any number at once, rows alone or together, which have the same bits. */
  @Test
  void threadsPredictWhileItLearns() throws Exception {
    List<Example> stream = examples(400, 6);
    try (Perceptron model = perceptron();
        OnlineLearner learner = new OnlineLearner(model, settings(1).build())) {
      float[][] two = {stream.get(0).features(), stream.get(1).features()};
      ExecutorService pool = Executors.newFixedThreadPool(3);
      List<Future<?>> readers = new ArrayList<>();
      for (int t = 0; t < 3; t++) {
        readers.add(
            pool.submit(
                () -> {
                  float[] both = new float[2 * OUTPUTS];
                  for (int i = 0; i < 300; i++) {
                    learner.predict(two, 2, both);
                    assertFinite(both);
                    assertFinite(learner.predict(two[i % 2]).outputs());
                  }
                }));
      }
      stream.forEach(e -> learner.learn(List.of(e)));
      for (Future<?> reader : readers) {
        reader.get();
      }
      pool.shutdown();
      float[] both = new float[2 * OUTPUTS];
      learner.predict(two, 2, both);
      for (int i = 0; i < 2; i++) {
        assertArrayEquals(
            Arrays.copyOfRange(both, i * OUTPUTS, (i + 1) * OUTPUTS),
            learner.predict(two[i]).outputs());
      }
    }
  }

  /** Wide layers, so that a call goes through in several parts. */
  @Test
  void manyRowsAtOnceHaveTheBitsOfEach() {
    List<Integer> hidden = List.of(1 << 20, 2);
    try (Perceptron model =
            Perceptron.drawn(1, hidden, 2, Activation.RELU, new Loss.CrossEntropy(), 1);
        OnlineLearner learner = new OnlineLearner(model, settings(1).build())) {
      float[][] x = new float[11][];
      for (int i = 0; i < x.length; i++) {
        x[i] = new float[] {i - 5};
      }
      float[] out = new float[2 * x.length];
      learner.predict(x, x.length, out);
      for (int i = 0; i < x.length; i++) {
        assertArrayEquals(
            learner.predict(x[i]).outputs(), Arrays.copyOfRange(out, 2 * i, 2 * i + 2));
      }
    }
  }

  @Test
  void aBatchThatFillsNoBufferIsRefused() {
    List<Integer> hidden = List.of(1 << 20);
    try (Perceptron model =
        Perceptron.drawn(1, hidden, 2, Activation.RELU, new Loss.CrossEntropy(), 1)) {
      assertThrows(
          IllegalArgumentException.class,
          () -> new OnlineLearner(model, settings(1000).build()).close());
    }
  }

  /** What would be learned otherwise than the graph says. */
  @Test
  void anyOtherGraphIsLeftToLibtorch() {
    Map<String, Consumer<OnnxModel>> changes = new HashMap<>();
    changes.put("softmax", m -> replace(m, 6, SmallModels.line("c Softmax b")));
    changes.put("two activations", m -> replace(m, 7, SmallModels.line("d Tanh c")));
    changes.put("a residual", m -> replace(m, 7, SmallModels.line("d Add c b")));
    changes.put("shared", m -> replace(m, 13, SmallModels.line("k Add j j")));
    changes.put("a product of activations", m -> replace(m, 8, SmallModels.line("e MatMul d d")));
    changes.put(
        "another parameter",
        m -> {
          List<NodeProto> nodes = new ArrayList<>(m.nodes());
          nodes.add(SmallModels.line("z Mul y fifth.bias"));
          m.addInitializer(OnnxInitializer.floats("more", new long[] {OUTPUTS}, 1, 2, 3));
          nodes.add(SmallModels.line("zz Mul z more"));
          m.setNodes(nodes);
        });
    changes.put(
        "a bias along another axis",
        m ->
            m.replaceConstant(
                OnnxInitializer.floats("first.bias", new long[] {21, 1}, new float[21])));
    changes.put(
        "a scaled product",
        m ->
            replace(
                m,
                10,
                SmallModels.line(
                    "h Gemm g third.weight third.bias",
                    SmallModels.attribute("transB", 1),
                    SmallModels.real("alpha", 2))));
    changes.put("features from a number", m -> replace(m, 0, SmallModels.line("x1 Sub mean x")));
    changes.put(
        "rows",
        m -> replace(m, 3, SmallModels.line("f Flatten x3", SmallModels.attribute("axis", 0))));
    changes.put(
        "a number a row",
        m ->
            m.replaceConstant(
                OnnxInitializer.floats("mean", new long[] {FEATURES, 1}, new float[FEATURES])));
    changes.forEach(
        (what, change) -> {
          OnnxModel model = model();
          change.accept(model);
          assertFalse(Perceptron.of(model).isPresent(), what);
        });
  }

  private static void replace(OnnxModel model, int index, NodeProto node) {
    List<NodeProto> nodes = new ArrayList<>(model.nodes());
    nodes.set(index, node);
    model.setNodes(nodes);
  }

  @Test
  void refusesToWorkOnceItIsClosed() {
    Perceptron model = perceptron();
    OnlineLearner learner = new OnlineLearner(model, settings(1).build());
    model.close();
    model.close();
    assertThrows(IllegalStateException.class, () -> model.forward(rows(1), 1, new float[OUTPUTS]));
    assertThrows(IllegalStateException.class, () -> learner.learn(examples(1, 1)));
    learner.close();
  }

  @Test
  void widthsThatNoLayerHasAreRefused() {
    int[][] wrong = {{0, 3, 2}, {-5, 3, 2}, {4, 0, 2}, {4, -1, 2}, {4, 3, 0}, {65536, 65536, 2}};
    for (int[] widths : wrong) {
      String message = refusal(widths[0], List.of(widths[1]), widths[2]);
      assertTrue(
          message.startsWith("features, hidden layers and outputs " + Arrays.toString(widths)),
          message);
    }
    assertEquals("no hidden layer; one or more are needed", refusal(4, List.of(), 2));
  }

  private static String refusal(int features, List<Integer> hidden, int outputs) {
    return assertThrows(
            IllegalArgumentException.class,
            () ->
                Perceptron.drawn(
                    features, hidden, outputs, Activation.RELU, new Loss.CrossEntropy(), 1))
        .getMessage();
  }
}

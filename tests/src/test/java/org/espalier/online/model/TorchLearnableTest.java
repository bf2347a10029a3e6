package org.espalier.online.model;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import ai.onnx.proto.OnnxMl.NodeProto;
import java.io.ByteArrayInputStream;
import java.io.ByteArrayOutputStream;
import java.io.IOException;
import java.nio.file.Path;
import java.time.Duration;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.Collections;
import java.util.LinkedHashMap;
import java.util.LinkedHashSet;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.concurrent.Future;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.atomic.AtomicBoolean;
import java.util.concurrent.atomic.AtomicReference;
import java.util.function.Function;
import org.bytedeco.pytorch.LinearImpl;
import org.bytedeco.pytorch.Module;
import org.bytedeco.pytorch.global.torch.ScalarType;
import org.espalier.InputException;
import org.espalier.format.onnx.OnnxInitializer;
import org.espalier.format.onnx.OnnxModel;
import org.espalier.format.onnx.OnnxWeight;
import org.espalier.format.onnx.OnnxWeights;
import org.espalier.format.onnx.RankingModel;
import org.espalier.format.onnx.SmallModels;
import org.espalier.online.Event;
import org.espalier.online.Example;
import org.espalier.online.ExampleInput;
import org.espalier.online.ExampleLines;
import org.espalier.online.LearningRate;
import org.espalier.online.Loss;
import org.espalier.online.OnlineLearner;
import org.espalier.online.OnlineRecipe;
import org.espalier.online.OnlineSettings;
import org.espalier.online.Prediction;
import org.espalier.online.Streams;
import org.espalier.online.Weight;
import org.espalier.online.memory.Floats;
import org.espalier.online.store.LearnerFiles;
import org.espalier.store.Lineage;
import org.espalier.store.ModelStore;
import org.espalier.store.StoreWriter;
import org.espalier.torch.Libtorch;
import org.espalier.torch.ModuleModel;
import org.espalier.torch.onnx.OnnxGraph;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;

/** An ONNX multilayer perceptron learned by autograd. */
class TorchLearnableTest {
  private static final int FEATURES = 8;

  private static OnnxModel perceptron() {
    return OnnxModels.perceptron(FEATURES, 16, 2);
  }

  private static TorchLearnable learnable() {
    OnnxModel model = perceptron();
    return new TorchLearnable(
        new OnnxGraph(model), () -> new OnnxGraph(model), new long[] {FEATURES}, 2);
  }

  /** A circle, which no plane divides. */
  private static List<Example> circle(int n, long seed) {
    List<Example> list = new ArrayList<>();
    for (Example e : Streams.plane(n, FEATURES, 0, seed, 9)) {
      float[] x = e.features();
      list.add(Example.of(x, x[0] * x[0] + x[1] * x[1] > 1.4 ? 1 : 0));
    }
    return list;
  }

  /** A supplier that does not make a model of its own each time; libtorch would compute in memory of others. */
  @Test
  void replicasThatAreNoneAreRefused() {
    OnnxModel model = perceptron();
    Map<String, Function<OnnxGraph, OnnxGraph>> suppliers = new LinkedHashMap<>();
    suppliers.put("the model itself, or share its parameters", learned -> learned);
    suppliers.put("the model itself, or share its parameters;", OnnxGraph::sibling);
    suppliers.put("null;", learned -> null);
    suppliers.put(
        "models whose first.weight is F32[8, 5], its first.weight is F32[8, 16];",
        learned -> new OnnxGraph(OnnxModels.perceptron(FEATURES, 5, 2)));
    suppliers.put(
        "models of 3 parameters, it has 4;",
        learned -> {
          OnnxModel other = model.copy();
          List<NodeProto> nodes = new ArrayList<>(other.nodes());
          nodes.set(4, SmallModels.line("y Identity d"));
          other.setNodes(nodes);
          return new OnnxGraph(other);
        });
    suppliers.forEach(
        (told, supplier) -> {
          OnnxGraph learned = new OnnxGraph(model);
          try (TorchLearnable learnable =
                  new TorchLearnable(
                      learned, () -> supplier.apply(learned), new long[] {FEATURES}, 2);
              OnlineLearner learner =
                  new OnlineLearner(learnable, Streams.crossEntropy(0.1).build())) {
            String message =
                assertThrows(
                        IllegalStateException.class, () -> learner.predict(new float[FEATURES]))
                    .getMessage();
            assertTrue(message.contains(" are " + told), message);
            learner.learn(circle(8, 1)); // which needs none
          }
        });
  }

  /** The first prediction is not done yet when the second one begins. */
  @Test
  void oneReplicaForAllIsRefused() {
    Libtorch.load();
    AtomicReference<OnlineLearner> learner = new AtomicReference<>();
    ModuleModel single = linear(learner);
    try (TorchLearnable learnable =
            new TorchLearnable(linear(null), () -> single, new long[] {FEATURES}, 2);
        OnlineLearner made = new OnlineLearner(learnable, Streams.crossEntropy(0.1).build())) {
      learner.set(made);
      String message =
          assertThrows(InputException.class, () -> made.predict(new float[FEATURES])).getMessage();
      assertTrue(message.contains("the replicas of the model that learns are one model"), message);
      learner.set(null);
      assertEquals(2, made.predict(new float[FEATURES]).outputs().length);
    }
  }

  /**
   * @param within asks this learner while it answers; null for none
   */
  private static ModuleModel linear(AtomicReference<OnlineLearner> within) {
    LinearImpl linear = new LinearImpl(FEATURES, 2);
    return new ModuleModel(
        "linear",
        linear,
        List.of("x"),
        List.of("y"),
        inputs -> {
          if (within != null && within.get() != null) {
            within.get().predict(new float[FEATURES]);
          }
          return List.of(linear.forward(inputs.get(0)));
        });
  }

  /** NaN says that a value is missing where the graph asks for it, and is learned; to others it does harm. */
  @Test
  void missingValuesAreLearnedWhereTheModelKnowsThem() {
    List<Example> stream = circle(400, 1);
    for (int i = 0; i < stream.size(); i++) {
      stream.get(i).features()[2 + i % (FEATURES - 2)] = Float.NaN;
    }
    stream.get(7).features()[0] = Float.POSITIVE_INFINITY;
    for (boolean knows : new boolean[] {true, false}) {
      OnnxModel model = knows ? OnnxModels.imputing(FEATURES, 16, 2) : perceptron();
      List<Event> events = new ArrayList<>();
      try (TorchLearnable learnable =
              new TorchLearnable(
                  new OnnxGraph(model), () -> new OnnxGraph(model), new long[] {FEATURES}, 2);
          OnlineLearner learner =
              new OnlineLearner(learnable, Streams.crossEntropy(0.1).batch(8).build())) {
        learner.onEvent(events::add);
        learner.learn(stream);
        assertEquals(knows ? stream.size() - 1 : 0, learner.learned(), events.toString());
        ExampleLines lines = new ExampleLines(learner);
        String row = ",".repeat(FEATURES) + "1"; // of features that are all missing
        if (knows) {
          assertTrue(Float.isNaN(lines.csv(row).features()[0]));
        } else {
          assertThrows(InputException.class, () -> lines.csv(row));
        }
        for (float[] weights : learner.weights().values()) {
          for (float w : weights) {
            assertTrue(Float.isFinite(w));
          }
        }
      }
    }
  }

  @Test
  void learnsWhatNoPlaneDividesWhileOthersPredict() throws Exception {
    OnlineSettings settings = Streams.crossEntropy(0.1).batch(16).momentum(0.9).window(500).build();
    try (TorchLearnable model = learnable();
        OnlineLearner learner = new OnlineLearner(model, settings)) {
      ExecutorService pool = Executors.newFixedThreadPool(2);
      AtomicBoolean stop = new AtomicBoolean();
      List<Future<Long>> readers = new ArrayList<>();
      float[] x = circle(1, 3).get(0).features();
      for (int t = 0; t < 2; t++) {
        readers.add(
            pool.submit(
                () -> {
                  long newest = 0;
                  while (!stop.get()) {
                    Prediction p = learner.predict(x);
                    assertTrue(p.version() >= newest);
                    newest = p.version();
                    Thread.sleep(1); // leave the cores to the learner
                  }
                  return newest;
                }));
      }
      learner.learn(circle(8000, 1));
      stop.set(true);
      for (Future<Long> reader : readers) {
        assertTrue(reader.get(30, TimeUnit.SECONDS) > 1);
      }
      pool.shutdown();
      assertTrue(learner.metrics().get("accuracy_window") > 0.8, learner.metrics().toString());
      // What readers get is what forward computes.
      float[] out = new float[2];
      model.forward(new float[][] {x}, 1, out);
      assertArrayEquals(out, learner.predict(x).outputs());
    }
  }

  /** A host that closes in the wrong order gets an exception, not a crash of its JVM. */
  @Test
  void aModelThatIsClosedFirstIsNotTouched() {
    TorchLearnable model = learnable();
    OnlineLearner learner = new OnlineLearner(model, Streams.crossEntropy(0.1).build());
    List<Example> stream = circle(32, 1);
    learner.learn(stream);
    float[] x = stream.get(0).features();
    learner.predict(x);
    assertEquals(learner.version(), learner.predict(new float[0][], 0, new float[0]));
    model.close();
    Streams.assertModelIsClosed(
        () -> learner.learn(stream), () -> learner.predict(x), learner::weights, learner::toOnnx);
    learner.close();
  }

  @Test
  void aModelIsNotClosedAmidAStep() throws InterruptedException {
    Streams.closesAmidAStep(learnable(), circle(16, 1));
  }

  /** A service blames a client for what is an {@link InputException}. */
  @Test
  void aReplicaThatCannotBeMadeIsNoFaultOfTheExample() {
    try (TorchLearnable model =
            new TorchLearnable(
                new OnnxGraph(perceptron()),
                () -> {
                  throw new InputException("the disk is full");
                },
                new long[] {FEATURES},
                2);
        OnlineLearner learner = new OnlineLearner(model, Streams.crossEntropy(0.1).build())) {
      String said =
          assertThrows(IllegalStateException.class, () -> learner.predict(new float[FEATURES]))
              .getMessage();
      assertTrue(said.endsWith("one more thread that predicts: the disk is full"), said);
    }
  }

  /** Two layers and one that no output depends on. */
  private static final class Lazy extends Module {
    private final LinearImpl first = new LinearImpl(FEATURES, 16);
    private final LinearImpl second = new LinearImpl(16, 2);

    Lazy() {
      register_module("first", first);
      register_module("idle", new LinearImpl(3, 3));
      register_module("second", second);
    }

    ModuleModel model() {
      return new ModuleModel(
          "lazy",
          this,
          List.of("x"),
          List.of("y"),
          in -> List.of(second.forward(first.forward(in.get(0)).tanh())));
    }
  }

  /** Nothing of the batches before is in them, whatever memory autograd takes. */
  @Test
  void gradientsAreThoseOfTheLastBatch() {
    Libtorch.load();
    float[][] x = {new float[FEATURES], new float[FEATURES], new float[FEATURES]};
    Arrays.fill(x[0], 0.5f);
    Arrays.fill(x[1], -2);
    float[] slope = {1, -2, 0.5f, 3, 0, 1};
    try (TorchLearnable model =
        new TorchLearnable(
            new Lazy().model(), () -> new Lazy().model(), new long[] {FEATURES}, 2)) {
      model.forward(x, 2, new float[4]);
      model.backward(slope, 2);
      List<float[]> first = gradients(model);
      assertTrue(first.get(0)[0] != 0);
      for (int k = 2; k < 4; k++) { // idle.weight and idle.bias
        for (float value : first.get(k)) {
          assertEquals(0, value);
        }
      }
      for (int rows : new int[] {3, 1, 2}) {
        model.forward(x, rows, new float[2 * rows]);
        model.backward(slope, rows);
      }
      List<float[]> again = gradients(model);
      assertEquals(first.size(), again.size());
      for (int k = 0; k < first.size(); k++) {
        assertArrayEquals(first.get(k), again.get(k));
      }
      // The sum of the rows' own gradients, none of which is clipped, and then as before.
      model.forward(x, 2, new float[4]);
      assertEquals(0, model.backwardClipped(slope, 2, 1e9));
      List<float[]> summed = gradients(model);
      for (int k = 0; k < first.size(); k++) {
        assertArrayEquals(first.get(k), summed.get(k), 1e-5f);
      }
      model.forward(x, 2, new float[4]);
      model.backward(slope, 2);
      assertArrayEquals(first.get(0), gradients(model).get(0));
    }
  }

  private static List<float[]> gradients(TorchLearnable model) {
    List<float[]> list = new ArrayList<>();
    for (Weight w : model.weights()) {
      float[] copy = new float[(int) w.gradient().elements()];
      Floats.of(w.gradient()).get(0, copy);
      list.add(copy);
    }
    return list;
  }

  /** Zeros of a transposed convolution and of recurrent layers, which no int8 grid is for. */
  @Test
  void keepsTheZerosOfAllThatIsMultiplied() {
    OnnxModel model = OnnxModel.of(SmallModels.recurrent(), "recurrent");
    Set<String> names = new LinkedHashSet<>();
    for (OnnxWeight w : OnnxWeights.of(model)) {
      OnnxInitializer tensor = model.constant(w.value());
      float[] values = SmallModels.values(model, w.value());
      for (int i = 0; i < values.length; i += 2) {
        values[i] = 0;
      }
      names.add(w.name());
      model.replaceConstant(OnnxInitializer.floats(w.value(), tensor.dims(), values));
    }
    OnlineSettings settings =
        Streams.crossEntropy(0.05).momentum(0.9).keepZeros(true).int8(true).build();
    try (TorchLearnable learnable =
            new TorchLearnable(
                new OnnxGraph(model), () -> new OnnxGraph(model), new long[] {3, 8}, 4);
        OnlineLearner learner = new OnlineLearner(learnable, settings)) {
      learner.learn(Streams.plane(50, 24, 0, 3, 9));
      for (String name : names) {
        float[] now = learner.weights().get(name);
        for (int i = 0; i < now.length; i += 2) {
          assertEquals(0, now[i], name);
        }
      }
    }
  }

  @Test
  void aResumedRunHasTheSameBits() throws IOException {
    OnlineSettings settings =
        Streams.crossEntropy(0.05).momentum(0.9).keepZeros(true).int8(true).build();
    List<Example> stream = circle(320, 2);
    byte[] whole;
    byte[] half;
    try (TorchLearnable model = learnable();
        OnlineLearner learner = new OnlineLearner(model, settings)) {
      learner.learn(stream.subList(0, 160));
      half = saved(learner);
      learner.learn(stream.subList(160, 320));
      whole = saved(learner);
    }
    try (TorchLearnable model = learnable();
        OnlineLearner learner = new OnlineLearner(model, settings)) {
      learner.load(new ByteArrayInputStream(half));
      learner.learn(stream.subList(160, 320));
      assertArrayEquals(whole, saved(learner));
    }
  }

  private static byte[] saved(OnlineLearner learner) throws IOException {
    ByteArrayOutputStream out = new ByteArrayOutputStream();
    learner.save(out);
    return out.toByteArray();
  }

  /** The sum of clipped gradients of single examples, by clipping that never binds and always does. */
  /** A module written in Java: a program that has its class publishes it and goes on with it. */
  @Test
  void aJavaModuleGoesOnFromAStore(@TempDir Path folder) {
    OnlineRecipe recipe =
        OnlineRecipe.parse("loss: cross-entropy\nlearning-rate: 0.1\nbatch: 8\n", "recipe");
    List<Example> stream = circle(320, 2);
    ModelStore store = ModelStore.create(folder.resolve("store"));
    try (TorchLearnable model = javaModule();
        OnlineLearner learner = new OnlineLearner(model, recipe.settings())) {
      learner.learn(stream.subList(0, 160));
      try (StoreWriter writer = store.writer(Duration.ofSeconds(1))) {
        LearnerFiles.publish(writer, learner, recipe.text(), Lineage.NONE, null, true);
      }
      try (TorchLearnable other = javaModule();
          OnlineLearner resumed = new OnlineLearner(other, recipe.settings());
          ModelStore.Held held = store.holdCurrent()) {
        LearnerFiles.load(resumed, held);
        learner.learn(stream.subList(160, 320));
        resumed.learn(stream.subList(160, 320));
        learner.weights().forEach((k, v) -> assertArrayEquals(v, resumed.weights().get(k), k));
        InputException e =
            assertThrows(InputException.class, () -> LearnerFiles.readModel(held, recipe));
        assertTrue(e.getMessage().contains("the program that has its class"), e.getMessage());
      }
    }
  }

  private static TorchLearnable javaModule() {
    return new TorchLearnable(twoLayers(), TorchLearnableTest::twoLayers, new long[] {FEATURES}, 2);
  }

  private static ModuleModel twoLayers() {
    Libtorch.load();
    LinearImpl first = new LinearImpl(FEATURES, 16);
    LinearImpl second = new LinearImpl(16, 2);
    Module module = new Module();
    module.register_module("first", first);
    module.register_module("second", second);
    return new ModuleModel(
        "two layers",
        module,
        List.of("x"),
        List.of("y"),
        inputs -> List.of(second.forward(first.forward(inputs.get(0)).tanh())));
  }

  @Test
  void clippingEachExampleIsAutogradExampleByExample() {
    List<Example> batch = circle(4, 5);
    float[][] rows = batch.stream().map(Example::features).toArray(float[][]::new);
    float[] slope = {0.5f, -0.5f, -0.25f, 0.25f, 1, -1, -0.125f, 0.125f};
    try (TorchLearnable model = learnable()) {
      model.forward(rows, 4, new float[8]);
      model.backward(slope, 4);
      float[] plain = gradient(model);
      model.forward(rows, 4, new float[8]);
      assertEquals(0, model.backwardClipped(slope, 4, 1e6));
      assertArrayEquals(plain, gradient(model), 1e-6f);
      model.forward(rows, 4, new float[8]);
      assertEquals(4, model.backwardClipped(slope, 4, 1e-3));
      double squares = 0;
      for (float v : gradient(model)) {
        squares += (double) v * v;
      }
      assertTrue(Math.sqrt(squares) <= 4e-3 && Math.sqrt(squares) > 1e-4);
    }
  }

  private static final List<ExampleInput> RANKED =
      List.of(
          new ExampleInput("user", ScalarType.Long),
          new ExampleInput("items", ScalarType.Int, 2),
          ExampleInput.floats("dense", RankingModel.DENSE));

  private static TorchLearnable ranking(List<ExampleInput> inputs) {
    OnnxModel model = OnnxModel.of(RankingModel.of(3, 30, 20, 8), "ranking");
    return new TorchLearnable(new OnnxGraph(model), () -> new OnnxGraph(model), inputs, 1);
  }

  /** In the order of {@link #RANKED}. */
  private static float[] ranked(RankingModel.Visit v) {
    float[] x = new float[3 + RankingModel.DENSE];
    x[0] = v.shown().user();
    x[1] = v.shown().item();
    x[2] = v.before();
    System.arraycopy(v.dense(), 0, x, 3, RankingModel.DENSE);
    return x;
  }

  private static List<Example> ranked(int n) {
    return RankingModel.visits(1, n, 30, 20).stream()
        .map(v -> Example.of(ranked(v), v.clicks()))
        .toList();
  }

  /** An example has the values of one input after those of another, in the order that the caller says. */
  @Test
  void inputsHaveTheirPartsOfTheFeatures() {
    List<ExampleInput> turned = new ArrayList<>(RANKED);
    Collections.rotate(turned, 1); // dense, user, items
    float[][] rows = ranked(3).stream().map(Example::features).toArray(float[][]::new);
    float[][] other = new float[3][];
    for (int i = 0; i < rows.length; i++) {
      List<Float> values = new ArrayList<>();
      for (float value : rows[i]) {
        values.add(value);
      }
      Collections.rotate(values, RankingModel.DENSE);
      other[i] = new float[values.size()];
      for (int k = 0; k < values.size(); k++) {
        other[i][k] = values.get(k);
      }
    }
    try (TorchLearnable model = ranking(RANKED);
        TorchLearnable same = ranking(turned)) {
      assertEquals(7, model.features());
      assertEquals(turned, same.inputs());
      // Two batches of three take the same memory.
      for (int from : new int[] {1, 0}) {
        float[] out = new float[3];
        float[] expected = new float[3];
        model.forward(new float[][] {rows[from], rows[1], rows[2]}, 3, expected);
        same.forward(new float[][] {other[from], other[1], other[2]}, 3, out);
        assertArrayEquals(expected, out);
        assertTrue(from == 1 ? out[0] == out[1] : out[0] != out[1]);
      }
      float[] slope = {0.5f, -1, 0.25f};
      model.backward(slope, 3);
      same.backward(slope, 3);
      float[] sum = gradient(model);
      assertArrayEquals(sum, gradient(same));
      model.forward(rows, 3, new float[3]);
      assertEquals(0, model.backwardClipped(slope, 3, 1e6));
      assertArrayEquals(sum, gradient(model), 1e-5f); // in another order
    }
    OnnxModel model = OnnxModel.of(RankingModel.of(3, 30, 20, 8), "ranking");
    for (List<ExampleInput> wrong :
        List.of(RANKED.subList(0, 2), List.of(RANKED.get(0), RANKED.get(0), RANKED.get(2)))) {
      try (OnnxGraph graph = new OnnxGraph(model)) {
        String said =
            assertThrows(
                    IllegalArgumentException.class,
                    () -> new TorchLearnable(graph, () -> new OnnxGraph(model), wrong, 1))
                .getMessage();
        assertTrue(said.startsWith("the model has the inputs [user, items, dense], exam"), said);
      }
    }
  }

  /** A value that one input cannot take is told with the input, and takes one example out. */
  @Test
  void aValueThatAnInputCannotTakeIsNamed() {
    List<Example> stream = new ArrayList<>(ranked(16));
    stream.get(5).features()[0] = 1.5f;
    stream.get(9).features()[2] = 1 << 24;
    stream.get(11).features()[3] = Float.NaN;
    List<String> told = new ArrayList<>();
    try (TorchLearnable model = ranking(RANKED);
        OnlineLearner learner =
            new OnlineLearner(
                model,
                OnlineSettings.builder(new Loss.Binary(), new LearningRate.Constant(0.1))
                    .batch(8)
                    .build())) {
      learner.onEvent(event -> told.add(event.evidence()));
      learner.learn(stream);
      assertEquals(13, learner.learned());
      String all = told.toString();
      assertTrue(all.contains("value 1 of the input user is 1.5; it takes whole numbers"), all);
      assertTrue(all.contains("value 2 of the input items is 1.6777216E7; it takes"), all);
      Example last = stream.get(15);
      float[] out = new float[1];
      model.forward(new float[][] {last.features()}, 1, out);
      assertArrayEquals(out, learner.predict(last.features()).outputs());
    }
  }

  private static float[] gradient(TorchLearnable model) {
    List<Float> all = new ArrayList<>();
    for (Weight w : model.weights()) {
      for (int i = 0; i < w.gradient().elements(); i++) {
        all.add(Floats.of(w.gradient()).get(i));
      }
    }
    float[] values = new float[all.size()];
    for (int i = 0; i < values.length; i++) {
      values[i] = all.get(i);
    }
    return values;
  }
}

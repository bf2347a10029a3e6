package org.espalier.online;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertNotEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.io.ByteArrayInputStream;
import java.io.ByteArrayOutputStream;
import java.io.IOException;
import java.lang.reflect.Proxy;
import java.nio.ByteBuffer;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.Map;
import java.util.Random;
import java.util.Set;
import java.util.TreeSet;
import org.bytedeco.javacpp.BytePointer;
import org.bytedeco.javacpp.Pointer;
import org.bytedeco.javacpp.PointerScope;
import org.espalier.InputException;
import org.espalier.device.Tensor;
import org.espalier.online.model.LinearHead;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.function.Executable;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.ValueSource;

class OnlineLearnerTest {
  private static final int FEATURES = 11;

  @Test
  void learnsAPlaneAndMeasuresBeforeItLearns() {
    try (LinearHead head = new LinearHead(FEATURES, 2);
        OnlineLearner learner = new OnlineLearner(head, Streams.crossEntropy(0.5).build())) {
      List<Example> first = Streams.plane(8, FEATURES, 0, 1, 9);
      learner.learn(first);
      // A head of zeros says class 0: what it was measured at is what it knew before.
      double zeros = first.stream().filter(e -> e.label() == 0).count() / 8.0;
      assertEquals(zeros, learner.metrics().get("accuracy"));
      assertEquals(Math.log(2), learner.metrics().get("log_loss"), 1e-12);
      learner.learn(Streams.plane(2000, FEATURES, 0, 2, 9));
      assertTrue(learner.metrics().get("accuracy_window") > 0.95, learner.metrics().toString());
      assertTrue(learner.metrics().get("auc_window") > 0.99, learner.metrics().toString());
      Example next = Streams.plane(1, FEATURES, 0, 77, 9).get(0);
      Prediction prediction = learner.predict(next.features());
      assertEquals(next.label(), prediction.label());
      assertEquals(learner.version(), prediction.version());
      assertEquals(1 + learner.steps(), learner.version());
      assertEquals(2008, learner.seen());
    }
  }

  @ParameterizedTest
  @ValueSource(strings = {"binary", "squared", "huber", "distillation"})
  void everyLossLearns(String name) {
    boolean values = name.equals("squared") || name.equals("huber");
    Loss loss =
        switch (name) {
          case "binary" -> new Loss.Binary();
          case "squared" -> new Loss.Squared();
          case "huber" -> new Loss.Huber(1);
          default -> new Loss.Distillation(0.9, 2, 0);
        };
    int outputs = name.equals("binary") ? 1 : name.equals("distillation") ? 2 : 3;
    OnlineSettings settings =
        OnlineSettings.builder(loss, new LearningRate.Constant(0.2)).batch(8).window(200).build();
    try (LinearHead head = new LinearHead(FEATURES, outputs);
        OnlineLearner learner = new OnlineLearner(head, settings)) {
      learner.learn(
          values
              ? Streams.line(3000, FEATURES, outputs, 0.01, 3)
              : Streams.plane(3000, FEATURES, 0, 3, 9));
      Map<String, Double> metrics = learner.metrics();
      if (values) {
        assertTrue(metrics.get("mae_window") < 0.05, metrics.toString());
      } else {
        assertTrue(metrics.get("accuracy_window") > 0.93, metrics.toString());
      }
    }
  }

  /** Products and sums that an int does not hold are refused before anything is allocated. */
  @Test
  void stepsThatNoMemoryHoldsAreRefused() {
    OnlineSettings.Builder plain = Streams.crossEntropy(0.5);
    try (LinearHead wide = new LinearHead(1, 4000);
        LinearHead tall = new LinearHead(4000, 2);
        LinearHead narrow = new LinearHead(1, 2)) {
      OnlineSettings large = plain.batch(1_000_000).build();
      String said =
          assertThrows(IllegalArgumentException.class, () -> new OnlineLearner(wide, large))
              .getMessage();
      assertTrue(said.contains("1000000 examples and 0 replayed"), said);
      assertTrue(said.contains("with 1 features and 4000 outputs 134217 together"), said);
      said =
          assertThrows(IllegalArgumentException.class, () -> new OnlineLearner(tall, large))
              .getMessage();
      assertTrue(said.contains("with 4000 features and 2 outputs 134217 together"), said);
      int all = Integer.MAX_VALUE;
      OnlineSettings replays = plain.batch(32).replay(new OnlineSettings.Replay(all, all)).build();
      said =
          assertThrows(IllegalArgumentException.class, () -> new OnlineLearner(narrow, replays))
              .getMessage();
      assertTrue(said.contains("32 examples and 2147483647 replayed"), said);
    }
    int features = 1 << 16;
    float[][] rows = new float[1 << 13][];
    Arrays.fill(rows, new float[features]);
    try (LinearHead head = new LinearHead(features, 2)) {
      float[] outputs = new float[2 * rows.length];
      String said =
          assertThrows(
                  IllegalArgumentException.class, () -> head.forward(rows, rows.length, outputs))
              .getMessage();
      assertTrue(said.endsWith("65536 features and 2 outputs 8191 are possible"), said);
      head.forward(rows, 1, outputs);
    }
  }

  @Test
  void aModelHasOneLearnerAtATime() {
    OnlineSettings settings = Streams.crossEntropy(0.5).build();
    OnlineSettings unknown = Streams.crossEntropy(0.5).only(Set.of("none")).build();
    try (LinearHead head = new LinearHead(FEATURES, 2)) {
      // One that could not be made has it no more.
      assertThrows(IllegalArgumentException.class, () -> new OnlineLearner(head, unknown));
      OnlineLearner first = new OnlineLearner(head, settings);
      for (OnlineSettings other : List.of(settings, unknown)) {
        String said =
            assertThrows(IllegalStateException.class, () -> new OnlineLearner(head, other))
                .getMessage();
        assertTrue(said.startsWith("another learner has this model"), said);
      }
      List<Example> stream = Streams.plane(64, FEATURES, 0, 1, 9);
      assertEquals(8, first.learn(stream).steps());
      first.close();
      try (OnlineLearner second = new OnlineLearner(head, settings)) {
        first.close(); // again, which gives the model to nobody
        assertThrows(IllegalStateException.class, () -> new OnlineLearner(head, settings));
        assertEquals(8, second.learn(stream).steps());
      }
    }
  }

  /** A learner that cannot be made leaves no memory behind, whichever of its parts fails. */
  @ParameterizedTest
  @ValueSource(strings = {"the second weight", "the teacher", "the first version", "its weights"})
  void aLearnerThatFailsClosesWhatItHas(String part) {
    OnlineSettings settings =
        OnlineSettings.builder(new Loss.Distillation(0.5, 2, 0), new LearningRate.Constant(0.1))
            .keepZeros(true)
            .int8(true)
            .momentum(0.5)
            .build();
    try (LinearHead head = new LinearHead(FEATURES, 2);
        LinearHead other = new LinearHead(FEATURES, 3)) {
      List<Predictor> open = new ArrayList<>();
      Learnable failing = failing(head, other.weights().get(1).gradient(), part, open);
      for (int attempt = 0; attempt < 2; attempt++) { // the first may load what stays
        long before = Pointer.totalCount();
        assertThrows(
            IllegalArgumentException.class, () -> new OnlineLearner(failing, settings), part);
        assertEquals(List.of(), open);
        assertTrue(attempt == 0 || Pointer.totalCount() <= before, part);
      }
      new OnlineLearner(head, settings).close();
    }
  }

  /**
   * A model of which one part is broken.
   *
   * @param wrong the gradient of another shape that the second weight has then
   * @param open hears which predictors are open
   */
  private static Learnable failing(
      LinearHead head, Tensor wrong, String part, List<Predictor> open) {
    return (Learnable)
        Proxy.newProxyInstance(
            OnlineLearnerTest.class.getClassLoader(),
            new Class<?>[] {Learnable.class},
            (self, method, arguments) -> {
              if (method.getName().equals("weights") && part.equals("the second weight")) {
                Weight w = head.weights().get(1);
                return List.of(
                    head.weights().get(0),
                    new Weight(
                        w.name(), w.latent(), w.working(), wrong, w.isMatrix(), w.scaleAxis()));
              }
              return switch (method.getName()) {
                case "equals" -> self == arguments[0];
                case "hashCode" -> System.identityHashCode(self);
                case "predictor" -> predictor(head, part, open);
                default -> method.invoke(head, arguments);
              };
            });
  }

  private static Predictor predictor(LinearHead head, String part, List<Predictor> open) {
    if (part.equals(open.isEmpty() ? "the teacher" : "the first version")) {
      throw new IllegalArgumentException(part);
    }
    Predictor whole = head.predictor();
    boolean isTeacher = open.isEmpty();
    Predictor predictor =
        new Predictor() {
          @Override
          public void load(List<Weight> weights) {
            if (!isTeacher && part.equals("its weights")) {
              throw new IllegalArgumentException(part);
            }
            whole.load(weights);
          }

          @Override
          public void predict(float[][] features, int rows, float[] outputs) {
            whole.predict(features, rows, outputs);
          }

          @Override
          public void close() {
            assertTrue(open.remove(this));
          }
        };
    open.add(predictor);
    return predictor;
  }

  /** A host that closes in the wrong order gets an exception, not a crash of its JVM. */
  @Test
  void aModelThatIsClosedFirstIsNotTouched() throws IOException {
    LinearHead head = new LinearHead(FEATURES, 2);
    OnlineLearner learner = new OnlineLearner(head, Streams.crossEntropy(0.5).build());
    List<Example> stream = Streams.plane(64, FEATURES, 0, 1, 9);
    learner.learn(stream);
    ByteArrayOutputStream saved = new ByteArrayOutputStream();
    learner.save(saved);
    head.close();
    head.close();
    assertTrue(head.isClosed());
    Streams.assertModelIsClosed(
        () -> learner.learn(stream),
        () -> learner.learn(stream.subList(0, 1)),
        () -> learner.weights(),
        () -> learner.toOnnx(),
        () -> learner.save(new ByteArrayOutputStream()),
        () -> learner.load(new ByteArrayInputStream(saved.toByteArray())),
        () -> head.set(new float[2 * FEATURES], new float[2]),
        () -> head.forward(new float[][] {stream.get(0).features()}, 1, new float[2]),
        () -> head.backward(new float[2], 1),
        () -> head.backwardClipped(new float[2], 1, 1));
    try (LinearHead other = new LinearHead(FEATURES, 2);
        OnlineLearner open = new OnlineLearner(other, Streams.crossEntropy(0.5).build())) {
      assertThrows(IllegalStateException.class, () -> open.adopt(head));
    }
    learner.close();
    assertThrows(IllegalStateException.class, () -> learner.learn(stream));
  }

  /** The step that a listener is told of goes on in the memory that a close would take away. */
  @Test
  void aListenerCannotChangeWhatIsAmidAStep() throws IOException {
    try (LinearHead head = new LinearHead(FEATURES, 2);
        OnlineLearner learner = new OnlineLearner(head, Streams.crossEntropy(0.5).build())) {
      List<Example> stream = Streams.plane(16, FEATURES, 0, 1, 9);
      ByteArrayOutputStream saved = new ByteArrayOutputStream();
      learner.save(saved);
      List<String> said = new ArrayList<>();
      learner.onEvent(
          event -> {
            for (Executable call :
                new Executable[] {
                  learner::close,
                  () -> learner.learn(stream),
                  () -> learner.load(new ByteArrayInputStream(saved.toByteArray())),
                  () -> learner.adopt(head),
                }) {
              said.add(assertThrows(IllegalStateException.class, call).getMessage());
            }
            learner.weights(); // may look
          });
      float[] broken = new float[FEATURES];
      broken[3] = Float.NaN;
      List<Example> mixed = new ArrayList<>(stream.subList(0, 4));
      mixed.add(2, Example.of(broken, 1));
      assertEquals(4, learner.learn(mixed).learned());
      assertEquals(4, said.size());
      said.forEach(text -> assertTrue(text.startsWith("a listener cannot"), text));
      learner.learn(stream);
      assertEquals(20, learner.learned());
    }
  }

  @Test
  void aModelIsNotClosedAmidAStep() throws InterruptedException {
    Streams.closesAmidAStep(new LinearHead(FEATURES, 2), Streams.plane(16, FEATURES, 0, 1, 9));
  }

  /** What a learner has of native memory outlives a scope that was open when it was made. */
  @Test
  void aScopeOfTheHostFreesNothing() {
    List<Map<String, float[]>> weights = new ArrayList<>();
    for (boolean scoped : new boolean[] {false, true}) {
      PointerScope scope = scoped ? new PointerScope() : null;
      LinearHead head = new LinearHead(FEATURES, 2);
      float[] initial = new float[2 * FEATURES];
      for (int i = 1; i < initial.length; i += 2) {
        initial[i] = 0.125f * i;
      }
      head.set(initial, new float[2]);
      OnlineSettings settings =
          Streams.crossEntropy(0.5).keepZeros(true).int8(true).momentum(0.5).build();
      OnlineLearner learner = new OnlineLearner(head, settings);
      learner.learn(Streams.plane(8, FEATURES, 0, 1, 9));
      if (scoped) {
        scope.close();
      }
      List<BytePointer> others = new ArrayList<>(); // take what would have become free
      for (int i = 1; i < 2000; i++) {
        BytePointer memory = new BytePointer(i % 100 + 1);
        BytePointer.memset(memory, 0xff, memory.capacity());
        others.add(memory);
      }
      learner.learn(Streams.plane(400, FEATURES, 0, 2, 9));
      weights.add(learner.weights());
      others.forEach(BytePointer::close);
      learner.close();
      head.close();
    }
    assertArrayEquals(weights.get(0).get("weight"), weights.get(1).get("weight"));
    assertEquals(0, weights.get(1).get("weight")[0]);
  }

  /** A step with momentum and weight decay, against the formulas in double. */
  @Test
  void aStepIsTheFormula() {
    OnlineSettings settings =
        OnlineSettings.builder(new Loss.Squared(), new LearningRate.Inverse(0.1, 10, 0.5))
            .batch(4)
            .momentum(0.9)
            .weightDecay(0.01)
            .build();
    List<Example> stream = Streams.line(40, 3, 1, 0, 5);
    double[] w = {0.5, -0.25, 0.125, 0.0625}; // three weights and the bias
    double[] momentum = new double[4];
    try (LinearHead head = new LinearHead(3, 1)) {
      head.set(new float[] {0.5f, -0.25f, 0.125f}, new float[] {0.0625f});
      try (OnlineLearner learner = new OnlineLearner(head, settings)) {
        for (int step = 0; step < 10; step++) {
          List<Example> batch = stream.subList(4 * step, 4 * step + 4);
          double[] g = new double[4];
          for (Example e : batch) {
            float[] x = e.features();
            double d = w[0] * x[0] + w[1] * x[1] + w[2] * x[2] + w[3] - e.values()[0];
            for (int j = 0; j < 4; j++) {
              g[j] += 2 * d / 4 * (j < 3 ? x[j] : 1);
            }
          }
          double rate = 0.1 / Math.sqrt(1 + step / 10.0);
          for (int j = 0; j < 4; j++) {
            double d = g[j] + 0.01 * w[j];
            momentum[j] = step == 0 ? d : 0.9 * momentum[j] + d;
            w[j] -= rate * momentum[j];
          }
          learner.learn(batch);
        }
        float[] learned = learner.weights().get("weight");
        for (int j = 0; j < 3; j++) {
          assertEquals(w[j], learned[j], 1e-5);
        }
        assertEquals(w[3], learner.weights().get("bias")[0], 1e-5);
      }
    }
  }

  /** AdamW with decoupled decay, against the formulas in double. */
  @Test
  void aStepOfAdamWIsTheFormula() {
    OnlineSettings settings =
        OnlineSettings.builder(new Loss.Squared(), new LearningRate.Constant(0.05))
            .batch(4)
            .weightDecay(0.1)
            .adamW(new OnlineSettings.AdamW(0.8, 0.95, 1e-6))
            .build();
    List<Example> stream = Streams.line(40, 3, 1, 0, 5);
    double[] w = {0.5, -0.25, 0.125, 0.0625}; // three weights and the bias
    double[] m = new double[4];
    double[] v = new double[4];
    try (LinearHead head = new LinearHead(3, 1)) {
      head.set(new float[] {0.5f, -0.25f, 0.125f}, new float[] {0.0625f});
      try (OnlineLearner learner = new OnlineLearner(head, settings)) {
        for (int step = 1; step <= 10; step++) {
          List<Example> batch = stream.subList(4 * step - 4, 4 * step);
          double[] g = new double[4];
          for (Example e : batch) {
            float[] x = e.features();
            double d = w[0] * x[0] + w[1] * x[1] + w[2] * x[2] + w[3] - e.values()[0];
            for (int j = 0; j < 4; j++) {
              g[j] += 2 * d / 4 * (j < 3 ? x[j] : 1);
            }
          }
          for (int j = 0; j < 4; j++) {
            m[j] = 0.8 * m[j] + 0.2 * g[j];
            v[j] = 0.95 * v[j] + 0.05 * g[j] * g[j];
            double root = Math.sqrt(v[j] / (1 - Math.pow(0.95, step))) + 1e-6;
            w[j] = (1 - 0.05 * 0.1) * w[j] - 0.05 / (1 - Math.pow(0.8, step)) * m[j] / root;
          }
          learner.learn(batch);
        }
        float[] learned = learner.weights().get("weight");
        for (int j = 0; j < 3; j++) {
          assertEquals(w[j], learned[j], 1e-5);
        }
        assertEquals(w[3], learner.weights().get("bias")[0], 1e-5);
      }
    }
  }

  /** Steps on one example need no gradient in memory, unless a rule wants its norm: the same bits. */
  @Test
  void aStepOnOneExampleHasTheBitsOfTheGeneralStep() throws IOException {
    Guard normed = new Guard(new Guard.Norm(1e9, 1, true), null, null);
    List<Example> stream = Streams.plane(300, FEATURES, 0.1, 6, 9);
    try (LinearHead head = head();
        LinearHead twin = head();
        OnlineLearner single = new OnlineLearner(head, Streams.crossEntropy(0.3).batch(1).build());
        OnlineLearner general =
            new OnlineLearner(twin, Streams.crossEntropy(0.3).batch(1).guard(normed).build())) {
      assertTrue(Double.isNaN(single.learn(stream).gradientNorm()));
      assertTrue(general.learn(stream).gradientNorm() > 0);
      for (String name : List.of("weight", "bias")) {
        assertArrayEquals(general.weights().get(name), single.weights().get(name));
      }
      assertEquals(general.metrics(), single.metrics());
      // What a saved state goes on with are the latent weights.
      byte[] state = saved(single);
      try (LinearHead other = head();
          OnlineLearner resumed =
              new OnlineLearner(other, Streams.crossEntropy(0.3).batch(1).build())) {
        resumed.load(new ByteArrayInputStream(state));
        resumed.learn(stream.subList(0, 50));
        single.learn(stream.subList(0, 50));
        assertArrayEquals(saved(single), saved(resumed));
      }
    }
  }

  @Test
  void refusesWhatDoesNotFitAndLearnsNothingOfIt() {
    try (LinearHead head = new LinearHead(3, 2);
        OnlineLearner learner = new OnlineLearner(head, Streams.crossEntropy(0.1).build())) {
      refused("4 features; the model takes 3", learner, Example.of(new float[4], 1));
      refused("label 2 is unknown; 0 to 1", learner, Example.of(new float[3], 2));
      refused("learns classes", learner, Example.of(new float[3], 1f, 2f));
      assertThrows(InputException.class, () -> learner.predict(new float[2]));
      assertEquals(0, learner.seen());
    }
    OnlineSettings squared =
        OnlineSettings.builder(new Loss.Squared(), new LearningRate.Constant(0.1)).build();
    try (LinearHead head = new LinearHead(3, 2);
        OnlineLearner learner = new OnlineLearner(head, squared)) {
      refused("a class; this model learns 2 values", learner, Example.of(new float[3], 1));
      refused("1 values", learner, Example.of(new float[3], 1f));
    }
    assertThrows(IllegalArgumentException.class, () -> new Example(null, new float[1], -1, null));
    try (LinearHead head = new LinearHead(3, 1)) {
      assertThrows(
          IllegalArgumentException.class,
          () -> new OnlineLearner(head, Streams.crossEntropy(0.1).build()));
      assertThrows(
          IllegalArgumentException.class,
          () ->
              new OnlineLearner(
                  head,
                  OnlineSettings.builder(new Loss.Binary(), new LearningRate.Constant(1))
                      .only(Set.of("none"))
                      .build()));
    }
  }

  @Test
  void whatDoesNotFitIsNotPredicted() {
    try (LinearHead head = new LinearHead(3, 2);
        OnlineLearner learner = new OnlineLearner(head, Streams.crossEntropy(0.1).build())) {
      float[][] rows = {{1, 2, 3}, {1, 2, 3, 4}};
      assertEquals(1, learner.predict(rows, 1, new float[2]));
      assertThrows(InputException.class, () -> learner.predict(rows, 2, new float[4]));
      assertThrows(InputException.class, () -> learner.predict(new float[2]));
      assertThrows(IllegalArgumentException.class, () -> learner.predict(rows, 1, new float[1]));
      assertThrows(IllegalArgumentException.class, () -> learner.predict(rows, 3, new float[6]));
      assertThrows(IllegalArgumentException.class, () -> learner.predict(rows, -1, new float[6]));
    }
  }

  @Test
  void aClosedLearnerRefusesEverything() {
    try (LinearHead head = new LinearHead(3, 2)) {
      OnlineLearner learner = new OnlineLearner(head, Streams.crossEntropy(0.1).build());
      learner.close();
      learner.close();
      List<Example> one = List.of(Example.of(new float[3], 1));
      for (Executable use :
          List.<Executable>of(
              () -> learner.predict(new float[3]),
              () -> learner.learn(one),
              learner::weights,
              () -> learner.save(new ByteArrayOutputStream()),
              () -> learner.adopt(head))) {
        IllegalStateException e = assertThrows(IllegalStateException.class, use);
        assertTrue(e.getMessage().contains("closed"), e.getMessage());
      }
    }
  }

  private static void refused(String word, OnlineLearner learner, Example example) {
    Example good = Example.of(new float[3], 0);
    InputException e =
        assertThrows(
            InputException.class, () -> learner.learn(new ArrayList<>(List.of(good, example))));
    if (!learner.settings().loss().isForClasses()) {
      return; // the good one is of the wrong kind there
    }
    assertTrue(e.getMessage().contains(word), e.getMessage());
  }

  /** Everything that has a state is on. */
  private static OnlineSettings rich() {
    return rich(new LearningRate.Cosine(0.3, 0.01, 5, 60)).momentum(0.9).build();
  }

  private static OnlineSettings.Builder rich(LearningRate rate) {
    return OnlineSettings.builder(new Loss.Distillation(0.8, 2, 0.01), rate)
        .batch(8)
        .weightDecay(1e-3)
        .publishEvery(3)
        .replay(new OnlineSettings.Replay(50, 3))
        .averaging(0.9)
        .constraint(new ZeroDistance(ZeroDistance.scaled(ZeroDistance.ONE_HOT, 4, -2), 0.05, true))
        .guard(
            new Guard(
                new Guard.Norm(3, 10, true),
                new Guard.Spike(2.5, 10, 3),
                new Guard.Quality(5, 20, 100, 0.1)))
        .drift(new OnlineSettings.Drift(0.3, 0.005, 3, OnlineSettings.Drift.Action.RESTART))
        .window(100);
  }

  private static List<Example> eventful() {
    List<Example> stream = new ArrayList<>(Streams.plane(500, FEATURES, 0.05, 11, 9));
    stream.addAll(Streams.plane(500, FEATURES, 0.05, 12, 10)); // another plane
    Random random = new Random(3);
    for (int i = 0; i < 8; i++) {
      int at = 100 + random.nextInt(800);
      float[] x = stream.get(at).features();
      x[0] = i % 2 == 0 ? Float.NaN : 1e4f;
    }
    return stream;
  }

  @ParameterizedTest
  @ValueSource(booleans = {false, true})
  void aResumedRunHasTheSameBits(boolean adamW) throws IOException {
    OnlineSettings settings =
        adamW
            ? rich(new LearningRate.Cosine(0.1, 0.001, 5, 60))
                .adamW(OnlineSettings.AdamW.DEFAULTS)
                .build()
            : rich();
    List<Example> stream = eventful();
    int events;
    byte[] whole;
    try (LinearHead head = head();
        OnlineLearner learner = new OnlineLearner(head, settings)) {
      List<Event> seen = new ArrayList<>();
      learner.onEvent(seen::add);
      for (int at = 0; at < stream.size(); at += 10) {
        learner.learn(stream.subList(at, at + 10));
      }
      events = seen.size();
      Set<Event.Kind> kinds = new TreeSet<>();
      seen.forEach(e -> kinds.add(e.kind()));
      assertTrue(
          kinds.containsAll(
              List.of(Event.Kind.NON_FINITE, Event.Kind.LOSS_SPIKE, Event.Kind.DRIFT)),
          kinds.toString());
      whole = saved(learner);
    }
    byte[] state = null;
    int resumedEvents = 0;
    for (int at = 0; at < stream.size(); at += 250) {
      // Another process: a new model, whose weights come from the state alone.
      try (LinearHead head = state == null ? head() : new LinearHead(FEATURES, 2);
          OnlineLearner learner = new OnlineLearner(head, settings)) {
        List<Event> seen = new ArrayList<>();
        learner.onEvent(seen::add);
        if (state != null) {
          learner.load(new ByteArrayInputStream(state));
        }
        for (int k = at; k < at + 250; k += 10) {
          learner.learn(stream.subList(k, k + 10));
          if (k % 30 == 0) {
            saved(learner); // a snapshot changes nothing
          }
        }
        state = saved(learner);
        resumedEvents += seen.size();
      }
    }
    assertEquals(events, resumedEvents);
    assertArrayEquals(whole, state);
  }

  /** After other weights were adopted, it learns as one that was made of them. */
  @ParameterizedTest
  @ValueSource(strings = {"plain", "momentum", "adamw", "distillation", "frozen"})
  void adoptsWeightsAsIfItBeganWithThem(String way) {
    Loss loss =
        way.equals("distillation") ? new Loss.Distillation(0.5, 2, 0.5) : new Loss.CrossEntropy();
    OnlineSettings.Builder builder =
        OnlineSettings.builder(loss, new LearningRate.Inverse(0.3, 20, 1)).batch(8);
    if (way.equals("momentum")) {
      builder.momentum(0.9).keepZeros(true).int8(true);
    } else if (way.equals("adamw")) {
      builder.adamW(OnlineSettings.AdamW.DEFAULTS).averaging(0.9);
    } else if (way.equals("frozen")) {
      builder.only(Set.of("bias"));
    }
    OnlineSettings settings = builder.build();
    try (LinearHead head = new LinearHead(FEATURES, 2);
        LinearHead published = head();
        LinearHead twin = head();
        OnlineLearner learner = new OnlineLearner(head, settings);
        OnlineLearner fresh = new OnlineLearner(twin, settings)) {
      learner.learn(Streams.plane(100, FEATURES, 0, 3, 9));
      long before = learner.version();
      learner.adopt(published);
      assertEquals(before + 1, learner.version());
      assertEquals(100, learner.seen());
      float[] features = Streams.plane(1, FEATURES, 0, 5, 9).get(0).features();
      assertArrayEquals(fresh.predict(features).outputs(), learner.predict(features).outputs());
      for (Example example : Streams.plane(90, FEATURES, 0, 4, 9)) {
        learner.learn(List.of(example));
        fresh.learn(List.of(example));
      }
      learner.weights().forEach((k, v) -> assertArrayEquals(fresh.weights().get(k), v, k));
      try (LinearHead other = new LinearHead(FEATURES + 1, 2)) {
        InputException e = assertThrows(InputException.class, () -> learner.adopt(other));
        assertTrue(e.getMessage().contains("12 features"), e.getMessage());
      }
    }
  }

  private static LinearHead head() {
    LinearHead head = new LinearHead(FEATURES, 2);
    float[] w = new float[2 * FEATURES];
    for (int j = 0; j < w.length; j++) {
      w[j] = 0.01f * (j % 5 - 2);
    }
    head.set(w, new float[] {0.1f, -0.1f});
    return head;
  }

  private static byte[] saved(OnlineLearner learner) throws IOException {
    ByteArrayOutputStream out = new ByteArrayOutputStream();
    learner.save(out);
    return out.toByteArray();
  }

  @Test
  void aDamagedStateIsRefused() throws IOException {
    byte[] state;
    try (LinearHead head = head();
        OnlineLearner learner = new OnlineLearner(head, rich())) {
      learner.learn(eventful().subList(0, 300));
      state = saved(learner);
    }
    Random random = new Random(1);
    int refused = 0;
    for (int i = 0; i < 300; i++) {
      byte[] bad = state.clone();
      if (i % 3 == 0) {
        bad = Arrays.copyOf(bad, random.nextInt(bad.length));
      } else {
        bad[random.nextInt(i % 3 == 1 ? 200 : bad.length)] ^= (byte) (1 << random.nextInt(8));
      }
      try (LinearHead head = head();
          OnlineLearner learner = new OnlineLearner(head, rich())) {
        learner.load(new ByteArrayInputStream(bad));
      } catch (InputException e) {
        refused++;
      }
    }
    assertTrue(refused >= 100, refused + " refused"); // a flipped bit of a weight is a weight
    try (LinearHead head = head();
        OnlineLearner learner = new OnlineLearner(head, Streams.crossEntropy(0.1).build())) {
      byte[] other = state;
      InputException e =
          assertThrows(InputException.class, () -> learner.load(new ByteArrayInputStream(other)));
      assertTrue(e.getMessage().contains("other settings:\n  loss: Distillation["), e.getMessage());
      assertTrue(e.getMessage().contains("\n  weight decay: 0.001, here 0.0\n"), e.getMessage());
      assertFalse(e.getMessage().contains("batch"), e.getMessage());
    }
  }

  /** However late the damage is found, the learner is as it was: a service goes on with it. */
  @Test
  void aStateThatIsRefusedChangesNothing() throws IOException {
    byte[] state;
    try (LinearHead head = head();
        OnlineLearner learner = new OnlineLearner(head, rich())) {
      learner.learn(eventful().subList(0, 300));
      state = saved(learner);
    }
    try (LinearHead head = head();
        OnlineLearner learner = new OnlineLearner(head, rich())) {
      learner.learn(eventful().subList(0, 100));
      byte[] before = saved(learner);
      byte[] badEnd = state.clone();
      badEnd[badEnd.length - 1] ^= 1;
      for (byte[] bad : List.of(badEnd, Arrays.copyOf(state, state.length - 5))) {
        assertThrows(InputException.class, () -> learner.load(new ByteArrayInputStream(bad)));
        assertArrayEquals(before, saved(learner));
      }
      learner.load(new ByteArrayInputStream(state));
      assertArrayEquals(state, saved(learner));
    }
  }

  @Test
  void aStateOfAnotherTargetIsRefused() throws IOException {
    byte[] state;
    try (LinearHead head = new LinearHead(3, 2);
        OnlineLearner learner = new OnlineLearner(head, tied(ZeroDistance.ONE_HOT))) {
      state = saved(learner);
      learner.load(new ByteArrayInputStream(state));
    }
    try (LinearHead head = new LinearHead(3, 2);
        OnlineLearner learner =
            new OnlineLearner(head, tied(ZeroDistance.scaled(ZeroDistance.ONE_HOT, 4, -2)))) {
      InputException e =
          assertThrows(InputException.class, () -> learner.load(new ByteArrayInputStream(state)));
      assertTrue(e.getMessage().contains("4.0 * one-hot + -2.0"), e.getMessage());
    }
  }

  private static OnlineSettings tied(ZeroDistance.Target target) {
    return Streams.crossEntropy(0.1).constraint(new ZeroDistance(target, 1, false)).build();
  }

  @Test
  void theMaskAndTheGridAreHeldWhileLearning() {
    OnlineSettings settings =
        Streams.crossEntropy(0.3).momentum(0.9).keepZeros(true).int8(true).build();
    try (LinearHead head = new LinearHead(FEATURES, 2)) {
      float[] w = new float[2 * FEATURES];
      Arrays.fill(w, 0.5f);
      for (int j = 0; j < w.length; j += 3) {
        w[j] = 0;
      }
      head.set(w, new float[2]);
      try (OnlineLearner learner = new OnlineLearner(head, settings)) {
        checkGrid(learner.weights().get("weight"), w);
        learner.learn(Streams.plane(800, FEATURES, 0, 4, 9));
        float[] served = learner.weights().get("weight");
        checkGrid(served, w);
        assertNotEquals(0.5f, served[1]);
        // What is served is what was trained: a prediction is the product with these weights.
        float[] x = Streams.plane(1, FEATURES, 0, 5, 9).get(0).features();
        double z = learner.weights().get("bias")[0];
        for (int j = 0; j < FEATURES; j++) {
          z += served[j] * x[j];
        }
        assertEquals(z, learner.predict(x).outputs()[0], 1e-5);
        assertTrue(learner.metrics().get("accuracy_window") > 0.75, learner.metrics().toString());
      }
    }
  }

  /** Each row has at most 255 values, multiples of its largest over 127, and the zeros it had. */
  private static void checkGrid(float[] weights, float[] zeros) {
    for (int c = 0; c < 2; c++) {
      float largest = 0;
      for (int j = 0; j < FEATURES; j++) {
        largest = Math.max(largest, Math.abs(weights[c * FEATURES + j]));
      }
      assertTrue(largest > 0);
      for (int j = 0; j < FEATURES; j++) {
        float w = weights[c * FEATURES + j];
        double q = w / (largest / 127.0);
        assertEquals(Math.rint(q), q, 1e-3, "not on the grid");
        if (zeros[c * FEATURES + j] == 0) {
          assertEquals(0f, w);
        }
      }
    }
  }

  @Test
  void onlyNamedWeightsAreLearned() {
    OnlineSettings settings = Streams.crossEntropy(0.3).only(Set.of("bias")).build();
    try (LinearHead head = head();
        OnlineLearner learner = new OnlineLearner(head, settings)) {
      Map<String, float[]> before = learner.weights();
      learner.learn(Streams.plane(100, FEATURES, 0, 4, 9));
      assertArrayEquals(before.get("weight"), learner.weights().get("weight"));
      assertNotEquals(before.get("bias")[0], learner.weights().get("bias")[0]);
    }
  }

  @Test
  void readersGetTheFadingMeanOfTheWeights() {
    OnlineSettings settings = Streams.crossEntropy(0.3).averaging(0.75).build();
    OnlineSettings plain = Streams.crossEntropy(0.3).build();
    List<Example> stream = Streams.plane(80, FEATURES, 0, 4, 9);
    try (LinearHead head = head();
        LinearHead twin = head();
        OnlineLearner averaging = new OnlineLearner(head, settings);
        OnlineLearner learner = new OnlineLearner(twin, plain)) {
      double mean = learner.weights().get("weight")[3];
      for (int at = 0; at < 80; at += 8) {
        averaging.learn(stream.subList(at, at + 8));
        learner.learn(stream.subList(at, at + 8));
        mean = 0.75 * mean + 0.25 * learner.weights().get("weight")[3];
      }
      assertEquals(mean, averaging.weights().get("weight")[3], 1e-5);
      assertNotEquals(
          learner.weights().get("weight")[3], averaging.weights().get("weight")[3], 1e-3);
    }
  }

  /** A stream of one class makes a model forget the other; what it replays it does not forget. */
  @Test
  void replayKeepsWhatWasKnown() {
    List<Example> both = Streams.plane(600, FEATURES, 0, 4, 9);
    List<Example> ones =
        Streams.plane(4000, FEATURES, 0, 5, 9).stream().filter(e -> e.label() == 1).toList();
    double plain = accuracyAfter(Streams.crossEntropy(0.5).build(), both, ones);
    double replayed =
        accuracyAfter(
            Streams.crossEntropy(0.5).replay(new OnlineSettings.Replay(200, 8)).build(),
            both,
            ones);
    assertTrue(replayed > 0.88 && replayed > plain + 0.1, plain + " and replayed " + replayed);
  }

  private static double accuracyAfter(
      OnlineSettings settings, List<Example> first, List<Example> then) {
    List<Example> test = Streams.plane(500, FEATURES, 0, 6, 9);
    try (LinearHead head = new LinearHead(FEATURES, 2);
        OnlineLearner learner = new OnlineLearner(head, settings)) {
      learner.learn(first);
      learner.learn(then);
      return test.stream().filter(e -> learner.predict(e.features()).label() == e.label()).count()
          / 500.0;
    }
  }

  /** Each bit of a state, and each end that is too early: one that loads would be another learner. */
  @Test
  void damagedStatesAreRefused() throws IOException {
    OnlineSettings settings = Streams.crossEntropy(0.5).build();
    try (LinearHead head = new LinearHead(4, 2);
        OnlineLearner learner = new OnlineLearner(head, settings);
        LinearHead other = new LinearHead(4, 2);
        OnlineLearner loading = new OnlineLearner(other, settings)) {
      learner.learn(Streams.plane(5, 4, 0, 1, 9));
      byte[] state = saved(learner);
      byte[] before = saved(loading);
      for (int bit = 0; bit < 8 * state.length; bit++) {
        byte[] damaged = state.clone();
        damaged[bit / 8] ^= (byte) (1 << bit % 8);
        assertThrows(
            InputException.class,
            () -> loading.load(new ByteArrayInputStream(damaged)),
            "bit " + bit);
      }
      for (int length = 0; length < state.length; length++) {
        byte[] cut = Arrays.copyOf(state, length);
        assertThrows(InputException.class, () -> loading.load(new ByteArrayInputStream(cut)));
      }
      assertArrayEquals(before, saved(loading));
      loading.load(new ByteArrayInputStream(state));
      assertArrayEquals(learner.weights().get("weight"), loading.weights().get("weight"));
    }
  }

  /** What reads the passes alone does not go to the end of the state. */
  @Test
  void damageBeforeThePassesEndIsNoticedWithoutTheRest() throws IOException {
    try (LinearHead head = new LinearHead(4, 2);
        OnlineLearner learner = new OnlineLearner(head, Streams.crossEntropy(0.5).build())) {
      byte[] state = saved(learner);
      int passesEnd = firstSum(state);
      assertEquals(List.of(), OnlineLearner.passes(new ByteArrayInputStream(state)));
      for (int bit = 0; bit < 8 * passesEnd; bit++) {
        byte[] damaged = Arrays.copyOf(state, passesEnd + 4);
        damaged[bit / 8] ^= (byte) (1 << bit % 8);
        if (bit / 8 == 7) { // a format without sums
          continue;
        }
        assertThrows(
            InputException.class,
            () -> OnlineLearner.passes(new ByteArrayInputStream(damaged)),
            "bit " + bit);
      }
    }
  }

  /** Behind magic and format, the description of the learner and no passes. */
  private static int firstSum(byte[] state) {
    return 4 + 4 + 4 + ByteBuffer.wrap(state).getInt(8) + 4;
  }

  /** Format 4 is format 5 less the sums. */
  @Test
  void statesWithoutSumsAreRead() throws IOException {
    OnlineSettings settings = Streams.crossEntropy(0.5).build();
    try (LinearHead head = new LinearHead(4, 2);
        OnlineLearner learner = new OnlineLearner(head, settings);
        LinearHead other = new LinearHead(4, 2);
        OnlineLearner loading = new OnlineLearner(other, settings)) {
      learner.learn(Streams.plane(5, 4, 0, 1, 9));
      byte[] state = saved(learner);
      int sum = firstSum(state);
      ByteBuffer old = ByteBuffer.allocate(state.length - 8);
      old.put(state, 0, sum).put(state, sum + 4, state.length - sum - 8).putInt(4, 4);
      loading.load(new ByteArrayInputStream(old.array()));
      assertArrayEquals(state, saved(loading));
      old.putInt(4, 6);
      assertEquals(
          "the learner's saved state is of format 6; this espalier knows 3 to 5",
          assertThrows(
                  InputException.class, () -> loading.load(new ByteArrayInputStream(old.array())))
              .getMessage());
    }
  }

  /** Numbers that a program reports when it is done, with learner and model closed. */
  @Test
  void whatWasCountedIsToldAfterClose() {
    LinearHead head = new LinearHead(4, 2);
    OnlineLearner learner = new OnlineLearner(head, Streams.crossEntropy(0.5).build());
    learner.learn(Streams.plane(5, 4, 0, 1, 9));
    Map<String, Double> metrics = learner.metrics();
    long version = learner.version();
    learner.close();
    head.close();
    assertEquals(metrics, learner.metrics());
    assertEquals(version, learner.version());
    assertEquals(5, learner.seen());
    assertEquals(null, learner.epsilon());
    assertEquals(List.of(), learner.passes());
    assertArrayEquals(new long[] {2, 4}, learner.shape("weight"));
    for (Executable call :
        List.<Executable>of(
            () -> learner.predict(new float[4]),
            () -> learner.learn(Streams.plane(1, 4, 0, 1, 9)),
            learner::weights,
            learner::toOnnx,
            () -> learner.save(new ByteArrayOutputStream()),
            () -> learner.load(new ByteArrayInputStream(new byte[0])),
            () -> learner.numberFrom(version + 1))) {
      assertThrows(IllegalStateException.class, call);
    }
  }
}

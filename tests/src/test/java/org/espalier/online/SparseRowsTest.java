package org.espalier.online;

import static org.espalier.format.onnx.SmallModels.attribute;
import static org.espalier.format.onnx.SmallModels.floats;
import static org.espalier.format.onnx.SmallModels.node;
import static org.espalier.format.onnx.SmallModels.value;
import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertNotEquals;
import static org.junit.jupiter.api.Assertions.assertNull;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import ai.onnx.proto.OnnxMl.GraphProto;
import ai.onnx.proto.OnnxMl.NodeProto;
import ai.onnx.proto.OnnxMl.TensorProto.DataType;
import java.io.ByteArrayInputStream;
import java.io.ByteArrayOutputStream;
import java.io.IOException;
import java.io.PrintStream;
import java.nio.ByteBuffer;
import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.Map;
import java.util.Random;
import java.util.Set;
import java.util.concurrent.ConcurrentHashMap;
import java.util.concurrent.atomic.AtomicBoolean;
import java.util.stream.Stream;
import org.bytedeco.pytorch.global.torch.ScalarType;
import org.espalier.format.onnx.ClickModel;
import org.espalier.format.onnx.OnnxModel;
import org.espalier.format.onnx.SmallModels;
import org.espalier.online.OnlineSettings.SparseRows;
import org.espalier.online.memory.Floats;
import org.espalier.online.model.LinearHead;
import org.espalier.online.model.TorchLearnable;
import org.espalier.online.privacy.Privacy;
import org.espalier.torch.onnx.OnnxGraph;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.EnumSource;
import org.junit.jupiter.params.provider.ValueSource;

/** Steps on tables that change the rows that a batch has read, beside steps on whole tables. */
class SparseRowsTest {
  /** With WIDTH so many that the default learns the table by rows. */
  private static final int USERS = 3000;

  private static final int ITEMS = 40;
  private static final int WIDTH = 8;

  /** The users that come: half of them early, so that rows are read again. */
  private static final int ACTIVE = 60;

  /** How rows of the users' table are looked up. */
  enum Form {
    /** By one node, in a matrix. */
    ONCE,
    /** By three nodes, whose gradients libtorch adds in an order of its own. */
    THRICE,
    /** In a table [users, 2, 4]. */
    CUBE,
    /** In a table [users]. */
    NUMBERS,
    /** By a node whose result no output depends on, too. */
    IDLE,
    /** One row by a constant, too. */
    FIXED,
    /** As matrices of a product, one an expert. */
    EXPERTS,
    /** By two nodes, one of which reads the table by a second name, as of weights that are tied. */
    TIED;

    OnnxModel model() {
      GraphProto.Builder g = ClickModel.graph(3, USERS, ITEMS, WIDTH);
      int look = 2;
      assertEquals("u", g.getNode(look).getOutput(0));
      switch (this) {
        case ONCE -> {}
        case THRICE -> {
          // Each with weights of its own, because equal gradients have the same sum in any order.
          g.setNode(look, node("Gather", "", List.of("users", "user"), "u1"));
          g.addNode(look + 1, node("Gather", "", List.of("users", "item"), "u2"));
          g.addNode(look + 2, node("Mul", "", List.of("u1", "u2"), "u12"));
          g.addNode(look + 3, node("Gather", "", List.of("users", "user"), "u3"));
          g.addNode(look + 4, node("Tanh", "", List.of("u3"), "t3"));
          g.addNode(look + 5, node("Add", "", List.of("t3", "u12"), "u"));
        }
        case CUBE -> {
          g.setInitializer(0, floats("users", new Random(8), 0.3f, USERS, 2, WIDTH / 2));
          g.setNode(look, node("Gather", "", List.of("users", "user"), "cube"));
          g.addInitializer(SmallModels.int64s("flat", 0, -1));
          g.addNode(look + 1, node("Reshape", "", List.of("cube", "flat"), "u"));
        }
        case NUMBERS -> {
          g.setInitializer(0, floats("users", new Random(8), 0.3f, 8 * USERS));
          g.setNode(look, node("Gather", "", List.of("users", "user"), "number"));
          g.addInitializer(SmallModels.int64s("column", 1));
          g.addNode(look + 1, node("Unsqueeze", "", List.of("number", "column"), "u"));
        }
        case IDLE -> {
          g.addNode(node("Gather", "", List.of("users", "item"), "idle"));
          g.addOutput(value("idle", DataType.FLOAT, -1, WIDTH));
        }
        case FIXED -> {
          g.setNode(look, node("Gather", "", List.of("users", "user"), "u1"));
          g.addInitializer(SmallModels.int64s("seven", 7));
          g.addNode(look + 1, node("Gather", "", List.of("users", "seven"), "u2"));
          g.addNode(look + 2, node("Add", "", List.of("u1", "u2"), "u"));
        }
        case EXPERTS -> {
          g.setInitializer(0, floats("users", new Random(8), 0.3f, USERS, WIDTH, WIDTH));
          g.setNode(look, node("Gather", "", List.of("users", "user"), "expert"));
          g.addInitializer(SmallModels.int64s("middle", 1));
          g.addNode(look + 2, node("Unsqueeze", "", List.of("v", "middle"), "v1"));
          g.addNode(look + 3, node("MatMul", "", List.of("v1", "expert"), "u1"));
          g.addNode(look + 4, node("Squeeze", "", List.of("u1", "middle"), "u"));
        }
        case TIED -> {
          g.setNode(look, node("Gather", "", List.of("users", "user"), "u1"));
          g.addNode(0, node("Identity", "", List.of("users"), "onnx::Gather_12"));
          g.addNode(look + 2, node("Gather", "", List.of("onnx::Gather_12", "item"), "u2"));
          g.addNode(look + 3, node("Mul", "", List.of("u1", "u2"), "u"));
        }
        default -> throw new IllegalStateException();
      }
      return OnnxModel.of(SmallModels.model(13, g), "clicks");
    }
  }

  private static TorchLearnable learnable(OnnxModel model) {
    return new TorchLearnable(
        new OnnxGraph(model),
        () -> new OnnxGraph(model),
        List.of(new ExampleInput("ids", ScalarType.Long, 2)),
        1);
  }

  private static TorchLearnable learnable() {
    return learnable(Form.ONCE.model());
  }

  private static OnlineSettings.Builder settings(SparseRows rows) {
    return OnlineSettings.builder(new Loss.Binary(), new LearningRate.Constant(0.5))
        .batch(16)
        .sparseRows(rows);
  }

  /** Visits, some of which count their user from the end. */
  private static List<Example> visits(int n, long seed) {
    List<Example> list = new ArrayList<>();
    for (ClickModel.Visit v : ClickModel.visits(seed, n, ACTIVE, ITEMS)) {
      float user = v.user() % 7 == 0 ? v.user() - USERS : v.user();
      list.add(Example.of(new float[] {user, v.item()}, v.clicks()));
    }
    return list;
  }

  private static byte[] saved(OnlineLearner learner) throws IOException {
    ByteArrayOutputStream out = new ByteArrayOutputStream();
    learner.save(out);
    return out.toByteArray();
  }

  /** The state of a learner after a stream. */
  private static byte[] learned(OnnxModel model, OnlineSettings settings, List<Example> stream)
      throws IOException {
    try (TorchLearnable learnable = learnable(model);
        OnlineLearner learner = new OnlineLearner(learnable, settings)) {
      assertTrue(learner.learn(stream).steps() > 0);
      assertEquals(
          settings.sparseRows() == SparseRows.NEVER,
          learnable.weights().stream().noneMatch(w -> w.gradient() == null));
      return saved(learner);
    }
  }

  @ParameterizedTest
  @EnumSource(Form.class)
  void descentLeavesTheBitsOfStepsOnWholeTables(Form form) throws IOException {
    for (int batch : new int[] {1, 16}) {
      List<byte[]> states = new ArrayList<>();
      for (SparseRows rows : List.of(SparseRows.NEVER, SparseRows.AUTO)) {
        OnlineSettings settings =
            settings(rows).batch(batch).replay(new OnlineSettings.Replay(50, 4)).build();
        states.add(learned(form.model(), settings, visits(200, 1)));
      }
      assertArrayEquals(states.get(0), states.get(1), "batch " + batch);
    }
  }

  /** What a step on the whole table would decay, or move by momentum, stays. */
  @Test
  void rowsThatNobodyReadStayWhatTheyAre() {
    for (OnlineSettings.Builder builder :
        List.of(
            settings(SparseRows.ALWAYS).momentum(0.9).weightDecay(0.01),
            settings(SparseRows.ALWAYS).adamW(OnlineSettings.AdamW.DEFAULTS).weightDecay(0.01))) {
      try (TorchLearnable model = learnable();
          OnlineLearner learner = new OnlineLearner(model, builder.build())) {
        float[] before = learner.weights().get("users");
        List<Example> stream = visits(100, 1);
        learner.learn(stream);
        float[] now = learner.weights().get("users");
        boolean[] came = new boolean[USERS];
        stream.forEach(e -> came[Math.floorMod((int) e.features()[0], USERS)] = true);
        for (int i = 0; i < now.length; i++) {
          assertEquals(came[i / WIDTH], before[i] != now[i], "entry " + i);
        }
        // A row that was read once is not moved by the steps that come then.
        Example once = Example.of(new float[] {1000, 3}, 1);
        learner.learn(List.of(once));
        float[] read = learner.weights().get("users");
        assertNotEquals(now[1000 * WIDTH], read[1000 * WIDTH]);
        learner.learn(visits(50, 2));
        assertEquals(read[1000 * WIDTH], learner.weights().get("users")[1000 * WIDTH]);
      }
    }
  }

  /** Momentum, moments and decay of a row are those of the steps that read it; Adam's correction is of all steps. */
  @ParameterizedTest
  @ValueSource(booleans = {false, true})
  void theOptimizerIsLazy(boolean adam) {
    double rate = adam ? 0.02 : 0.5;
    double decay = 0.03;
    OnlineSettings.Builder builder =
        OnlineSettings.builder(new Loss.Binary(), new LearningRate.Constant(rate))
            .batch(1)
            .only(Set.of("users"))
            .weightDecay(decay)
            .sparseRows(SparseRows.ALWAYS);
    OnlineSettings settings =
        (adam ? builder.adamW(OnlineSettings.AdamW.DEFAULTS) : builder.momentum(0.9)).build();
    List<Example> stream = visits(300, 4);
    try (TorchLearnable model = learnable();
        OnlineLearner learner = new OnlineLearner(model, settings)) {
      Map<String, float[]> weights = learner.weights();
      float[] items = weights.get("items");
      float[] head = weights.get("head");
      double[] w = new double[USERS * WIDTH];
      for (int i = 0; i < w.length; i++) {
        w[i] = weights.get("users")[i];
      }
      double[] m = new double[w.length];
      double[] v = new double[w.length];
      int t = 0;
      for (Example e : stream) {
        t++;
        int user = Math.floorMod((int) e.features()[0], USERS) * WIDTH;
        int item = (int) e.features()[1] * WIDTH;
        double z = 0;
        for (int k = 0; k < WIDTH; k++) {
          z += w[user + k] * items[item + k] * head[k];
        }
        double slope = 1 / (1 + Math.exp(-z)) - e.label();
        for (int k = 0; k < WIDTH; k++) {
          int i = user + k;
          double g = slope * items[item + k] * head[k];
          if (adam) {
            m[i] = 0.9 * m[i] + 0.1 * g;
            v[i] = 0.999 * v[i] + 0.001 * g * g;
            double root = Math.sqrt(v[i] / (1 - Math.pow(0.999, t))) + 1e-8;
            w[i] -= rate * decay * w[i] + rate * m[i] / (1 - Math.pow(0.9, t)) / root;
          } else {
            m[i] = 0.9 * m[i] + g + decay * w[i];
            w[i] -= rate * m[i];
          }
        }
      }
      learner.learn(stream);
      float[] now = learner.weights().get("users");
      for (int i = 0; i < now.length; i++) {
        assertEquals(w[i], now[i], 2e-5, "entry " + i); // some 5 steps a row in float
      }
      assertArrayEquals(items, learner.weights().get("items"));
    }
  }

  /** All that changes what is learned, at once. */
  private static OnlineSettings rich(boolean adam, SparseRows rows) {
    OnlineSettings.Builder builder =
        settings(rows)
            .batch(4)
            .publishEvery(3)
            .replay(new OnlineSettings.Replay(30, 2))
            .guard(
                new Guard(
                    new Guard.Norm(1.5, 10, true, 100), null, new Guard.Quality(4, 20, 40, 0.05)));
    return adam
        ? builder.adamW(OnlineSettings.AdamW.DEFAULTS).weightDecay(0.01).build()
        : builder.momentum(0.5).build();
  }

  /** Learns what is right, then the contrary of it for a while, which the guard takes back. */
  private static List<Example> poisoned() {
    List<Example> stream = new ArrayList<>(visits(1600, 1));
    for (int i = 800; i < 880; i++) {
      Example e = stream.get(i);
      stream.set(i, Example.of(e.features(), 1 - e.label()));
    }
    return stream;
  }

  @ParameterizedTest
  @ValueSource(booleans = {false, true})
  void aResumedRunHasTheSameBitsWhereverItStopped(boolean adam) throws IOException {
    OnlineSettings settings = rich(adam, SparseRows.ALWAYS);
    List<Example> stream = poisoned();
    byte[] whole;
    List<byte[]> halves = new ArrayList<>();
    List<Event.Kind> told = new ArrayList<>();
    int[] stops = {400, 840, 1000};
    try (TorchLearnable model = learnable();
        OnlineLearner learner = new OnlineLearner(model, settings)) {
      learner.onEvent(e -> told.add(e.kind()));
      int at = 0;
      for (int stop : stops) {
        learner.learn(stream.subList(at, stop));
        halves.add(saved(learner));
        at = stop;
      }
      learner.learn(stream.subList(at, stream.size()));
      whole = saved(learner);
      learner.numberFrom(learner.version() + 1); // publishes what was learned since the last time
      assertServesWhatItLearned(learner, model);
      assertTrue(told.contains(Event.Kind.ROLLBACK) && told.contains(Event.Kind.NORM_CLIPPED));
    }
    for (int i = 0; i < stops.length; i++) {
      try (TorchLearnable model = learnable();
          OnlineLearner learner = new OnlineLearner(model, settings)) {
        learner.load(new ByteArrayInputStream(halves.get(i)));
        assertServesWhatItLearned(learner, model);
        learner.learn(stream.subList(stops[i], stream.size()));
        assertArrayEquals(whole, saved(learner), "from " + stops[i]);
      }
    }
  }

  /** Every user's answer is what forward computes of the weights. */
  private static void assertServesWhatItLearned(OnlineLearner learner, TorchLearnable model) {
    float[][] all = new float[USERS][];
    for (int user = 0; user < USERS; user++) {
      all[user] = new float[] {user, user % ITEMS};
    }
    float[] served = new float[USERS];
    float[] now = new float[USERS];
    learner.predict(all, USERS, served);
    model.forward(all, USERS, now);
    assertArrayEquals(now, served);
  }

  @Test
  void aRollbackTakesRowsBackAsItDoesWholeTables() throws IOException {
    Guard guard = new Guard(null, null, new Guard.Quality(4, 20, 40, 0.05));
    List<byte[]> states = new ArrayList<>();
    for (SparseRows rows : List.of(SparseRows.NEVER, SparseRows.AUTO)) {
      List<String> told = new ArrayList<>();
      try (TorchLearnable model = learnable();
          OnlineLearner learner =
              new OnlineLearner(
                  model,
                  settings(rows)
                      .batch(4)
                      .guard(guard)
                      .drift(OnlineSettings.Drift.of(OnlineSettings.Drift.Action.RESET))
                      .build())) {
        learner.onEvent(e -> told.add(e.kind().toString()));
        learner.learn(poisoned());
        assertTrue(told.contains(Event.Kind.ROLLBACK.toString()), told.toString());
        assertServesWhatItLearned(learner, model);
        states.add(saved(learner));
      }
    }
    assertArrayEquals(states.get(0), states.get(1));
  }

  @Test
  void theGuardLooksAtTheNormOfTheRowsThatWereRead() {
    List<OnlineLearner.Report> reports = new ArrayList<>();
    List<float[]> tables = new ArrayList<>();
    Guard guard = new Guard(new Guard.Norm(5, 1000, true, 0.2), null, null);
    for (SparseRows rows : List.of(SparseRows.NEVER, SparseRows.AUTO)) {
      List<Event.Kind> told = new ArrayList<>();
      try (TorchLearnable model = learnable();
          OnlineLearner learner =
              new OnlineLearner(model, settings(rows).batch(8).guard(guard).build())) {
        learner.onEvent(e -> told.add(e.kind()));
        for (Example e : visits(64, 1)) {
          reports.add(learner.learn(List.of(e)));
        }
        assertTrue(told.contains(Event.Kind.NORM_CLIPPED));
        tables.add(learner.weights().get("users"));
      }
    }
    for (int i = 0; i < 64; i++) {
      double norm = reports.get(i).gradientNorm();
      assertEquals(norm, reports.get(64 + i).gradientNorm(), 1e-6 * norm);
    }
    assertArrayEquals(tables.get(0), tables.get(1), 1e-6f);
  }

  /** A gradient that is not finite changes no row, and what was taken out for it is not put back. */
  @Test
  void aStepThatIsNotDoneChangesNoRow() {
    try (TorchLearnable model = learnable();
        OnlineLearner learner =
            new OnlineLearner(
                model, settings(SparseRows.ALWAYS).adamW(OnlineSettings.AdamW.DEFAULTS).build())) {
      learner.learn(List.of(Example.of(new float[] {5, 3}, 1)));
      // The output is finite, and the gradient of the item is not.
      Floats.of(table(model, "users").latent()).put(5 * WIDTH, 3e38f);
      Floats.of(table(model, "items").latent()).put(3 * WIDTH, 0);
      Floats.of(table(model, "head").latent()).put(0, 10);
      Map<String, float[]> before = learner.weights();
      List<String> told = new ArrayList<>();
      learner.onEvent(e -> told.add(e.evidence()));
      OnlineLearner.Report report = learner.learn(List.of(Example.of(new float[] {5, 3}, 1)));
      assertEquals(0, report.steps());
      assertEquals(List.of("1 entries of the gradient"), told);
      learner.weights().forEach((name, now) -> assertArrayEquals(before.get(name), now, name));
    }
  }

  private static Weight table(TorchLearnable model, String name) {
    return model.weights().stream().filter(w -> w.name().equals(name)).findFirst().orElseThrow();
  }

  /** Else a row that is read late would go on from what was forgotten. */
  @Test
  void forgottenMomentumIsThatOfAllRows() {
    for (boolean adam : new boolean[] {false, true}) {
      OnlineSettings.Builder builder = settings(SparseRows.ALWAYS).only(Set.of("users"));
      OnlineSettings settings =
          (adam ? builder.adamW(OnlineSettings.AdamW.DEFAULTS) : builder.momentum(0.9)).build();
      try (TorchLearnable model = learnable();
          WeightState state = new WeightState(model, settings, 0)) {
        float[][] visit = {{5, 3}};
        model.forward(visit, 1, new float[1]);
        model.backward(new float[] {1}, 1);
        assertTrue(state.gradientNorm(model.weights()).norm() > 0);
        state.step(0.1);
        float[] users = new float[USERS * WIDTH];
        Floats.of(table(model, "users").latent()).get(0, users);
        int moments = 0;
        for (float[] memory : state.checkpoint().floats()) {
          moments += !Arrays.equals(memory, users) && memory[5 * WIDTH] != 0 ? 1 : 0;
        }
        assertEquals(adam ? 2 : 1, moments);
        state.forgetMomentum();
        for (float[] memory : state.checkpoint().floats()) {
          assertTrue(Arrays.equals(memory, users) || memory[5 * WIDTH] == 0);
        }
      }
    }
  }

  /** Readers of any version get all of it and nothing of another, whatever slots they hold meanwhile. */
  @ParameterizedTest
  @ValueSource(ints = {1, 3})
  void readersSeeWholeVersions(int publishEvery) throws InterruptedException {
    OnlineSettings settings = settings(SparseRows.AUTO).batch(2).publishEvery(publishEvery).build();
    float[][] probes = new float[ACTIVE][];
    for (int user = 0; user < ACTIVE; user++) {
      probes[user] = new float[] {user, user % ITEMS};
    }
    try (TorchLearnable model = learnable();
        OnlineLearner learner = new OnlineLearner(model, settings)) {
      Map<Long, float[]> truth = new ConcurrentHashMap<>();
      List<Map.Entry<Long, float[]>> answers = new ArrayList<>();
      AtomicBoolean stop = new AtomicBoolean();
      List<Thread> readers =
          Stream.generate(
                  () ->
                      new Thread(
                          () -> {
                            while (!stop.get()) {
                              float[] out = new float[ACTIVE];
                              long version = learner.predict(probes, ACTIVE, out);
                              synchronized (answers) {
                                answers.add(Map.entry(version, out));
                              }
                            }
                          }))
              .limit(3)
              .toList();
      float[] first = new float[ACTIVE];
      truth.put(learner.predict(probes, ACTIVE, first), first);
      readers.forEach(Thread::start);
      List<Example> stream = visits(1200, 1);
      for (int i = 0; i < stream.size(); i += 2) {
        long before = learner.version();
        learner.learn(stream.subList(i, i + 2));
        if (learner.version() > before) {
          float[] now = new float[ACTIVE];
          model.forward(probes, ACTIVE, now);
          truth.put(learner.version(), now);
        }
      }
      stop.set(true);
      for (Thread reader : readers) {
        reader.join();
      }
      assertTrue(answers.size() > 100, answers.size() + " answers");
      answers.forEach(a -> assertArrayEquals(truth.get(a.getKey()), a.getValue()));
    }
  }

  /** What else lies in the table is not even looked at, until any row may have changed. */
  @Test
  void aPublicationCopiesTheRowsThatChangedAndNoOthers() throws IOException {
    try (TorchLearnable model = learnable();
        OnlineLearner learner = new OnlineLearner(model, settings(SparseRows.AUTO).build())) {
      learner.learn(visits(64, 1)); // both versions have memory
      float[] probe = {2000, 1};
      float[] items = learner.weights().get("items");
      Floats.of(table(model, "users").latent()).put(2000 * WIDTH, 1e6f);
      assertTrue(Math.abs(items[WIDTH]) > 1e-3);
      for (int i = 0; i < 4; i++) {
        learner.learn(visits(16, 3 + i));
        assertTrue(Math.abs(learner.predict(probe).outputs()[0]) < 10);
      }
      byte[] now = saved(learner);
      learner.load(new ByteArrayInputStream(now));
      assertTrue(Math.abs(learner.predict(probe).outputs()[0]) > 10);
      assertServesWhatItLearned(learner, model);
    }
  }

  /** More rows than are worth a list, between two versions. */
  @Test
  void aPublicationOfManyRowsCopiesTheTable() {
    OnlineSettings settings = settings(SparseRows.AUTO).publishEvery(60).build();
    try (TorchLearnable model = learnable();
        OnlineLearner learner = new OnlineLearner(model, settings)) {
      List<Example> many = new ArrayList<>();
      for (int i = 0; i < 4 * 60 * 16; i++) {
        many.add(Example.of(new float[] {i % USERS, 0}, 1));
      }
      learner.learn(many);
      assertEquals(5, learner.version());
      assertServesWhatItLearned(learner, model);
    }
  }

  @Test
  void aModelIsLearnedAsAWholeAgainByALearnerThatAsksForIt() throws IOException {
    OnlineSettings whole = settings(SparseRows.NEVER).momentum(0.9).build();
    byte[] expected = learned(Form.ONCE.model(), whole, visits(64, 1));
    try (TorchLearnable model = learnable()) {
      try (OnlineLearner learner = new OnlineLearner(model, settings(SparseRows.AUTO).build())) {
        assertNull(table(model, "users").gradient());
      }
      try (OnlineLearner learner = new OnlineLearner(model, whole)) {
        learner.learn(visits(64, 1));
        assertArrayEquals(expected, saved(learner));
      }
    }
  }

  /** Tables whose rows are not all that is read of them. */
  @Test
  void tablesThatAreReadOtherwiseAreNamedWithTheirReader() {
    GraphProto.Builder g = ClickModel.graph(3, USERS, ITEMS, WIDTH);
    List<NodeProto> more =
        List.of(
            node("Transpose", "/tied/Transpose", List.of("items"), "turned"),
            node("Gather", "", List.of("columns", "user"), "column", attribute("axis", 1)));
    more.forEach(g::addNode);
    g.addInitializer(floats("columns", new Random(2), 1, 4, USERS));
    g.addInitializer(floats("shown", new Random(2), 1, USERS, 2));
    g.addNode(node("Gather", "", List.of("shown", "user"), "seen"));
    g.addOutput(value("shown", DataType.FLOAT, USERS, 2));
    GraphProto.Builder branch =
        GraphProto.newBuilder()
            .setName("branch")
            .addNode(node("Gather", "", List.of("inner", "user"), "b"))
            .addOutput(value("b", DataType.FLOAT, -1, 2));
    g.addInitializer(floats("inner", new Random(2), 1, USERS, 2));
    g.addNode(node("Gather", "", List.of("inner", "user"), "outer"));
    g.addInitializer(SmallModels.tensor("yes", DataType.BOOL, ByteBuffer.wrap(new byte[] {1})));
    g.addNode(SmallModels.choice("/chosen", "yes", "chosen", branch));
    g.addInitializer(floats("tied", new Random(2), 1, USERS, 2));
    g.addNode(node("Gather", "", List.of("tied", "user"), "looked up"));
    g.addNode(node("Identity", "", List.of("tied"), "second name"));
    g.addNode(node("Transpose", "/second/Transpose", List.of("second name"), "turned tied"));
    g.addInitializer(floats("backwards", new Random(2), 1, USERS, 2));
    g.addNode(node("Gather", "", List.of("backwards", "user"), "back", attribute("axis", -2)));
    try (OnnxGraph graph = new OnnxGraph(OnnxModel.of(SmallModels.model(13, g), "readers"))) {
      assertEquals(
          Map.of(
              "users",
              "",
              "items",
              "Transpose /tied/Transpose",
              "shown",
              "who reads the output shown",
              "inner",
              "If /chosen",
              "tied",
              "Transpose /second/Transpose",
              "backwards",
              ""),
          graph.tables());
    }
  }

  @Test
  void aTableThatIsReadOtherwiseIsLearnedAsAWhole() throws IOException {
    GraphProto.Builder g = ClickModel.graph(3, USERS, ITEMS, WIDTH);
    g.addInitializer(SmallModels.int64s("rows", 0));
    g.addNode(node("ReduceMax", "", List.of("users"), "largest", attribute("keepdims", 0)));
    g.setNode(6, node("Add", "", List.of("p", "largest"), "z"));
    OnnxModel model = OnnxModel.of(SmallModels.model(13, g), "largest");
    List<byte[]> states = new ArrayList<>();
    for (SparseRows rows : List.of(SparseRows.NEVER, SparseRows.AUTO)) {
      try (TorchLearnable learnable = learnable(model);
          OnlineLearner learner = new OnlineLearner(learnable, settings(rows).build())) {
        learner.learn(visits(40, 1));
        assertTrue(table(learnable, "users").gradient() != null);
        states.add(saved(learner));
      }
    }
    assertArrayEquals(states.get(0), states.get(1));
    String said =
        said(
            () -> {
              try (TorchLearnable learnable = learnable(model);
                  OnlineLearner learner =
                      new OnlineLearner(
                          learnable, settings(SparseRows.ALWAYS).momentum(0.9).build())) {
                assertNull(table(learnable, "items").gradient());
                assertTrue(table(learnable, "users").gradient() != null);
              }
            });
    assertTrue(said.contains("whole table users") && said.contains("ReduceMax largest"), said);
    assertFalse(said.contains("items"), said);
  }

  /** What a learner logs. */
  private static String said(Runnable learning) {
    ByteArrayOutputStream log = new ByteArrayOutputStream();
    PrintStream err = System.err;
    System.setErr(new PrintStream(log, true, StandardCharsets.UTF_8));
    try {
      learning.run();
    } finally {
      System.setErr(err);
    }
    return log.toString(StandardCharsets.UTF_8);
  }

  @Test
  void largeTablesThatMomentumMovesAsAWholeAreNamed() {
    int users = (1 << 24) / 4 / WIDTH;
    OnnxModel model =
        OnnxModel.of(SmallModels.model(13, ClickModel.graph(3, users, ITEMS, WIDTH)), "large");
    for (OnlineSettings settings :
        List.of(
            settings(SparseRows.AUTO).momentum(0.9).build(),
            settings(SparseRows.AUTO).adamW(OnlineSettings.AdamW.DEFAULTS).build(),
            settings(SparseRows.AUTO).build(),
            settings(SparseRows.ALWAYS).momentum(0.9).build(),
            settings(SparseRows.NEVER).momentum(0.9).build())) {
      String said =
          said(
              () -> {
                try (TorchLearnable learnable = learnable(model)) {
                  new OnlineLearner(learnable, settings).close();
                }
              });
      boolean whole = settings.sparseRows() == SparseRows.AUTO && !settings.learnsByRows();
      assertEquals(whole, said.contains("16 MB of the table users"), said);
      assertEquals(whole, said.contains("sparse-rows: always"), said);
      assertFalse(said.contains("items"), said);
    }
  }

  @Test
  void whatRowsAloneCannotDoIsSaid() {
    OnlineSettings.Builder always = settings(SparseRows.ALWAYS);
    refused("averaging", () -> settings(SparseRows.ALWAYS).averaging(0.9).build());
    refused("noise", () -> settings(SparseRows.ALWAYS).privacy(new Privacy(1, 1, 1e-5, 1)).build());
    try (LinearHead head = new LinearHead(2, 1)) {
      refused("looks no rows up", () -> new OnlineLearner(head, always.build()));
    }
    try (TorchLearnable model = learnable()) {
      assertFalse(always.build().describe().equals(settings(SparseRows.AUTO).build().describe()));
      for (OnlineSettings whole :
          List.of(
              settings(SparseRows.AUTO).averaging(0.9).build(),
              settings(SparseRows.AUTO).momentum(0.9).build(),
              settings(SparseRows.AUTO).weightDecay(0.1).build(),
              settings(SparseRows.AUTO).adamW(OnlineSettings.AdamW.DEFAULTS).build(),
              settings(SparseRows.AUTO).privacy(new Privacy(1, 1, 1e-5, 1)).build())) {
        try (OnlineLearner learner = new OnlineLearner(model, whole)) {
          learner.learn(visits(8, 1));
          assertTrue(table(model, "users").gradient() != null, whole.describe());
        }
      }
      assertEquals(
          always.build(),
          OnlineRecipe.parse(
                  "loss: binary\nlearning-rate: 0.5\nbatch: 16\nsparse-rows: always\n", "recipe")
              .settings());
    }
  }

  private static void refused(String part, org.junit.jupiter.api.function.Executable call) {
    String said = assertThrows(IllegalArgumentException.class, call).getMessage();
    assertTrue(said.contains(part), said);
  }
}

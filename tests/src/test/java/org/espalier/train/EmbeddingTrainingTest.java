package org.espalier.train;

import static org.espalier.format.onnx.SmallModels.attribute;
import static org.espalier.format.onnx.SmallModels.floats;
import static org.espalier.format.onnx.SmallModels.node;
import static org.espalier.format.onnx.SmallModels.value;
import static org.espalier.format.onnx.SmallModels.values;
import static org.espalier.train.StoppedRuns.bytes;
import static org.espalier.train.StoppedRuns.exported;
import static org.espalier.train.StoppedRuns.until;
import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertNull;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import ai.onnx.proto.OnnxMl.GraphProto;
import ai.onnx.proto.OnnxMl.TensorProto.DataType;
import ai.onnx.proto.OnnxMl.ValueInfoProto;
import ai.onnxruntime.OrtException;
import java.io.IOException;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.FloatBuffer;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.Map;
import java.util.Random;
import java.util.stream.IntStream;
import org.bytedeco.javacpp.PointerScope;
import org.bytedeco.pytorch.AbstractTensor;
import org.bytedeco.pytorch.BoolOptional;
import org.bytedeco.pytorch.Tensor;
import org.bytedeco.pytorch.TensorArrayRefOptional;
import org.bytedeco.pytorch.global.torch;
import org.espalier.InputException;
import org.espalier.backend.CpuThreads;
import org.espalier.compress.Glob;
import org.espalier.compress.onnx.ActivationSource;
import org.espalier.format.onnx.ClickModel;
import org.espalier.format.onnx.HalfModels;
import org.espalier.format.onnx.OnnxInitializer;
import org.espalier.format.onnx.OnnxModel;
import org.espalier.format.onnx.SmallDecoder;
import org.espalier.format.onnx.SmallModels;
import org.espalier.format.safetensors.SafetensorsDtype;
import org.espalier.torch.onnx.OnnxGraph;
import org.espalier.torch.onnx.OnnxRuntime;
import org.junit.jupiter.api.AfterEach;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;
import org.junit.jupiter.params.provider.EnumSource;
import org.junit.jupiter.params.provider.ValueSource;

/** Tables that a model looks up in are pruned, quantized and trained as other weights are. */
class EmbeddingTrainingTest {
  /** With WIDTH so many that the dynamic form makes integers of the table. */
  private static final int USERS = 8192;

  private static final int ITEMS = 40;
  private static final int WIDTH = 8;

  /** The users that come. */
  private static final int ACTIVE = 60;

  private static final TrainingListener SILENT = new TrainingListener() {};

  private final int threads = CpuThreads.get();

  @AfterEach
  void restoreThreads() {
    CpuThreads.set(threads);
  }

  static OnnxModel clicks() {
    return OnnxModel.of(ClickModel.of(3, USERS, ITEMS, WIDTH), "clicks");
  }

  /** Examples of one input ids [2]. */
  private static Examples.Labelled examples(List<ClickModel.Visit> visits) {
    List<byte[]> rows = new ArrayList<>();
    for (ClickModel.Visit v : visits) {
      ByteBuffer row = ByteBuffer.allocate(16).order(ByteOrder.LITTLE_ENDIAN);
      rows.add(row.putLong(v.user()).putLong(v.item()).array());
    }
    long[] labels = visits.stream().mapToLong(ClickModel.Visit::clicks).toArray();
    return new Examples.Labelled(
        List.of(new Examples.Input("ids", SafetensorsDtype.I64, List.of(2L), rows)),
        new Labels.Classes(labels));
  }

  static Compression.Job job(OnnxModel model, OnnxModel teacher) {
    return new Compression.Job(
        model,
        teacher,
        examples(ClickModel.visits(1, 1500, ACTIVE, ITEMS)),
        examples(ClickModel.visits(2, 300, ACTIVE, ITEMS)),
        Pooling.MEAN,
        null,
        null);
  }

  private static Training training(long steps, Optimizer optimizer, Objective objective) {
    return new Training(steps, 0, 32, optimizer, Training.Schedule.constant(), objective, 0);
  }

  private static Training learning(long steps) {
    return training(steps, Optimizer.AdamW.of(2e-2), Objective.ofLabels());
  }

  private static Quantization quantization(boolean learnScales) {
    return quantization(Quantization.Form.DYNAMIC, false, learnScales);
  }

  private static Quantization quantization(
      Quantization.Form form, boolean fit, boolean learnScales) {
    return Quantization.of(form).withFit(fit).withLearnedScales(learnScales);
  }

  /** Runs some examples in ONNX Runtime. */
  private static ActivationSource calibration(Examples examples) {
    return (model, activations, receiver) -> {
      OnnxModel tapped = model.withOutputs(activations);
      List<String> names = tapped.inputs().stream().map(ValueInfoProto::getName).toList();
      for (int i = 0; i < 20; i++) {
        try (PointerScope scope = new PointerScope()) {
          Batch batch = Batch.of(examples, new int[] {i}, names);
          Map<String, Tensor> outputs = OnnxRuntime.run(tapped, batch.inputs(names));
          for (String activation : activations) {
            Tensor values = outputs.get(activation).contiguous();
            receiver.accept(activation, values.shape(), values.createBuffer());
          }
        } catch (OrtException e) {
          throw new AssertionError(e);
        }
      }
    };
  }

  private static OnnxCompression trained(Compression.Job job, Stage... stages) {
    OnnxCompression c = new OnnxCompression(new CompressionPlan(List.of(stages), 7), job);
    try {
      assertTrue(c.run(SILENT));
      return c;
    } catch (RuntimeException | Error e) {
      c.close();
      throw e;
    }
  }

  /** One step of plain descent on visits some of which repeat users, against the same in double. */
  @Test
  void aStepAddsTheGradientsOfAllLookUpsOfARow() {
    List<ClickModel.Visit> visits = new ArrayList<>(ClickModel.visits(5, 40, 6, 5));
    // Counted from the end, as ONNX allows it, and beside the same row counted from the start.
    visits.set(3, new ClickModel.Visit(-1, -ITEMS));
    visits.set(4, new ClickModel.Visit(USERS - 1, 0));
    Examples.Labelled examples = examples(visits);
    double rate = 0.5;
    Training one =
        new Training(
            1,
            0,
            visits.size(),
            Optimizer.Sgd.of(rate),
            Training.Schedule.constant(),
            Objective.ofLabels(),
            0);
    Compression.Job job =
        new Compression.Job(clicks(), null, examples, examples, Pooling.MEAN, null, null);
    float[] users = values(clicks(), "users");
    float[] items = values(clicks(), "items");
    float[] head = values(clicks(), "head");
    double[] expected = new double[users.length];
    for (int i = 0; i < users.length; i++) {
      expected[i] = users[i];
    }
    for (ClickModel.Visit v : visits) {
      int u = Math.floorMod(v.user(), USERS) * WIDTH;
      int w = Math.floorMod(v.item(), ITEMS) * WIDTH;
      double z = 0;
      for (int k = 0; k < WIDTH; k++) {
        z += (double) users[u + k] * items[w + k] * head[k];
      }
      double slope = (1 / (1 + Math.exp(-z)) - v.clicks()) / visits.size();
      for (int k = 0; k < WIDTH; k++) {
        expected[u + k] -= rate * slope * items[w + k] * head[k];
      }
    }
    try (OnnxCompression c = trained(job, new Stage.Train("fit", one))) {
      float[] now = values(c.floatModel(), "users");
      boolean[] seen = new boolean[USERS];
      visits.forEach(v -> seen[Math.floorMod(v.user(), USERS)] = true);
      int moved = 0;
      for (int i = 0; i < now.length; i++) {
        assertEquals(expected[i], now[i], 1e-6, "entry " + i);
        moved += now[i] != users[i] ? 1 : 0;
        assertTrue(seen[i / WIDTH] || now[i] == users[i], "a row that no example looked up moved");
      }
      assertTrue(moved >= 6 * WIDTH, moved + " entries moved");
    }
  }

  /** Of many indices libtorch adds in parallel, but each row's in their order. */
  @ParameterizedTest
  @ValueSource(booleans = {false, true})
  void threadsOfLibtorchChangeNoBitOfAGradient(boolean cube) {
    GraphProto.Builder g =
        GraphProto.newBuilder()
            .setName("look")
            .addInput(value("ids", DataType.INT64, -1))
            .addInitializer(
                cube
                    ? floats("table", new Random(1), 1, 50, 4, 16)
                    : floats("table", new Random(1), 1, 50, 64))
            .addNode(node("Gather", "", List.of("table", "ids"), "rows"))
            .addOutput(
                cube
                    ? value("rows", DataType.FLOAT, -1, 4, 16)
                    : value("rows", DataType.FLOAT, -1, 64));
    OnnxModel model = OnnxModel.of(SmallModels.model(13, g), "look");
    long[] ids = new Random(2).longs(20_000, -50, 50).toArray();
    float[] slopes = new float[ids.length * 64];
    double[] expected = new double[50 * 64];
    Random random = new Random(3);
    for (int i = 0; i < slopes.length; i++) {
      slopes[i] = (float) random.nextGaussian();
      expected[Math.floorMod(ids[i / 64], 50) * 64 + i % 64] += slopes[i];
    }
    List<float[]> gradients = new ArrayList<>();
    try (OnnxGraph graph = new OnnxGraph(model)) {
      int before = torch.get_num_threads();
      for (int n : new int[] {1, 2, 3}) {
        torch.set_num_threads(n);
        try (PointerScope scope = new PointerScope()) {
          Tensor table = graph.parameters().get(0).tensor();
          table.mutable_grad().reset();
          Tensor rows = graph.forward(Map.of("ids", AbstractTensor.create(ids))).get("rows");
          Tensor slope = AbstractTensor.create(slopes).reshape(rows.shape());
          rows.backward(slope, new BoolOptional(), false, new TensorArrayRefOptional());
          float[] gradient = new float[50 * 64];
          FloatBuffer values = table.grad().contiguous().createBuffer();
          values.get(gradient);
          gradients.add(gradient);
        }
      }
      torch.set_num_threads(before);
    }
    for (int i = 0; i < expected.length; i++) {
      // Some 400 summands of size 1 each, in float.
      assertEquals(expected[i], gradients.get(0)[i], 1e-4, "entry " + i);
    }
    assertArrayEquals(gradients.get(0), gradients.get(1));
    assertArrayEquals(gradients.get(0), gradients.get(2));
  }

  @Test
  void labelsAreLearnedByTablesAndByNothingElse() {
    try (OnnxCompression c = trained(job(clicks(), null), new Stage.Train("fit", learning(300)))) {
      double quality = c.stages().get(0).after().quality();
      assertTrue(quality > 0.97, c.stages().toString());
      assertEquals(
          List.of("users", "items", "head"), c.layers().stream().map(LayerReport::name).toList());
    }
    Training frozen = learning(300).with(Training.Embeddings.NEVER);
    try (OnnxCompression c = trained(job(clicks(), null), new Stage.Train("fit", frozen))) {
      assertTrue(c.stages().get(0).after().quality() < 0.65, c.stages().toString());
      assertArrayEquals(values(clicks(), "users"), values(c.floatModel(), "users"));
      assertEquals(List.of("head"), c.layers().stream().map(LayerReport::name).toList());
    }
  }

  /** The tables of a model that follows its own original are right as they are. */
  @Test
  void theDefaultTrainsThemForLabelsAndForAnotherTeacher() {
    Training following = training(20, Optimizer.AdamW.of(1e-3), Objective.ofLogits(0, 1));
    OnnxModel other = OnnxModel.of(ClickModel.of(4, USERS, ITEMS, WIDTH), "teacher");
    for (Training.Embeddings set :
        List.of(Training.Embeddings.AUTO, Training.Embeddings.ALWAYS, Training.Embeddings.NEVER)) {
      for (boolean own : new boolean[] {true, false}) {
        boolean trains =
            set == Training.Embeddings.ALWAYS || set == Training.Embeddings.AUTO && !own;
        // With the original as its teacher a model has no gradient before it is rounded.
        Stage stage =
            own
                ? new Stage.Quantize("quantize", quantization(false), following.with(set))
                : new Stage.Train("distil", following.with(set));
        CompressionPlan plan = new CompressionPlan(List.of(stage), 7);
        try (OnnxCompression c = new OnnxCompression(plan, job(clicks(), own ? null : other))) {
          // Stopped where it is: of a whole stage the best state would be kept, perhaps the first.
          assertFalse(c.run(until(stage, 5)));
          float[] now = values(c.floatModel(), "items");
          assertEquals(!trains, Arrays.equals(values(clicks(), "items"), now), set + " " + own);
          assertEquals(trains ? 3 : 1, c.layers().size());
        }
      }
    }
  }

  @Test
  void aStageTrainsTheTablesThatItNames() {
    Training items = learning(40).with(Training.Embeddings.named(List.of(Glob.parse("it*"))));
    Stage fit = new Stage.Train("fit", items);
    CompressionPlan plan = new CompressionPlan(List.of(fit), 7);
    try (OnnxCompression c = new OnnxCompression(plan, job(clicks(), null))) {
      assertFalse(c.run(until(fit, 5)));
      assertArrayEquals(values(clicks(), "users"), values(c.floatModel(), "users"));
      assertFalse(Arrays.equals(values(clicks(), "items"), values(c.floatModel(), "items")));
      assertEquals(List.of("items", "head"), c.layers().stream().map(LayerReport::name).toList());
    }
  }

  /** A stage that leaves tables as they are, beside others that train them. */
  @Test
  void eachStageSaysForItself() {
    Stage learn = new Stage.Train("learn", learning(60));
    Stage keep = new Stage.Train("keep", learning(60).with(Training.Embeddings.NEVER));
    try (OnnxCompression one = trained(job(clicks(), null), learn);
        OnnxCompression two = trained(job(clicks(), null), learn, keep)) {
      assertArrayEquals(values(one.floatModel(), "users"), values(two.floatModel(), "users"));
      assertFalse(
          Arrays.equals(values(one.floatModel(), "head"), values(two.floatModel(), "head")));
    }
  }

  /** What is exported are the integers of the very grid that forward read. */
  @ParameterizedTest
  @CsvSource({"DYNAMIC, false", "DYNAMIC, true", "STATIC, false", "STATIC, true"})
  void anInt8TableIsExportedAsTrainingSawIt(Quantization.Form form, boolean learnScales) {
    Quantization q = quantization(form, false, learnScales);
    Compression.Job plain = job(clicks(), null);
    Compression.Job job =
        new Compression.Job(
            plain.model(),
            null,
            plain.training(),
            plain.validation(),
            Pooling.MEAN,
            calibration(plain.training()),
            null);
    try (OnnxCompression c =
        trained(
            job,
            new Stage.Train("fit", learning(150)),
            new Stage.Quantize("quantize", q, learning(100)))) {
      assertTrue(c.stages().get(1).after().quality() > 0.97, c.stages().toString());
      float[] latent = values(c.floatModel(), "users");
      float[] working = values(c.roundedModel(), "users");
      OnnxModel exported = c.export();
      assertNull(exported.constant("users"));
      byte[] integers = new byte[USERS * WIDTH];
      exported.constant("users_quantized").data().get(integers);
      OnnxInitializer scales = exported.constant("users_scale");
      assertEquals(learnScales ? DataType.FLOAT : DataType.FLOAT16, scales.type());
      FloatBuffer steps = scales.floats();
      int moved = 0;
      float[] start = startOf(c, latent);
      for (int i = 0; i < integers.length; i++) {
        float step = steps.get(i / WIDTH);
        assertTrue(working[i] == step * integers[i], "entry " + i);
        int rounded = (int) Math.rint(latent[i] * (1 / step));
        assertEquals(Math.max(-127, Math.min(127, rounded)), integers[i], "entry " + i);
        moved += integers[i] != Math.rint(start[i] / step) ? 1 : 0;
      }
      assertTrue(moved > 50, moved + " integers moved");
      LayerReport layer = c.layers().get(0);
      assertEquals("users", layer.name());
      assertEquals(8, layer.bits());
    }
  }

  /** The table as it is without the steps of the stage that quantizes. */
  private static float[] startOf(OnnxCompression trained, float[] latent) {
    try (OnnxCompression c = trained(job(clicks(), null), new Stage.Train("fit", learning(150)))) {
      float[] start = values(c.floatModel(), "users");
      assertFalse(Arrays.equals(start, latent));
      return start;
    }
  }

  @ParameterizedTest
  @ValueSource(booleans = {false, true})
  void aStoppedRunContinuesToTheSameBits(boolean learnScales) throws IOException {
    Pruning some =
        new Pruning(
            0.4,
            Pruning.Scope.TENSOR,
            null,
            Pruning.Schedule.ONE_SHOT,
            1,
            1,
            n -> true,
            true,
            false);
    CompressionPlan plan =
        new CompressionPlan(
            List.of(
                new Stage.Prune("prune", some, learning(20)),
                new Stage.Quantize("quantize", quantization(learnScales), learning(20)),
                new Stage.Train("keep", learning(20).with(Training.Embeddings.NEVER)),
                new Stage.Train("fit", learning(20))),
            7);
    byte[] whole;
    try (OnnxCompression c = new OnnxCompression(plan, job(clicks(), null))) {
      c.run(SILENT);
      whole = bytes(c.export());
    }
    for (int stage = 0; stage < 4; stage++) {
      assertArrayEquals(
          whole,
          exported(plan, job(clicks(), null), plan.stages().get(stage), 4),
          "stage " + stage);
    }
  }

  /** A language model's table that is its last product too stays one tensor behind a checkpoint. */
  @ParameterizedTest
  @CsvSource({"DYNAMIC, false", "DYNAMIC, true", "STATIC, false", "STATIC, true"})
  void aStoppedRunOfATiedTableContinuesToTheSameBits(Quantization.Form form, boolean fit)
      throws IOException {
    CompressionPlan plan =
        new CompressionPlan(
            List.of(
                new Stage.Quantize("quantize", quantization(form, fit, false), learning(6)),
                new Stage.Train("fit", learning(6))),
            7);
    Examples.Texts texts = CausalTrainingTest.texts(24, 1);
    Compression.Job job =
        new Compression.Job(
            OnnxModel.of(SmallDecoder.tied(1, 50, 16, 1), "tied"),
            null,
            texts,
            CausalTrainingTest.texts(6, 2),
            Pooling.MEAN,
            calibration(texts),
            null);
    byte[] whole;
    try (OnnxCompression c = new OnnxCompression(plan, job)) {
      c.run(SILENT);
      whole = bytes(c.export());
    }
    assertArrayEquals(whole, exported(plan, job, plan.stages().get(0), 4));
    assertArrayEquals(whole, exported(plan, job, plan.stages().get(1), 4));
    OnnxModel exported =
        OnnxModel.read(ByteBuffer.allocateDirect(whole.length).put(whole).flip(), "");
    long tables = exported.initializers().stream().filter(i -> i.elements() == 50 * 16).count();
    assertEquals(1, tables);
  }

  /** A table whose rows a product sums up: training gives the product weights of its own. */
  @ParameterizedTest
  @EnumSource(Quantization.Form.class)
  void aTableThatAProductSumsUpTooContinuesToTheSameBits(Quantization.Form form)
      throws IOException {
    GraphProto.Builder g = ClickModel.graph(3, USERS, ITEMS, WIDTH);
    g.addInitializer(floats("mix", new Random(4), 0.01f, WIDTH, USERS));
    g.getNodeBuilder(2).setOutput(0, "u1");
    g.addNode(4, node("MatMul", "", List.of("v", "mix"), "weights"));
    g.addNode(5, node("MatMul", "", List.of("weights", "users"), "sum"));
    g.addNode(6, node("Add", "", List.of("u1", "sum"), "u"));
    OnnxModel model = OnnxModel.of(SmallModels.model(13, g), "sums");
    CompressionPlan plan =
        new CompressionPlan(
            List.of(
                new Stage.Train("fit", learning(10)),
                new Stage.Quantize("quantize", quantization(form, false, false), learning(10)),
                new Stage.Train("more", learning(10))),
            7);
    Compression.Job plain = job(model, null);
    Compression.Job job =
        new Compression.Job(
            model,
            null,
            plain.training(),
            plain.validation(),
            Pooling.MEAN,
            calibration(plain.training()),
            null);
    byte[] whole;
    try (OnnxCompression c = trained(job, plan.stages().toArray(Stage[]::new))) {
      OnnxModel exported = c.export();
      assertEquals(DataType.INT8, exported.constant("users_quantized").type());
      whole = bytes(exported);
    }
    assertArrayEquals(whole, exported(plan, job, plan.stages().get(1), 4));
    assertArrayEquals(whole, exported(plan, job, plan.stages().get(2), 4));
  }

  @Test
  void theNumberOfThreadsChangesNoBit() {
    List<byte[]> models = new ArrayList<>();
    for (int n : new int[] {1, 2}) {
      CpuThreads.set(n);
      try (OnnxCompression c =
          trained(
              job(clicks(), null),
              new Stage.Train("fit", learning(30)),
              new Stage.Quantize("quantize", quantization(false), learning(30)))) {
        models.add(bytes(c.export()));
      }
    }
    assertArrayEquals(models.get(0), models.get(1));
  }

  /** Tables are pruned where the recipe names them; what is 0 stays 0, whether rounded or not. */
  @ParameterizedTest
  @ValueSource(booleans = {false, true})
  void prunedEntriesStayZero(boolean embeddings) {
    Pruning half =
        new Pruning(
            0.5,
            Pruning.Scope.TENSOR,
            null,
            Pruning.Schedule.ONE_SHOT,
            1,
            1,
            name -> true,
            embeddings,
            false);
    try (OnnxCompression c =
        trained(
            job(clicks(), null),
            new Stage.Prune("prune", half, learning(40)),
            new Stage.Quantize("quantize", quantization(false), learning(40)),
            new Stage.Train("fit", learning(40)))) {
      // Items are few and stay float; users are int8.
      for (String name : List.of("users", "items")) {
        float[] values = values(c.roundedModel(), name);
        int zeros = 0;
        for (float value : values) {
          zeros += value == 0 ? 1 : 0;
        }
        if (embeddings) {
          assertTrue(zeros >= values.length / 2, name + ": " + zeros);
        } else {
          assertTrue(zeros < values.length / 50, name + ": " + zeros);
        }
      }
    }
  }

  @Test
  void aPatternLiesAlongTheFeatures() {
    Pruning pattern =
        new Pruning(
            0,
            Pruning.Scope.GLOBAL,
            new Pruning.Pattern(2, 4),
            Pruning.Schedule.ONE_SHOT,
            1,
            1,
            name -> name.equals("users"),
            true,
            false);
    try (OnnxCompression c =
        trained(job(clicks(), null), new Stage.Prune("prune", pattern, learning(20)))) {
      float[] users = values(c.floatModel(), "users");
      for (int i = 0; i < users.length; i += 4) {
        int zeros = 0;
        for (int k = 0; k < 4; k++) {
          zeros += users[i + k] == 0 ? 1 : 0;
        }
        assertEquals(2, zeros, "entry " + i);
      }
    }
  }

  /**
   * Of other shapes, along other axes, read twice, and by a branch too: what training reads is what is written.
   */
  @ParameterizedTest
  @EnumSource(Form.class)
  void tablesOfAllFormsLearn(Form form) throws OrtException {
    OnnxModel model = OnnxModel.of(SmallModels.model(13, form.graph()), "forms");
    Stage fit = new Stage.Train("fit", learning(300));
    Stage quantize = new Stage.Quantize("quantize", quantization(false), learning(30));
    for (Stage[] stages : new Stage[][] {{fit}, {fit, quantize}}) {
      try (OnnxCompression c = trained(job(model, null), stages)) {
        double quality = c.stages().get(stages.length - 1).after().quality();
        assertTrue(quality > 0.95, c.stages().toString());
        assertFalse(Arrays.equals(values(model, "users"), values(c.floatModel(), "users")));
        assertEquals(quality, accuracy(c.export(), 2, 300), 1e-9);
      }
    }
  }

  /** Of a model in ONNX Runtime. */
  private static double accuracy(OnnxModel model, long seed, int n) throws OrtException {
    List<ClickModel.Visit> visits = ClickModel.visits(seed, n, ACTIVE, ITEMS);
    try (PointerScope scope = new PointerScope()) {
      Batch batch = Batch.of(examples(visits), IntStream.range(0, n).toArray(), List.of("ids"));
      Tensor z = OnnxRuntime.run(model, batch.inputs(List.of("ids"))).get("z").contiguous();
      FloatBuffer logits = z.createBuffer();
      int right = 0;
      for (int i = 0; i < n; i++) {
        right += (logits.get(i) > 0 ? 1 : 0) == visits.get(i).clicks() ? 1 : 0;
      }
      return (double) right / n;
    }
  }

  /** How the users' table is looked up in. */
  enum Form {
    /** [users, 2, 4], along the first axis. */
    CUBE,
    /** [8, users], along the last axis. */
    COLUMNS,
    /** [users], a number each. */
    NUMBERS,
    /** By two nodes. */
    TWICE,
    /** By both branches of an If. */
    BRANCHES;

    GraphProto.Builder graph() {
      GraphProto.Builder g = ClickModel.graph(3, USERS, ITEMS, WIDTH);
      Random random = new Random(8);
      int table = 0;
      int look = 2;
      assertEquals("users", g.getInitializer(table).getName());
      assertEquals("u", g.getNode(look).getOutput(0));
      switch (this) {
        case CUBE -> {
          g.setInitializer(table, floats("users", random, 0.3f, USERS, 2, WIDTH / 2));
          g.setNode(look, node("Gather", "", List.of("users", "user"), "cube"));
          g.addInitializer(SmallModels.int64s("flat", 0, -1));
          g.addNode(look + 1, node("Reshape", "", List.of("cube", "flat"), "u"));
        }
        case COLUMNS -> {
          g.setInitializer(table, floats("users", random, 0.3f, WIDTH, USERS));
          g.setNode(
              look, node("Gather", "", List.of("users", "user"), "column", attribute("axis", 1)));
          g.addNode(look + 1, node("Transpose", "", List.of("column"), "u"));
        }
        case NUMBERS -> {
          g.setInitializer(table, floats("users", random, 0.3f, USERS));
          g.setNode(look, node("Gather", "", List.of("users", "user"), "number"));
          g.addInitializer(SmallModels.int64s("column", 1));
          g.addNode(look + 1, node("Unsqueeze", "", List.of("number", "column"), "u"));
        }
        case TWICE -> {
          g.setNode(look, node("Gather", "", List.of("users", "user"), "u1"));
          g.addNode(look + 1, node("Gather", "", List.of("users", "user"), "u2"));
          g.addNode(look + 2, node("Add", "", List.of("u1", "u2"), "u"));
        }
        case BRANCHES -> {
          g.addInitializer(
              SmallModels.tensor("yes", DataType.BOOL, ByteBuffer.wrap(new byte[] {1})));
          GraphProto.Builder branch =
              GraphProto.newBuilder()
                  .setName("branch")
                  .addNode(node("Gather", "", List.of("users", "user"), "b"))
                  .addOutput(value("b", DataType.FLOAT, -1, WIDTH));
          g.addNode(look + 1, SmallModels.choice("", "yes", "chosen", branch));
          g.setNode(look, node("Gather", "", List.of("users", "user"), "u1"));
          g.addNode(look + 2, node("Add", "", List.of("u1", "chosen"), "u"));
        }
        default -> throw new IllegalStateException();
      }
      return g;
    }
  }

  @ParameterizedTest
  @ValueSource(booleans = {false, true})
  void tablesOfSixteenBitsLearnAndKeepTheirType(boolean quantized) {
    OnnxModel half =
        OnnxModel.of(
            HalfModels.of(ClickModel.of(3, USERS, ITEMS, WIDTH), DataType.FLOAT16), "half");
    Stage fit = new Stage.Train("fit", learning(200));
    Stage quantize = new Stage.Quantize("quantize", quantization(false), learning(50));
    try (OnnxCompression c =
        quantized ? trained(job(half, null), fit, quantize) : trained(job(half, null), fit)) {
      int last = quantized ? 1 : 0;
      assertTrue(c.stages().get(last).after().quality() > 0.97, c.stages().toString());
      OnnxInitializer users = c.export().constant(quantized ? "users_quantized" : "users");
      assertEquals(quantized ? DataType.INT8 : DataType.FLOAT16, users.type());
    }
  }

  @Test
  void anIndexOutsideATableIsNamed() {
    for (long bad : new long[] {USERS, -USERS - 1}) {
      List<ClickModel.Visit> visits = new ArrayList<>(ClickModel.visits(1, 64, ACTIVE, ITEMS));
      visits.set(40, new ClickModel.Visit(bad, 0));
      Compression.Job job =
          new Compression.Job(
              clicks(),
              null,
              examples(visits),
              examples(ClickModel.visits(2, 32, ACTIVE, ITEMS)),
              Pooling.MEAN,
              null,
              null);
      InputException e =
          assertThrows(
              InputException.class, () -> trained(job, new Stage.Train("fit", learning(10))));
      assertTrue(
          e.getMessage().contains("index " + bad + " is outside [-8192, 8191]"), e.toString());
    }
  }

  @Test
  void aModelOfTablesAloneIsTrainedOrRefusedWithTheWay() {
    GraphProto.Builder g = ClickModel.graph(3, USERS, ITEMS, WIDTH);
    List<String> left = List.of("head", "bias");
    List<ai.onnx.proto.OnnxMl.TensorProto> kept =
        g.getInitializerList().stream().filter(i -> !left.contains(i.getName())).toList();
    g.clearInitializer().addAllInitializer(kept);
    g.removeNode(6).removeNode(5);
    g.addNode(node("ReduceSum", "", List.of("both", "last"), "z", attribute("keepdims", 1)));
    g.addInitializer(SmallModels.int64s("last", 1));
    OnnxModel model = OnnxModel.of(SmallModels.model(13, g), "factors");
    try (OnnxCompression c = trained(job(model, null), new Stage.Train("fit", learning(300)))) {
      assertTrue(c.stages().get(0).after().quality() > 0.97, c.stages().toString());
    }
    Training follows = training(5, Optimizer.AdamW.of(1e-3), Objective.ofLogits(0, 1));
    CompressionPlan plan = new CompressionPlan(List.of(new Stage.Train("distil", follows)), 1);
    InputException e =
        assertThrows(
            InputException.class, () -> new OnnxCompression(plan, job(model, null)).close());
    assertTrue(e.getMessage().contains("train-embeddings"), e.getMessage());
  }
}

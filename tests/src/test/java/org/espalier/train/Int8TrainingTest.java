package org.espalier.train;

import static org.espalier.train.StoppedRuns.bytes;
import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import ai.onnx.proto.OnnxMl.GraphProto;
import ai.onnx.proto.OnnxMl.NodeProto;
import ai.onnx.proto.OnnxMl.TensorProto;
import ai.onnx.proto.OnnxMl.TensorProto.DataType;
import ai.onnx.proto.OnnxMl.ValueInfoProto;
import ai.onnxruntime.OnnxTensor;
import ai.onnxruntime.OrtEnvironment;
import ai.onnxruntime.OrtException;
import java.io.IOException;
import java.nio.ByteBuffer;
import java.nio.FloatBuffer;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.Random;
import java.util.Set;
import java.util.TreeSet;
import org.bytedeco.javacpp.PointerScope;
import org.bytedeco.pytorch.LongOptional;
import org.bytedeco.pytorch.Tensor;
import org.bytedeco.pytorch.global.torch;
import org.espalier.ExactProducts;
import org.espalier.InputException;
import org.espalier.compress.onnx.ActivationSource;
import org.espalier.compress.onnx.BlockQuantizer;
import org.espalier.compress.onnx.Clipping;
import org.espalier.compress.onnx.DynamicQuantizer;
import org.espalier.compress.onnx.Int8Model;
import org.espalier.compress.onnx.RuntimeRuns;
import org.espalier.compress.onnx.StaticQuantizer;
import org.espalier.compress.onnx.WeightIntegers;
import org.espalier.evaluate.TensorActivations;
import org.espalier.format.onnx.HalfModels;
import org.espalier.format.onnx.HalfPrecision;
import org.espalier.format.onnx.OnnxInitializer;
import org.espalier.format.onnx.OnnxModel;
import org.espalier.format.onnx.OnnxWeight;
import org.espalier.format.onnx.OnnxWeights;
import org.espalier.format.onnx.PyTorchInt8;
import org.espalier.format.onnx.SmallModels;
import org.espalier.torch.onnx.OnnxRuntime;
import org.espalier.train.TrainingListener.Validation;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;
import org.junit.jupiter.params.provider.EnumSource;

/** Models that are int8 as they are given are trained on their grids, and ONNX Runtime answers as training saw it. */
class Int8TrainingTest {
  private static final TrainingListener SILENT = new TrainingListener() {};

  /** How a model is int8. */
  /** What {@link #dynamic} and {@link Form#STATIC} make of weights. */
  private static final DataType INTEGERS = ExactProducts.first().type();

  enum Form {
    DYNAMIC,
    /** Conv, with operators on integers between. */
    STATIC,
    /** Floats that the model itself rounds, ranges of 7 bits. */
    PYTORCH;

    OnnxModel model() throws OrtException {
      switch (this) {
        case DYNAMIC:
          return dynamic(OnnxCompressionTest.classifier());
        case STATIC:
          OnnxModel model = StaticTrainingTest.cnn();
          StaticQuantizer quantizer = new StaticQuantizer(model, RuntimeRuns.exactStatic());
          quantizer.apply(quantizer.ranges(activations(16), new Clipping.MinMax()));
          return model;
        default:
          return PyTorchInt8.model(12);
      }
    }

    private ActivationSource activations(int n) throws OrtException {
      List<Map<String, OnnxTensor>> inputs = new ArrayList<>();
      for (float[] x : OnnxCompressionTest.values(examples(n, 9))) {
        inputs.add(
            Map.of(
                "x",
                OnnxTensor.createTensor(
                    OrtEnvironment.getEnvironment(),
                    FloatBuffer.wrap(x),
                    new long[] {1, 1, 8, 8})));
      }
      return new TensorActivations(inputs, 1);
    }

    Examples.Labelled examples(int n, long seed) {
      Examples.Labelled all =
          this == STATIC ? StaticTrainingTest.images(n, seed) : OnnxCompressionTest.points(n, seed);
      if (this != PYTORCH) {
        return all;
      }
      long[] two = ((Labels.Classes) all.labels()).values().clone();
      Arrays.setAll(two, i -> two[i] / 2);
      return new Examples.Labelled(all.inputs(), new Labels.Classes(two));
    }

    Compression.Job job(OnnxModel teacher) throws OrtException {
      return job(model(), teacher);
    }

    Compression.Job job(OnnxModel model, OnnxModel teacher) throws OrtException {
      return new Compression.Job(
          model, teacher, examples(256, 1), examples(96, 2), Pooling.MEAN, null, null);
    }
  }

  static OnnxModel dynamic(OnnxModel model) {
    new DynamicQuantizer(model, RuntimeRuns.exactDynamic()).apply();
    return model;
  }

  private static Training training(long steps, Optimizer optimizer, Objective objective) {
    return new Training(steps, 0, 16, optimizer, Training.Schedule.constant(), objective, 10);
  }

  private static Stage fineTune(String name, long steps) {
    return new Stage.Train(
        name, training(steps, Optimizer.AdamW.of(5e-3), Objective.ofLabels()), true);
  }

  private static CompressionPlan plan(Stage... stages) {
    return new CompressionPlan(List.of(stages), 7);
  }

  /** The mean cross entropy and the share of right answers of a model on examples that come one by one. */
  private static double[] measured(OnnxModel model, Examples.Labelled examples)
      throws OrtException {
    long[] labels = ((Labels.Classes) examples.labels()).values();
    double loss = 0;
    int right = 0;
    try (PointerScope scope = new PointerScope()) {
      for (int i = 0; i < labels.length; i++) {
        Batch batch = Batch.of(examples, new int[] {i}, List.of("x"));
        Tensor logits =
            OnnxRuntime.run(model, batch.inputs()).values().iterator().next().log_softmax(1);
        loss -= logits.get(0).get(labels[i]).item_double();
        right += logits.argmax().item_long() == labels[i] ? 1 : 0;
      }
    }
    return new double[] {loss / labels.length, (double) right / labels.length};
  }

  /** 0.01 and an answer in 96: an activation that lies between two integers may fall on either side in the runtime. */
  private static void answersAsTrainingSawIt(OnnxModel exported, Form form, Validation seen)
      throws OrtException {
    double[] measured = measured(exported, form.examples(96, 2));
    assertEquals(seen.loss(), measured[0], 0.01, form.toString());
    assertEquals(seen.quality(), measured[1], 1.01 / 96, form.toString());
  }

  /** Which constants differ between two models of the same nodes, by their types. */
  private static Map<DataType, Set<String>> changes(OnnxModel before, OnnxModel after) {
    assertEquals(before.nodes(), after.nodes());
    assertEquals(before.inputs(), after.inputs());
    assertEquals(before.outputs(), after.outputs());
    assertEquals(
        before.initializers().stream().map(OnnxInitializer::name).toList(),
        after.initializers().stream().map(OnnxInitializer::name).toList());
    Map<DataType, Set<String>> changed = new HashMap<>();
    for (OnnxInitializer i : before.initializers()) {
      OnnxInitializer now = after.initializer(i.name());
      assertEquals(i.type(), now.type());
      if (!i.data().equals(now.data())) {
        changed.computeIfAbsent(i.type(), t -> new TreeSet<>()).add(i.name());
      }
    }
    return changed;
  }

  @ParameterizedTest
  @EnumSource
  void integersAreTrainedAndScalesStay(Form form) throws OrtException {
    Compression.Job job = form.job(null);
    try (OnnxCompression c = new OnnxCompression(plan(fineTune("fine-tune", 60)), job)) {
      if (form != Form.PYTORCH) { // whose floats become those that it rounds them to
        assertArrayEquals(bytes(job.model()), bytes(c.export()), "nothing was trained yet");
      }
      assertTrue(c.run(SILENT));
      TrainingListener.StageReport report = c.stages().get(0);
      answersAsTrainingSawIt(job.model(), form, report.before());
      OnnxModel exported = c.export();
      answersAsTrainingSawIt(exported, form, report.after());
      assertTrue(report.after().loss() < 0.7 * report.before().loss(), report.toString());
      Map<DataType, Set<String>> changed = changes(job.model(), exported);
      switch (form) {
        case DYNAMIC -> {
          assertEquals(Set.of(INTEGERS, DataType.FLOAT), changed.keySet());
          assertTrue(changed.get(DataType.FLOAT).stream().noneMatch(n -> n.contains("_scale")));
        }
        case STATIC -> assertEquals(Set.of(INTEGERS, DataType.INT32), changed.keySet());
        default ->
            assertEquals(
                Map.of(
                    DataType.FLOAT,
                    Set.of("net.0.bias", "net.0.weight", "net.2.bias", "net.2.weight")),
                changed);
      }
      assertTrue(c.layers().stream().allMatch(layer -> layer.bits() == 8), c.layers().toString());
    }
  }

  @ParameterizedTest
  @EnumSource
  void aRunThatWasStoppedEndsWithTheSameBytes(Form form) throws OrtException, IOException {
    Stage prune =
        new Stage.Prune(
            "prune",
            Pruning.oneShot(0.5),
            training(20, new Optimizer.Sgd(0.05, 0.9, 1e-4, true, 0), Objective.ofLabels()));
    Stage distil =
        new Stage.Train(
            "distil", training(20, Optimizer.AdamW.of(5e-3), Objective.ofLogits(0.5, 2)));
    CompressionPlan plan = plan(fineTune("fine-tune", 20), prune, distil);
    Compression.Job job = form.job(null);
    byte[] whole;
    try (OnnxCompression c = new OnnxCompression(plan, job)) {
      assertTrue(c.run(SILENT));
      whole = bytes(c.export());
    }
    for (Stage stage : plan.stages()) {
      assertArrayEquals(whole, StoppedRuns.exported(plan, job, stage, 13), stage.name());
    }
  }

  private static long zeros(OnnxModel model, DataType type) {
    long zeros = 0;
    for (OnnxInitializer i : model.initializers()) {
      ByteBuffer data = i.data();
      for (int k = 0; i.type() == type && i.dims().length > 1 && k < i.elements(); k++) {
        boolean isZero =
            type == DataType.FLOAT
                ? data.getFloat(4 * k) == 0
                : data.get(k) == (byte) (type == DataType.UINT8 ? 128 : 0);
        zeros += isZero ? 1 : 0;
      }
    }
    return zeros;
  }

  /** Half of the weights go to zero and stay there; the zeros that come of rounding may be more. */
  @ParameterizedTest
  @EnumSource
  void prunedWeightsStayZero(Form form) throws OrtException {
    DataType type = form == Form.PYTORCH ? DataType.FLOAT : INTEGERS;
    Compression.Job job = form.job(null);
    long half;
    try (OnnxCompression c =
        new OnnxCompression(
            plan(new Stage.Prune("prune", Pruning.oneShot(0.5), Training.none())), job)) {
      assertTrue(c.run(SILENT));
      half = zeros(c.export(), type);
      answersAsTrainingSawIt(c.export(), form, c.stages().get(0).after());
    }
    assertTrue(half > 100, half + " zeros");
    Training training = training(24, Optimizer.AdamW.of(5e-3), Objective.ofLabels());
    try (OnnxCompression c =
        new OnnxCompression(
            plan(
                new Stage.Prune("prune", Pruning.gradual(0.5, 4), training),
                fineTune("fine-tune", 24)),
            job)) {
      assertTrue(c.run(SILENT));
      OnnxModel pruned = c.export();
      answersAsTrainingSawIt(pruned, form, c.stages().get(1).after());
      assertTrue(zeros(pruned, type) >= half, zeros(pruned, type) + " of " + half);
      double loss = c.stages().get(1).after().loss();
      assertTrue(loss < c.stages().get(0).before().loss(), loss + " after pruning");
    }
  }

  /** Teacher and student find ranges while they run, each example its own, and padding has no part in it. */
  @Test
  void textsFollowAFloatModel() throws OrtException {
    Examples.Texts validation = EncoderTrainingTest.texts(16, 2);
    Objective objective = Objective.ofEmbeddings(1, 0, 1);
    Training training = training(60, Optimizer.AdamW.of(3e-3), objective);
    for (OnnxModel teacher :
        List.of(EncoderTrainingTest.encoder(6), dynamic(EncoderTrainingTest.encoder(6)))) {
      Compression.Job job =
          new Compression.Job(
              dynamic(EncoderTrainingTest.encoder(5)),
              teacher,
              EncoderTrainingTest.texts(64, 1),
              validation,
              Pooling.MEAN,
              null,
              null);
      try (OnnxCompression c =
          new OnnxCompression(plan(new Stage.Train("distil", training)), job)) {
        assertTrue(c.run(SILENT));
        TrainingListener.StageReport report = c.stages().get(0);
        assertTrue(report.after().loss() < 0.7 * report.before().loss(), report.toString());
        double cosine = 0;
        try (PointerScope scope = new PointerScope()) {
          for (int i = 0; i < validation.size(); i++) {
            Map<String, Tensor> one =
                Batch.of(validation, new int[] {i}, List.of("input_ids")).inputs();
            Tensor student = OnnxRuntime.run(c.export(), one).get("states").mean(1);
            Tensor taught = OnnxRuntime.run(teacher, one).get("states").mean(1);
            cosine += torch.cosine_similarity(student, taught).item_double();
          }
        }
        assertEquals(report.after().quality(), cosine / validation.size(), 1e-3);
      }
    }
  }

  /** x [batch, 1] to y [batch, 2] by steps of 0.01. */
  private static OnnxModel steps(int... integers) {
    byte[] bytes = {(byte) integers[0], (byte) integers[1]};
    GraphProto.Builder graph =
        GraphProto.newBuilder()
            .setName("steps")
            .addInput(SmallModels.value("x", DataType.FLOAT, -1, 1))
            .addOutput(SmallModels.value("y", DataType.FLOAT, -1, 2))
            .addInitializer(SmallModels.tensor("w", DataType.INT8, ByteBuffer.wrap(bytes), 1, 2))
            .addInitializer(SmallModels.number("s", 0.01f))
            .addNode(SmallModels.line("wd DequantizeLinear w s"))
            .addNode(SmallModels.line("y MatMul x wd"));
    return OnnxModel.of(SmallModels.model(13, graph), "steps");
  }

  /**
   * Weights that began with −128 may go there again, those of 7 bits (quantize --reduce-range) stay within, and all come back when
   * they shall.
   */
  @ParameterizedTest
  @CsvSource({
    "-128, 5, -128, 127, false",
    "-63, 5, -63, 63, true",
    "-64, 5, -64, 64, false",
    "-65, 5, -127, 127, true",
    "-127, 127, -127, 127, false"
  })
  void weightsStayWithinTheirEnds(int first, int second, int least, int largest, boolean adamW) {
    List<float[]> values = new ArrayList<>();
    float[] far = new float[32];
    float[] near = new float[32];
    for (int i = 0; i < 16; i++) {
      values.add(new float[] {1});
      for (int j = 0; j < 2; j++) {
        int sign = j == 0 ? -1 : 1;
        far[2 * i + j] = sign * (3 + i % 2);
        near[2 * i + j] = sign * (0.3f + 0.1f * (i % 2));
      }
    }
    Optimizer optimizer =
        adamW ? Optimizer.AdamW.of(0.05) : new Optimizer.Sgd(5e-4, 0.9, 0, false, 0);
    Training training = training(200, optimizer, Objective.ofNumbers(1));
    OnnxModel model = steps(first, second);
    for (float[] labels : List.of(far, near)) {
      Examples.Labelled examples =
          new Examples.Labelled(values, List.of(1L), new Labels.Numbers(labels, 2));
      Compression.Job job =
          new Compression.Job(model, null, examples, examples, Pooling.MEAN, null, null);
      try (OnnxCompression c = new OnnxCompression(plan(new Stage.Train("fit", training)), job)) {
        assertTrue(c.run(SILENT));
        byte[] found = new byte[2];
        c.export().constant("w").data().get(found);
        if (labels == far) {
          assertArrayEquals(new byte[] {(byte) least, (byte) largest}, found);
          model = steps(least, largest);
        } else {
          assertEquals(-35, found[0], 1);
          assertEquals(35, found[1], 1);
        }
      }
    }
  }

  private static String refused(OnnxModel model, Stage stage) throws OrtException {
    Compression.Job job =
        new Compression.Job(
            model,
            null,
            OnnxCompressionTest.points(32, 1),
            OnnxCompressionTest.points(16, 2),
            Pooling.MEAN,
            (m, activations, receiver) -> {},
            null);
    return assertThrows(InputException.class, () -> new OnnxCompression(plan(stage), job).close())
        .getMessage();
  }

  @Test
  void whatDoesNotGoWithIntegersIsRefused() throws OrtException {
    OnnxModel model = Form.DYNAMIC.model();
    assertEquals(
        "stage q: classifier is int8 already and is trained as that; leave the stage out, or start"
            + " from the float model that it was made of",
        refused(model, new Stage.Quantize("q", Quantization.dynamic(), Training.none())));
    Pruning half = Pruning.oneShot(0.5);
    Pruning refit =
        new Pruning(
            half.sparsity(),
            half.scope(),
            null,
            half.schedule(),
            1,
            1,
            half.include(),
            false,
            true);
    assertEquals(
        "stage p: refit solves for floats, and classifier is int8 already; leave refit out, which"
            + " prunes by magnitude, or start from the float model that it was made of",
        refused(model, new Stage.Prune("p", refit, Training.none())));
    assertEquals(
        "stage l: low-rank adds to weights of floats, and the model is int8; leave it out, or"
            + " start from the float model",
        refused(
            model,
            new Stage.Train(
                "l", training(1, Optimizer.AdamW.of(1e-3), Objective.ofLabels()), true, 2)));
    OnnxModel blocks = OnnxCompressionTest.classifier();
    new BlockQuantizer(blocks, new BlockQuantizer.Options(4, 16, false, w -> true)).apply();
    String told = refused(blocks, fineTune("f", 1));
    assertTrue(
        told.contains("MatMulNBits") && told.contains("the float model can be learned"), told);
  }

  /** What cannot be trained stays as it is and is told, and the rest is trained. */
  @Test
  void integersThatCannotBeTrainedAreTold() throws OrtException {
    GraphProto.Builder graph = steps(5, 6).toProto().getGraph().toBuilder();
    graph
        .addInitializer(
            SmallModels.tensor("v", DataType.INT8, ByteBuffer.wrap(new byte[] {7, 8}), 1, 2))
        .addInitializer(SmallModels.tensor("three", DataType.INT8, ByteBuffer.wrap(new byte[] {3})))
        .addNode(SmallModels.line("vd DequantizeLinear v s three"))
        .addNode(SmallModels.line("other MatMul x vd"))
        .addNode(SmallModels.line("both Add y other"))
        .setOutput(0, SmallModels.value("both", DataType.FLOAT, -1, 2));
    OnnxModel model = OnnxModel.of(SmallModels.model(13, graph), "both");
    TrainedForm form = TrainedForm.of(model);
    assertTrue(form.isOf(model) && !form.isOf(model.copy()));
    assertTrue(form.isInt8());
    assertEquals(
        List.of("1 weight stays as it is: a zero point of 3 in place of 0 ('v')"), form.resting());
  }

  /** A model that computes in float16 around its integers has its own types again. */
  @Test
  void aModelOfHalvesKeepsItsTypes() throws OrtException {
    OnnxModel model =
        OnnxModel.of(
            HalfModels.inside(
                SmallModels.perceptron(new Random(5), 12, 32, 4, "logits"), DataType.FLOAT16),
            "half");
    HalfPrecision.widen(model);
    dynamic(model);
    HalfPrecision.narrow(model);
    Compression.Job job = Form.DYNAMIC.job(model, null);
    try (OnnxCompression c = new OnnxCompression(plan(fineTune("fit", 40)), job)) {
      assertArrayEquals(bytes(model), bytes(c.export()));
      assertTrue(c.run(SILENT));
      assertTrue(changes(model, c.export()).containsKey(INTEGERS));
      answersAsTrainingSawIt(c.export(), Form.DYNAMIC, c.stages().get(0).after());
    }
  }

  /** A language model learns the next token, as ONNX Runtime then says it. */
  @Test
  void languageModelsLearn() throws OrtException {
    OnnxModel model = dynamic(CausalTrainingTest.decoder(5, 16));
    Examples.Texts validation = CausalTrainingTest.texts(16, 2);
    Compression.Job job =
        new Compression.Job(
            model, null, CausalTrainingTest.texts(64, 1), validation, Pooling.MEAN, null, null);
    try (OnnxCompression c = new OnnxCompression(plan(fineTune("fit", 40)), job)) {
      assertTrue(c.run(SILENT));
      OnnxModel exported = c.export();
      assertTrue(changes(model, exported).containsKey(INTEGERS));
      TrainingListener.StageReport report = c.stages().get(0);
      assertTrue(report.after().loss() < report.before().loss(), report.toString());
      int right = 0;
      int known = 0;
      for (int i = 0; i < validation.size(); i++) {
        try (PointerScope scope = new PointerScope()) {
          List<String> names = exported.inputs().stream().map(ValueInfoProto::getName).toList();
          Tensor best =
              OnnxRuntime.run(exported, Batch.of(validation, new int[] {i}, names).inputs())
                  .get("logits")
                  .squeeze(0)
                  .argmax(new LongOptional(1), false);
          for (int k = 0; k + 1 < validation.length(i); k++) {
            right += best.get(k).item_long() == validation.ids().get(i)[k + 1] ? 1 : 0;
            known++;
          }
        }
      }
      assertEquals(report.after().quality(), (double) right / known, 2.01 / known);
    }
  }

  /** A table of integers of which floats are looked up is trained on its grid, where tables are trained. */
  @Test
  void tablesAreTrainedOnTheirGrids() throws OrtException {
    OnnxModel floats = EmbeddingTrainingTest.clicks();
    OnnxWeight table =
        OnnxWeights.of(floats).stream().filter(OnnxWeight::isEmbedding).findFirst().orElseThrow();
    OnnxInitializer values = floats.initializer(table.value());
    FloatBuffer rows = values.floats();
    byte[] bytes = new byte[(int) values.elements()];
    for (int i = 0; i < bytes.length; i++) {
      bytes[i] = (byte) Math.max(-127, Math.min(127, Math.round(rows.get(i) / 0.01f)));
    }
    GraphProto.Builder graph = floats.toProto().getGraph().toBuilder();
    List<TensorProto> constants =
        graph.getInitializerList().stream()
            .filter(t -> !t.getName().equals(table.value()))
            .toList();
    List<NodeProto> nodes = graph.getNodeList();
    graph
        .clearInitializer()
        .addAllInitializer(constants)
        .addInitializer(
            SmallModels.tensor("q", DataType.INT8, ByteBuffer.wrap(bytes), values.dims()))
        .addInitializer(SmallModels.number("step", 0.01f))
        .clearNode()
        .addNode(SmallModels.line(table.value() + " DequantizeLinear q step"))
        .addAllNode(nodes);
    OnnxModel model = OnnxModel.of(SmallModels.model(13, graph), "table");
    Stage learn =
        new Stage.Train("fit", training(30, Optimizer.AdamW.of(2e-2), Objective.ofLabels()));
    try (OnnxCompression c =
        new OnnxCompression(plan(learn), EmbeddingTrainingTest.job(model, null))) {
      assertTrue(c.run(SILENT));
      Map<DataType, Set<String>> changed = changes(model, c.export());
      assertEquals(Set.of("q"), changed.get(DataType.INT8));
      assertTrue(c.stages().get(0).after().loss() < c.stages().get(0).before().loss());
    }
  }

  /** Weights that a stage has quantized to 7 bits stay within them in each step, so that what is written is what forward read. */
  @Test
  void sevenBitsStaySevenBits() throws OrtException {
    Quantization sevenBits =
        Quantization.dynamic()
            .withFit(false)
            .with(new Quantization.Weights(WeightIntegers.INT7, 32, 0, false, false));
    Compression.Job job =
        new Compression.Job(
            OnnxCompressionTest.classifier(),
            null,
            Form.DYNAMIC.examples(256, 1),
            Form.DYNAMIC.examples(96, 2),
            Pooling.MEAN,
            null,
            null);
    Training training = training(60, Optimizer.AdamW.of(1e-2), Objective.ofLabels());
    try (OnnxCompression c =
        new OnnxCompression(plan(new Stage.Quantize("quantize", sevenBits, training)), job)) {
      assertTrue(c.run(SILENT));
      Int8Model written = Int8Model.of(c.export());
      List<String> weights = List.copyOf(written.integers().keySet());
      List<OnnxWeight> read = OnnxWeights.of(c.roundedModel());
      assertEquals(2, weights.size());
      for (int i = 0; i < 2; i++) {
        assertArrayEquals(
            SmallModels.values(written.floats(), weights.get(i)),
            SmallModels.values(c.roundedModel(), read.get(i).value()));
      }
    }
  }

  /**
   * Rows of all examples below each other have one range in a batch, which for one example is its own: 0.05 between the loss that
   * training sees and that of examples one by one.
   */
  @Test
  void activationsMayCountSomethingElseThanExamples() throws OrtException {
    Random random = new Random(3);
    GraphProto.Builder graph =
        GraphProto.newBuilder()
            .setName("rows")
            .addInput(SmallModels.value("x", DataType.FLOAT, -1, 12))
            .addOutput(SmallModels.value("y", DataType.FLOAT, -1, 4))
            .addInitializer(SmallModels.int64s("halves", -1, 6))
            .addInitializer(SmallModels.int64s("whole", -1, 16))
            .addInitializer(SmallModels.floats("w", random, 0.5f, 6, 8))
            .addInitializer(SmallModels.floats("v", random, 0.5f, 16, 4))
            .addNode(SmallModels.line("rows Reshape x halves"))
            .addNode(SmallModels.line("a MatMul rows w"))
            .addNode(SmallModels.line("b Relu a"))
            .addNode(SmallModels.line("c Reshape b whole"))
            .addNode(SmallModels.line("y MatMul c v"));
    OnnxModel model = dynamic(OnnxModel.of(SmallModels.model(13, graph), "rows"));
    Compression.Job job = Form.DYNAMIC.job(model, null);
    try (OnnxCompression c = new OnnxCompression(plan(fineTune("fit", 40)), job)) {
      assertTrue(c.run(SILENT));
      TrainingListener.StageReport report = c.stages().get(0);
      assertTrue(report.after().loss() < 0.7 * report.before().loss(), report.toString());
      double[] measured = measured(c.export(), Form.DYNAMIC.examples(96, 2));
      assertEquals(report.after().loss(), measured[0], 0.05);
    }
  }
}

package org.espalier.train;

import static org.espalier.format.onnx.SmallModels.floats;
import static org.espalier.train.StoppedRuns.bytes;
import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import ai.onnxruntime.OnnxTensor;
import ai.onnxruntime.OrtEnvironment;
import ai.onnxruntime.OrtException;
import ai.onnxruntime.OrtSession;
import java.io.ByteArrayInputStream;
import java.io.ByteArrayOutputStream;
import java.io.IOException;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.FloatBuffer;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.HashSet;
import java.util.List;
import java.util.Map;
import java.util.Random;
import java.util.Set;
import java.util.stream.Collectors;
import org.bytedeco.javacpp.PointerScope;
import org.bytedeco.pytorch.Tensor;
import org.bytedeco.pytorch.global.torch;
import org.espalier.ExactProducts;
import org.espalier.InputException;
import org.espalier.format.onnx.OnnxInitializer;
import org.espalier.format.onnx.OnnxModel;
import org.espalier.format.onnx.OnnxWeight;
import org.espalier.format.onnx.OnnxWeights;
import org.espalier.format.onnx.SmallModels;
import org.espalier.torch.onnx.OnnxGraph;
import org.espalier.torch.onnx.OnnxRuntime;
import org.espalier.train.TrainingListener.StageReport;
import org.espalier.train.TrainingListener.StepReport;
import org.espalier.train.TrainingListener.Validation;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.ValueSource;

/** A small classifier is pruned, trained, quantized and distilled, stopped and continued. */
class OnnxCompressionTest {
  private static final int WIDTH = 12;
  private static final int CLASSES = 4;
  private static final TrainingListener SILENT = new TrainingListener() {};

  @TempDir Path folder;

  /** x [N, 12] → Gemm → Relu → MatMul + Add → logits [N, 4]. */
  static OnnxModel classifier() {
    return OnnxModel.of(
        SmallModels.perceptron(new Random(5), WIDTH, 32, CLASSES, "logits"), "classifier");
  }

  /** The values of the only input. */
  static List<float[]> values(Examples.Labelled examples) {
    List<float[]> values = new ArrayList<>();
    for (byte[] row : examples.inputs().get(0).rows()) {
      float[] floats = new float[row.length / 4];
      ByteBuffer.wrap(row).order(ByteOrder.LITTLE_ENDIAN).asFloatBuffer().get(floats);
      values.add(floats);
    }
    return values;
  }

  private static long[] classes(Examples.Labelled examples) {
    return ((Labels.Classes) examples.labels()).values();
  }

  /** Points around four centres. */
  static Examples.Labelled points(int n, long seed) {
    Random centres = new Random(1);
    float[][] centre = new float[CLASSES][WIDTH];
    for (float[] c : centre) {
      for (int i = 0; i < WIDTH; i++) {
        c[i] = (float) centres.nextGaussian();
      }
    }
    Random random = new Random(seed);
    List<float[]> values = new ArrayList<>();
    long[] labels = new long[n];
    for (int i = 0; i < n; i++) {
      labels[i] = random.nextInt(CLASSES);
      float[] x = centre[(int) labels[i]].clone();
      for (int k = 0; k < WIDTH; k++) {
        x[k] += 0.7f * (float) random.nextGaussian();
      }
      values.add(x);
    }
    return new Examples.Labelled(values, List.of((long) WIDTH), new Labels.Classes(labels));
  }

  private static Compression.Job job(OnnxModel model) {
    return new Compression.Job(
        model, null, points(512, 2), points(256, 3), Pooling.MEAN, null, null);
  }

  private static Training training(long steps, Optimizer optimizer, Objective objective) {
    return new Training(steps, 0, 16, optimizer, Training.Schedule.constant(), objective, 50);
  }

  private static Quantization dynamic() {
    return ExactProducts.exact(Quantization.dynamic()).withFit(false);
  }

  @Test
  void prunedWeightsStayZeroThroughMomentumNesterovAndDecay() {
    Optimizer nesterov = new Optimizer.Sgd(0.05, 0.9, 1e-3, true, 0);
    Objective labels = Objective.ofLabels();
    CompressionPlan plan =
        new CompressionPlan(
            List.of(
                new Stage.Train("fit", training(300, nesterov, labels)),
                new Stage.Prune(
                    "prune", Pruning.oneShot(0.75), training(10_000, nesterov, labels))),
            7);
    try (OnnxCompression c = new OnnxCompression(plan, job(classifier()))) {
      assertTrue(c.run(SILENT));
      StageReport pruned = c.stages().get(1);
      assertTrue(pruned.after().quality() > 0.9, pruned.toString());
      long zeros = 0;
      for (LayerReport layer : c.layers()) {
        zeros += Math.round(layer.sparsity() * layer.shape().get(0) * layer.shape().get(1));
      }
      assertEquals((long) Math.rint(0.75 * (WIDTH * 32 + 32 * CLASSES)), zeros);
    }
  }

  /** Of a batch the mean is over the labels that are known, wherever they are in it. */
  @Test
  void examplesWithoutALabelChangeNoMean() {
    Examples.Labelled points = points(4, 2);
    long[] labels = new long[4];
    Arrays.fill(labels, Labels.Classes.NO_LABEL);
    labels[0] = classes(points)[0];
    Examples.Labelled known =
        new Examples.Labelled(
            values(points).subList(0, 1),
            List.of((long) WIDTH),
            new Labels.Classes(new long[] {labels[0]}));
    Losses listener = new Losses();
    List<StageReport> reports = new ArrayList<>();
    for (Examples.Labelled examples :
        List.of(new Examples.Labelled(points.inputs(), new Labels.Classes(labels)), known)) {
      Training one = training(1, new Optimizer.Sgd(0.1, 0, 0, false, 0), Objective.ofLabels());
      CompressionPlan plan = new CompressionPlan(List.of(new Stage.Train("fit", one)), 7);
      Compression.Job job =
          new Compression.Job(classifier(), null, examples, examples, Pooling.MEAN, null, null);
      try (OnnxCompression c = new OnnxCompression(plan, job)) {
        c.run(listener);
        reports.add(c.stages().get(0));
      }
    }
    List<Double> losses = listener.ofSteps();
    assertEquals(losses.get(1), losses.get(0), 1e-6);
    assertEquals(reports.get(1).after().loss(), reports.get(0).after().loss(), 1e-6);
    assertEquals(reports.get(1).after().quality(), reports.get(0).after().quality(), 1e-12);
  }

  /** Steps that take some of the examples ask the teacher of no others. */
  @Test
  void theTeacherIsAskedOfTheExamplesOfAllSteps() throws IOException {
    Optimizer optimizer = new Optimizer.Sgd(0.1, 0, 0, false, 0);
    Stage first = new Stage.Train("first", training(5, optimizer, Objective.ofLogits(0.5, 2)));
    Stage second = new Stage.Train("second", training(7, optimizer, Objective.ofLogits(0.5, 2)));
    CompressionPlan plan = new CompressionPlan(List.of(first, second), 7);
    Path cache = Files.createDirectory(folder.resolve("cache"));
    Compression.Job job =
        new Compression.Job(
            classifier(), null, points(512, 2), points(64, 3), Pooling.MEAN, null, cache);
    byte[] whole;
    try (OnnxCompression c = new OnnxCompression(plan, job)) {
      assertTrue(c.run(SILENT));
      whole = bytes(c.export());
    }
    List<Long> sizes = new ArrayList<>();
    try (var files = Files.list(cache)) {
      for (Path file : files.toList()) {
        sizes.add(Files.size(file) / (4 * CLASSES));
      }
    }
    assertTrue(sizes.remove(64L), "all that validate: " + sizes);
    // Two samples of 80 and 112 of 512 share some.
    assertTrue(sizes.size() == 1 && sizes.get(0) > 112 && sizes.get(0) <= 192, sizes.toString());
    assertArrayEquals(whole, StoppedRuns.exported(plan, job, second, 3));
    Examples.Labelled few = points(64, 2);
    Compression.Job same =
        new Compression.Job(classifier(), null, few, few, Pooling.MEAN, null, null);
    CompressionPlan one =
        new CompressionPlan(
            List.of(new Stage.Train("one", training(1, optimizer, Objective.ofLogits(0.5, 2)))), 7);
    try (OnnxCompression c = new OnnxCompression(one, same)) {
      assertTrue(c.run(SILENT), "what trains validates too");
    }
  }

  /** They may be large, and a host may live long after what stopped the teacher, a full disk say. */
  @ParameterizedTest
  @ValueSource(longs = {512, 256})
  void aTeacherThatIsStoppedLeavesNoFiles(long half) throws IOException {
    // Steps for all examples, of which the teacher is asked then.
    Training one = training(32, new Optimizer.Sgd(0.1, 0, 0, false, 0), Objective.ofLogits(0.5, 2));
    CompressionPlan plan = new CompressionPlan(List.of(new Stage.Train("fit", one)), 7);
    Set<Path> before = teacherFiles();
    try (OnnxCompression c = new OnnxCompression(plan, job(classifier()))) {
      TrainingListener stopping =
          new TrainingListener() {
            @Override
            public void note(String text, long done, long total) {
              if (text.equals("teacher") && total == half) {
                throw new IllegalArgumentException(text);
              }
            }
          };
      assertThrows(IllegalArgumentException.class, () -> c.run(stopping));
    }
    Set<Path> left = teacherFiles();
    left.removeAll(before);
    assertEquals(Set.of(), left);
  }

  /** What teachers of this process have among the temporary files. */
  static Set<Path> teacherFiles() throws IOException {
    String prefix = "espalier-teacher-" + ProcessHandle.current().pid() + "-";
    try (var files = Files.list(Path.of(System.getProperty("java.io.tmpdir")))) {
      return files
          .filter(file -> file.getFileName().toString().startsWith(prefix))
          .collect(Collectors.toCollection(HashSet::new));
    }
  }

  /** Validation goes in batches of 32: of those here one has labels, and the other has one. */
  @Test
  void validationCountsLabelsNotBatches() {
    Examples.Labelled points = points(64, 2);
    long[] labels = classes(points).clone();
    Arrays.fill(labels, 33, 64, Labels.Classes.NO_LABEL);
    Examples.Labelled some = new Examples.Labelled(points.inputs(), new Labels.Classes(labels));
    Examples.Labelled known =
        new Examples.Labelled(
            values(points).subList(0, 33),
            List.of((long) WIDTH),
            new Labels.Classes(Arrays.copyOf(labels, 33)));
    List<Validation> found = new ArrayList<>();
    for (Examples.Labelled validation : List.of(some, known)) {
      Training one = training(1, new Optimizer.Sgd(0.1, 0, 0, false, 0), Objective.ofLabels());
      CompressionPlan plan = new CompressionPlan(List.of(new Stage.Train("look", one)), 7);
      Compression.Job job =
          new Compression.Job(classifier(), null, points, validation, Pooling.MEAN, null, null);
      try (OnnxCompression c = new OnnxCompression(plan, job)) {
        assertTrue(c.run(SILENT));
        found.add(c.stages().get(0).before());
      }
    }
    assertEquals(found.get(1).loss(), found.get(0).loss(), 1e-6);
    assertEquals(found.get(1).quality(), found.get(0).quality(), 1e-12);
  }

  @Test
  void prunedWeightsOfTransposedConvolutionsAndRecurrentLayersStayZero() throws OrtException {
    Random random = new Random(2);
    List<float[]> values = new ArrayList<>();
    long[] labels = new long[64];
    for (int i = 0; i < labels.length; i++) {
      float[] x = new float[24];
      for (int k = 0; k < x.length; k++) {
        x[k] = (float) random.nextGaussian();
      }
      values.add(x);
      labels[i] = x[0] > 0 ? 1 : 0;
    }
    Examples.Labelled examples =
        new Examples.Labelled(values, List.of(3L, 8L), new Labels.Classes(labels));
    Training some = training(40, Optimizer.AdamW.of(1e-2), Objective.ofLabels());
    OnnxModel model = OnnxModel.of(SmallModels.recurrent(), "recurrent");
    CompressionPlan plan =
        new CompressionPlan(List.of(new Stage.Prune("p", Pruning.oneShot(0.5), some)), 7);
    Compression.Job job =
        new Compression.Job(model, null, examples, examples, Pooling.MEAN, null, null);
    try (OnnxCompression c = new OnnxCompression(plan, job)) {
      assertTrue(c.run(SILENT));
      List<String> pruned = new ArrayList<>();
      long zeros = 0;
      long all = 0;
      for (LayerReport layer : c.layers()) {
        long size = layer.shape().stream().reduce(1L, (a, b) -> a * b);
        zeros += Math.round(layer.sparsity() * size);
        all += size;
        if (layer.sparsity() > 0.2 && layer.error() > 0.01) {
          pruned.add(layer.name());
        }
      }
      assertEquals(Math.round(0.5 * all), zeros);
      assertTrue(
          pruned.containsAll(
              List.of("up.weight", "lstm.W", "lstm.R", "gru.W", "gru.R", "rnn.W", "rnn.R")),
          pruned.toString());
      // The exported model is the one that was trained: the runtime answers as libtorch does.
      OnnxModel exported = c.export();
      assertEquals(zeros, zerosOf(exported));
      try (OnnxGraph graph = new OnnxGraph(exported);
          PointerScope scope = new PointerScope()) {
        Tensor x = torch.randn(5, 3, 8);
        Tensor ours = graph.forward(Map.of("x", x)).get("y");
        Tensor theirs = OnnxRuntime.run(exported, Map.of("x", x)).get("y");
        assertTrue(torch.allclose(ours, theirs, 1e-4, 1e-5, false));
      }
    }
  }

  private static long zerosOf(OnnxModel model) {
    long zeros = 0;
    for (OnnxWeight w : OnnxWeights.of(model)) {
      FloatBuffer values = model.constant(w.value()).floats();
      for (int i = 0; i < values.capacity(); i++) {
        zeros += values.get(i) == 0 ? 1 : 0;
      }
    }
    return zeros;
  }

  @Test
  void roundedWeightsAreThoseOfTheGrid() {
    Training some = training(20, Optimizer.AdamW.of(1e-3), Objective.ofLabels());
    CompressionPlan plan =
        new CompressionPlan(
            List.of(
                new Stage.Prune("prune", Pruning.oneShot(0.25), some),
                new Stage.Quantize("quantize", dynamic(), some)),
            7);
    try (OnnxCompression c = new OnnxCompression(plan, job(classifier()))) {
      assertTrue(c.run(SILENT));
      OnnxModel latent = c.floatModel();
      OnnxModel rounded = c.roundedModel();
      List<OnnxInitializer> weights =
          rounded.initializers().stream().filter(i -> i.dims().length == 2).toList();
      assertEquals(2, weights.size());
      for (int k = 0; k < weights.size(); k++) {
        LayerReport layer = c.layers().get(k);
        FloatBuffer now = weights.get(k).floats();
        FloatBuffer before = latent.constant(weights.get(k).name()).floats();
        int columns = (int) weights.get(k).dims()[1];
        int zeros = 0;
        double moved = 0;
        double gap = Double.POSITIVE_INFINITY;
        for (int i = 0; i < now.capacity(); i++) {
          zeros += now.get(i) == 0 ? 1 : 0;
          moved = Math.max(moved, Math.abs(now.get(i) - before.get(i)));
          for (int other = i % columns; other < i; other += columns) {
            double difference = Math.abs(now.get(i) - now.get(other));
            gap = difference == 0 ? gap : Math.min(gap, difference);
          }
        }
        assertEquals(layer.sparsity(), (double) zeros / now.capacity());
        assertTrue(moved > 0, "latent weights are no grid");
        // The steps of a channel's grid; differences round.
        assertTrue(gap >= 0.9999 * layer.smallestScale(), gap + " " + layer);
      }
    }
  }

  @Test
  void aCubicScheduleRisesToItsSparsityAndThenRecovers() {
    List<Double> seen = new ArrayList<>();
    Pruning gradual = Pruning.gradual(0.5, 10);
    CompressionPlan plan =
        new CompressionPlan(
            List.of(
                new Stage.Prune(
                    "prune",
                    gradual,
                    training(100, Optimizer.AdamW.of(1e-3), Objective.ofLabels()))),
            7);
    try (OnnxCompression c = new OnnxCompression(plan, job(classifier()))) {
      c.run(
          new TrainingListener() {
            @Override
            public boolean step(StepReport report) {
              seen.add(report.sparsity());
              return true;
            }
          });
      assertEquals(0, seen.get(8));
      assertEquals(0.5 * (1 - Math.pow(1 - 10 / 75.0, 3)), seen.get(9), 1e-12);
      assertEquals(0.5, seen.get(74));
      assertEquals(0.5, seen.get(99));
      double zeros = 0;
      for (LayerReport layer : c.layers()) {
        zeros += layer.sparsity() * layer.shape().get(0) * layer.shape().get(1);
      }
      assertEquals(0.5 * (WIDTH * 32 + 32 * CLASSES), zeros, 1e-9);
    }
  }

  @Test
  void theExportedModelAnswersAsTrainingSawIt() throws OrtException {
    CompressionPlan plan =
        new CompressionPlan(
            List.of(
                new Stage.Prune(
                    "prune",
                    Pruning.oneShot(0.4),
                    training(200, Optimizer.AdamW.of(5e-3), Objective.ofLabels())),
                new Stage.Quantize(
                    "quantize",
                    dynamic(),
                    training(200, Optimizer.AdamW.of(1e-3), Objective.ofLabels())),
                new Stage.Train(
                    "distil", training(100, Optimizer.Sgd.of(1e-3), Objective.ofLogits(0.5, 2)))),
            7);
    try (OnnxCompression c = new OnnxCompression(plan, job(classifier()))) {
      assertTrue(c.run(SILENT));
      assertTrue(c.stages().get(1).after().quality() > 0.9, c.stages().toString());
      for (LayerReport layer : c.layers()) {
        assertEquals(8, layer.bits());
        assertTrue(layer.sparsity() > 0.2, layer.toString());
      }
      double expected = c.stages().get(2).after().quality();
      Examples.Labelled validation = points(256, 3);
      ByteBuffer bytes = c.export().toBuffer();
      OrtEnvironment environment = OrtEnvironment.getEnvironment();
      int right = 0;
      try (OrtSession session = environment.createSession(bytes)) {
        for (int i = 0; i < validation.size(); i++) {
          FloatBuffer x = FloatBuffer.wrap(values(validation).get(i));
          try (OnnxTensor input = OnnxTensor.createTensor(environment, x, new long[] {1, WIDTH});
              OrtSession.Result result = session.run(Map.of("x", input))) {
            float[] logits = ((float[][]) result.get(0).getValue())[0];
            int best = 0;
            for (int k = 1; k < CLASSES; k++) {
              best = logits[k] > logits[best] ? k : best;
            }
            right += best == classes(validation)[i] ? 1 : 0;
          }
        }
      }
      assertEquals(expected, right / 256.0, 1e-9);
    }
  }

  @Test
  void aStoppedRunContinuesToTheSameBits() throws IOException {
    Pruning gradual = Pruning.gradual(0.5, 10);
    CompressionPlan plan =
        new CompressionPlan(
            List.of(
                new Stage.Prune(
                    "prune", gradual, training(60, Optimizer.AdamW.of(2e-3), Objective.ofLabels())),
                new Stage.Quantize(
                    "quantize",
                    dynamic(),
                    training(60, Optimizer.AdamW.of(1e-3), Objective.ofLabels())),
                new Stage.Train(
                    "distil", training(60, Optimizer.Sgd.of(1e-3), Objective.ofLogits(0.5, 2)))),
            7);
    byte[] whole;
    try (OnnxCompression c = new OnnxCompression(plan, job(classifier()))) {
      c.run(SILENT);
      whole = bytes(c.export());
    }
    for (int stage = 0; stage < 3; stage++) {
      int stopAt = stage;
      byte[] saved;
      try (OnnxCompression c = new OnnxCompression(plan, job(classifier()))) {
        ByteArrayOutputStream out = new ByteArrayOutputStream();
        boolean complete =
            c.run(
                new TrainingListener() {
                  @Override
                  public boolean step(StepReport r) {
                    return plan.stages().indexOf(r.stage()) < stopAt || r.step() < 33;
                  }
                });
        assertFalse(complete);
        c.save(out);
        saved = out.toByteArray();
      }
      try (OnnxCompression c = new OnnxCompression(plan, job(classifier()))) {
        c.restore(new ByteArrayInputStream(saved));
        assertTrue(c.run(SILENT));
        assertArrayEquals(whole, bytes(c.export()), "stopped in stage " + stage);
        assertEquals(3, c.stages().size());
      }
      byte[] cut = Arrays.copyOf(saved, saved.length - 7);
      try (OnnxCompression c = new OnnxCompression(plan, job(classifier()))) {
        assertThrows(InputException.class, () -> c.restore(new ByteArrayInputStream(cut)));
      }
    }
  }

  @Test
  void theBestStateIsKept() {
    List<Validation> seen = new ArrayList<>();
    CompressionPlan plan =
        new CompressionPlan(
            List.of(
                new Stage.Train(
                    "diverge", training(200, Optimizer.AdamW.of(0.2), Objective.ofLogits(0, 1)))),
            7);
    try (OnnxCompression c = new OnnxCompression(plan, job(classifier()))) {
      c.run(
          new TrainingListener() {
            @Override
            public void validated(Stage stage, Validation v) {
              seen.add(v);
            }
          });
      // The student starts as its own teacher, so nothing can be better.
      assertEquals(5, seen.size());
      assertTrue(seen.get(4).loss() > seen.get(0).loss());
      assertArrayEquals(bytes(classifier()), bytes(c.floatModel()));
    }
  }

  @Test
  void theBoundHoldsAStudentBelowItsTeacher() {
    double[] free = excess(new Objective(1, 0, 1, 0, 0, 0, 0, 1, 0));
    double[] bounded = excess(new Objective(1, 0, 1, 10, 0, 0, 0, 1, 0));
    assertTrue(free[1] > 0.5, "the student that only learns labels exceeds: " + free[1]);
    assertTrue(bounded[1] < 0.05 * free[1], free[1] + " against " + bounded[1]);
  }

  /** Mean of Σ max(0, student − teacher)² before and after training with an objective. */
  private static double[] excess(Objective objective) {
    CompressionPlan plan =
        new CompressionPlan(
            List.of(new Stage.Train("train", training(200, Optimizer.AdamW.of(5e-3), objective))),
            7);
    CompressionPlan look =
        new CompressionPlan(
            List.of(
                new Stage.Prune(
                    "look",
                    Pruning.oneShot(0),
                    new Training(
                        0,
                        0,
                        16,
                        Optimizer.Sgd.of(0),
                        Training.Schedule.constant(),
                        new Objective(0, 0, 1, 1, 0, 0, 0, 1, 0),
                        0))),
            7);
    OnnxModel trained;
    try (OnnxCompression c = new OnnxCompression(plan, job(classifier()))) {
      c.run(SILENT);
      trained = c.floatModel();
    }
    Compression.Job both =
        new Compression.Job(
            trained, classifier(), points(512, 2), points(256, 3), Pooling.MEAN, null, null);
    try (OnnxCompression c = new OnnxCompression(look, both)) {
      c.run(SILENT);
      return new double[] {0, c.stages().get(0).after().loss()};
    }
  }

  @Test
  void aLossThatIsNotFiniteStopsWithTheTensorsName() {
    CompressionPlan plan =
        new CompressionPlan(
            List.of(
                new Stage.Train(
                    "burst", training(50, Optimizer.Sgd.of(1e30), Objective.ofLabels()))),
            7);
    try (OnnxCompression c = new OnnxCompression(plan, job(classifier()))) {
      NonFiniteLossException e = assertThrows(NonFiniteLossException.class, () -> c.run(SILENT));
      assertTrue(e.getMessage().contains("stage burst, step "), e.getMessage());
    }
  }

  @Test
  void teacherOutputsAreStoredAndFoundAgain() throws IOException {
    CompressionPlan plan =
        new CompressionPlan(
            List.of(
                new Stage.Train(
                    "distil", training(5, Optimizer.Sgd.of(1e-3), Objective.ofLogits(0, 1)))),
            7);
    Compression.Job j = job(classifier());
    Compression.Job cached =
        new Compression.Job(
            j.model(), null, j.training(), j.validation(), j.pooling(), null, folder);
    List<String> notes = new ArrayList<>();
    for (int run = 0; run < 2; run++) {
      notes.clear();
      try (OnnxCompression c = new OnnxCompression(plan, cached)) {
        c.run(
            new TrainingListener() {
              @Override
              public void note(String text, long done, long total) {
                notes.add(text);
              }
            });
      }
    }
    assertEquals(List.of(), notes, "the second run computes no teacher outputs");
    try (var files = Files.list(folder)) {
      assertEquals(2, files.count());
    }
  }
}

package org.espalier.train;

import static org.espalier.format.onnx.SmallModels.floats;
import static org.espalier.format.onnx.SmallModels.node;
import static org.espalier.format.onnx.SmallModels.value;
import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertNotNull;
import static org.junit.jupiter.api.Assertions.assertTrue;

import ai.onnx.proto.OnnxMl.GraphProto;
import ai.onnx.proto.OnnxMl.TensorProto.DataType;
import ai.onnxruntime.OnnxTensor;
import ai.onnxruntime.OrtEnvironment;
import ai.onnxruntime.OrtException;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import java.util.Random;
import org.espalier.backend.CpuThreads;
import org.espalier.compress.onnx.ActivationSource;
import org.espalier.evaluate.TensorActivations;
import org.espalier.format.onnx.OnnxModel;
import org.espalier.format.onnx.SmallModels;
import org.junit.jupiter.api.AfterEach;
import org.junit.jupiter.api.Test;

/** A small encoder of texts, whose batches are computed in two halves. */
class EncoderTrainingTest {
  private static final int WORDS = 60;
  private static final int WIDTH = 24;

  private final int threads = CpuThreads.get();

  @AfterEach
  void restoreThreads() {
    CpuThreads.set(threads);
  }

  /** input_ids [N, T] → Gather → MatMul + Add → Relu → MatMul → states [N, T, 24]. */
  static OnnxModel encoder(long seed) {
    Random random = new Random(seed);
    GraphProto.Builder g =
        GraphProto.newBuilder()
            .setName("encoder")
            .addInput(value("input_ids", DataType.INT64, -1, -1))
            .addInitializer(floats("table", random, 1f, WORDS, WIDTH))
            .addInitializer(floats("w1", random, 0.3f, WIDTH, 48))
            .addInitializer(floats("b1", random, 0.1f, 48))
            .addInitializer(floats("w2", random, 0.3f, 48, WIDTH))
            .addNode(node("Gather", "g", List.of("table", "input_ids"), "e"))
            .addNode(node("MatMul", "m1", List.of("e", "w1"), "p1"))
            .addNode(node("Add", "a1", List.of("p1", "b1"), "h1"))
            .addNode(node("Relu", "r1", List.of("h1"), "h"))
            .addNode(node("MatMul", "m2", List.of("h", "w2"), "states"))
            .addOutput(value("states", DataType.FLOAT, -1, -1, WIDTH));
    return OnnxModel.of(SmallModels.model(14, g), "encoder");
  }

  static Examples.Texts texts(int n, long seed) {
    Random random = new Random(seed);
    List<long[]> ids = new ArrayList<>();
    for (int i = 0; i < n; i++) {
      ids.add(random.longs(1 + random.nextInt(9), 0, WORDS).toArray());
    }
    return new Examples.Texts(ids);
  }

  private record Run(byte[] model, List<Double> losses) {}

  private static Run run(Objective objective, long steps) {
    return run(objective, steps, Quantization.dynamic(), null);
  }

  private static Run run(Objective objective, long steps, Quantization q, ActivationSource source) {
    return run(objective, steps, q, source, 64, 13);
  }

  private static Run run(
      Objective objective, long steps, Quantization q, ActivationSource source, int n, int batch) {
    Training training =
        new Training(
            steps, 0, batch, Optimizer.AdamW.of(3e-3), Training.Schedule.constant(), objective, 0);
    CompressionPlan plan =
        new CompressionPlan(List.of(new Stage.Quantize("quantize", q.withFit(false), training)), 3);
    Compression.Job job =
        new Compression.Job(
            encoder(5), encoder(6), texts(n, 1), texts(16, 2), Pooling.MEAN, source, null);
    Losses losses = new Losses();
    try (OnnxCompression c = new OnnxCompression(plan, job)) {
      c.run(losses);
      return new Run(StoppedRuns.bytes(c.export()), losses.ofSteps());
    }
  }

  @Test
  void aFloatModelSaysTheShapesOfSumsBeforeNorms() {
    Random random = new Random(9);
    GraphProto.Builder graph = encoder(5).toProto().getGraph().toBuilder();
    graph
        .addInitializer(floats("gamma", random, 1f, WIDTH))
        .addInitializer(floats("beta", random, 1f, WIDTH))
        .addNode(SmallModels.line("sum Add states e"))
        .addNode(SmallModels.line("normed LayerNormalization sum gamma beta"))
        .setOutput(0, value("normed", DataType.FLOAT, -1, -1, WIDTH));
    OnnxModel model = OnnxModel.of(SmallModels.model(17, graph), "normed");
    Training training =
        new Training(
            2,
            0,
            4,
            Optimizer.AdamW.of(3e-3),
            Training.Schedule.constant(),
            Objective.ofEmbeddings(2, 0, 1),
            0);
    CompressionPlan plan = new CompressionPlan(List.of(new Stage.Train("train", training)), 3);
    Compression.Job job =
        new Compression.Job(model, encoder(6), texts(8, 1), texts(8, 2), Pooling.MEAN, null, null);
    try (OnnxCompression c = new OnnxCompression(plan, job)) {
      c.run(new TrainingListener() {});
      assertNotNull(c.export().valueInfo("states"));
      assertNotNull(c.export().valueInfo("e"));
    }
  }

  @Test
  void theNumberOfThreadsChangesNoBit() {
    Objective objective = Objective.ofEmbeddings(2, 0, 1);
    CpuThreads.set(1);
    Run one = run(objective, 60);
    CpuThreads.set(2);
    Run two = run(objective, 60);
    assertEquals(one.losses(), two.losses());
    assertArrayEquals(one.model(), two.model());
    assertTrue(one.losses().get(59) < 0.7 * one.losses().get(0), one.losses().toString());
  }

  /** Static ranges that rest are read by both threads. */
  @Test
  void theNumberOfThreadsChangesNoBitOfAStaticModel() throws OrtException {
    OrtEnvironment environment = OrtEnvironment.getEnvironment();
    try (OnnxTensor ids =
        OnnxTensor.createTensor(environment, texts(1, 8).ids().toArray(long[][]::new))) {
      ActivationSource source = new TensorActivations(List.of(Map.of("input_ids", ids)), 1);
      Objective objective = Objective.ofEmbeddings(2, 0, 1);
      CpuThreads.set(1);
      Run one = run(objective, 30, Quantization.fixed(), source);
      CpuThreads.set(2);
      Run two = run(objective, 30, Quantization.fixed(), source);
      assertEquals(one.losses(), two.losses());
      assertArrayEquals(one.model(), two.model());
      assertTrue(one.losses().get(29) < 0.9 * one.losses().get(0), one.losses().toString());
    }
  }

  /** Where texts are compared with each other the batch stays whole; a weight of 1e-30 for that adds nothing. */
  @Test
  void theHalvesOfABatchAddUpToIt() {
    List<Double> halves = run(Objective.ofEmbeddings(2, 0, 1), 12).losses();
    List<Double> whole = run(Objective.ofEmbeddings(2, 1e-30, 1), 12).losses();
    for (int i = 0; i < 12; i++) {
      assertEquals(whole.get(i), halves.get(i), 2e-3 * whole.get(0), "step " + i);
    }
    assertEquals(whole.get(0), halves.get(0), 1e-6 * whole.get(0));
  }

  /** The last batch of an epoch may have one text, which has no others to be like. */
  @Test
  void aLastBatchOfOneTextTrainsNothingBySimilarityAlone() {
    Objective objective = new Objective(0, 0, 1, 0, 0, 0, 1, 0.05, 0);
    List<Double> losses = run(objective, 16, Quantization.dynamic(), null, 64, 9).losses();
    assertEquals(16, losses.size());
    assertEquals(0, losses.stream().mapToDouble(l -> l).min().orElseThrow());
  }
}

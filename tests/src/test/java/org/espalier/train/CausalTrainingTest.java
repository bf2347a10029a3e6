package org.espalier.train;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import java.util.Random;
import java.util.stream.LongStream;
import org.bytedeco.javacpp.PointerScope;
import org.bytedeco.pytorch.NoGradGuard;
import org.bytedeco.pytorch.Scalar;
import org.bytedeco.pytorch.Tensor;
import org.bytedeco.pytorch.global.torch;
import org.espalier.InputException;
import org.espalier.backend.CpuThreads;
import org.espalier.format.onnx.OnnxModel;
import org.espalier.format.onnx.SmallDecoder;
import org.espalier.torch.onnx.OnnxGraph;
import org.junit.jupiter.api.AfterEach;
import org.junit.jupiter.api.Test;

/** Causal language models, whose teacher answers batch by batch. */
class CausalTrainingTest {
  private static final int WORDS = 50;

  private final int threads = CpuThreads.get();

  @AfterEach
  void restoreThreads() {
    CpuThreads.set(threads);
  }

  static OnnxModel decoder(long seed, int width) {
    return OnnxModel.of(SmallDecoder.of(seed, WORDS, width, 1), "decoder");
  }

  /** Of 1 to 9 tokens. */
  static Examples.Texts texts(int n, long seed) {
    Random random = new Random(seed);
    List<long[]> ids = new ArrayList<>();
    for (int i = 0; i < n; i++) {
      ids.add(random.longs(1 + random.nextInt(9), 0, WORDS).toArray());
    }
    return new Examples.Texts(ids, true);
  }

  /** Texts of 2 to 9 tokens, each one more than the one before it. */
  static Examples.Texts counting(int n, long seed) {
    Random random = new Random(seed);
    List<long[]> ids = new ArrayList<>();
    for (int i = 0; i < n; i++) {
      long first = random.nextInt(40);
      ids.add(LongStream.range(first, first + 2 + random.nextInt(8)).toArray());
    }
    return new Examples.Texts(ids, true);
  }

  private record Run(byte[] model, List<Double> losses, double qualityBefore) {}

  private static Run run(Objective objective, long steps, int n, int batch) {
    Training training =
        new Training(
            steps, 0, batch, Optimizer.AdamW.of(3e-3), Training.Schedule.constant(), objective, 0);
    CompressionPlan plan = new CompressionPlan(List.of(new Stage.Train("distil", training)), 3);
    Compression.Job job =
        new Compression.Job(
            decoder(5, 16), decoder(6, 24), texts(n, 1), texts(16, 2), Pooling.MEAN, null, null);
    Losses losses = new Losses();
    try (OnnxCompression c = new OnnxCompression(plan, job)) {
      c.run(losses);
      return new Run(StoppedRuns.bytes(c.export()), losses.ofSteps(), losses.firstQuality());
    }
  }

  @Test
  void theNumberOfThreadsChangesNoBit() {
    Objective objective = Objective.ofLogits(0.25, 2);
    CpuThreads.set(1);
    Run one = run(objective, 40, 64, 13);
    CpuThreads.set(2);
    Run two = run(objective, 40, 64, 13);
    assertEquals(one.losses(), two.losses());
    assertArrayEquals(one.model(), two.model());
    assertTrue(one.losses().get(39) < 0.9 * one.losses().get(0), one.losses().toString());
  }

  /** The loss of a batch of two halves is that of all its tokens, each text for itself, in double. */
  @Test
  void theLossIsOverTheTokensOfTheBatch() {
    Objective objective = new Objective(0.25, 0.5, 2, 0.125, 0, 0, 0, 1, 0);
    Run found = run(objective, 1, 13, 13);
    double labels = 0;
    double divergence = 0;
    double bound = 0;
    int known = 0;
    int tokens = 0;
    try (OnnxGraph student = new OnnxGraph(decoder(5, 16));
        OnnxGraph teacher = new OnnxGraph(decoder(6, 24));
        PointerScope scope = new PointerScope();
        NoGradGuard noGrad = new NoGradGuard()) {
      Examples.Texts texts = texts(13, 1);
      for (int i = 0; i < texts.size(); i++) {
        Tensor s = logits(student, texts, i);
        Tensor t = logits(teacher, texts, i);
        int n = texts.length(i);
        Tensor logP = torch.log_softmax(s, 1);
        for (int k = 0; k + 1 < n; k++) {
          labels -= logP.get(k).get(texts.ids().get(i)[k + 1]).item_double();
        }
        Scalar two = new Scalar(2.0);
        Tensor q = torch.log_softmax(t.div(two), 1);
        Tensor p = torch.log_softmax(s.div(two), 1);
        divergence += 4 * q.exp().mul(q.sub(p)).sum().item_double();
        bound += s.sub(t).relu().square().sum().item_double();
        known += n - 1;
        tokens += n;
      }
    }
    double expected = 0.25 * labels / known + 0.5 * divergence / tokens + 0.125 * bound / tokens;
    assertEquals(expected, found.losses().get(0), 1e-5 * expected);
  }

  private static Tensor logits(OnnxGraph graph, Examples.Texts texts, int text) {
    Batch batch = Batch.of(texts, new int[] {text}, graph.inputNames());
    Map<String, Tensor> outputs = graph.forward(batch.inputs());
    return outputs.get("logits").squeeze(0).to(torch.ScalarType.Double);
  }

  /** Where nothing but the teacher is followed, the share of right next tokens is what is told. */
  @Test
  void theQualityIsThatOfTheNextToken() {
    Run found = run(Objective.ofLogits(0, 1), 1, 13, 13);
    int right = 0;
    int known = 0;
    try (OnnxGraph student = new OnnxGraph(decoder(5, 16));
        PointerScope scope = new PointerScope();
        NoGradGuard noGrad = new NoGradGuard()) {
      Examples.Texts texts = texts(16, 2);
      for (int i = 0; i < texts.size(); i++) {
        Tensor best =
            logits(student, texts, i).argmax(new org.bytedeco.pytorch.LongOptional(1), false);
        for (int k = 0; k + 1 < texts.length(i); k++) {
          right += best.get(k).item_long() == texts.ids().get(i)[k + 1] ? 1 : 0;
          known++;
        }
      }
    }
    assertEquals((double) right / known, found.qualityBefore(), 1e-12);
  }

  /** A student that asks for input_ids alone, and a teacher that asks for a mask and positions too. */
  @Test
  void studentAndTeacherMayAskForDifferentInputs() {
    Random random = new Random(4);
    List<long[]> ids = new ArrayList<>();
    for (int i = 0; i < 32; i++) {
      ids.add(random.longs(2 + random.nextInt(9), 0, 24).toArray());
    }
    Examples.Texts texts = new Examples.Texts(ids, true);
    Training training =
        new Training(
            30,
            0,
            8,
            Optimizer.AdamW.of(1e-2),
            Training.Schedule.constant(),
            Objective.ofLogits(0, 1),
            0);
    CompressionPlan plan = new CompressionPlan(List.of(new Stage.Train("distil", training)), 3);
    OnnxModel teacher = OnnxModel.of(SmallDecoder.of(6, 24, 16, 1), "teacher");
    Compression.Job job =
        new Compression.Job(
            EncoderTrainingTest.encoder(5), teacher, texts, texts, Pooling.MEAN, null, null);
    try (OnnxCompression c = new OnnxCompression(plan, job)) {
      assertTrue(c.run(new TrainingListener() {}));
      TrainingListener.StageReport report = c.stages().get(0);
      assertTrue(report.after().loss() < 0.5 * report.before().loss(), report.toString());
    }
  }

  @Test
  void textsOfOneTokenTeachNoLabels() {
    Examples.Texts single = new Examples.Texts(List.of(new long[] {1}, new long[] {2}), true);
    Training training =
        new Training(
            1,
            0,
            2,
            Optimizer.AdamW.of(1e-3),
            Training.Schedule.constant(),
            Objective.ofLabels(),
            0);
    CompressionPlan plan = new CompressionPlan(List.of(new Stage.Train("tune", training)), 3);
    Compression.Job job =
        new Compression.Job(decoder(5, 16), null, single, texts(4, 2), Pooling.MEAN, null, null);
    InputException e =
        assertThrows(InputException.class, () -> new OnnxCompression(plan, job).close());
    assertTrue(e.getMessage().contains("none of the training texts has a second"), e.getMessage());
  }
}

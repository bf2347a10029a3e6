package org.espalier.train;

import static org.espalier.train.StoppedRuns.bytes;
import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertTrue;

import ai.onnxruntime.OnnxTensor;
import ai.onnxruntime.OrtEnvironment;
import ai.onnxruntime.OrtException;
import java.io.ByteArrayInputStream;
import java.io.ByteArrayOutputStream;
import java.io.IOException;
import java.nio.FloatBuffer;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import org.espalier.compress.onnx.ActivationSource;
import org.espalier.compress.onnx.Clipping;
import org.espalier.evaluate.TensorActivations;
import org.espalier.torch.TestTorchDevice;
import org.espalier.torch.TorchDevice;
import org.junit.jupiter.api.Tag;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;
import org.junit.jupiter.params.provider.EnumSource;
import org.junit.jupiter.params.provider.ValueSource;

/**
 * Training whose kernels run on a CUDA device gives the bits of training on the CPU, where batches are not
 * computed in halves: one example a batch, or examples that are compared.
 */
@Tag("device")
class DeviceTrainingTest {
  private static final TrainingListener SILENT = new TrainingListener() {};

  private static Quantization quantization(Quantization q, boolean learn) {
    boolean ranges = learn && q.form() == Quantization.Form.STATIC;
    return q.with(new Quantization.Ranges(new Clipping.MinMax(), 0.05, 0.5, ranges))
        .withFit(false)
        .withLearnedScales(learn);
  }

  private static Training training(
      long steps, int batch, Optimizer optimizer, Objective objective) {
    return new Training(steps, 0, batch, optimizer, Training.Schedule.constant(), objective, 10);
  }

  /** What a plan exports, stopped, saved and continued after some steps where that is wanted. */
  private static byte[] run(
      CompressionPlan plan, Compression.Job job, TorchDevice device, long stopAfter)
      throws IOException {
    ByteArrayOutputStream saved = new ByteArrayOutputStream();
    try (OnnxCompression c = new OnnxCompression(plan, job, TrainedForm.of(job.model()), device)) {
      boolean complete =
          c.run(
              new TrainingListener() {
                private long steps;

                @Override
                public boolean step(StepReport report) {
                  return ++steps != stopAfter;
                }
              });
      if (complete) {
        return bytes(c.export());
      }
      c.save(saved);
    }
    try (OnnxCompression c = new OnnxCompression(plan, job, TrainedForm.of(job.model()), device)) {
      c.restore(new ByteArrayInputStream(saved.toByteArray()));
      assertTrue(c.run(SILENT));
      return bytes(c.export());
    }
  }

  private static void assertSameAsOnTheCpu(CompressionPlan plan, Compression.Job job)
      throws IOException {
    TorchDevice device = TestTorchDevice.get();
    byte[] cpu = run(plan, job, TorchDevice.CPU, 0);
    assertArrayEquals(cpu, run(plan, job, device, 0));
    assertArrayEquals(cpu, run(plan, job, device, 45));
  }

  private static Compression.Job classifier() {
    return new Compression.Job(
        OnnxCompressionTest.classifier(),
        null,
        OnnxCompressionTest.points(64, 2),
        OnnxCompressionTest.points(40, 3),
        Pooling.MEAN,
        null,
        null);
  }

  @ParameterizedTest
  @CsvSource({"DYNAMIC, false", "DYNAMIC, true", "INT4, false", "INT4, true"})
  void aClassifierIsPrunedQuantizedAndDistilled(Quantization.Form form, boolean learnScales)
      throws IOException {
    Quantization how = Quantization.of(form);
    Objective all = new Objective(1, 1, 2, 0.5, 0, 0, 0, 1, 0);
    Pruning cubic = Pruning.gradual(0.5, 4);
    assertSameAsOnTheCpu(
        new CompressionPlan(
            List.of(
                new Stage.Prune(
                    "prune",
                    cubic,
                    training(30, 1, new Optimizer.Sgd(0.05, 0.9, 1e-3, true, 1), all)),
                new Stage.Quantize(
                    "quantize",
                    quantization(how, learnScales),
                    training(40, 1, Optimizer.AdamW.of(1e-3), all))),
            7),
        classifier());
  }

  @ParameterizedTest
  @ValueSource(booleans = {false, true})
  void embeddingTablesLearn(boolean learnScales) throws IOException {
    Objective labels = Objective.ofLabels();
    assertSameAsOnTheCpu(
        new CompressionPlan(
            List.of(
                new Stage.Train("fit", training(30, 1, Optimizer.AdamW.of(1e-2), labels)),
                new Stage.Quantize(
                    "quantize",
                    quantization(Quantization.dynamic(), learnScales),
                    training(40, 1, Optimizer.AdamW.of(1e-2), labels))),
            7),
        EmbeddingTrainingTest.job(EmbeddingTrainingTest.clicks(), null));
  }

  @Test
  void anEncoderFollowsItsTeacher() throws IOException {
    Compression.Job job =
        new Compression.Job(
            EncoderTrainingTest.encoder(5),
            EncoderTrainingTest.encoder(6),
            EncoderTrainingTest.texts(48, 1),
            EncoderTrainingTest.texts(16, 2),
            Pooling.MEAN,
            null,
            null);
    assertSameAsOnTheCpu(
        new CompressionPlan(
            List.of(
                new Stage.Quantize(
                    "quantize",
                    quantization(Quantization.dynamic(), false),
                    training(60, 13, Optimizer.AdamW.of(3e-3), Objective.ofEmbeddings(2, 1, 1)))),
            3),
        job);
  }

  /** Weights at the ends of their grids come back to them there too. */
  @ParameterizedTest
  @EnumSource
  void aModelThatIsInt8IsTrainedAsThat(Int8TrainingTest.Form form)
      throws IOException, OrtException {
    Compression.Job all = form.job(null);
    Compression.Job job =
        new Compression.Job(
            all.model(),
            null,
            form.examples(32, 1),
            form.examples(16, 2),
            Pooling.MEAN,
            null,
            null);
    Objective both = Objective.ofLogits(0.5, 2);
    assertSameAsOnTheCpu(
        new CompressionPlan(
            List.of(
                new Stage.Train("fit", training(30, 1, Optimizer.AdamW.of(2e-2), both)),
                new Stage.Prune(
                    "prune",
                    Pruning.gradual(0.5, 4),
                    training(30, 1, new Optimizer.Sgd(0.02, 0.9, 1e-3, true, 1), both))),
            7),
        job);
  }

  @Test
  void anInt8EncoderFollowsAnother() throws IOException, OrtException {
    Compression.Job job =
        new Compression.Job(
            Int8TrainingTest.dynamic(EncoderTrainingTest.encoder(5)),
            Int8TrainingTest.dynamic(EncoderTrainingTest.encoder(6)),
            EncoderTrainingTest.texts(48, 1),
            EncoderTrainingTest.texts(16, 2),
            Pooling.MEAN,
            null,
            null);
    Training follow = training(60, 13, Optimizer.AdamW.of(3e-3), Objective.ofEmbeddings(2, 1, 1));
    assertSameAsOnTheCpu(new CompressionPlan(List.of(new Stage.Train("follow", follow)), 3), job);
  }

  @Test
  void aLanguageModelFollowsItsTeacher() throws IOException {
    Compression.Job job =
        new Compression.Job(
            CausalTrainingTest.decoder(5, 16),
            CausalTrainingTest.decoder(6, 24),
            CausalTrainingTest.texts(48, 1),
            CausalTrainingTest.texts(16, 2),
            Pooling.MEAN,
            null,
            null);
    assertSameAsOnTheCpu(
        new CompressionPlan(
            List.of(
                new Stage.Quantize(
                    "quantize",
                    quantization(Quantization.dynamic(), false),
                    training(60, 1, Optimizer.AdamW.of(3e-3), Objective.ofLogits(0.5, 2)))),
            3),
        job);
  }

  @ParameterizedTest
  @ValueSource(booleans = {false, true})
  void aConvolutionalNetworkTrainsUnderStaticRanges(boolean learn)
      throws IOException, OrtException {
    List<Map<String, OnnxTensor>> inputs = new ArrayList<>();
    for (float[] x : OnnxCompressionTest.values(StaticTrainingTest.images(8, 9))) {
      inputs.add(
          Map.of(
              "x",
              OnnxTensor.createTensor(
                  OrtEnvironment.getEnvironment(), FloatBuffer.wrap(x), new long[] {1, 1, 8, 8})));
    }
    ActivationSource source = new TensorActivations(inputs, 1);
    Compression.Job job =
        new Compression.Job(
            StaticTrainingTest.cnn(),
            null,
            StaticTrainingTest.images(32, 1),
            StaticTrainingTest.images(16, 2),
            Pooling.MEAN,
            source,
            null);
    try {
      assertSameAsOnTheCpu(
          new CompressionPlan(
              List.of(
                  new Stage.Quantize(
                      "quantize",
                      quantization(Quantization.fixed(), learn),
                      training(60, 1, Optimizer.AdamW.of(2e-3), Objective.ofLabels()))),
              7),
          job);
    } finally {
      inputs.forEach(i -> i.values().forEach(OnnxTensor::close));
    }
  }

  @Test
  void wholeBatchesAreComputedAtOnceAndTrainAsWell() throws IOException {
    TorchDevice device = TestTorchDevice.get();
    CompressionPlan plan =
        new CompressionPlan(
            List.of(
                new Stage.Train(
                    "fit", training(60, 16, Optimizer.AdamW.of(1e-2), Objective.ofLabels()))),
            7);
    Compression.Job job = classifier();
    try (OnnxCompression c = new OnnxCompression(plan, job, TrainedForm.of(job.model()), device)) {
      assertTrue(c.run(SILENT));
      assertTrue(c.stages().get(0).after().quality() > 0.8, c.stages().toString());
    }
  }
}

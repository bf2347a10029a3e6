package org.espalier.train;

import static org.espalier.format.onnx.SmallModels.values;
import static org.espalier.train.StoppedRuns.bytes;
import static org.espalier.train.StoppedRuns.exported;
import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.io.IOException;
import java.util.Arrays;
import java.util.BitSet;
import java.util.Collections;
import java.util.List;
import org.espalier.InputException;
import org.espalier.compress.onnx.ActivationSource;
import org.espalier.compress.onnx.RefittingPruner;
import org.espalier.evaluate.ExampleActivations;
import org.espalier.evaluate.ExampleTensors;
import org.espalier.format.onnx.OnnxModel;
import org.espalier.format.onnx.OnnxWeight;
import org.espalier.format.onnx.OnnxWeights;
import org.espalier.op.MagnitudePrune;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.EnumSource;
import org.junit.jupiter.params.provider.ValueSource;

/** Stages that choose what they prune by calibration and refit the weights that stay. */
class RefittedTrainingTest {
  private static final TrainingListener SILENT = new TrainingListener() {};

  private static ActivationSource calibration() {
    Examples.Labelled examples = OnnxCompressionTest.points(200, 9);
    List<float[]> values = OnnxCompressionTest.values(examples);
    return new ExampleActivations(
        ExampleTensors.of(values, List.of((long) values.get(0).length)), 1);
  }

  private static Compression.Job job(ActivationSource calibration) {
    return new Compression.Job(
        OnnxCompressionTest.classifier(),
        null,
        OnnxCompressionTest.points(512, 2),
        OnnxCompressionTest.points(256, 3),
        Pooling.MEAN,
        calibration,
        null);
  }

  private static Pruning pruning(double sparsity, Pruning.Scope scope, String pattern) {
    return new Pruning(
        pattern == null ? sparsity : 0,
        scope,
        pattern == null ? null : new Pruning.Pattern(2, 4),
        Pruning.Schedule.ONE_SHOT,
        1,
        1,
        name -> true,
        false,
        true);
  }

  private static Training steps(long steps) {
    return new Training(
        steps,
        0,
        16,
        Optimizer.AdamW.of(1e-3),
        Training.Schedule.constant(),
        Objective.ofOutput(),
        5);
  }

  @ParameterizedTest
  @EnumSource(Pruning.Scope.class)
  void whatIsPrunedAndRefittedIsWhatThePrunerMakesOfTheModel(Pruning.Scope scope) {
    CompressionPlan plan =
        new CompressionPlan(
            List.of(new Stage.Prune("prune", pruning(0.5, scope, null), steps(0))), 7);
    OnnxModel expected = OnnxCompressionTest.classifier();
    List<OnnxWeight> weights = OnnxWeights.of(expected);
    List<MagnitudePrune.Rule> rules =
        scope == Pruning.Scope.TENSOR
            ? Collections.nCopies(2, new MagnitudePrune.Sparsity(0.5, MagnitudePrune.Scope.TENSOR))
            : shares(expected, weights);
    List<BitSet> kept =
        weights.stream()
            .map(
                w -> {
                  BitSet all = new BitSet();
                  all.set(0, (int) expected.constant(w.value()).elements());
                  return all;
                })
            .toList();
    new RefittingPruner(expected, weights, rules).prune(kept, calibration(), done -> {});
    try (OnnxCompression c = new OnnxCompression(plan, job(calibration()))) {
      assertTrue(c.run(SILENT));
      OnnxModel made = c.export();
      for (String name : List.of("w1", "b1", "w2", "b2")) {
        assertArrayEquals(values(expected, name), values(made, name), name);
        float[] original = values(OnnxCompressionTest.classifier(), name);
        assertFalse(Arrays.equals(original, values(made, name)), name);
      }
    }
  }

  /** What magnitudes of all weights together leave of each tensor. */
  private static List<MagnitudePrune.Rule> shares(OnnxModel model, List<OnnxWeight> weights) {
    float[] first = values(model, "w1");
    float[] second = values(model, "w2");
    float[] all = new float[first.length + second.length];
    for (int i = 0; i < all.length; i++) {
      all[i] = Math.abs(i < first.length ? first[i] : second[i - first.length]);
    }
    Arrays.sort(all);
    float least = all[all.length / 2];
    return weights.stream()
        .<MagnitudePrune.Rule>map(
            w -> {
              float[] values = values(model, w.value());
              int small = 0;
              for (float v : values) {
                small += Math.abs(v) < least ? 1 : 0;
              }
              return new MagnitudePrune.Sparsity(
                  (double) small / values.length, MagnitudePrune.Scope.TENSOR);
            })
        .toList();
  }

  @Test
  void answersChangeLessThanByMagnitude() {
    double[] loss = new double[2];
    for (int i = 0; i < 2; i++) {
      Pruning how = i == 0 ? Pruning.oneShot(0.6) : pruning(0.6, Pruning.Scope.GLOBAL, null);
      CompressionPlan plan =
          new CompressionPlan(List.of(new Stage.Prune("prune", how, steps(0))), 7);
      try (OnnxCompression c = new OnnxCompression(plan, job(calibration()))) {
        assertTrue(c.run(SILENT));
        loss[i] = c.stages().get(0).changed().loss();
      }
    }
    assertTrue(loss[1] < 0.5 * loss[0], loss[1] + " refitted, by magnitude " + loss[0]);
  }

  /** Zeros hold through training and int8, and a stopped run goes on to the same bits. */
  @ParameterizedTest
  @ValueSource(strings = {"", "2:4"})
  void zerosHoldAndAStoppedRunContinuesToTheSameBits(String pattern) throws IOException {
    Pruning how = pruning(0.5, Pruning.Scope.TENSOR, pattern.isEmpty() ? null : pattern);
    Quantization dynamic = Quantization.dynamic();
    CompressionPlan plan =
        new CompressionPlan(
            List.of(
                new Stage.Prune("prune", how, steps(30)),
                new Stage.Quantize("quantize", dynamic, steps(30))),
            7);
    byte[] whole;
    try (OnnxCompression c = new OnnxCompression(plan, job(calibration()))) {
      assertTrue(c.run(SILENT));
      assertTrue(
          c.stages().get(0).after().loss() < c.stages().get(0).changed().loss(),
          c.stages().toString());
      for (LayerReport layer : c.layers()) {
        assertTrue(layer.sparsity() >= 0.5, layer.toString());
      }
      whole = bytes(c.export());
    }
    for (Stage stage : plan.stages()) {
      assertArrayEquals(whole, exported(plan, job(calibration()), stage, 8), stage.name());
    }
  }

  /** What an earlier stage pruned is not given back. */
  @Test
  void earlierZerosStay() {
    CompressionPlan plan =
        new CompressionPlan(
            List.of(
                new Stage.Prune("first", Pruning.oneShot(0.3), steps(10)),
                new Stage.Prune("more", pruning(0.6, Pruning.Scope.GLOBAL, null), steps(10))),
            7);
    try (OnnxCompression c = new OnnxCompression(plan, job(calibration()))) {
      OnnxModel[] first = {null};
      assertTrue(
          c.run(
              new TrainingListener() {
                @Override
                public void stageFinished(StageReport report) {
                  first[0] = first[0] == null ? c.floatModel() : first[0];
                }
              }));
      int zeros = 0;
      int all = 0;
      for (String name : List.of("w1", "w2")) {
        float[] before = values(first[0], name);
        float[] after = values(c.floatModel(), name);
        for (int i = 0; i < before.length; i++) {
          assertTrue(before[i] != 0 || after[i] == 0, name + " " + i);
          zeros += after[i] == 0 ? 1 : 0;
        }
        all += after.length;
      }
      assertEquals(0.6, (double) zeros / all, 0.02);
    }
  }

  @Test
  void whatCannotBeRefittedIsRefused() {
    CompressionPlan plan =
        new CompressionPlan(
            List.of(new Stage.Prune("thin", pruning(0.5, Pruning.Scope.GLOBAL, null), steps(0))),
            7);
    InputException e =
        assertThrows(InputException.class, () -> new OnnxCompression(plan, job(null)).close());
    assertEquals("stage thin: refitting needs calibration examples", e.getMessage());
    assertThrows(
        IllegalArgumentException.class,
        () ->
            new Pruning(
                0.5,
                Pruning.Scope.GLOBAL,
                null,
                Pruning.Schedule.CUBIC,
                1,
                1,
                name -> true,
                false,
                true));
  }
}

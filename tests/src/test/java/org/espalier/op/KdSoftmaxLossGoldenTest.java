package org.espalier.op;

import static org.junit.jupiter.api.Assertions.assertEquals;

import java.util.stream.Stream;
import org.bytedeco.javacpp.LongPointer;
import org.espalier.GoldenFiles;
import org.espalier.device.DType;
import org.espalier.device.OwnedTensor;
import org.junit.jupiter.api.DynamicTest;
import org.junit.jupiter.api.TestFactory;

/** Cross entropy, divergence, bound and their gradient by PyTorch's autograd in float64. */
class KdSoftmaxLossGoldenTest {
  @TestFactory
  Stream<DynamicTest> agreesWithPyTorch() {
    return GoldenFiles.tests("kd_*.safetensors", (file, isa) -> check(file));
  }

  private static void check(GoldenFiles.GoldenFile file) {
    KdSoftmaxLoss.Settings settings =
        new KdSoftmaxLoss.Settings(
            Double.parseDouble(file.setting("alpha")),
            Double.parseDouble(file.setting("temperature")),
            file.doubleSetting("beta", 0),
            Long.parseLong(file.setting("ignore_index", "-100")));
    long[] shape = file.shape("student");
    try (OwnedTensor student = Numbers.tensor(DType.F32, file.floats("student"), shape);
        OwnedTensor teacher = optional(file, "teacher", shape);
        OwnedTensor limit = optional(file, "bound_logits", shape);
        LongPointer labels = file.hasTensor("label") ? new LongPointer(file.longs("label")) : null;
        OwnedTensor gradient = OwnedTensor.allocate(DType.F32, shape);
        KdSoftmaxLoss loss =
            new KdSoftmaxLoss(
                settings,
                new KdSoftmaxLoss.Batch(
                    KdSoftmaxLoss.Logits.of(student),
                    logits(teacher),
                    labels,
                    logits(limit),
                    null,
                    KdSoftmaxLoss.Logits.of(gradient)))) {
      KdSoftmaxLoss.Result result = loss.compute();
      near(file, "loss", result.loss());
      near(file, "ce", result.ce());
      near(file, "kl", result.kl());
      near(file, "bound", result.bound());
      KdSoftmaxLossReference reference =
          new KdSoftmaxLossReference(
              KdSoftmaxLossTest.rows(file.floats("student"), shape),
              teacher == null ? null : KdSoftmaxLossTest.rows(file.floats("teacher"), shape),
              labels == null ? null : file.longs("label"),
              limit == null ? null : KdSoftmaxLossTest.rows(file.floats("bound_logits"), shape),
              null,
              settings);
      double[] expected = file.doubles("grad_student");
      float[] actual = Numbers.read(gradient);
      int columns = (int) shape[1];
      for (int i = 0; i < expected.length; i++) {
        assertEquals(
            expected[i], actual[i], reference.tolerance[i / columns][i % columns], "entry " + i);
      }
    }
  }

  private static void near(GoldenFiles.GoldenFile file, String name, double actual) {
    if (file.hasTensor(name) && file.doubles(name).length == 1) {
      double expected = file.doubles(name)[0];
      // Float exponentials, each within 2^-23; absolute below 1 because terms of both signs cancel.
      assertEquals(expected, actual, 2e-6 * Math.max(1, Math.abs(expected)), name);
    }
  }

  private static OwnedTensor optional(GoldenFiles.GoldenFile file, String name, long[] shape) {
    return file.hasTensor(name) ? Numbers.tensor(DType.F32, file.floats(name), shape) : null;
  }

  private static KdSoftmaxLoss.Logits logits(OwnedTensor tensor) {
    return tensor == null ? null : KdSoftmaxLoss.Logits.of(tensor);
  }
}

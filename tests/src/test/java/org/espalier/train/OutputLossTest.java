package org.espalier.train;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertNull;
import static org.junit.jupiter.api.Assertions.assertThrows;

import java.util.Map;
import java.util.Random;
import org.bytedeco.javacpp.PointerScope;
import org.bytedeco.pytorch.AbstractTensor;
import org.bytedeco.pytorch.Tensor;
import org.espalier.torch.Libtorch;
import org.espalier.torch.TensorView;
import org.espalier.torch.TorchDevice;
import org.junit.jupiter.api.BeforeAll;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.ValueSource;

/** Mean squared errors to labels and teacher, and their gradient, against the formulas in double. */
class OutputLossTest {
  private static final int N = 7;
  private static final int D = 3;
  private static final double VARIANCE = 2.5;

  @BeforeAll
  static void load() {
    Libtorch.load();
  }

  @ParameterizedTest
  @ValueSource(doubles = {0.3, 1})
  void labelsThatAreUnknownCountInNoMean(double alpha) {
    Random random = new Random(6);
    float[] f = new float[N * D];
    float[] t = new float[N * D];
    float[] y = new float[N * D];
    for (int i = 0; i < f.length; i++) {
      f[i] = (float) random.nextGaussian();
      t[i] = (float) random.nextGaussian();
      y[i] = i % 5 == 1 || i / D == 4 ? Float.NaN : (float) random.nextGaussian();
    }
    int known = new Labels.Numbers(y, D).known();
    double labels = 0;
    double output = 0;
    double[] gradient = new double[f.length];
    for (int i = 0; i < f.length; i++) {
      if (!Float.isNaN(y[i])) {
        labels += Math.pow(f[i] - y[i], 2) / (known * VARIANCE);
        gradient[i] += alpha * 2 * (f[i] - y[i]) / (known * VARIANCE);
      }
      output += Math.pow(f[i] - t[i], 2) / (f.length * VARIANCE);
      gradient[i] += (1 - alpha) * 2 * (f[i] - t[i]) / (f.length * VARIANCE);
    }
    Objective objective = Objective.ofNumbers(alpha);
    try (PointerScope scope = new PointerScope()) {
      Tensor student = AbstractTensor.create(f, N, D);
      student.requires_grad_(true);
      BatchTotals.Share share =
          new BatchTotals.Share(
              new Batch(Map.of(), new int[N], 1, null),
              objective.needsTeacher() ? AbstractTensor.create(t, N, D) : null,
              new Labels.Numbers(y, D));
      Loss loss =
          new OutputLoss(objective, TorchDevice.CPU, VARIANCE)
              .of(student, share, BatchTotals.of(share), true);
      loss.backward();
      assertEquals(labels, loss.parts().get("labels"), 1e-6);
      assertEquals(1 - labels, loss.quality(), 1e-6);
      if (alpha < 1) {
        assertEquals(output, loss.parts().get("output"), 1e-6);
      } else {
        assertNull(loss.parts().get("output"));
      }
      assertEquals(alpha * labels + (1 - alpha) * output, loss.value(), 1e-6);
      float[] found = new float[f.length];
      TrainingBuffer.buffer(TensorView.of(student.grad().contiguous())).get(found);
      for (int i = 0; i < f.length; i++) {
        assertEquals(gradient[i], found[i], 1e-6);
      }
    }
  }

  /** Columns (1, 3, 5) and (10, unknown, 20): Σ 8 and 50 over five values. */
  @Test
  void varianceIsAroundTheMeanOfEachColumn() {
    Labels.Numbers labels = new Labels.Numbers(new float[] {1, 10, 3, Float.NaN, 5, 20}, 2);
    assertEquals((8 + 50) / 5.0, labels.variance(), 1e-12);
    assertEquals(0, new Labels.Numbers(new float[] {Float.NaN, Float.NaN}, 1).variance());
    assertThrows(IllegalArgumentException.class, () -> new Labels.Numbers(new float[3], 2));
  }
}

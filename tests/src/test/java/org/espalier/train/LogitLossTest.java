package org.espalier.train;

import static org.junit.jupiter.api.Assertions.assertEquals;

import java.util.Map;
import java.util.Random;
import org.bytedeco.javacpp.PointerScope;
import org.bytedeco.pytorch.AbstractTensor;
import org.bytedeco.pytorch.Tensor;
import org.espalier.format.onnx.LogitRows;
import org.espalier.torch.Libtorch;
import org.espalier.torch.TensorView;
import org.espalier.torch.TorchDevice;
import org.junit.jupiter.api.BeforeAll;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.ValueSource;

/** Rows of logits against the formulas of cross entropy, distillation and bound in double. */
class LogitLossTest {
  private static final int N = 9;

  @BeforeAll
  static void load() {
    Libtorch.load();
  }

  private static double sigmoid(double z) {
    return 1 / (1 + Math.exp(-z));
  }

  @ParameterizedTest
  @ValueSource(booleans = {false, true})
  void oneLogitIsTheSecondOfTwo(boolean flat) {
    Random random = new Random(8);
    float[] student = new float[N];
    float[] teacher = new float[N];
    long[] labels = new long[N];
    for (int i = 0; i < N; i++) {
      student[i] = 3 * (float) random.nextGaussian();
      teacher[i] = 3 * (float) random.nextGaussian();
      labels[i] = i == 4 ? Labels.Classes.NO_LABEL : random.nextInt(2);
    }
    double t = 2.5;
    double alpha = 0.3;
    double beta = 0.8;
    double ce = 0;
    double kl = 0;
    double bound = 0;
    double right = 0;
    double[] gradient = new double[N];
    for (int i = 0; i < N; i++) {
      double p = sigmoid(student[i]);
      if (labels[i] >= 0) {
        ce -= Math.log(labels[i] == 1 ? p : 1 - p) / (N - 1);
        gradient[i] += alpha * (p - labels[i]) / (N - 1);
        right += p > 0.5 == (labels[i] == 1) ? 1.0 / (N - 1) : 0;
      }
      double ps = sigmoid(student[i] / t);
      double pt = sigmoid(teacher[i] / t);
      kl += t * t * (pt * Math.log(pt / ps) + (1 - pt) * Math.log((1 - pt) / (1 - ps))) / N;
      gradient[i] += (1 - alpha) * t * (ps - pt) / N;
      double excess = Math.max(0, student[i] - teacher[i]);
      bound += excess * excess / N;
      gradient[i] += beta * 2 * excess / N;
    }
    Objective objective = new Objective(alpha, 1 - alpha, t, beta, 0, 0, 0, 1, 0);
    try (PointerScope scope = new PointerScope()) {
      Tensor z = AbstractTensor.create(student, flat ? new long[] {N} : new long[] {N, 1});
      z.requires_grad_(true);
      BatchTotals.Share share =
          new BatchTotals.Share(
              new Batch(Map.of(), new int[N], 1, null),
              AbstractTensor.create(teacher, N, 1),
              new Labels.Classes(labels));
      LogitLoss of = new LogitLoss(objective, TorchDevice.CPU, new LogitRows(1, 1, true));
      Loss loss = of.of(z, share, BatchTotals.of(share), true);
      loss.backward();
      assertEquals(ce, loss.parts().get("labels"), 1e-6);
      assertEquals(kl, loss.parts().get("logits"), 1e-6);
      assertEquals(bound, loss.parts().get("bound"), 1e-6);
      assertEquals(alpha * ce + (1 - alpha) * kl + beta * bound, loss.value(), 1e-6);
      Loss looked = of.of(z, share, BatchTotals.of(share), false);
      assertEquals(loss.value(), looked.value());
      assertEquals(right, looked.quality(), 1e-12);
      float[] found = new float[N];
      TrainingBuffer.buffer(TensorView.of(z.grad().contiguous())).get(found);
      for (int i = 0; i < N; i++) {
        assertEquals(gradient[i], found[i], 1e-6);
      }
    }
  }

  /**
   * A map of classes has the loss and, turned, the gradient of its pixels as rows; those outside the mask count in
   * nothing.
   */
  @Test
  void rowsOfAnImageAreItsPixels() {
    int n = 2;
    int classes = 3;
    int pixels = 5;
    Random random = new Random(3);
    float[] student = new float[n * classes * pixels];
    float[] teacher = new float[student.length];
    long[] labels = new long[n * pixels];
    boolean[] attended = new boolean[n * pixels];
    for (int i = 0; i < student.length; i++) {
      student[i] = (float) random.nextGaussian();
      teacher[i] = (float) random.nextGaussian();
    }
    int count = 0;
    int known = 0;
    for (int i = 0; i < labels.length; i++) {
      labels[i] = i == 1 ? Labels.Classes.NO_LABEL : random.nextInt(classes);
      attended[i] = i % 4 != 3;
      count += attended[i] ? 1 : 0;
      known += attended[i] && i != 1 ? 1 : 0;
    }
    double ce = 0;
    double kl = 0;
    double right = 0;
    double[] gradient = new double[student.length];
    for (int i = 0; i < labels.length; i++) {
      if (!attended[i]) {
        continue;
      }
      int[] at = new int[classes];
      for (int c = 0; c < classes; c++) {
        at[c] = (i / pixels * classes + c) * pixels + i % pixels;
      }
      double[] p = softmax(student, at);
      double[] q = softmax(teacher, at);
      int best = 0;
      for (int c = 0; c < classes; c++) {
        kl += q[c] * Math.log(q[c] / p[c]) / count;
        gradient[at[c]] += 0.6 * (p[c] - q[c]) / count;
        if (labels[i] >= 0) {
          gradient[at[c]] += 0.4 * (p[c] - (labels[i] == c ? 1 : 0)) / known;
        }
        best = p[c] > p[best] ? c : best;
      }
      if (labels[i] >= 0) {
        ce -= Math.log(p[(int) labels[i]]) / known;
        right += best == labels[i] ? 1.0 / known : 0;
      }
    }
    try (PointerScope scope = new PointerScope()) {
      Tensor z = AbstractTensor.create(student, n, classes, pixels);
      z.requires_grad_(true);
      BatchTotals.Share share =
          new BatchTotals.Share(
              new Batch(Map.of(), new int[n], 1, null),
              AbstractTensor.create(teacher, n, classes * pixels),
              new Labels.Classes(labels, pixels),
              attended);
      LogitLoss of =
          new LogitLoss(
              Objective.ofLogits(0.4, 1), TorchDevice.CPU, new LogitRows(pixels, classes, false));
      Loss loss = of.of(z, share, BatchTotals.of(share), true);
      loss.backward();
      assertEquals(ce, loss.parts().get("labels"), 1e-6);
      assertEquals(kl, loss.parts().get("logits"), 1e-6);
      assertEquals(0.4 * ce + 0.6 * kl, loss.value(), 1e-6);
      Loss looked = of.of(z, share, BatchTotals.of(share), false);
      assertEquals(loss.value(), looked.value());
      assertEquals(right, looked.quality(), 1e-12);
      float[] found = new float[student.length];
      TrainingBuffer.buffer(TensorView.of(z.grad().contiguous())).get(found);
      for (int i = 0; i < found.length; i++) {
        assertEquals(gradient[i], found[i], 1e-6, "at " + i);
      }
    }
  }

  private static double[] softmax(float[] logits, int[] at) {
    double[] p = new double[at.length];
    double sum = 0;
    for (int c = 0; c < at.length; c++) {
      p[c] = Math.exp(logits[at[c]]);
      sum += p[c];
    }
    for (int c = 0; c < at.length; c++) {
      p[c] /= sum;
    }
    return p;
  }
}

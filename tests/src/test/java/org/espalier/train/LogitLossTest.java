package org.espalier.train;

import static org.junit.jupiter.api.Assertions.assertEquals;

import java.util.Map;
import java.util.Random;
import org.bytedeco.javacpp.PointerScope;
import org.bytedeco.pytorch.AbstractTensor;
import org.bytedeco.pytorch.Tensor;
import org.espalier.torch.Libtorch;
import org.espalier.torch.TensorView;
import org.espalier.torch.TorchDevice;
import org.junit.jupiter.api.BeforeAll;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.ValueSource;

/** One logit an example against the formulas of the binary cross entropy, of its distillation and of the bound. */
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
      Whole.Share share =
          new Whole.Share(
              new Batch(Map.of(), new int[N], 1, null),
              AbstractTensor.create(teacher, N, 1),
              new Labels.Classes(labels));
      Loss loss = new LogitLoss(objective, TorchDevice.CPU).of(z, share, Whole.of(share), true);
      loss.root().backward();
      assertEquals(ce, loss.parts().get("labels"), 1e-6);
      assertEquals(kl, loss.parts().get("logits"), 1e-6);
      assertEquals(bound, loss.parts().get("bound"), 1e-6);
      assertEquals(alpha * ce + (1 - alpha) * kl + beta * bound, loss.value(), 1e-6);
      assertEquals(right, loss.quality(), 1e-12);
      float[] found = new float[N];
      TrainingBuffer.buffer(TensorView.of(z.grad().contiguous())).get(found);
      for (int i = 0; i < N; i++) {
        assertEquals(gradient[i], found[i], 1e-6);
      }
    }
  }
}

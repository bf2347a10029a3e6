package org.espalier.train;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.Map;
import java.util.Random;
import java.util.stream.IntStream;
import org.bytedeco.javacpp.PointerScope;
import org.bytedeco.pytorch.AbstractTensor;
import org.bytedeco.pytorch.Tensor;
import org.espalier.format.onnx.LogitRows;
import org.espalier.torch.Libtorch;
import org.espalier.torch.TensorView;
import org.espalier.torch.TorchDevice;
import org.junit.jupiter.api.BeforeAll;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.Arguments;
import org.junit.jupiter.params.provider.MethodSource;

/**
 * The losses and gradients of a batch's shares add up to the batch's, however unequal the shares and the labels that
 * they know are.
 */
class SharesTest {
  private static final int N = 7;
  private static final int C = 5;

  @BeforeAll
  static void load() {
    Libtorch.load();
  }

  static List<Arguments> objectives() {
    return List.of(
        Arguments.of(Objective.ofLabels(), false),
        Arguments.of(new Objective(1, 0, 1, 2, 0, 0, 0, 1, 0), false),
        Arguments.of(Objective.ofLogits(0.3, 2), false),
        Arguments.of(new Objective(0, 0, 1, 2, 0, 0, 0, 1, 0), false),
        Arguments.of(new Objective(0.5, 1.5, 3, 0.7, 0, 0, 0, 1, 0), false),
        Arguments.of(Objective.ofOutput(), false),
        Arguments.of(Objective.ofNumbers(0.3), true),
        Arguments.of(Objective.ofNumbers(1), true));
  }

  private static Loss loss(
      Objective objective, Tensor student, BatchTotals.Share share, BatchTotals totals) {
    return share.labels() instanceof Labels.Numbers || objective.output() > 0
        ? new OutputLoss(objective, TorchDevice.CPU, 2).of(student, share, totals, true)
        : new LogitLoss(objective, TorchDevice.CPU, new LogitRows(1, C, true))
            .of(student, share, totals, true);
  }

  private static BatchTotals.Share share(float[] teacher, Labels labels, int from, int to) {
    Tensor t = AbstractTensor.create(Arrays.copyOfRange(teacher, from * C, to * C), to - from, C);
    Batch batch = new Batch(Map.of(), new int[to - from], 1, null);
    boolean[] attended = new boolean[to - from];
    for (int i = from; i < to; i++) {
      attended[i - from] = i != 2;
    }
    int[] some = IntStream.range(from, to).toArray();
    return new BatchTotals.Share(
        batch, t, labels.of(some), labels instanceof Labels.Classes ? attended : null);
  }

  private static float[] gradient(Tensor student) {
    float[] values = new float[(int) student.numel()];
    TrainingBuffer.buffer(TensorView.of(student.grad().contiguous())).get(values);
    return values;
  }

  @ParameterizedTest
  @MethodSource("objectives")
  void sharesAddUp(Objective objective, boolean numbers) {
    Random random = new Random(4);
    float[] teacher = new float[N * C];
    float[] student = new float[N * C];
    long[] classes = new long[N];
    float[] targets = new float[N * C];
    for (int i = 0; i < N * C; i++) {
      teacher[i] = (float) random.nextGaussian();
      student[i] = (float) random.nextGaussian();
      classes[i / C] = i / C % 3 == 1 ? Labels.Classes.NO_LABEL : random.nextInt(C);
      targets[i] = i % 4 == 1 ? Float.NaN : (float) random.nextGaussian();
    }
    Labels labels = numbers ? new Labels.Numbers(targets, C) : new Labels.Classes(classes);
    try (PointerScope scope = new PointerScope()) {
      BatchTotals.Share all = share(teacher, labels, 0, N);
      Tensor whole = AbstractTensor.create(student, N, C);
      whole.requires_grad_(true);
      Loss expected = loss(objective, whole, all, BatchTotals.of(all));
      expected.backward();
      float[] expectedGradient = gradient(whole);

      List<BatchTotals.Share> shares =
          List.of(share(teacher, labels, 0, 2), share(teacher, labels, 2, N));
      List<Loss> losses = new ArrayList<>();
      float[] found = new float[N * C];
      for (int i = 0; i < 2; i++) {
        int from = i * 2;
        int to = i == 0 ? 2 : N;
        Tensor part =
            AbstractTensor.create(Arrays.copyOfRange(student, from * C, to * C), to - from, C);
        part.requires_grad_(true);
        Loss loss = loss(objective, part, shares.get(i), BatchTotals.of(shares));
        loss.backward();
        losses.add(loss);
        float[] g = gradient(part);
        System.arraycopy(g, 0, found, from * C, g.length);
      }
      Loss sum = losses.get(0).plus(losses.get(1));
      assertTrue(expected.value() > 0.01, expected.toString());
      assertEquals(expected.value(), sum.value(), 1e-6 * expected.value());
      assertEquals(expected.quality(), sum.quality(), 1e-6);
      expected
          .parts()
          .forEach((name, part) -> assertEquals(part, sum.parts().get(name), 1e-6 * part, name));
      assertArrayEquals(expectedGradient, found, 1e-6f);
    }
  }
}

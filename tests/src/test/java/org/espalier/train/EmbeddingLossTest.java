package org.espalier.train;

import static org.junit.jupiter.api.Assertions.assertEquals;

import java.util.Map;
import java.util.Random;
import org.bytedeco.javacpp.PointerScope;
import org.bytedeco.pytorch.AbstractTensor;
import org.bytedeco.pytorch.Tensor;
import org.espalier.torch.Libtorch;
import org.espalier.torch.TorchDevice;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;

/** 1 − cosine of texts whose states are pooled, against plain loops. */
class EmbeddingLossTest {
  private static final int LONGEST = 4;
  private static final int WIDTH = 3;

  private static float[] states(long seed, int texts) {
    Random random = new Random(seed);
    float[] states = new float[texts * LONGEST * WIDTH];
    for (int i = 0; i < states.length; i++) {
      states[i] = (float) random.nextGaussian();
    }
    return states;
  }

  private static double[] pooled(Pooling pooling, float[] states, int text, int length) {
    double[] sum = new double[WIDTH];
    int from = pooling == Pooling.LAST ? length - 1 : 0;
    int to = pooling == Pooling.CLS ? 1 : length;
    for (int t = from; t < to; t++) {
      for (int c = 0; c < WIDTH; c++) {
        sum[c] += states[(text * LONGEST + t) * WIDTH + c];
      }
    }
    return sum;
  }

  private static double cosine(double[] a, double[] b) {
    double dot = 0;
    double aa = 0;
    double bb = 0;
    for (int c = 0; c < WIDTH; c++) {
      dot += a[c] * b[c];
      aa += a[c] * a[c];
      bb += b[c] * b[c];
    }
    return dot / Math.sqrt(aa * bb);
  }

  @ParameterizedTest
  @CsvSource({
    "MEAN, 4, 1, 3",
    "CLS, 4, 1, 3",
    "LAST, 4, 1, 3",
    "LAST, 2, 4, 1",
    "MEAN, 4, 4, 4",
    "LAST, 4, 4, 4"
  })
  void goesByTheTokensThatAreThere(Pooling pooling, int first, int second, int third) {
    Libtorch.load();
    int[] lengths = {first, second, third};
    float[] student = states(1, lengths.length);
    float[] teacher = states(2, lengths.length);
    boolean padded = first + second + third < lengths.length * LONGEST;
    float[] mask = new float[lengths.length * LONGEST];
    double expected = 0;
    for (int i = 0; i < lengths.length; i++) {
      for (int t = 0; t < lengths[i]; t++) {
        mask[i * LONGEST + t] = 1;
      }
      double[] s = pooled(pooling, student, i, lengths[i]);
      double[] t = pooled(pooling, teacher, i, lengths[i]);
      expected += (1 - cosine(s, t)) / lengths.length;
    }
    try (PointerScope scope = new PointerScope()) {
      Tensor states = AbstractTensor.create(student, lengths.length, LONGEST, WIDTH);
      Batch batch =
          new Batch(
              Map.of(),
              lengths,
              LONGEST,
              padded ? AbstractTensor.create(mask, lengths.length, LONGEST, 1) : null);
      BatchTotals.Share share =
          new BatchTotals.Share(
              batch, AbstractTensor.create(teacher, lengths.length, LONGEST, WIDTH), null);
      Loss loss =
          new EmbeddingLoss(Objective.ofEmbeddings(1, 0, 0), pooling, TorchDevice.CPU)
              .of(states, share, BatchTotals.of(share), false);
      assertEquals(expected, loss.value(), 1e-5);
    }
  }
}

package org.espalier.op;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.util.ArrayList;
import java.util.List;
import org.espalier.device.DType;
import org.espalier.device.OwnedTensor;
import org.junit.jupiter.api.Test;

class DpAccumulateTest {
  // One element, less and more than the 16 of a turn, an odd number before another tensor, several
  // pieces of 16,384.
  private static final int[] SIZES = {1, 31, 32, 33, 0, 64, 1003, 131_101};

  private static final class Lists implements AutoCloseable {
    final float[][] gradients = new float[SIZES.length][];
    final float[][] sums = new float[SIZES.length][];
    final List<OwnedTensor> gradientTensors = new ArrayList<>();
    final List<OwnedTensor> sumTensors = new ArrayList<>();
    final DpAccumulate operation;

    Lists() {
      List<DpAccumulate.Parameter> list = new ArrayList<>();
      for (int t = 0; t < SIZES.length; t++) {
        gradients[t] = Numbers.floats(SIZES[t], 10 + t);
        sums[t] = Numbers.floats(SIZES[t], 50 + t);
        gradientTensors.add(Numbers.tensor(DType.F32, gradients[t]));
        sumTensors.add(Numbers.tensor(DType.F32, sums[t]));
        list.add(new DpAccumulate.Parameter(gradientTensors.get(t), sumTensors.get(t)));
      }
      operation = new DpAccumulate(list);
    }

    void reset() {
      for (int t = 0; t < SIZES.length; t++) {
        Numbers.write(sumTensors.get(t), sums[t]);
      }
    }

    float[][] read() {
      return sumTensors.stream().map(Numbers::read).toArray(float[][]::new);
    }

    @Override
    public void close() {
      operation.close();
      gradientTensors.forEach(OwnedTensor::close);
      sumTensors.forEach(OwnedTensor::close);
    }
  }

  private interface Check {
    void on(float[][] sums);
  }

  /** On every variant: the check, and the same bits as the first. */
  private static void everywhere(Lists lists, Runnable call, Check check) {
    float[][][] first = new float[1][][];
    Variants.each(
        new int[] {1, 3},
        (isa, threads) -> {
          lists.reset();
          call.run();
          float[][] sums = lists.read();
          if (first[0] == null) {
            first[0] = sums;
            check.on(sums);
          }
          for (int t = 0; t < sums.length; t++) {
            assertArrayEquals(first[0][t], sums[t], isa + " " + threads);
          }
        });
  }

  @Test
  void addsWhatIsShortAndScalesWhatIsLong() {
    try (Lists lists = new Lists()) {
      double whole = 1 / DpAccumulateReference.factor(lists.gradients, 1); // the norm
      for (double bound : new double[] {whole / 3, whole * 1.001}) {
        double factor = DpAccumulateReference.factor(lists.gradients, bound);
        everywhere(
            lists,
            () -> assertEquals(bound < whole, lists.operation.accumulate(bound)),
            sums -> {
              for (int t = 0; t < SIZES.length; t++) {
                for (int i = 0; i < SIZES[t]; i++) {
                  double expected = lists.sums[t][i] + factor * lists.gradients[t][i];
                  // The factor's margin is 2^-21, the sum is rounded once.
                  double error =
                      0x1p-20 * Math.abs(lists.gradients[t][i])
                          + 0x1p-24 * Math.abs(expected)
                          + Float.MIN_VALUE;
                  assertEquals(expected, sums[t][i], error);
                }
              }
            });
      }
    }
  }

  /** The guarantee, which must hold for the floats that are added. */
  @Test
  void whatIsAddedIsNotLongerThanTheBound() {
    try (OwnedTensor gradient = OwnedTensor.allocate(DType.F32, 77);
        OwnedTensor sum = OwnedTensor.allocate(DType.F32, 77);
        DpAccumulate operation =
            new DpAccumulate(List.of(new DpAccumulate.Parameter(gradient, sum)))) {
      for (int seed = 0; seed < 100; seed++) {
        Numbers.write(gradient, Numbers.floats(77, seed));
        Numbers.write(sum, new float[77]);
        double bound = 0.1 + 0.05 * seed;
        assertTrue(operation.accumulate(bound));
        double squares = 0;
        for (float v : Numbers.read(sum)) {
          squares += (double) v * v;
        }
        assertTrue(Math.sqrt(squares) <= bound && Math.sqrt(squares) > 0.999 * bound);
      }
      float[] bad = new float[77];
      bad[5] = Float.POSITIVE_INFINITY;
      Numbers.write(gradient, bad);
      assertTrue(operation.accumulate(1));
      for (float v : Numbers.read(sum)) {
        assertTrue(Float.isNaN(v));
      }
    }
  }
}

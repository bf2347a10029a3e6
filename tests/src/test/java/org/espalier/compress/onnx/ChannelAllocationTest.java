package org.espalier.compress.onnx;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.util.Arrays;
import java.util.Random;
import java.util.function.ToDoubleFunction;
import org.junit.jupiter.api.RepeatedTest;
import org.junit.jupiter.api.RepetitionInfo;
import org.junit.jupiter.api.Test;

class ChannelAllocationTest {
  private static final int STEPS = 8;

  /** Descending counts from 64 on, and costs that grow ever faster. */
  private static void fill(int[][] counts, double[][] costs, Random random) {
    for (int s = 0; s < counts.length; s++) {
      counts[s] = new int[STEPS];
      costs[s] = new double[STEPS];
      double scale = Math.exp(2 * random.nextGaussian());
      for (int i = 0; i < STEPS; i++) {
        counts[s][i] = 8 * (STEPS - i);
        costs[s][i] = scale * i * i;
      }
    }
  }

  /** Sets whose work adds up and costs the same: exchanges reach what no other choice beats. */
  @RepeatedTest(5)
  void theCheapestIsFound(RepetitionInfo repetition) {
    Random random = new Random(repetition.getCurrentRepetition());
    int[][] counts = new int[3][];
    double[][] costs = new double[3][];
    fill(counts, costs, random);
    ToDoubleFunction<int[]> work = c -> c[0] + c[1] + c[2];
    int[] found = new ChannelAllocation(counts, costs, work).improve(new int[] {3, 3, 3});
    double limit = work.applyAsDouble(new int[] {40, 40, 40});
    assertTrue(work.applyAsDouble(found) <= limit);
    double best = Double.POSITIVE_INFINITY;
    double cost = 0;
    for (int i = 0; i < STEPS * STEPS * STEPS; i++) {
      int[] at = {i % STEPS, i / STEPS % STEPS, i / STEPS / STEPS};
      int[] here = {counts[0][at[0]], counts[1][at[1]], counts[2][at[2]]};
      double sum = costs[0][at[0]] + costs[1][at[1]] + costs[2][at[2]];
      if (work.applyAsDouble(here) <= limit) {
        best = Math.min(best, sum);
      }
      if (Arrays.equals(here, found)) {
        cost = sum;
      }
    }
    assertEquals(best, cost, 1e-9 * best);
  }

  /** Of two sets alike the one whose channels are more work loses them. */
  @Test
  void workCounts() {
    int[][] counts = {{32, 24, 16, 8}, {32, 24, 16, 8}};
    double[][] costs = {{0, 1, 2, 3}, {0, 1, 2, 3}};
    int[] found =
        new ChannelAllocation(counts, costs, c -> 3.0 * c[0] + c[1]).improve(new int[] {1, 2});
    assertArrayEquals(new int[] {16, 32}, found);
  }
}

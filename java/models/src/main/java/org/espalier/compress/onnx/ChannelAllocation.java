package org.espalier.compress.onnx;

import java.util.function.ToDoubleFunction;

/**
 * Finds how many channels each set keeps so that what is lost is least and the work no more than of a start: exchanges
 * between two sets, some more of one for some fewer of another, as long as one of them lowers the cost. The cost of sets
 * adds up; their work need not.
 */
final class ChannelAllocation {
  /** The most steps of a set in an exchange: a head is as much work as some hundred channels, which go by sixteens. */
  private static final int FAR = 20;

  /** An exchange lowers the cost by more than this share: what is less is rounding. */
  private static final double GAIN = 1e-9;

  private final int[][] counts;
  private final double[][] costs;
  private final ToDoubleFunction<int[]> work;

  /**
   * @param counts of each set how many channels it may have, descending
   * @param costs what is lost by each of these
   * @param work by how many channels each set has
   */
  ChannelAllocation(int[][] counts, double[][] costs, ToDoubleFunction<int[]> work) {
    this.counts = counts;
    this.costs = costs;
    this.work = work;
  }

  /**
   * Searches.
   *
   * @param start which of its counts each set has
   * @return how many channels each set has
   */
  int[] improve(int[] start) {
    int[] at = start;
    double limit = work.applyAsDouble(counts(at));
    int[] next = exchange(at, limit);
    while (next != null) {
      at = next;
      next = exchange(at, limit);
    }
    return counts(at);
  }

  private int[] counts(int[] at) {
    int[] result = new int[at.length];
    for (int s = 0; s < at.length; s++) {
      result[s] = counts[s][at[s]];
    }
    return result;
  }

  /** What the best exchange makes of it; null where none is worth it. */
  private int[] exchange(int[] at, double limit) {
    double now = 0;
    for (int s = 0; s < at.length; s++) {
      now += costs[s][at[s]];
    }
    double best = -GAIN * now;
    int[] result = null;
    for (int more = 0; more < at.length; more++) {
      for (int up = 1; up <= Math.min(FAR, at[more]); up++) {
        double saved = costs[more][at[more] - up] - costs[more][at[more]];
        for (int other = 0; other < at.length; other++) {
          int last = counts[other].length - 1;
          for (int i = Math.max(0, at[other] - FAR); i <= Math.min(last, at[other] + FAR); i++) {
            double change = saved + costs[other][i] - costs[other][at[other]];
            if (other == more || !(change < best)) {
              continue;
            }
            int[] tried = at.clone();
            tried[more] -= up;
            tried[other] = i;
            if (work.applyAsDouble(counts(tried)) <= limit) {
              best = change;
              result = tried;
            }
          }
        }
      }
    }
    return result;
  }
}

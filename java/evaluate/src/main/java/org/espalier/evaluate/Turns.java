package org.espalier.evaluate;

import java.util.function.IntConsumer;

/** Times two models that take turns, so that a change of the machine's speed meets both. */
final class Turns {
  private static final int CASES = 64;
  private static final int ROUNDS = 9;

  private Turns() {}

  /**
   * For each model the mean over cases of its median time for one, in milliseconds.
   *
   * @param cases how many there are; at most 64 of them, evenly spread, are timed
   * @param reference runs the case of a number
   */
  static double[] millis(int cases, IntConsumer reference, IntConsumer candidate) {
    int n = Math.min(CASES, cases);
    double[][] referenceTimes = new double[n][ROUNDS];
    double[][] candidateTimes = new double[n][ROUNDS];
    for (int round = 0; round < ROUNDS; round++) {
      for (int i = 0; i < n; i++) {
        int which = (int) ((long) i * cases / n);
        long start = System.nanoTime();
        reference.accept(which);
        long middle = System.nanoTime();
        candidate.accept(which);
        referenceTimes[i][round] = middle - start;
        candidateTimes[i][round] = System.nanoTime() - middle;
      }
    }
    double referenceSum = 0;
    double candidateSum = 0;
    for (int i = 0; i < n; i++) {
      referenceSum += Statistics.median(referenceTimes[i]);
      candidateSum += Statistics.median(candidateTimes[i]);
    }
    return new double[] {referenceSum * 1e-6 / n, candidateSum * 1e-6 / n};
  }
}

package org.espalier.evaluate;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.util.Random;
import org.junit.jupiter.api.Test;

class StatisticsTest {

  @Test
  void cosines() {
    assertEquals(1, Statistics.cosine(new float[] {1, 2}, new float[] {2, 4}), 1e-12);
    assertEquals(0, Statistics.cosine(new float[] {1, 0}, new float[] {0, 3}), 1e-12);
    assertEquals(-1, Statistics.cosine(new float[] {1, 1}, new float[] {-2, -2}), 1e-12);
    assertEquals(0, Statistics.cosine(new float[2], new float[] {1, 1}));
  }

  @Test
  void quantilesInterpolate() {
    double[] v = {4, 1, 3, 2};
    assertEquals(1, Statistics.quantile(v, 0));
    assertEquals(4, Statistics.quantile(v, 1));
    assertEquals(2.5, Statistics.median(v));
    assertEquals(1.15, Statistics.quantile(v, 0.05), 1e-12);
    assertEquals(7, Statistics.quantile(new double[] {7}, 0.05));
    assertThrows(IllegalArgumentException.class, () -> Statistics.quantile(new double[0], 0.5));
  }

  @Test
  void ranksShareTies() {
    assertArrayEquals(new double[] {2, 0.5, 0.5, 3}, Statistics.ranks(new double[] {5, 1, 1, 9}));
  }

  /** 1 − 6·Σd²/(n(n²−1)) with ranks (0,1,2,3,4) and (1,0,2,4,3): Σd² = 4, so 1 − 24/120. */
  @Test
  void spearmanByHand() {
    double[] x = {10, 20, 30, 40, 50};
    assertEquals(0.8, Statistics.spearman(x, new double[] {2, 1, 3, 5, 4}), 1e-12);
    assertEquals(1, Statistics.spearman(x, new double[] {1, 2, 4, 8, 1000}), 1e-12);
    assertEquals(-1, Statistics.spearman(x, new double[] {5, 4, 3, 2, 1}), 1e-12);
    assertTrue(Double.isNaN(Statistics.spearman(x, new double[] {1, 1, 1, 1, 1})));
    assertThrows(IllegalArgumentException.class, () -> Statistics.spearman(x, new double[] {1, 2}));
  }

  @Test
  void neighbours() {
    float[][] v = {{1, 0}, {0.8f, 0.6f}, {0, 1}, {0.6f, 0.8f}};
    assertArrayEquals(new int[] {1, 3, 3, 1}, Statistics.nearestNeighbours(v));
    assertArrayEquals(
        new double[] {0.8, 0, 0.6, 0.6, 0.96, 0.8}, Statistics.pairSimilarities(v), 1e-6);
  }

  /** Wilson's interval of 8 in 10 is [0.490, 0.943] in the literature. */
  @Test
  void proportionInterval() {
    double[] i = Statistics.proportionInterval(8, 10);
    assertEquals(0.490, i[0], 1e-3);
    assertEquals(0.943, i[1], 1e-3);
    assertEquals(1, Statistics.proportionInterval(5, 5)[1]);
    assertEquals(0, Statistics.proportionInterval(0, 5)[0]);
    assertThrows(IllegalArgumentException.class, () -> Statistics.proportionInterval(1, 0));
  }

  /** Against its definition: the share of pairs that are in order, ties counting half. */
  @Test
  void aucIsTheShareOfPairsInOrder() {
    Random random = new Random(3);
    double[] scores = new double[200];
    long[] labels = new long[200];
    for (int i = 0; i < scores.length; i++) {
      labels[i] = random.nextInt(3) - 1; // −1 is unknown
      scores[i] = random.nextInt(12) + 3 * labels[i];
    }
    double ordered = 0;
    int pairs = 0;
    for (int p = 0; p < scores.length; p++) {
      for (int n = 0; n < scores.length; n++) {
        if (labels[p] == 1 && labels[n] == 0) {
          pairs++;
          ordered += scores[p] > scores[n] ? 1 : scores[p] == scores[n] ? 0.5 : 0;
        }
      }
    }
    assertEquals(ordered / pairs, Statistics.auc(scores, labels), 1e-12);
    assertTrue(Double.isNaN(Statistics.auc(scores, new long[200])));
    scores[0] = Double.NaN;
    labels[0] = 1;
    assertTrue(Double.isNaN(Statistics.auc(scores, labels)));
  }
}

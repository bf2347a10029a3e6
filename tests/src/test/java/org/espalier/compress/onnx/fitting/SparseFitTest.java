package org.espalier.compress.onnx.fitting;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.nio.FloatBuffer;
import java.util.Arrays;
import java.util.Random;
import java.util.stream.IntStream;
import org.junit.jupiter.api.Test;

class SparseFitTest {
  private static final int[][] WHOLE = {IntStream.range(0, 11).toArray()};

  /** The mean of x·xᵀ over rows whose channels depend on each other, in blocks. */
  private static double[][] moments(Random random, int n, int... starts) {
    double[][] h = new double[n][n];
    for (int row = 0; row < 50; row++) {
      double common = random.nextGaussian();
      double[] x = random.doubles(n).map(v -> 3 * v * v + common).toArray();
      for (int i = 0; i < n; i++) {
        for (int j = 0; j < n; j++) {
          h[i][j] += x[i] * x[j] / 50;
        }
      }
    }
    double[][] lower = new double[n][];
    for (int i = 0; i < n; i++) {
      int at = i;
      int from = Arrays.stream(starts).filter(s -> s <= at).max().orElseThrow();
      lower[i] = Arrays.copyOfRange(h[i], from, i + 1);
    }
    return lower;
  }

  private static float[] weights(Random random, int n) {
    float[] w = new float[n];
    for (int i = 0; i < n; i++) {
      w[i] = (float) random.nextGaussian();
    }
    return w;
  }

  private static boolean[] all(int n) {
    boolean[] kept = new boolean[n];
    Arrays.fill(kept, true);
    return kept;
  }

  /** What is kept of a column solves the normal equations of its support, by Gauss in double. */
  private static double[] solved(double[][] h, double[] w, boolean[] kept) {
    int n = w.length;
    int[] s = IntStream.range(0, n).filter(k -> kept[k]).toArray();
    double[][] a = new double[s.length][s.length + 1];
    for (int i = 0; i < s.length; i++) {
      for (int j = 0; j < s.length; j++) {
        a[i][j] = h[s[i]][s[j]];
      }
      for (int k = 0; k < n; k++) {
        a[i][s.length] += h[s[i]][k] * w[k];
      }
    }
    for (int p = 0; p < s.length; p++) {
      for (int i = 0; i < s.length; i++) {
        double f = i == p ? 0 : a[i][p] / a[p][p];
        for (int j = p; j <= s.length; j++) {
          a[i][j] -= f * a[p][j];
        }
      }
    }
    double[] x = new double[n];
    for (int i = 0; i < s.length; i++) {
      x[s[i]] = a[i][s.length] / a[i][i];
    }
    return x;
  }

  private static double error(double[][] h, double[] w, double[] x) {
    double sum = 0;
    for (int i = 0; i < w.length; i++) {
      for (int j = 0; j < w.length; j++) {
        sum += (w[i] - x[i]) * h[i][j] * (w[j] - x[j]);
      }
    }
    return sum;
  }

  /** H in full, with a hundredth of the mean of each block's diagonal added to it. */
  private static double[][] damped(double[][] lower) {
    int n = lower.length;
    double[][] h = new double[n][n];
    for (MomentBlock block : MomentBlock.of(lower)) {
      for (int i = 0; i < block.size(); i++) {
        for (int j = 0; j < block.size(); j++) {
          h[block.from() + i][block.from() + j] = block.get(i, j);
        }
        h[block.from() + i][block.from() + i] += 0.01 * block.trace() / block.size();
      }
    }
    return h;
  }

  @Test
  void whatStaysIsTheLeastSquaresSolution() {
    for (int[] starts : new int[][] {{0}, {0, 5}, {0, 3, 4}}) {
      Random random = new Random(5);
      double[][] lower = moments(random, 11, starts);
      assertArrayEquals(
          starts, MomentBlock.of(lower).stream().mapToInt(MomentBlock::from).toArray());
      int outputs = 70;
      float[] w = weights(random, 11 * outputs);
      float[] x = w.clone();
      boolean[] kept = all(w.length);
      // Some were pruned before, and their values do not count.
      for (int k = 0; k < 11; k += 5) {
        kept[k * outputs + 3] = false;
      }
      new SparseFit(lower).prune(x, kept, WHOLE, (size, pruned) -> Math.max(pruned, 6));
      double[][] h = damped(lower);
      for (int n = 0; n < outputs; n++) {
        double[] column = new double[11];
        boolean[] stay = new boolean[11];
        int left = 0;
        for (int k = 0; k < 11; k++) {
          boolean before = n == 3 && k % 5 == 0;
          column[k] = before ? 0 : w[k * outputs + n];
          stay[k] = kept[k * outputs + n];
          assertFalse(before && stay[k]);
          left += stay[k] ? 1 : 0;
        }
        assertEquals(5, left);
        double[] mine = new double[11];
        for (int k = 0; k < 11; k++) {
          mine[k] = x[k * outputs + n];
        }
        double least = error(h, column, solved(h, column, stay));
        assertEquals(least, error(h, column, mine), 1e-4 * least, "output " + n);
      }
    }
  }

  /** More outputs than are solved for together, each as alone. */
  @Test
  void outputsDoNotKnowOfEachOther() {
    Random random = new Random(6);
    double[][] lower = moments(random, 11, 0, 5);
    int outputs = 600;
    float[] w = weights(random, 11 * outputs);
    float[] x = w.clone();
    boolean[] kept = all(w.length);
    SparseFit fit = new SparseFit(lower);
    fit.prune(x, kept, WHOLE, (size, pruned) -> 6);
    for (int n : new int[] {0, 511, 512, 599}) {
      float[] alone = new float[11];
      float[] among = new float[11];
      for (int k = 0; k < 11; k++) {
        alone[k] = w[k * outputs + n];
        among[k] = x[k * outputs + n];
      }
      fit.prune(alone, all(11), WHOLE, (size, pruned) -> 6);
      assertArrayEquals(alone, among, "output " + n);
    }
  }

  /** Random ones, sorted ones, those of a peak, and no more than are wanted. */
  @Test
  void theLeastAreBroughtToTheFront() {
    for (int n : new int[] {1, 2, 3, 7, 100, 1000}) {
      long[] random = new Random(n).longs(n).distinct().toArray();
      long[] peak = new long[n];
      Arrays.setAll(peak, i -> 2L * Math.min(i, n - 1 - i) + (i < n / 2 ? 0 : 1));
      for (long[] numbers :
          new long[][] {random, IntStream.range(0, n).asLongStream().toArray(), peak}) {
        for (int count : new int[] {0, 1, n / 3, n / 2, n - 1, n}) {
          long[] right = Arrays.copyOf(numbers, n);
          Arrays.sort(right);
          long[] selected = Arrays.copyOf(numbers, n + 2);
          selected[n] = Long.MIN_VALUE; // beyond those that count
          SparseFit.select(selected, n, count);
          Arrays.sort(selected, 0, count);
          assertArrayEquals(
              Arrays.copyOf(right, count), Arrays.copyOf(selected, count), count + " of " + n);
          assertEquals(Long.MIN_VALUE, selected[n]);
        }
      }
    }
  }

  /** Inputs of 1e-22 and of 1e18 have squares beyond float32. */
  @Test
  void theScaleOfInputsDoesNotMatter() {
    float[][] results = new float[3][];
    for (int i = 0; i < 3; i++) {
      Random random = new Random(5);
      double[][] lower = moments(random, 11, 0);
      double scale = new double[] {1, 1e-44, 1e36}[i];
      for (double[] row : lower) {
        Arrays.setAll(row, k -> row[k] * scale);
      }
      results[i] = weights(random, 11);
      new SparseFit(lower).prune(results[i], all(11), WHOLE, (size, pruned) -> 6);
    }
    assertArrayEquals(results[0], results[1], 1e-4f);
    assertArrayEquals(results[0], results[2], 1e-4f);
  }

  /** Nothing is known of the inputs: the smallest go, of equal ones the first, and the others keep their bits. */
  @Test
  void withoutMomentsItIsMagnitude() {
    float[] w = {3, -1, 0.5f, -0.5f, 1, 7, -0f, 1, 2, Math.nextUp(1f), 1};
    boolean[] kept = all(11);
    new SparseFit(new double[11][1]).prune(w, kept, WHOLE, (size, pruned) -> 5);
    assertArrayEquals(new float[] {3, 0, 0, 0, 0, 7, 0, 1, 2, Math.nextUp(1f), 1}, w);
    boolean[] right = all(11);
    for (int k : new int[] {1, 2, 3, 4, 6}) {
      right[k] = false;
    }
    assertArrayEquals(right, kept);
  }

  @Test
  void eachGroupLosesItsOwn() {
    Random random = new Random(9);
    float[] w = weights(random, 12 * 3);
    boolean[] kept = all(w.length);
    int[][] groups = {{0, 2, 4, 6}, {1, 3, 5, 7}, {8, 9, 10, 11}};
    new SparseFit(moments(random, 12, 0)).prune(w, kept, groups, (size, pruned) -> 2);
    for (int n = 0; n < 3; n++) {
      for (int[] group : groups) {
        int output = n;
        assertEquals(2, Arrays.stream(group).filter(k -> kept[k * 3 + output]).count());
        assertEquals(2, Arrays.stream(group).filter(k -> w[k * 3 + output] != 0).count());
      }
    }
  }

  /** Counts of a few dozen of 300 words a text: those of some topic often together. */
  private static float[][] bags(Random random, int texts) {
    float[][] bags = new float[texts][300];
    for (float[] bag : bags) {
      int topic = random.nextInt(10);
      for (int w = 0; w < 40; w++) {
        double place = random.nextDouble();
        int word = (int) (300 * place * place * place);
        bag[random.nextBoolean() ? word : (word * 7 + 29 * topic) % 300]++;
      }
    }
    return bags;
  }

  /** The error of sums over rows, as a share of their norm. */
  private static double unseen(float[][] rows, float[] w, float[] x, int outputs) {
    double error = 0;
    double square = 0;
    for (float[] row : rows) {
      for (int n = 0; n < outputs; n++) {
        double right = 0;
        double difference = 0;
        for (int k = 0; k < row.length; k++) {
          right += row[k] * w[k * outputs + n];
          difference += row[k] * (w[k * outputs + n] - x[k * outputs + n]);
        }
        error += difference * difference;
        square += right * right;
      }
    }
    return Math.sqrt(error / square);
  }

  /**
   * A few texts, as many as there are words, and many: on others the refit is never worse than magnitude, and far better
   * where there is something to learn.
   */
  @Test
  void fewExamplesAreNotTakenForAll() {
    int outputs = 16;
    Random random = new Random(11);
    float[] w = weights(random, 300 * outputs);
    int[][] whole = {IntStream.range(0, 300).toArray()};
    float[][] others = bags(random, 200);
    float[] magnitude = w.clone();
    new SparseFit(new double[300][1])
        .prune(magnitude, all(w.length), whole, (size, pruned) -> size / 2);
    double byMagnitude = unseen(others, w, magnitude, outputs);
    for (int texts : new int[] {3, 20, 300, 3000}) {
      ActivationStatistics statistics = new ActivationStatistics("x", 300);
      for (float[] bag : bags(random, texts)) {
        statistics.add(FloatBuffer.wrap(bag));
      }
      float[] x = w.clone();
      new SparseFit(statistics.moments(false))
          .prune(x, all(w.length), whole, (size, pruned) -> size / 2);
      double error = unseen(others, w, x, outputs);
      double most = texts < 3000 ? 1 : 0.8;
      assertTrue(error < most * byMagnitude, texts + " texts: " + error + ", " + byMagnitude);
    }
  }

  /** A channel that is never anything but 0 is missed by nobody, however large its weights. */
  @Test
  void deadInputsGoFirst() {
    double[][] lower = {{1}, {0, 0}, {0.5, 0, 1}, {0, 0, 0, 0}};
    float[] w = {0.1f, 9, 0.1f, -9};
    new SparseFit(lower).prune(w, all(4), new int[][] {{0, 1, 2, 3}}, (size, pruned) -> 2);
    assertArrayEquals(new float[] {0.1f, 0, 0.1f, 0}, w, 1e-6f);
  }
}

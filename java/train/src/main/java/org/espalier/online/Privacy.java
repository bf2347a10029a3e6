package org.espalier.online;

/**
 * Differentially private learning: each example's gradient is scaled down to {@code clip} in norm, and
 * Gaussian noise of {@code noise · clip} is added to the sum of a batch. Abadi and others, "Deep
 * learning with differential privacy" (2016).
 *
 * <p>What is protected is whether one example took part at all. Everybody sees the versions; nothing
 * is gained from sampling, because a stream is not a random sample. Epsilon is of the weights and what
 * they predict alone: metrics, the learner's saved state (which has labels of the newest window) and
 * the digests of a stream's first lines in a store are exact. Who is not to learn about examples gets
 * the exported model, not the store.
 *
 * @param clip above 0
 * @param noise the noise's deviation over {@code clip}, above 0
 * @param delta the chance with which epsilon does not hold, in (0, 1); below 1 / examples
 * @param contributions how many examples one person may have in the stream, at least 1
 */
public record Privacy(double clip, double noise, double delta, int contributions) {
  private static final double[] ORDERS = orders();

  public Privacy {
    if (!(clip > 0 && clip <= Float.MAX_VALUE) || !(noise > 0 && noise <= 1e6)) {
      throw new IllegalArgumentException("clip " + clip + ", noise " + noise);
    }
    if (!(delta > 0 && delta < 1)) {
      throw new IllegalArgumentException("delta " + delta + "; a number in (0, 1) is right");
    }
    if (contributions < 1) {
      throw new IllegalArgumentException("contributions " + contributions);
    }
  }

  /**
   * The privacy loss of the whole stream, however long. Batches are disjoint and an example is learned
   * once, so it takes part in one noisy sum: a Gaussian mechanism, whose Rényi divergence of order α is
   * α / (2 noise²) (Mironov, "Rényi differential privacy", 2017), and all that follows sees only what
   * was published. A person with k examples has k of them.
   */
  public double epsilon() {
    return epsilon(noise, delta, contributions);
  }

  /**
   * Epsilon after {@code steps} Gaussian mechanisms on the same example, by the least over the orders
   * α of rdp(α) + log(1 − 1/α) − log(δ·α)/(α − 1): Canonne, Kamath, Steinke, "The discrete Gaussian for
   * differential privacy" (2020), proposition 12.
   */
  static double epsilon(double noise, double delta, long steps) {
    double best = Double.POSITIVE_INFINITY;
    for (double order : ORDERS) {
      double rdp = steps * order / (2 * noise * noise);
      double epsilon =
          rdp + Math.log1p(-1 / order) - (Math.log(delta) + Math.log(order)) / (order - 1);
      best = Math.min(best, epsilon);
    }
    return Math.max(0, best);
  }

  /** The least noise with which a stream has at most {@code epsilon}, by bisection. */
  public static Privacy forEpsilon(double epsilon, double delta, double clip, int contributions) {
    if (!(epsilon > 0 && epsilon <= 1e6)) {
      throw new IllegalArgumentException("epsilon " + epsilon + "; a number above 0 is right");
    }
    double low = 1e-4;
    double high = 1e5;
    for (int i = 0; i < 100; i++) {
      double middle = Math.sqrt(low * high);
      if (epsilon(middle, delta, contributions) > epsilon) {
        low = middle;
      } else {
        high = middle;
      }
    }
    return new Privacy(clip, high, delta, contributions);
  }

  private static double[] orders() {
    double[] orders = new double[3000];
    for (int i = 0; i < orders.length; i++) {
      orders[i] = 1 + 1e-3 * Math.pow(1.006, i); // 1.001 to 62,000
    }
    return orders;
  }
}

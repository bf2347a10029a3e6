package org.espalier.online.privacy;

/**
 * Differentially private learning: each example's gradient is scaled down to {@code clip} in norm, and
 * Gaussian noise of {@code noise · clip} is added to the sum of a batch. Abadi and others, "Deep
 * learning with differential privacy" (2016).
 *
 * <p>What is protected is what one example says: with it and with an example that says nothing in its place,
 * nearly the same is published. Everybody sees the versions; nothing is gained from sampling, because a stream
 * is not a random sample. Epsilon is of the weights and what they predict alone: metrics, the learner's saved
 * state (which has labels of the newest window) and the digests of a stream's first lines in a store are
 * exact. Who is not to learn about examples gets the exported model, not the store.
 *
 * @param clip above 0
 * @param noise the noise's deviation over {@code clip}, above 0
 * @param delta the chance with which epsilon does not hold, in (0, 1); below 1 / examples
 * @param contributions how many examples one person may have in the stream, at least 1
 * @param maxEpsilon learning stops before the total of the learner is above it; infinite for
 *     no such limit
 */
public record Privacy(
    double clip, double noise, double delta, int contributions, double maxEpsilon) {
  private static final double MAX_NOISE = 1e6;
  private static final double[] ORDERS = orders();

  public Privacy {
    if (!(clip > 0 && clip <= Float.MAX_VALUE) || !(noise > 0 && noise <= MAX_NOISE)) {
      throw new IllegalArgumentException("clip " + clip + ", noise " + noise);
    }
    if (!(delta > 0 && delta < 1)) {
      throw new IllegalArgumentException("delta " + delta + "; a number in (0, 1) is right");
    }
    if (contributions < 1) {
      throw new IllegalArgumentException("contributions " + contributions);
    }
    double least = epsilon(spent(noise, contributions), delta);
    if (!(least <= maxEpsilon)) {
      throw new IllegalArgumentException(
          "max-epsilon " + maxEpsilon + " is below epsilon " + least + " of a single pass");
    }
  }

  /** Without a limit of the total. */
  public Privacy(double clip, double noise, double delta, int contributions) {
    this(clip, noise, delta, contributions, Double.POSITIVE_INFINITY);
  }

  public Privacy withMaxEpsilon(double value) {
    return new Privacy(clip, noise, delta, contributions, value);
  }

  /**
   * The privacy loss of one pass over a stream, however long. Batches are disjoint and an example is
   * learned once, so it takes part in one noisy sum: a Gaussian mechanism, whose Rényi divergence of order α is
   * α / (2 noise²) (Mironov, "Rényi differential privacy", 2017), and all that follows sees only what
   * was published. The k examples of a person may come in one batch, whose sum they change by k · clip: α k² / (2
   * noise²).
   */
  public double epsilon() {
    return epsilon(spent(noise, contributions), delta);
  }

  /** The Rényi divergence of a pass over α / 2. */
  static double spent(double noise, int contributions) {
    return (double) contributions * contributions / (noise * noise);
  }

  /**
   * Epsilon of a Rényi divergence of α · spent / 2, by the least over the orders α of rdp(α) + log(1 − 1/α) −
   * log(δ·α)/(α − 1): Canonne, Kamath, Steinke, "The discrete Gaussian for differential privacy" (2020),
   * proposition 12.
   */
  static double epsilon(double spent, double delta) {
    double best = Double.POSITIVE_INFINITY;
    for (double order : ORDERS) {
      double rdp = order * spent / 2;
      double epsilon =
          rdp + Math.log1p(-1 / order) - (Math.log(delta) + Math.log(order)) / (order - 1);
      best = Math.min(best, epsilon);
    }
    return Math.max(0, best);
  }

  /**
   * The least noise with which a pass over a stream has at most {@code epsilon}, by bisection.
   *
   * @throws IllegalArgumentException if there is no such noise
   */
  public static Privacy forEpsilon(double epsilon, double delta, double clip, int contributions) {
    if (!(epsilon > 0 && epsilon <= 1e6)) {
      throw new IllegalArgumentException("epsilon " + epsilon + "; a number above 0 is right");
    }
    new Privacy(clip, MAX_NOISE, delta, contributions); // checks
    double low = 1e-4;
    double high = MAX_NOISE;
    if (epsilon(spent(high, contributions), delta) > epsilon) {
      throw new IllegalArgumentException(
          "epsilon "
              + epsilon
              + " for "
              + contributions
              + " contributions wants more noise than "
              + MAX_NOISE);
    }
    for (int i = 0; i < 100; i++) {
      double middle = Math.sqrt(low * high);
      if (epsilon(spent(middle, contributions), delta) > epsilon) {
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

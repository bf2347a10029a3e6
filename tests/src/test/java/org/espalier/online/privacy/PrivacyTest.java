package org.espalier.online.privacy;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertNotEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.io.ByteArrayInputStream;
import java.io.ByteArrayOutputStream;
import java.io.IOException;
import java.nio.ByteBuffer;
import java.util.Arrays;
import java.util.List;
import java.util.Random;
import java.util.function.UnaryOperator;
import org.espalier.device.Tensor;
import org.espalier.online.Example;
import org.espalier.online.Guard;
import org.espalier.online.OnlineLearner;
import org.espalier.online.OnlineSettings;
import org.espalier.online.Streams;
import org.espalier.online.Weight;
import org.espalier.online.ZeroDistance;
import org.espalier.online.memory.Floats;
import org.espalier.online.model.LinearHead;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;

class PrivacyTest {
  private static final int FEATURES = 6;

  /** Of so many passes over an example. */
  private static double epsilon(double noise, double delta, int passes) {
    return Privacy.epsilon(passes * Privacy.spent(noise, 1), delta);
  }

  /**
   * The noise with which dp_accounting's own test of its RDP accountant has epsilon 1 at delta 1e-6; k
   * mechanisms with √k times the noise are as private as one.
   */
  @ParameterizedTest
  @CsvSource({"4.530877117, 1e-6, 1, 1", "14.327891479, 1e-6, 10, 1", "45.30877117, 1e-6, 100, 1"})
  void epsilonIsThePublishedOne(double noise, double delta, int steps, double epsilon) {
    assertEquals(epsilon, epsilon(noise, delta, steps), 1e-4);
  }

  /**
   * Between the exact value (Balle and Wang, "Improving the Gaussian mechanism", 2018, theorem 8) and
   * the bound of zero-concentrated privacy (Bun and Steinke, 2016, proposition 1.3): ρ + 2√(ρ log 1/δ)
   * with ρ = 1 / (2 noise²).
   */
  @Test
  void epsilonLiesBetweenTheExactValueAndTheSimpleBound() {
    for (double noise : new double[] {0.5, 1, 2, 5, 20}) {
      for (double delta : new double[] {1e-4, 1e-6, 1e-9}) {
        double epsilon = epsilon(noise, delta, 1);
        double rho = 1 / (2 * noise * noise);
        assertTrue(epsilon <= rho + 2 * Math.sqrt(rho * Math.log(1 / delta)) + 1e-9);
        // The mechanism is not (epsilon · 0.8, delta) private: its exact delta there is larger.
        double e = 0.8 * epsilon;
        double exact =
            normal(1 / (2 * noise) - e * noise)
                - Math.exp(e) * normal(-1 / (2 * noise) - e * noise);
        assertTrue(exact > delta, noise + " " + delta);
        double atEpsilon =
            normal(1 / (2 * noise) - epsilon * noise)
                - Math.exp(epsilon) * normal(-1 / (2 * noise) - epsilon * noise);
        assertTrue(atEpsilon <= delta, noise + " " + delta);
      }
    }
  }

  /** The distribution function of the normal distribution, by Simpson's rule. */
  private static double normal(double x) {
    int n = 20_000;
    double from = Math.min(-40, x - 1);
    double h = (x - from) / n;
    double sum = 0;
    for (int i = 0; i <= n; i++) {
      double t = from + i * h;
      sum += Math.exp(-t * t / 2) * (i == 0 || i == n ? 1 : i % 2 == 1 ? 4 : 2);
    }
    return sum * h / 3 / Math.sqrt(2 * Math.PI);
  }

  @Test
  void theNoiseOfAnEpsilonGivesThatEpsilon() {
    Privacy privacy = Privacy.forEpsilon(8, 1e-5, 1, 1);
    assertEquals(8, privacy.epsilon(), 1e-9);
    assertTrue(Privacy.forEpsilon(8, 1e-5, 1, 4).noise() > 1.9 * privacy.noise());
  }

  /** One example changes the sum by no more than the bound, and small gradients stay what they are. */
  @Test
  void eachExampleCountsAtMostTheBound() {
    Random random = new Random(4);
    double bound = 0.7;
    int rows = 5;
    try (LinearHead head = new LinearHead(FEATURES, 3)) {
      float[][] x = new float[rows][FEATURES];
      float[] slope = new float[rows * 3];
      for (int i = 0; i < rows; i++) {
        for (int j = 0; j < FEATURES; j++) {
          x[i][j] = (float) random.nextGaussian();
        }
        for (int c = 0; c < 3; c++) {
          slope[3 * i + c] = (float) (random.nextGaussian() * (i == 0 ? 1e-2 : 10));
        }
      }
      double[] sum = new double[3 * FEATURES + 3];
      for (int i = 0; i < rows; i++) {
        head.forward(new float[][] {x[i]}, 1, new float[3]);
        float[] own = Arrays.copyOfRange(slope, 3 * i, 3 * i + 3);
        head.backward(own, 1);
        double[] plain = gradient(head);
        assertEquals(i == 0 ? 0 : 1, head.backwardClipped(own, 1, bound));
        double[] clipped = gradient(head);
        double norm = norm(clipped);
        assertTrue(norm <= bound && norm >= Math.min(bound, norm(plain)) * (1 - 1e-5));
        for (int k = 0; k < sum.length; k++) {
          sum[k] += clipped[k];
          assertEquals(plain[k] * norm / norm(plain), clipped[k], 1e-6);
        }
      }
      head.forward(x, rows, new float[3 * rows]);
      assertEquals(4, head.backwardClipped(slope, rows, bound));
      double[] together = gradient(head);
      for (int k = 0; k < sum.length; k++) {
        assertEquals(sum[k], together[k], 1e-6);
      }
    }
  }

  private static double[] gradient(LinearHead head) {
    double[] all = new double[3 * FEATURES + 3];
    int k = 0;
    for (Weight w : head.weights()) {
      Tensor gradient = w.gradient();
      for (int i = 0; i < gradient.elements(); i++) {
        all[k++] = Floats.of(gradient).get(i);
      }
    }
    return all;
  }

  private static double norm(double[] values) {
    double sum = 0;
    for (double v : values) {
      sum += v * v;
    }
    return Math.sqrt(sum);
  }

  @Test
  void privateLearningLearnsAndItsStateTellsNoKey() throws IOException {
    OnlineSettings settings =
        Streams.crossEntropy(0.5)
            .batch(32)
            .privacy(Privacy.forEpsilon(8, 1e-5, 1, 1))
            .window(500)
            .build();
    long key = 0x1122334455667788L;
    try (LinearHead head = new LinearHead(FEATURES, 2);
        OnlineLearner learner = new OnlineLearner(head, settings, key)) {
      assertEquals(0.0, learner.epsilon());
      learner.learn(Streams.plane(4000, FEATURES, 0, 1, 9));
      assertEquals(8, learner.epsilon(), 1e-9);
      assertTrue(learner.metrics().get("accuracy_window") > 0.85, learner.metrics().toString());
      ByteArrayOutputStream out = new ByteArrayOutputStream();
      learner.save(out);
      byte[] state = out.toByteArray();
      for (int i = 0; i + 8 <= state.length; i++) {
        assertNotEquals(key, ByteBuffer.wrap(state, i, 8).getLong());
      }
    }
  }

  /** The examples of a person may all be in one batch, whose sum they change by so many bounds. */
  @Test
  void contributionsAddUpInTheSum() {
    double noise = 2.5;
    assertEquals(epsilon(noise, 1e-5, 9), new Privacy(1, noise, 1e-5, 3).epsilon(), 1e-12);
    assertTrue(
        Privacy.forEpsilon(8, 1e-5, 1, 4).noise()
            > 3.9 * Privacy.forEpsilon(8, 1e-5, 1, 1).noise());
    IllegalArgumentException e =
        assertThrows(
            IllegalArgumentException.class, () -> Privacy.forEpsilon(1e-3, 1e-5, 1, 1_000_000));
    assertTrue(e.getMessage().contains("more noise"), e.getMessage());
  }

  /** As an accountant of Opacus has it whose history holds both runs at sample rate 1. */
  @Test
  void passesOverTheSameExamplesAddUp() {
    List<String> stream = List.of("a", "b");
    PrivacyAccountant accountant = new PrivacyAccountant();
    accountant.add(List.of(new PrivacyPass("1", stream, 0, 100, 1, 1)));
    assertEquals(epsilon(1, 1e-5, 1), Privacy.epsilon(accountant.spent(), 1e-5), 1e-12);
    // Another noise over the same examples: the divergences of every order add up.
    accountant.add(List.of(new PrivacyPass("2", stream, 50, 200, 2, 1)));
    assertEquals(1 + 0.25, accountant.spent(), 1e-12);
    // Which is less than what the two epsilons give, and more than either.
    double both = Privacy.epsilon(accountant.spent(), 1e-5);
    assertTrue(both < epsilon(1, 1e-5, 1) + epsilon(2, 1e-5, 1));
    assertTrue(both > epsilon(1, 1e-5, 1));
    // What goes on after them, what is of another stream, and what is known add nothing.
    accountant.add(
        List.of(
            new PrivacyPass("3", stream, 200, 300, 1, 1),
            new PrivacyPass("4", List.of("a", "c"), 0, 300, 1, 1),
            new PrivacyPass("5", List.of(), 0, 300, 1, 1),
            new PrivacyPass("1", stream, 0, 80, 1, 1)));
    assertEquals(1.25, accountant.spent(), 1e-12);
    // A pass that goes on meets the others where they are.
    assertEquals(2, accountant.spentWith(new PrivacyPass("6", List.of("a", "c"), 0, 1, 1, 1)));
    PrivacyPass later = new PrivacyPass("6", stream, 110, 150, 1, 1);
    assertEquals(1.25, accountant.spentWith(later), 1e-12);
    PrivacyPass earlier = new PrivacyPass("6", stream, 0, 60, 1, 1);
    assertEquals(2.25, accountant.spentWith(earlier), 1e-12);
    assertEquals(2, accountant.spentWith(new PrivacyPass("6", stream, 0, 50, 1, 1)), 1e-12);
    // Few lines are known yet: it may be any stream that begins so.
    assertEquals(
        3.25, accountant.spentWith(new PrivacyPass("6", List.of("a"), 0, 60, 1, 1)), 1e-12);
  }

  @Test
  void theAccountsAreInTheStateAndTheBudgetStops() throws IOException {
    Privacy privacy = Privacy.forEpsilon(8, 1e-5, 1, 1);
    OnlineSettings settings = Streams.crossEntropy(0.5).privacy(privacy).build();
    OnlineSettings limited = Streams.crossEntropy(0.5).privacy(privacy.withMaxEpsilon(10)).build();
    List<Example> examples = Streams.plane(64, FEATURES, 0, 1, 9);
    List<String> stream = List.of("digest");
    ByteArrayOutputStream out = new ByteArrayOutputStream();
    List<PrivacyPass> passes;
    try (LinearHead head = new LinearHead(FEATURES, 2);
        OnlineLearner learner = new OnlineLearner(head, settings)) {
      learner.pass(stream, 0, 64);
      learner.learn(examples);
      learner.save(out);
      passes = learner.passes();
    }
    assertEquals(passes, OnlineLearner.passes(new ByteArrayInputStream(out.toByteArray())));
    double twice = epsilon(privacy.noise(), 1e-5, 2);
    try (LinearHead head = new LinearHead(FEATURES, 2);
        OnlineLearner learner = new OnlineLearner(head, limited)) {
      learner.load(new ByteArrayInputStream(out.toByteArray()));
      assertEquals(8, learner.epsilon(), 1e-9);
      learner.pass(stream, 64, 128);
      learner.learn(examples);
      assertEquals(8, learner.epsilon(), 1e-9);
      // From the beginning again: not within the budget, and nothing is learned.
      learner.beginPass();
      learner.pass(stream, 0, 64);
      long steps = learner.steps();
      PrivacyBudgetException e =
          assertThrows(PrivacyBudgetException.class, () -> learner.learn(examples));
      assertTrue(e.getMessage().contains("max-epsilon 10"), e.getMessage());
      assertEquals(steps, learner.steps());
      assertEquals(8, learner.epsilon(), 1e-9);
    }
    try (LinearHead head = new LinearHead(FEATURES, 2);
        OnlineLearner learner = new OnlineLearner(head, settings)) {
      learner.account(passes);
      learner.pass(stream, 0, 64);
      learner.learn(examples);
      assertEquals(twice, learner.epsilon(), 1e-9);
      // What it published itself counts once.
      learner.account(learner.passes());
      assertEquals(twice, learner.epsilon(), 1e-9);
    }
    assertThrows(IllegalArgumentException.class, () -> privacy.withMaxEpsilon(7));
  }

  @Test
  void whatWouldBreakThePromiseIsRefused() {
    Privacy privacy = new Privacy(1, 1, 1e-5, 1);
    refused("replay", b -> b.replay(new OnlineSettings.Replay(10, 1)).privacy(privacy));
    refused(
        "Guard.MINIMAL",
        b -> b.guard(new Guard(new Guard.Norm(2, 1, true), null, null)).privacy(privacy));
    refused(
        "drift",
        b -> b.drift(OnlineSettings.Drift.of(OnlineSettings.Drift.Action.RESET)).privacy(privacy));
    refused(
        "distance",
        b -> b.constraint(new ZeroDistance(ZeroDistance.ONE_HOT, 1, false)).privacy(privacy));
    assertThrows(IllegalArgumentException.class, () -> new Privacy(0, 1, 1e-5, 1));
    assertThrows(IllegalArgumentException.class, () -> new Privacy(1, Double.NaN, 1e-5, 1));
    assertThrows(IllegalArgumentException.class, () -> new Privacy(1, 1, 1, 1));
    assertThrows(IllegalArgumentException.class, () -> new Privacy(1, 1, 1e-5, 0));
  }

  private static void refused(String word, UnaryOperator<OnlineSettings.Builder> with) {
    IllegalArgumentException e =
        assertThrows(
            IllegalArgumentException.class, () -> with.apply(Streams.crossEntropy(0.1)).build());
    assertTrue(e.getMessage().contains(word), e.getMessage());
  }
}

package org.espalier.online;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import io.micrometer.core.instrument.Gauge;
import io.micrometer.core.instrument.MeterRegistry;
import io.micrometer.core.instrument.simple.SimpleMeterRegistry;
import java.util.ArrayList;
import java.util.List;
import java.util.Random;
import org.espalier.online.model.LinearHead;
import org.espalier.online.report.LearnerMetrics;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;

/** Each test fails if the constraint is dropped: the same stream without it ends elsewhere. */
class ZeroDistanceTest {
  private static final int FEATURES = 7;

  /** Cross entropy alone drives logits apart for ever; tied to the outcome they stay near 0 and 1. */
  @ParameterizedTest
  @CsvSource({"false", "true"})
  void logitsAreTiedToTheOneHotOutcome(boolean augmented) {
    List<Example> stream = Streams.plane(4000, FEATURES, 0, 1, 9);
    double[] free = distanceAfter(stream, null, ZeroDistance.ONE_HOT);
    double[] tied =
        distanceAfter(
            stream, new ZeroDistance(ZeroDistance.ONE_HOT, 1, augmented), ZeroDistance.ONE_HOT);
    assertTrue(free[0] > 1.5, "without the constraint " + free[0]);
    assertTrue(tied[0] < 0.6, "with it " + tied[0]);
    assertTrue(tied[1] > 0.93, "accuracy " + tied[1]);
  }

  @Test
  void aScaledTargetIsReached() {
    ZeroDistance.Target target = ZeroDistance.scaled(ZeroDistance.ONE_HOT, 6, -3);
    List<Example> stream = Streams.plane(4000, FEATURES, 0, 1, 9);
    double[] tied = distanceAfter(stream, new ZeroDistance(target, 1, false), target);
    double[] oneHot =
        distanceAfter(stream, new ZeroDistance(ZeroDistance.ONE_HOT, 1, false), target);
    assertTrue(tied[0] < 2.9 && oneHot[0] > 1.2 * tied[0], tied[0] + " and " + oneHot[0]);
  }

  /**
   * The Huber loss with a tiny delta goes to the median of skewed outcomes, the distance to their mean:
   * the penalty pulls part of the way, the multipliers the whole.
   */
  @Test
  void multipliersRemoveTheBiasThatAPenaltyLeaves() {
    Random random = new Random(2);
    List<Example> stream = new ArrayList<>();
    for (int i = 0; i < 20_000; i++) {
      float y = random.nextInt(4) == 0 ? 4 : 0; // median 0, mean 1
      stream.add(Example.of(new float[] {1}, y));
    }
    double median = level(stream, null);
    double penalty = level(stream, new ZeroDistance(ZeroDistance.IDENTITY, 0.15, false));
    double augmented = level(stream, new ZeroDistance(ZeroDistance.IDENTITY, 0.15, true));
    assertEquals(0, median, 0.12);
    assertTrue(penalty < 0.8, "penalty " + penalty);
    assertEquals(1, augmented, 0.12);
  }

  private static double level(List<Example> stream, ZeroDistance constraint) {
    OnlineSettings settings =
        OnlineSettings.builder(new Loss.Huber(0.1), new LearningRate.Constant(0.1))
            .batch(50)
            .constraint(constraint)
            .averaging(0.98)
            .build();
    try (LinearHead head = new LinearHead(1, 1);
        OnlineLearner learner = new OnlineLearner(head, settings)) {
      learner.learn(stream);
      return learner.predict(new float[] {1}).outputs()[0];
    }
  }

  /** The literal form: all outputs are drawn to the largest of the batch. */
  @Test
  void theLiteralFormDrawsAllOutputsToTheLargest() {
    List<Example> stream = Streams.line(3000, FEATURES, 2, 0, 3);
    double free = spread(stream, null);
    double literal = spread(stream, new ZeroDistance(ZeroDistance.BATCH_MAXIMUM, 20, false));
    assertTrue(free > 3, "without the constraint " + free);
    assertTrue(literal < free / 3, "with it " + literal);
  }

  private static double spread(List<Example> stream, ZeroDistance constraint) {
    OnlineSettings settings =
        OnlineSettings.builder(new Loss.Squared(), new LearningRate.Constant(0.02))
            .batch(8)
            .constraint(constraint)
            .build();
    try (LinearHead head = new LinearHead(FEATURES, 2);
        OnlineLearner learner = new OnlineLearner(head, settings)) {
      learner.learn(stream);
      float least = Float.POSITIVE_INFINITY;
      float most = Float.NEGATIVE_INFINITY;
      for (Example e : stream.subList(0, 100)) {
        for (float v : learner.predict(e.features()).outputs()) {
          least = Math.min(least, v);
          most = Math.max(most, v);
        }
      }
      return most - least;
    }
  }

  @Test
  void targetsThatMakeNoSenseAreRefused() {
    for (ZeroDistance.Target target :
        List.of(
            ZeroDistance.BATCH_MAXIMUM,
            ZeroDistance.scaled(ZeroDistance.BATCH_MAXIMUM, 2, 0),
            ZeroDistance.IDENTITY)) {
      for (Loss loss :
          List.of(new Loss.CrossEntropy(), new Loss.Binary(), new Loss.Distillation(1, 1, 0))) {
        IllegalArgumentException e =
            assertThrows(
                IllegalArgumentException.class,
                () ->
                    OnlineSettings.builder(loss, new LearningRate.Constant(1))
                        .constraint(new ZeroDistance(target, 1, false))
                        .build());
        assertTrue(e.getMessage().contains("losses on values"), e.getMessage());
      }
    }
    assertThrows(
        IllegalArgumentException.class,
        () ->
            OnlineSettings.builder(new Loss.Squared(), new LearningRate.Constant(1))
                .constraint(new ZeroDistance(ZeroDistance.ONE_HOT, 1, false))
                .build());
    assertThrows(
        IllegalArgumentException.class, () -> new ZeroDistance(ZeroDistance.ONE_HOT, 0, false));
  }

  /** The root mean square distance to a target, and the accuracy, after a stream. */
  private static double[] distanceAfter(
      List<Example> stream, ZeroDistance constraint, ZeroDistance.Target target) {
    OnlineSettings settings = Streams.crossEntropy(0.03).constraint(constraint).build();
    try (LinearHead head = new LinearHead(FEATURES, 2);
        OnlineLearner learner = new OnlineLearner(head, settings)) {
      learner.learn(stream);
      double squares = 0;
      int right = 0;
      for (Example e : stream.subList(0, 500)) {
        Prediction p = learner.predict(e.features());
        float[] t = new float[2];
        target.write(p.outputs(), 1, 2, new Example[] {e}, t);
        squares += Math.pow(p.outputs()[0] - t[0], 2) + Math.pow(p.outputs()[1] - t[1], 2);
        right += p.label() == e.label() ? 1 : 0;
      }
      assertEquals(constraint != null, learner.metrics().containsKey("distance"));
      return new double[] {Math.sqrt(squares / 500), right / 500.0};
    }
  }

  @Test
  void theDistanceIsOfTheLastBatch() {
    List<Example> stream = Streams.plane(64, FEATURES, 0, 1, 9);
    ZeroDistance constraint = new ZeroDistance(ZeroDistance.ONE_HOT, 1, false);
    OnlineSettings settings = Streams.crossEntropy(0.1).batch(8).constraint(constraint).build();
    try (LinearHead head = new LinearHead(FEATURES, 2);
        OnlineLearner learner = new OnlineLearner(head, settings)) {
      MeterRegistry registry = new SimpleMeterRegistry();
      new LearnerMetrics(learner).bindTo(registry);
      assertEquals(Double.NaN, learner.metrics().get("distance"));
      learner.learn(stream.subList(0, 56));
      double squares = 0;
      for (Example e : stream.subList(56, 64)) {
        float[] scores = learner.predict(e.features()).outputs();
        for (int c = 0; c < 2; c++) {
          squares += Math.pow(scores[c] - (c == e.label() ? 1 : 0), 2);
        }
      }
      learner.learn(stream.subList(56, 64));
      Gauge gauge = registry.get("espalier.metric").tag("name", "distance").gauge();
      assertEquals(Math.sqrt(squares / 8), gauge.value(), 1e-5);
      assertTrue(gauge.getId().getDescription().contains("distance is that of the last batch"));
    }
  }
}

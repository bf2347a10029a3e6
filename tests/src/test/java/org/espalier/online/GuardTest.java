package org.espalier.online;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertTrue;

import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.ObjectMapper;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.EnumMap;
import java.util.List;
import java.util.Map;
import java.util.Set;
import org.espalier.online.model.LinearHead;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;

class GuardTest {
  private static final int FEATURES = 9;

  @TempDir Path folder;

  private final List<Event> events = new ArrayList<>();

  @Test
  void anExampleThatIsNotFiniteIsTakenOutAndItsBatchIsLearned() throws IOException {
    Path file = folder.resolve("quarantine.jsonl");
    List<Example> batch = new ArrayList<>(Streams.plane(8, FEATURES, 0, 1, 9));
    float[] bad = batch.get(5).features();
    bad[2] = Float.NaN;
    bad[3] = Float.POSITIVE_INFINITY;
    List<Example> rest = new ArrayList<>(batch);
    rest.remove(5);
    try (LinearHead head = new LinearHead(FEATURES, 2);
        LinearHead twin = new LinearHead(FEATURES, 2);
        Quarantine quarantine = Quarantine.open(file, 1 << 20);
        OnlineLearner learner = learner(head, Guard.MINIMAL);
        OnlineLearner other = learner(twin, Guard.MINIMAL)) {
      learner.quarantine(quarantine);
      assertEquals(7, learner.learn(batch).learned());
      other.learn(rest);
      assertArrayEquals(other.weights().get("weight"), learner.weights().get("weight"));
      assertEquals(1, learner.removed());
      // A whole batch of them changes nothing at all.
      float[] before = learner.weights().get("weight");
      assertEquals(0, learner.learn(List.of(batch.get(5), batch.get(5))).steps());
      assertArrayEquals(before, learner.weights().get("weight"));
    }
    assertEquals(Event.Kind.NON_FINITE, events.get(0).kind());
    assertTrue(events.get(0).evidence().contains("1 of 8"), events.get(0).evidence());
    List<String> lines = Files.readAllLines(file);
    assertEquals(3, lines.size());
    JsonNode line = new ObjectMapper().readTree(lines.get(0));
    assertEquals("non_finite", line.get("why").asText());
    assertEquals("e5", line.get("id").asText());
    assertEquals("NaN", line.get("features").get(2).asText());
    assertEquals("Infinity", line.get("features").get(3).asText());
    assertEquals(bad[4], (float) line.get("features").get(4).asDouble());
  }

  @Test
  void anOutcomeThatIsNotFiniteIsTakenOut() {
    OnlineSettings settings =
        OnlineSettings.builder(new Loss.Squared(), new LearningRate.Constant(0.1)).build();
    try (LinearHead head = new LinearHead(2, 1);
        OnlineLearner learner = new OnlineLearner(head, settings)) {
      learner.learn(List.of(Example.of(new float[2], Float.NaN), Example.of(new float[2], 1f)));
      assertEquals(1, learner.learned());
      assertEquals(1, learner.removed());
    }
  }

  @Test
  void aLongGradientIsClippedOrSkipped() {
    for (boolean clip : new boolean[] {true, false}) {
      events.clear();
      try (LinearHead head = new LinearHead(FEATURES, 2);
          OnlineLearner learner =
              learner(head, new Guard(new Guard.Norm(4, 20, clip), null, null))) {
        learner.learn(Streams.plane(400, FEATURES, 0.1, 1, 9));
        int usual = events.size();
        float[] before = learner.weights().get("weight");
        Example exploding = Streams.plane(1, FEATURES, 0, 2, 9).get(0);
        for (int j = 0; j < FEATURES; j++) {
          exploding.features()[j] *= 1e3f;
        }
        Example wrong = Example.of(exploding.features(), 1 - exploding.label());
        learner.learn(List.of(wrong));
        float[] after = learner.weights().get("weight");
        double moved = 0;
        for (int j = 0; j < after.length; j++) {
          moved = Math.max(moved, Math.abs(after[j] - before[j]));
        }
        assertEquals(usual + 1, events.size());
        assertEquals(
            clip ? Event.Kind.NORM_CLIPPED : Event.Kind.NORM_SKIPPED, events.get(usual).kind());
        assertTrue(clip ? moved > 0 && moved < 2 : moved == 0, "moved " + moved);
        assertTrue(usual <= 3, usual + " alarms on a usual stream");
      }
    }
  }

  @Test
  void aLimitHoldsFromTheFirstStepOn() {
    for (boolean clip : new boolean[] {true, false}) {
      events.clear();
      try (LinearHead head = new LinearHead(FEATURES, 2);
          OnlineLearner learner =
              learner(head, new Guard(new Guard.Norm(5, 30, clip, 2), null, null))) {
        Example exploding = Streams.plane(1, FEATURES, 0, 2, 9).get(0);
        for (int j = 0; j < FEATURES; j++) {
          exploding.features()[j] *= 1e3f;
        }
        learner.learn(List.of(exploding));
        assertEquals(
            List.of(clip ? Event.Kind.NORM_CLIPPED : Event.Kind.NORM_SKIPPED),
            events.stream().map(Event::kind).toList());
        assertTrue(events.get(0).evidence().endsWith("more than the limit 2.000"));
        double moved = 0;
        for (float w : learner.weights().get("weight")) {
          moved += w * w;
        }
        // The rate is below 1, so the step is shorter than the limit.
        assertTrue(clip ? moved > 0 && moved <= 4 : moved == 0, "moved " + moved);
        assertEquals(clip ? 1 : 0, learner.steps());
      }
    }
  }

  @Test
  void aSpikeIsNotLearnedUntilItLasts() {
    try (LinearHead head = new LinearHead(FEATURES, 2);
        OnlineLearner learner = learner(head, new Guard(null, new Guard.Spike(3, 20, 4), null))) {
      learner.learn(Streams.plane(800, FEATURES, 0, 1, 9));
      assertEquals(0, events.size());
      List<Example> flipped = Streams.plane(80, FEATURES, 1, 2, 9);
      float[] before = learner.weights().get("weight");
      learner.learn(flipped.subList(0, 32));
      assertEquals(4, events.size());
      assertArrayEquals(before, learner.weights().get("weight"));
      assertEquals(32, learner.removed());
      learner.learn(flipped.subList(32, 80)); // the world has changed
      assertEquals(4, events.stream().filter(e -> e.kind() == Event.Kind.LOSS_SPIKE).count());
      assertTrue(learner.steps() >= 100 + 5, learner.steps() + " steps");
    }
  }

  /** Multipliers of a constraint can make the loss negative; then each would be above twice the mean. */
  @Test
  void aLossBelowZeroIsNoSpike() {
    float[] distance = {-3};
    OnlineSettings settings =
        OnlineSettings.builder(new Loss.Squared(), new LearningRate.Constant(0.05))
            .batch(1)
            .only(Set.of("weight"))
            .constraint(
                new ZeroDistance(
                    (out, rows, columns, outcomes, target) -> target[0] = out[0] - distance[0],
                    4,
                    true))
            .guard(new Guard(null, new Guard.Spike(2, 60, 1000), null))
            .build();
    try (LinearHead head = new LinearHead(1, 1);
        OnlineLearner learner = new OnlineLearner(head, settings)) {
      List<Event> events = new ArrayList<>();
      learner.onEvent(events::add);
      List<Example> one = List.of(Example.of(new float[1], 0f)); // the output stays 0
      int negative = 0;
      for (int i = 0; i < 150; i++) {
        distance[0] = i < 50 ? -3 : 1; // the multiplier has grown to -30 and comes back
        negative += learner.learn(one).loss() < 0 ? 1 : 0;
      }
      assertEquals(100, negative);
      assertEquals(List.of(), events);
    }
  }

  @Test
  void aBadVersionIsTakenBackAndItsExamplesQuarantined() throws IOException {
    Path file = folder.resolve("quarantine.jsonl");
    Guard guard = new Guard(null, null, new Guard.Quality(4, 100, 100, 0.1));
    try (LinearHead head = new LinearHead(FEATURES, 2);
        Quarantine quarantine = Quarantine.open(file, 1 << 20);
        OnlineLearner learner = learner(head, guard)) {
      learner.quarantine(quarantine);
      learner.learn(Streams.plane(1600, FEATURES, 0, 1, 9));
      assertEquals(0, events.size());
      float[] good = learner.weights().get("weight");
      long version = learner.version();
      learner.learn(Streams.plane(100, FEATURES, 1, 2, 9)); // all labels are wrong
      assertEquals(1, events.size());
      assertEquals(Event.Kind.ROLLBACK, events.get(0).kind());
      assertArrayEquals(good, learner.weights().get("weight"));
      assertTrue(learner.version() > version);
      assertEquals(75, Files.readAllLines(file).size()); // every fourth was held out
      // What readers get is the good version, under a new number.
      float[] x = Streams.plane(1, FEATURES, 0, 3, 9).get(0).features();
      assertEquals(learner.version(), learner.predict(x).version());
      learner.learn(Streams.plane(800, FEATURES, 0, 4, 9));
      assertTrue(learner.metrics().get("accuracy_fading") > 0.9);
    }
  }

  @Test
  void aFullQuarantineDoesNotStopTheLearning() throws IOException {
    Path file = folder.resolve("quarantine.jsonl");
    List<Example> batch = Streams.plane(8, FEATURES, 0, 1, 9);
    batch.get(1).features()[0] = Float.NaN;
    try (LinearHead head = new LinearHead(FEATURES, 2);
        Quarantine quarantine = Quarantine.open(file, 10);
        OnlineLearner learner = learner(head, Guard.MINIMAL)) {
      learner.quarantine(quarantine);
      assertEquals(7, learner.learn(batch).learned());
      assertEquals(1, quarantine.lost());
    }
    assertEquals(Event.Kind.QUARANTINE_FULL, events.get(1).kind());
    assertEquals(0, Files.size(file));
  }

  /** The table that a person would want: what was planted, what was caught, what it cost. */
  @Test
  void aStreamFullOfTrapsIsSurvived() {
    Guard guard =
        new Guard(
            new Guard.Norm(5, 30, true),
            new Guard.Spike(3, 30, 20),
            new Guard.Quality(5, 200, 200, 0.1));
    OnlineSettings settings =
        Streams.crossEntropy(0.3)
            .guard(guard)
            .drift(OnlineSettings.Drift.of(OnlineSettings.Drift.Action.RESTART))
            .window(400)
            .build();
    List<Example> stream = new ArrayList<>(Streams.plane(4000, FEATURES, 0.02, 1, 9));
    stream.addAll(Streams.plane(4000, FEATURES, 0.02, 2, 77)); // drift at 4000
    for (int i = 1000; i < 1160; i++) { // a burst of wrong labels
      Example e = stream.get(i);
      stream.set(i, Example.of(e.features(), 1 - e.label()));
    }
    for (int i = 2000; i < 2040; i++) { // a broken sensor
      stream.get(i).features()[i % FEATURES] = Float.NaN;
    }
    for (int i = 3000; i < 3016; i++) { // exploding features with wrong labels
      Example e = stream.get(i);
      for (int j = 0; j < FEATURES; j++) {
        e.features()[j] *= 1e4f;
      }
      stream.set(i, Example.of(e.features(), 1 - e.label()));
    }
    try (LinearHead head = new LinearHead(FEATURES, 2);
        OnlineLearner learner = new OnlineLearner(head, settings)) {
      learner.onEvent(events::add);
      StringBuilder table = new StringBuilder("planted                     caught\n");
      double[] accuracy = new double[5];
      int[] ends = {1000, 2000, 3000, 4000, 8000};
      String[] names = {
        "nothing",
        "160 wrong labels at 1000",
        "40 NaN at 2000",
        "16 exploding at 3000",
        "drift at 4000"
      };
      int at = 0;
      for (int k = 0; k < ends.length; k++) {
        events.clear();
        learner.learn(stream.subList(at, ends[k]));
        at = ends[k];
        accuracy[k] = learner.metrics().get("accuracy_window");
        Map<Event.Kind, Integer> kinds = new EnumMap<>(Event.Kind.class);
        events.forEach(e -> kinds.merge(e.kind(), 1, Integer::sum));
        table.append(String.format("%-27s %s, accuracy %.3f%n", names[k], kinds, accuracy[k]));
        if (k == 1) {
          assertTrue(kinds.containsKey(Event.Kind.LOSS_SPIKE), table.toString());
        } else if (k == 2) {
          assertTrue(kinds.containsKey(Event.Kind.NON_FINITE), table.toString());
        } else if (k == 3) {
          assertTrue(
              kinds.containsKey(Event.Kind.LOSS_SPIKE)
                  || kinds.containsKey(Event.Kind.NORM_CLIPPED),
              table.toString());
        } else if (k == 4) {
          assertTrue(kinds.containsKey(Event.Kind.DRIFT), table.toString());
        }
      }
      System.out.print(table);
      for (double a : accuracy) {
        assertTrue(a > 0.93, table.toString());
      }
    }
  }

  /** Where nothing but the model gets better no weights are reset, and where the world changes they are once. */
  @Test
  void aModelThatLearnsIsNoDrift() {
    List<Example> stream = new ArrayList<>(Streams.plane(5000, FEATURES, 0.02, 1, 9));
    for (Example e : Streams.plane(5000, FEATURES, 0.02, 2, 9)) {
      stream.add(Example.of(e.features(), 1 - e.label()));
    }
    OnlineSettings settings =
        Streams.crossEntropy(0.05)
            .batch(1)
            .drift(OnlineSettings.Drift.of(OnlineSettings.Drift.Action.RESET))
            .build();
    try (LinearHead head = new LinearHead(FEATURES, 2);
        OnlineLearner learner = new OnlineLearner(head, settings);
        LinearHead plainHead = new LinearHead(FEATURES, 2);
        OnlineLearner plain =
            new OnlineLearner(plainHead, Streams.crossEntropy(0.05).batch(1).build())) {
      learner.onEvent(events::add);
      learner.learn(stream.subList(0, 5000));
      plain.learn(stream.subList(0, 5000));
      assertEquals(List.of(), events);
      assertArrayEquals(plain.weights().get("weight"), learner.weights().get("weight"));
      learner.learn(stream.subList(5000, 10_000));
      plain.learn(stream.subList(5000, 10_000));
      assertEquals(
          List.of(Event.Kind.DRIFT), events.stream().map(Event::kind).toList(), events.toString());
      double accuracy = learner.metrics().get("accuracy");
      double without = plain.metrics().get("accuracy");
      assertTrue(accuracy > without + 0.002, accuracy + " and without resets " + without);
    }
  }

  /** A drift makes losses and gradients large, which is no reason to learn what explodes just then. */
  @Test
  void theRulesStayAwakeWhileADriftIsFollowed() {
    for (Guard guard :
        List.of(
            new Guard(new Guard.Norm(5, 30, true), null, null),
            new Guard(null, new Guard.Spike(4, 30, 5), null))) {
      events.clear();
      OnlineSettings settings =
          Streams.crossEntropy(0.3)
              .guard(guard)
              .drift(OnlineSettings.Drift.of(OnlineSettings.Drift.Action.RESTART))
              .window(400)
              .build();
      try (LinearHead head = new LinearHead(FEATURES, 2);
          OnlineLearner learner = new OnlineLearner(head, settings)) {
        learner.onEvent(events::add);
        learner.learn(Streams.plane(2000, FEATURES, 0, 1, 9));
        events.clear();
        List<Example> changed = Streams.plane(2000, FEATURES, 0, 2, 77);
        int at = 0;
        while (events.stream().noneMatch(e -> e.kind() == Event.Kind.DRIFT)) {
          learner.learn(changed.subList(at, at + 8));
          at += 8;
        }
        events.clear();
        List<Example> exploding = new ArrayList<>();
        for (Example e : changed.subList(at, at + 8)) {
          float[] x = e.features().clone();
          for (int j = 0; j < FEATURES; j++) {
            x[j] *= 1e6f;
          }
          exploding.add(Example.of(x, e.label()));
        }
        learner.learn(exploding);
        Event.Kind expected =
            guard.norm() == null ? Event.Kind.LOSS_SPIKE : Event.Kind.NORM_CLIPPED;
        assertTrue(events.stream().anyMatch(e -> e.kind() == expected), guard + ": " + events);
        learner.learn(changed.subList(at, 2000));
        assertTrue(learner.metrics().get("accuracy_window") > 0.9, learner.metrics().toString());
      }
    }
  }

  private OnlineLearner learner(LinearHead head, Guard guard) {
    OnlineLearner learner =
        new OnlineLearner(head, Streams.crossEntropy(0.3).guard(guard).window(100).build());
    learner.onEvent(events::add);
    return learner;
  }
}

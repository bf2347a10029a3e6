package org.espalier.online;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.util.ArrayList;
import java.util.List;
import java.util.Random;
import org.junit.jupiter.api.function.Executable;

/** Streams with a known truth. */
public final class Streams {
  private Streams() {}

  /** Two classes on either side of a plane through the origin, with a share of wrong labels. */
  public static List<Example> plane(int n, int features, double wrong, long seed, long planeSeed) {
    float[] normal = new float[features];
    Random plane = new Random(planeSeed);
    for (int j = 0; j < features; j++) {
      normal[j] = (float) plane.nextGaussian();
    }
    Random random = new Random(seed);
    List<Example> list = new ArrayList<>();
    for (int i = 0; i < n; i++) {
      float[] x = new float[features];
      double z = 0;
      for (int j = 0; j < features; j++) {
        x[j] = (float) random.nextGaussian();
        z += x[j] * normal[j];
      }
      boolean flip = random.nextDouble() < wrong;
      list.add(Example.of(x, z > 0 != flip ? 1 : 0).withId("e" + i));
    }
    return list;
  }

  /** Values that are a linear function of the features, with noise. */
  public static List<Example> line(int n, int features, int outputs, double noise, long seed) {
    Random truth = new Random(42);
    float[] w = new float[features * outputs];
    for (int j = 0; j < w.length; j++) {
      w[j] = (float) truth.nextGaussian();
    }
    Random random = new Random(seed);
    List<Example> list = new ArrayList<>();
    for (int i = 0; i < n; i++) {
      float[] x = new float[features];
      for (int j = 0; j < features; j++) {
        x[j] = (float) random.nextGaussian();
      }
      float[] y = new float[outputs];
      for (int c = 0; c < outputs; c++) {
        for (int j = 0; j < features; j++) {
          y[c] += w[c * features + j] * x[j];
        }
        y[c] += (float) (noise * random.nextGaussian());
      }
      list.add(Example.of(x, y));
    }
    return list;
  }

  public static OnlineSettings.Builder crossEntropy(double rate) {
    return OnlineSettings.builder(new Loss.CrossEntropy(), new LearningRate.Constant(rate))
        .batch(8);
  }

  /** Whether calls are refused because their model is closed. */
  public static void assertModelIsClosed(Executable... calls) {
    for (Executable call : calls) {
      String said = assertThrows(IllegalStateException.class, call).getMessage();
      assertTrue(said.startsWith("the model is closed"), said);
    }
  }

  /**
   * Closes a model while its learner is amid a step: the step's own thread is refused, another one waits for the
   * step, and afterwards the learner throws.
   */
  public static void closesAmidAStep(Learnable model, List<Example> examples) throws InterruptedException {
    Thread closing = new Thread(model::close);
    List<Event.Kind> told = new ArrayList<>();
    OnlineLearner learner = new OnlineLearner(model, crossEntropy(0.1).build());
    learner.onEvent(
        event -> {
          told.add(event.kind());
          String said = assertThrows(IllegalStateException.class, model::close).getMessage();
          assertTrue(said.startsWith("a listener cannot close the model"), said);
          closing.start();
          while (closing.getState() != Thread.State.BLOCKED && closing.isAlive()) {
            Thread.onSpinWait();
          }
          assertFalse(model.isClosed());
        });
    float[] broken = new float[model.features()];
    broken[0] = Float.NaN;
    assertEquals(0, learner.learn(List.of(Example.of(broken, 1))).steps());
    assertEquals(List.of(Event.Kind.NON_FINITE), told);
    closing.join();
    assertTrue(model.isClosed());
    assertModelIsClosed(() -> learner.learn(examples));
    learner.close();
  }
}

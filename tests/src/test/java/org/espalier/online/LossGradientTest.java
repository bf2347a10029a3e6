package org.espalier.online;

import static org.junit.jupiter.api.Assertions.assertEquals;

import java.util.Random;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.ValueSource;

/** Gradients against central differences of the loss, which is computed in double. */
class LossGradientTest {
  @ParameterizedTest
  @ValueSource(strings = {"cross entropy", "distillation", "binary", "squared", "huber"})
  void gradientsAreTheSlopesOfTheLoss(String name) {
    Loss loss =
        switch (name) {
          case "cross entropy" -> new Loss.CrossEntropy();
          case "distillation" -> new Loss.Distillation(0.3, 2, 0.5);
          case "binary" -> new Loss.Binary();
          case "squared" -> new Loss.Squared();
          default -> new Loss.Huber(0.7);
        };
    ZeroDistance.Target target = loss.isForClasses() ? ZeroDistance.ONE_HOT : ZeroDistance.IDENTITY;
    for (ZeroDistance constraint :
        new ZeroDistance[] {
          null, new ZeroDistance(target, 0.5, false), new ZeroDistance(target, 0.5, true)
        }) {
      check(loss, constraint);
    }
  }

  private static void check(Loss loss, ZeroDistance constraint) {
    int rows = 5;
    int columns = loss instanceof Loss.Binary ? 1 : 3;
    Random random = new Random(6);
    Example[] outcomes = new Example[rows];
    for (int i = 0; i < rows; i++) {
      float[] y = new float[columns];
      for (int c = 0; c < columns; c++) {
        y[c] = (float) random.nextGaussian();
      }
      int label = random.nextInt(Math.max(2, columns));
      outcomes[i] =
          loss.isForClasses() ? Example.of(new float[0], label) : Example.of(new float[0], y);
    }
    float[] outputs = new float[rows * columns];
    float[] taught = new float[rows * columns];
    for (int i = 0; i < outputs.length; i++) {
      outputs[i] = (float) random.nextGaussian();
      taught[i] = (float) random.nextGaussian();
    }
    float[] gradient = new float[outputs.length];
    float[] ignored = new float[outputs.length];
    try (LossGradient computed = new LossGradient(loss, constraint, columns, rows)) {
      // Multipliers that are not zero.
      computed.compute(outputs, rows, outcomes, taught, gradient);
      computed.stepped(0.5);
      computed.compute(outputs, rows, outcomes, taught, gradient);
      for (int i = 0; i < outputs.length; i++) {
        float was = outputs[i];
        float up = was + 1e-2f;
        float down = was - 1e-2f;
        outputs[i] = up;
        double above = computed.compute(outputs, rows, outcomes, taught, ignored);
        outputs[i] = down;
        double below = computed.compute(outputs, rows, outcomes, taught, ignored);
        outputs[i] = was;
        // The kernel adds a row in float: 1e-7 over a difference of 2e-2.
        assertEquals((above - below) / ((double) up - down), gradient[i], 3e-4, loss + " at " + i);
      }
    }
  }
}

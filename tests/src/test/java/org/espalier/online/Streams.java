package org.espalier.online;

import java.util.ArrayList;
import java.util.List;
import java.util.Random;

/** Streams with a known truth. */
final class Streams {
  private Streams() {}

  /** Two classes on either side of a plane through the origin, with a share of wrong labels. */
  static List<Example> plane(int n, int features, double wrong, long seed, long planeSeed) {
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
  static List<Example> line(int n, int features, int outputs, double noise, long seed) {
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

  static OnlineSettings.Builder crossEntropy(double rate) {
    return OnlineSettings.builder(new Loss.CrossEntropy(), new LearningRate.Constant(rate))
        .batch(8);
  }
}

package org.espalier.online;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.util.Map;
import java.util.Random;
import org.junit.jupiter.api.Test;

class PrequentialTest {
  @Test
  void metricsAreThoseOfTheDefinitions() {
    int window = 50;
    Prequential metrics = new Prequential(true, true, window, 0.9);
    assertTrue(metrics.metrics().isEmpty());
    Random random = new Random(8);
    int n = 130;
    double[] score = new double[n];
    boolean[] positive = new boolean[n];
    double faded = 0;
    double weight = 0;
    double sum = 0;
    for (int i = 0; i < n; i++) {
      positive[i] = random.nextBoolean();
      score[i] = Math.rint(4 * (random.nextGaussian() + (positive[i] ? 0.7 : 0))) / 4; // ties
      metrics.add(i, i % 3 == 0, score[i], positive[i]);
      faded = 0.9 * faded + i;
      weight = 0.9 * weight + 1;
      sum += i;
    }
    Map<String, Double> values = metrics.metrics();
    assertEquals(44 / 130.0, values.get("accuracy"), 1e-12); // 0, 3, …, 129
    assertEquals(17 / 50.0, values.get("accuracy_window"), 1e-12); // 81, …, 129
    assertEquals(sum / n, values.get("log_loss"), 1e-12);
    assertEquals(104.5, values.get("log_loss_window"), 1e-12);
    assertEquals(faded / weight, values.get("log_loss_fading"), 1e-9);
    double pairs = 0;
    double ordered = 0;
    for (int i = n - window; i < n; i++) {
      for (int j = n - window; j < n; j++) {
        if (positive[i] && !positive[j]) {
          pairs++;
          ordered += score[i] > score[j] ? 1 : score[i] == score[j] ? 0.5 : 0;
        }
      }
    }
    assertEquals(ordered / pairs, values.get("auc_window"), 1e-12);
  }

  @Test
  void aWindowOfOneClassHasNoAuc() {
    Prequential metrics = new Prequential(true, true, 10, 0.9);
    metrics.add(0.1, true, 1, true);
    assertFalse(metrics.metrics().containsKey("auc_window"));
    Prequential values = new Prequential(false, false, 10, 0.9);
    values.add(2, false, 0, false);
    assertEquals(2, values.metrics().get("mae"));
    assertFalse(values.metrics().containsKey("accuracy"));
  }
}

package org.espalier.evaluate;

import java.util.Arrays;
import org.espalier.InputException;

/** The classes that one model gives for labelled rows, and their accuracy, F1, log loss and area under the ROC curve. */
final class ClassAnswers {
  private final double[] scores;
  private final long[] labels;
  private int known;
  private int right;
  private double lossSum;

  /** For each class: rows that are of it and predicted so, that are predicted so, and that are of it. */
  private long[] hits;

  private long[] predicted;
  private long[] actual;

  /**
   * @param most rows at the most
   */
  ClassAnswers(int most) {
    scores = new double[most];
    labels = new long[most];
  }

  /** Takes a row's logits and gives its class; -1 where one of them is NaN. */
  int add(double[] logits, long label) {
    if (label >= logits.length) {
      throw new InputException(
          "a label is " + label + "; the models have the classes 0 to " + (logits.length - 1));
    }
    int found = largest(logits);
    if (label >= 0) {
      if (hits == null) {
        hits = new long[logits.length];
        predicted = new long[logits.length];
        actual = new long[logits.length];
      }
      scores[known] = logits[1] - logits[0];
      labels[known] = label;
      known++;
      right += found == label ? 1 : 0;
      lossSum += found < 0 ? Double.POSITIVE_INFINITY : loss(logits, (int) label);
      actual[(int) label]++;
      if (found >= 0) {
        predicted[found]++;
        hits[found] += found == label ? 1 : 0;
      }
    }
    return found;
  }

  /** The class of the largest logit, the first of several; −1 where one is NaN. */
  static int largest(double[] logits) {
    int best = 0;
    for (int i = 0; i < logits.length; i++) {
      if (Double.isNaN(logits[i])) {
        return -1;
      }
      best = logits[i] > logits[best] ? i : best;
    }
    return best;
  }

  private static double loss(double[] logits, int label) {
    double most = Arrays.stream(logits).max().orElseThrow();
    double sum = Arrays.stream(logits).map(z -> Math.exp(z - most)).sum();
    return Math.log(sum) + most - logits[label];
  }

  double accuracy() {
    return known == 0 ? Double.NaN : (double) right / known;
  }

  double logLoss() {
    return known == 0 ? Double.NaN : lossSum / known;
  }

  /** 2 · hits / (predicted + actual): of class 1 where there are two, else the mean over those that occur. */
  double f1() {
    double sum = 0;
    int occur = 0;
    for (int c = known > 0 && hits.length == 2 ? 1 : 0; known > 0 && c < hits.length; c++) {
      if (predicted[c] + actual[c] > 0) {
        sum += 2.0 * hits[c] / (predicted[c] + actual[c]);
        occur++;
      }
    }
    return occur == 0 ? Double.NaN : sum / occur;
  }

  double auc() {
    return known > 0 && hits.length == 2
        ? Statistics.auc(Arrays.copyOf(scores, known), Arrays.copyOf(labels, known))
        : Double.NaN;
  }
}

package org.espalier.evaluate;

import java.util.LinkedHashMap;
import java.util.Map;

/**
 * What two classifiers make of an example with one label.
 *
 * @param example its place, from 0
 * @param label the right class; negative where it is unknown
 * @param reference the class that the reference gives
 * @param referenceProbability which it gives that class
 * @param answer the class that the candidate gives; −1 where its output is NaN
 * @param probability which it gives that class
 * @param distance total variation between the probabilities of both, 0 to 1: half the sum of |p − q|
 */
public record ChangedAnswer(
    int example,
    long label,
    int reference,
    double referenceProbability,
    int answer,
    double probability,
    double distance) {
  /** Of two logits or more of each. */
  static ChangedAnswer of(int example, long label, double[] reference, double[] candidate) {
    double[] p = probabilities(reference);
    double[] q = probabilities(candidate);
    double distance = 0;
    for (int c = 0; c < p.length; c++) {
      distance += Math.abs(p[c] - q[c]) / 2;
    }
    int first = ClassAnswers.largest(reference);
    int second = ClassAnswers.largest(candidate);
    return second < 0
        ? new ChangedAnswer(example, label, first, p[first], -1, Double.NaN, 1)
        : new ChangedAnswer(example, label, first, p[first], second, q[second], distance);
  }

  private static double[] probabilities(double[] logits) {
    double most = logits[Math.max(0, ClassAnswers.largest(logits))];
    double[] probabilities = new double[logits.length];
    double sum = 0;
    for (int c = 0; c < logits.length; c++) {
      // Infinite ones have no difference.
      probabilities[c] = logits[c] == most ? 1 : Math.exp(logits[c] - most);
      sum += probabilities[c];
    }
    for (int c = 0; c < logits.length; c++) {
      probabilities[c] /= sum;
    }
    return probabilities;
  }

  /** Whether both give the same class. */
  public boolean isSameClass() {
    return reference == answer;
  }

  /** The values under their JSON keys, in a fixed order, without those that are not defined. */
  public Map<String, Object> toMap() {
    Map<String, Object> map = new LinkedHashMap<>();
    map.put("example", example);
    if (label >= 0) {
      map.put("label", label);
    }
    map.put("reference", reference);
    map.put("reference_probability", referenceProbability);
    if (answer >= 0) {
      map.put("answer", answer);
      map.put("probability", probability);
    }
    map.put("distance", distance);
    return map;
  }
}

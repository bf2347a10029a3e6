package org.espalier.online;

import java.io.DataInput;
import java.io.DataOutput;
import java.io.IOException;
import java.util.Arrays;
import java.util.LinkedHashMap;
import java.util.Map;
import org.espalier.online.memory.SavedState;

/**
 * Measures predictions before their outcome is learned: over all, over a window of the newest, and
 * fading, where an example counts {@code fade} times what the next one does (Gama, Sebastião,
 * Rodrigues, "On evaluating stream learning algorithms", 2013). Not for several threads.
 *
 * <p>For classes: accuracy, log-loss (−log of the probability of the class) and, with two of them, the
 * area under the ROC curve of the window. For values: the mean absolute error.
 */
final class Prequential {
  private final boolean classes;
  private final boolean binary;
  private final double fade;
  private final double[] score;
  private final double[] loss;
  private final double[] hit;
  private final boolean[] positive;
  private long n;
  private double lossSum;
  private double hitSum;
  private double fadedWeight;
  private double fadedLoss;
  private double fadedHit;

  Prequential(boolean classes, boolean binary, int window, double fade) {
    this.classes = classes;
    this.binary = binary;
    this.fade = fade;
    this.score = new double[window];
    this.loss = new double[window];
    this.hit = new double[window];
    this.positive = new boolean[window];
  }

  /** Measures for a learner of a model with so many outputs. */
  static Prequential of(OnlineSettings settings, int outputs) {
    boolean classes = settings.loss().isForClasses();
    return new Prequential(classes, classes && outputs <= 2, settings.window(), settings.fade());
  }

  /**
   * Measures a prediction.
   *
   * @param outputs hold it from {@code at} on, {@code columns} of them
   * @return its error, in [0, 1]
   */
  double add(Example example, float[] outputs, int at, int columns) {
    if (!classes) {
      double sum = 0;
      for (int c = 0; c < columns; c++) {
        sum += Math.abs(outputs[at + c] - example.values()[c]);
      }
      add(sum / columns, false, 0, false);
      return sum / columns / (1 + sum / columns);
    }
    int y = example.label();
    int best = 0;
    double logLoss;
    double score;
    if (columns == 1) {
      double z = outputs[at];
      score = z;
      best = z > 0 ? 1 : 0;
      logLoss = Math.max(z, 0) - y * z + StrictMath.log1p(StrictMath.exp(-Math.abs(z)));
    } else {
      for (int c = 1; c < columns; c++) {
        best = outputs[at + c] > outputs[at + best] ? c : best;
      }
      double sum = 0;
      for (int c = 0; c < columns; c++) {
        sum += StrictMath.exp(outputs[at + c] - outputs[at + best]);
      }
      logLoss = StrictMath.log(sum) + outputs[at + best] - outputs[at + y];
      score = outputs[at + 1] - outputs[at];
    }
    add(logLoss, best == y, score, y == 1);
    return best == y ? 0 : 1;
  }

  /**
   * @param error log-loss of a class, absolute error of values
   * @param correct whether the class was predicted
   * @param s the score of class 1, where there are two
   * @param isPositive whether the outcome is class 1
   */
  void add(double error, boolean correct, double s, boolean isPositive) {
    int at = (int) (n % loss.length);
    loss[at] = error;
    hit[at] = correct ? 1 : 0;
    score[at] = s;
    positive[at] = isPositive;
    n++;
    lossSum += error;
    hitSum += correct ? 1 : 0;
    fadedWeight = fade * fadedWeight + 1;
    fadedLoss = fade * fadedLoss + error;
    fadedHit = fade * fadedHit + (correct ? 1 : 0);
  }

  long count() {
    return n;
  }

  /** The metrics by name; those that nothing is known about are absent. */
  Map<String, Double> metrics() {
    Map<String, Double> map = new LinkedHashMap<>();
    if (n == 0) {
      return map;
    }
    int filled = (int) Math.min(n, loss.length);
    double windowLoss = Arrays.stream(loss, 0, filled).sum() / filled;
    String name = classes ? "log_loss" : "mae";
    if (classes) {
      double windowHits = Arrays.stream(hit, 0, filled).sum() / filled;
      map.put("accuracy", hitSum / n);
      map.put("accuracy_window", windowHits);
      map.put("accuracy_fading", fadedHit / fadedWeight);
    }
    map.put(name, lossSum / n);
    map.put(name + "_window", windowLoss);
    map.put(name + "_fading", fadedLoss / fadedWeight);
    double auc = binary ? auc(filled) : Double.NaN;
    if (!Double.isNaN(auc)) {
      map.put("auc_window", auc);
    }
    return map;
  }

  /** The share of pairs of a positive and a negative that the scores order, ties counting half. */
  private double auc(int filled) {
    double[] positives = new double[filled];
    double[] negatives = new double[filled];
    int p = 0;
    int n = 0;
    for (int i = 0; i < filled; i++) {
      if (positive[i]) {
        positives[p++] = score[i];
      } else {
        negatives[n++] = score[i];
      }
    }
    if (p == 0 || n == 0) {
      return Double.NaN;
    }
    Arrays.sort(positives, 0, p);
    Arrays.sort(negatives, 0, n);
    long halves = 0; // two for a negative that is below, one for a tie
    int below = 0;
    int notAbove = 0;
    for (int i = 0; i < p; i++) {
      while (below < n && negatives[below] < positives[i]) {
        below++;
      }
      while (notAbove < n && negatives[notAbove] <= positives[i]) {
        notAbove++;
      }
      halves += below + notAbove;
    }
    return 0.5 * halves / ((double) p * n);
  }

  void save(DataOutput out) throws IOException {
    out.writeLong(n);
    for (double v : new double[] {lossSum, hitSum, fadedWeight, fadedLoss, fadedHit}) {
      out.writeDouble(v);
    }
    out.writeInt(loss.length);
    for (int i = 0; i < Math.min(n, loss.length); i++) {
      out.writeDouble(loss[i]);
      out.writeDouble(hit[i]);
      out.writeDouble(score[i]);
      out.writeBoolean(positive[i]);
    }
  }

  void load(DataInput in) throws IOException {
    n = in.readLong();
    if (n < 0) {
      throw SavedState.damaged("it has measured " + n + " predictions");
    }
    lossSum = in.readDouble();
    hitSum = in.readDouble();
    fadedWeight = in.readDouble();
    fadedLoss = in.readDouble();
    fadedHit = in.readDouble();
    SavedState.count(in, loss.length, loss.length);
    for (int i = 0; i < Math.min(n, loss.length); i++) {
      loss[i] = in.readDouble();
      hit[i] = in.readDouble();
      score[i] = in.readDouble();
      positive[i] = in.readBoolean();
    }
  }
}

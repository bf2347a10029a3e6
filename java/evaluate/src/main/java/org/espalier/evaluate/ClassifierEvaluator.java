package org.espalier.evaluate;

import java.util.Arrays;
import org.espalier.InputException;
import org.espalier.format.onnx.ClassifierOutput;
import org.espalier.format.onnx.ClassifierOutput.Form;
import org.espalier.format.onnx.LogitRows;
import org.espalier.format.onnx.OnnxModel;

/** Compares two ONNX classifiers on labelled examples. */
public final class ClassifierEvaluator {
  /** Probabilities of a model are kept so far from 0 and 1: what float32 can tell from 1. */
  private static final double LEAST = 0x1p-24;

  private ClassifierEvaluator() {}

  /**
   * Compares the candidate of a pair with its reference. The first output of each holds logits, or probabilities
   * by a Sigmoid or Softmax; {@link LogitRows} says which of them belong to a label. A single one is of class 1
   * against class 0. Tokens that an input {@code attention_mask} leaves out are not looked at.
   *
   * @param labels the right classes of each example in turn; negative where it is unknown
   * @throws InputException when a model cannot be run, the two differ in classes, or a label is none of them
   */
  public static ClassifierFidelity evaluate(ModelPair pair, long[] labels) {
    FedModel reference = pair.reference();
    FedModel candidate = pair.candidate();
    Form firstForm = ClassifierOutput.of(OnnxModel.read(pair.referenceFile())).form();
    Form secondForm = ClassifierOutput.of(OnnxModel.read(pair.candidateFile())).form();
    int n = pair.size();
    int width = labels.length / n;
    boolean[] counted = pair.examples().attended(width);
    Answers ours = new Answers(labels.length);
    Answers theirs = new Answers(labels.length);
    int agreed = 0;
    int compared = 0;
    double cosines = 0;
    int shown = 0;
    boolean hasDirection = true; // of one value the cosine is a sign
    for (int i = 0; i < n; i++) {
      FedModel.FirstOutput output = reference.firstFinite(i);
      float[] a = output.values();
      float[] b = candidate.firstLike(reference, output, i);
      LogitRows rows = rows(reference.name(), output.shape(), width, firstForm);
      int before = compared;
      float[] x = new float[a.length]; // what is not counted stays 0
      float[] y = new float[a.length];
      for (int row = 0; row < width; row++) {
        int at = i * width + row;
        if (counted == null || counted[at]) {
          int inA = theirs.add(logits(a, rows, row, firstForm), labels[at]);
          int inB = ours.add(logits(b, rows, row, secondForm), labels[at]);
          agreed += inA == inB ? 1 : 0;
          compared++;
          for (int c = 0; c < rows.classes(); c++) {
            x[rows.index(row, c)] = a[rows.index(row, c)];
            y[rows.index(row, c)] = b[rows.index(row, c)];
          }
        }
      }
      cosines += compared > before ? Statistics.cosine(x, y) : 0;
      shown += compared > before ? 1 : 0;
      hasDirection &= a.length > 1;
    }
    if (compared == 0) {
      throw new InputException("attention_mask is 0 for all of the examples that are measured");
    }
    double[] interval = Statistics.proportionInterval(agreed, compared);
    return new ClassifierFidelity(
        n,
        ours.accuracy(),
        theirs.accuracy(),
        ours.f1(),
        theirs.f1(),
        ours.logLoss(),
        theirs.logLoss(),
        ours.auc(),
        theirs.auc(),
        (double) agreed / compared,
        interval[0],
        interval[1],
        hasDirection ? cosines / shown : Double.NaN);
  }

  private static LogitRows rows(String model, long[] shape, int labels, Form form) {
    try {
      return LogitRows.of(shape, labels, form);
    } catch (InputException e) {
      throw new InputException(model + ": the first output has the shape " + e.getMessage(), e);
    }
  }

  /** A row's logits of two classes or more, of which only differences count. */
  private static double[] logits(float[] output, LogitRows rows, int row, Form form) {
    int classes = rows.classes();
    double[] logits = new double[Math.max(2, classes)];
    for (int c = 0; c < classes; c++) {
      double value = output[rows.index(row, c)];
      double p = Math.max(LEAST, Math.min(1 - LEAST, value));
      // Of a Softmax the logarithms are logits, of one probability against its opposite the
      // log-odds.
      boolean against = form == Form.SIGMOID || classes == 1;
      logits[classes == 1 ? 1 : c] =
          form == Form.LOGITS ? value : against ? Math.log(p / (1 - p)) : Math.log(p);
    }
    return logits;
  }

  /** What one model says of the labelled rows. */
  private static final class Answers {
    private final double[] scores;
    private final long[] labels;
    private int known;
    private int right;
    private double lossSum;

    /** Of each class: rows that are of it and are said to be, that are said to be, that are. */
    private long[] hits;

    private long[] said;
    private long[] are;

    Answers(int most) {
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
          said = new long[logits.length];
          are = new long[logits.length];
        }
        scores[known] = logits[1] - logits[0];
        labels[known] = label;
        known++;
        right += found == label ? 1 : 0;
        lossSum += found < 0 ? Double.POSITIVE_INFINITY : loss(logits, (int) label);
        are[(int) label]++;
        if (found >= 0) {
          said[found]++;
          hits[found] += found == label ? 1 : 0;
        }
      }
      return found;
    }

    private static int largest(double[] logits) {
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

    /** 2 · hits / (said + are): of class 1 where there are two, else the mean over those that occur. */
    double f1() {
      double sum = 0;
      int occur = 0;
      for (int c = known > 0 && hits.length == 2 ? 1 : 0; known > 0 && c < hits.length; c++) {
        if (said[c] + are[c] > 0) {
          sum += 2.0 * hits[c] / (said[c] + are[c]);
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
}

package org.espalier.evaluate;

import java.nio.file.Path;
import java.util.Arrays;
import org.espalier.InputException;
import org.espalier.format.onnx.ClassifierOutput;
import org.espalier.format.onnx.ClassifierOutput.Form;
import org.espalier.format.onnx.OnnxModel;

/** Compares two ONNX classifiers on labelled examples, in ONNX Runtime on one thread. */
public final class ClassifierEvaluator {
  /** Probabilities of a model are kept so far from 0 and 1: what float32 can tell from 1. */
  private static final double LEAST = 0x1p-24;

  private ClassifierEvaluator() {}

  /**
   * Compares {@code candidate} with {@code reference}. The first output of each holds logits, or probabilities
   * by a Sigmoid or Softmax, of the classes; one value an example is of class 1 against class 0.
   *
   * @param labels the right class of each example; negative where nobody knows
   * @throws InputException when a model cannot be loaded or run, or the two differ in classes
   */
  public static ClassifierFidelity evaluate(
      Path reference, Path candidate, ExampleTensors examples, long[] labels) {
    Form firstForm = ClassifierOutput.of(OnnxModel.read(reference)).form();
    Form secondForm = ClassifierOutput.of(OnnxModel.read(candidate)).form();
    try (FirstOutput first = new FirstOutput(reference, examples);
        FirstOutput second = new FirstOutput(candidate, examples)) {
      int n = examples.size();
      Answers ours = new Answers(labels);
      Answers theirs = new Answers(labels);
      int agreed = 0;
      double cosines = 0;
      for (int i = 0; i < n; i++) {
        float[] a = first.values(i);
        float[] b = second.values(i);
        FirstOutput.requireSame(first, a, second, b);
        if (a.length > 1 && first.rank() != 2) {
          throw new InputException(
              reference
                  + ": the first output must be [batch, classes], or one value an example, but has "
                  + first.rank()
                  + " dimensions");
        }
        first.requireFinite(a, i);
        int inA = theirs.add(i, logits(a, firstForm));
        int inB = ours.add(i, logits(b, secondForm));
        agreed += inA == inB ? 1 : 0;
        cosines += a.length == 1 ? Double.NaN : Statistics.cosine(a, b);
      }
      double[] interval = Statistics.proportionInterval(agreed, n);
      double[] millis = Turns.millis(n, first::values, second::values);
      return new ClassifierFidelity(
          n,
          ours.accuracy(),
          theirs.accuracy(),
          ours.logLoss(),
          theirs.logLoss(),
          ours.auc(),
          theirs.auc(),
          (double) agreed / n,
          interval[0],
          interval[1],
          cosines / n,
          (double) FidelityEvaluator.bytes(candidate) / FidelityEvaluator.bytes(reference),
          millis[0] / millis[1],
          millis[0],
          millis[1]);
    }
  }

  /** Logits of two classes or more, of which only differences count. */
  private static double[] logits(float[] output, Form form) {
    double[] logits = new double[Math.max(2, output.length)];
    for (int c = 0; c < output.length; c++) {
      double p = Math.max(LEAST, Math.min(1 - LEAST, output[c]));
      // Of a Softmax the logarithms are logits, of one probability against its opposite the
      // log-odds.
      boolean against = form == Form.SIGMOID || output.length == 1;
      logits[output.length == 1 ? 1 : c] =
          form == Form.LOGITS ? output[c] : against ? Math.log(p / (1 - p)) : Math.log(p);
    }
    return logits;
  }

  /** What one model says of the examples. */
  private static final class Answers {
    private final long[] labels;
    private final double[] scores;
    private int known;
    private int right;
    private int classes;
    private double lossSum;

    Answers(long[] labels) {
      this.labels = labels;
      scores = new double[labels.length];
    }

    /** Takes an example's logits and gives its class; -1 where one of them is NaN. */
    int add(int example, double[] logits) {
      int found = largest(logits);
      long label = labels[example];
      classes = logits.length;
      scores[example] = logits[1] - logits[0];
      if (label >= 0) {
        known++;
        right += found == label ? 1 : 0;
        lossSum += found < 0 ? Double.POSITIVE_INFINITY : loss(logits, (int) label);
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

    double auc() {
      return classes == 2 ? Statistics.auc(scores, labels) : Double.NaN;
    }
  }
}

package org.espalier.evaluate;

import org.espalier.InputException;
import org.espalier.compress.Progress;
import org.espalier.format.onnx.ClassifierOutput;
import org.espalier.format.onnx.ClassifierOutput.Form;
import org.espalier.format.onnx.LogitRows;
import org.espalier.format.onnx.OnnxModel;

/** Compares two ONNX classifiers on labelled examples. */
public final class ClassifierEvaluator {
  /** Probabilities are kept at this distance from 0 and 1 at least: float32 can tell no less from 1. */
  private static final double LEAST = 0x1p-24;

  private ClassifierEvaluator() {}

  /**
   * Compares the candidate of a pair with its reference. The first output of each holds logits, or probabilities
   * by a Sigmoid or Softmax; {@link LogitRows} says which of them belong to a label. A single one is of class 1
   * against class 0. Tokens that an input {@code attention_mask} leaves out are not looked at.
   *
   * @param labels the right classes of each example in turn; negative where it is unknown
   * @param progress receives the progress
   * @throws InputException when a model cannot be run, the two differ in classes, or a label is none of them
   */
  public static ClassifierFidelity evaluate(ModelPair pair, long[] labels, Progress progress) {
    Form firstForm = ClassifierOutput.of(OnnxModel.read(pair.referenceFile())).form();
    Form secondForm = ClassifierOutput.of(OnnxModel.read(pair.candidateFile())).form();
    Comparison comparison = new Comparison(pair, labels, firstForm, secondForm);
    for (int i = 0; i < pair.size(); i++) {
      progress.at(Progress.Phase.EVALUATE, i, pair.size());
      comparison.add(i);
    }
    return comparison.result();
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

  /** Both models on the examples that were added. */
  private static final class Comparison {
    private final ModelPair pair;
    private final long[] labels;
    private final int width;
    private final Form referenceForm;
    private final Form candidateForm;

    /** Which rows are looked at; null for all. */
    private final boolean[] counted;

    private final ClassAnswers ours;
    private final ClassAnswers theirs;
    private int agreed;
    private int compared;
    private double cosines;
    private int shown;
    private boolean hasDirection = true; // of one value the cosine is a sign

    Comparison(ModelPair pair, long[] labels, Form referenceForm, Form candidateForm) {
      this.pair = pair;
      this.labels = labels;
      this.width = labels.length / pair.size();
      this.referenceForm = referenceForm;
      this.candidateForm = candidateForm;
      counted = pair.examples().attended(width);
      ours = new ClassAnswers(labels.length);
      theirs = new ClassAnswers(labels.length);
    }

    void add(int example) {
      FedModel reference = pair.reference();
      FedModel.FirstOutput output = reference.firstFinite(example);
      float[] a = output.values();
      float[] b = pair.candidate().firstLike(reference, output, example);
      LogitRows rows = rows(reference.name(), output.shape(), width, referenceForm);
      int before = compared;
      float[] x = new float[a.length]; // what is not counted stays 0
      float[] y = new float[a.length];
      for (int row = 0; row < width; row++) {
        int at = example * width + row;
        if (counted == null || counted[at]) {
          int inA = theirs.add(logits(a, rows, row, referenceForm), labels[at]);
          int inB = ours.add(logits(b, rows, row, candidateForm), labels[at]);
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

    ClassifierFidelity result() {
      if (compared == 0) {
        throw new InputException("attention_mask is 0 for all of the examples that are measured");
      }
      double[] interval = Statistics.proportionInterval(agreed, compared);
      return new ClassifierFidelity(
          pair.size(),
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
  }
}

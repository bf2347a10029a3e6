package org.espalier.evaluate;

import org.espalier.InputException;
import org.espalier.compress.Progress;

/** Compares two ONNX models that give numbers on labelled examples. */
public final class RegressionEvaluator {
  private RegressionEvaluator() {}

  /**
   * Compares the candidate of a pair with its reference.
   *
   * @param labels of all examples, {@code width} each; NaN where it is unknown
   * @param width how many values the first output has an example
   * @param progress receives the progress
   * @throws InputException when a model cannot be run, or its first output is of another size
   */
  public static RegressionFidelity evaluate(
      ModelPair pair, float[] labels, int width, Progress progress) {
    int n = pair.size();
    float[] theirs = new float[n * width];
    float[] ours = new float[n * width];
    for (int i = 0; i < n; i++) {
      progress.at(Progress.Phase.EVALUATE, i, n);
      FedModel.FirstOutput output = pair.reference().firstFinite(i);
      float[] b = pair.candidate().firstLike(pair.reference(), output, i);
      if (b.length != width) {
        throw new InputException(
            pair.reference().name()
                + ": the first output has "
                + b.length
                + " values an example, the labels have "
                + width);
      }
      System.arraycopy(output.values(), 0, theirs, i * width, width);
      System.arraycopy(b, 0, ours, i * width, width);
    }
    double error = 0;
    double square = 0;
    double largest = 0;
    for (int i = 0; i < ours.length; i++) {
      double d = difference(ours[i], theirs[i]);
      error += d * d;
      square += (double) theirs[i] * theirs[i];
      largest = Math.max(largest, Math.abs(d));
    }
    return new RegressionFidelity(
        n,
        errors(ours, labels, width),
        errors(theirs, labels, width),
        error == 0 ? 1 : Statistics.cosine(ours, theirs),
        error == 0 ? 0 : Math.sqrt(error / square),
        largest);
  }

  static RegressionFidelity.Errors errors(float[] found, float[] labels, int width) {
    double squares = 0;
    double distances = 0;
    long known = 0;
    double r2 = 0;
    int explained = 0;
    for (int column = 0; column < width; column++) {
      double sum = 0;
      long here = 0;
      for (int i = column; i < labels.length; i += width) {
        sum += Float.isNaN(labels[i]) ? 0 : labels[i];
        here += Float.isNaN(labels[i]) ? 0 : 1;
      }
      double error = 0;
      double spread = 0;
      for (int i = column; i < labels.length; i += width) {
        if (!Float.isNaN(labels[i])) {
          double d = difference(found[i], labels[i]);
          error += d * d;
          distances += Math.abs(d);
          spread += (labels[i] - sum / here) * (labels[i] - sum / here);
        }
      }
      squares += error;
      known += here;
      if (spread > 0) {
        r2 += 1 - error / spread;
        explained++;
      }
    }
    return new RegressionFidelity.Errors(
        Math.sqrt(squares / known), distances / known, r2 / explained);
  }

  /** The error of a value; infinite for NaN. */
  private static double difference(float found, float wanted) {
    return Float.isNaN(found) ? Double.POSITIVE_INFINITY : (double) found - wanted;
  }
}

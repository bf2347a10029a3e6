package org.espalier.evaluate;

import java.nio.file.Path;
import org.espalier.InputException;

/** Compares two ONNX models that give numbers on labelled examples, in ONNX Runtime on one thread. */
public final class RegressionEvaluator {
  private RegressionEvaluator() {}

  /**
   * Compares {@code candidate} with {@code reference}.
   *
   * @param labels of all examples, {@code width} each; NaN where nobody knows
   * @param width how many values the first output has an example
   * @throws InputException when a model cannot be loaded or run, or its first output is of another size
   */
  public static RegressionFidelity evaluate(
      Path reference, Path candidate, ExampleTensors examples, float[] labels, int width) {
    try (FirstOutput first = new FirstOutput(reference, examples);
        FirstOutput second = new FirstOutput(candidate, examples)) {
      int n = examples.size();
      float[] theirs = new float[n * width];
      float[] ours = new float[n * width];
      for (int i = 0; i < n; i++) {
        float[] a = first.values(i);
        float[] b = second.values(i);
        FirstOutput.requireSame(first, a, second, b);
        if (a.length != width) {
          throw new InputException(
              reference
                  + ": the first output has "
                  + a.length
                  + " values an example, the labels have "
                  + width);
        }
        first.requireFinite(a, i);
        System.arraycopy(a, 0, theirs, i * width, width);
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
      double[] millis = Turns.millis(n, first::values, second::values);
      return new RegressionFidelity(
          n,
          errors(ours, labels, width),
          errors(theirs, labels, width),
          error == 0 ? 1 : Statistics.cosine(ours, theirs),
          error == 0 ? 0 : Math.sqrt(error / square),
          largest,
          (double) FidelityEvaluator.bytes(candidate) / FidelityEvaluator.bytes(reference),
          millis[0] / millis[1],
          millis[0],
          millis[1]);
    }
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

  /** What is no number is as far away as can be. */
  private static double difference(float found, float wanted) {
    return Float.isNaN(found) ? Double.POSITIVE_INFINITY : (double) found - wanted;
  }
}

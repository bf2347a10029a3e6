package org.espalier.op;

/** The formulas of {@link Linear} in double. */
final class LinearReference {
  private LinearReference() {}

  static double[] forward(float[] weight, float[] bias, float[] x, int rows) {
    int outputs = bias.length;
    int features = outputs == 0 ? 0 : weight.length / outputs;
    double[] z = new double[rows * outputs];
    for (int i = 0; i < rows; i++) {
      for (int c = 0; c < outputs; c++) {
        double sum = bias[c];
        for (int j = 0; j < features; j++) {
          sum += (double) weight[c * features + j] * x[i * features + j];
        }
        z[i * outputs + c] = sum;
      }
    }
    return z;
  }

  /**
   * The gradient of the weights, then that of the biases.
   *
   * @param bound of each row's norm, or infinity
   */
  static double[] backward(
      float[] x, float[] slope, int rows, int features, int outputs, double bound) {
    double[] gradient = new double[outputs * features + outputs];
    for (int i = 0; i < rows; i++) {
      double factor = Math.min(1, bound / norm(x, slope, i, features, outputs));
      for (int c = 0; c < outputs; c++) {
        double s = factor * slope[i * outputs + c];
        gradient[outputs * features + c] += s;
        for (int j = 0; j < features; j++) {
          gradient[c * features + j] += s * x[i * features + j];
        }
      }
    }
    return gradient;
  }

  /** The norm of one row's own gradient. */
  static double norm(float[] x, float[] slope, int row, int features, int outputs) {
    double inner = 1;
    for (int j = 0; j < features; j++) {
      inner += (double) x[row * features + j] * x[row * features + j];
    }
    double outer = 0;
    for (int c = 0; c < outputs; c++) {
      outer += (double) slope[row * outputs + c] * slope[row * outputs + c];
    }
    return Math.sqrt(inner * outer);
  }
}

package org.espalier.op;

/** The formulas of {@link Linear} in double. */
final class LinearReference {
  private LinearReference() {}

  /** Where the weight of an output and a feature lies. */
  static int at(int output, int feature, int outputs, int features, boolean transposed) {
    return transposed ? feature * outputs + output : output * features + feature;
  }

  /**
   * @param bias null where there is none
   */
  static double[] forward(
      float[] weight, float[] bias, float[] x, int rows, int outputs, boolean transposed) {
    int features = weight.length / outputs;
    double[] z = new double[rows * outputs];
    for (int i = 0; i < rows; i++) {
      for (int c = 0; c < outputs; c++) {
        double sum = bias == null ? 0 : bias[c];
        for (int j = 0; j < features; j++) {
          sum += (double) weight[at(c, j, outputs, features, transposed)] * x[i * features + j];
        }
        z[i * outputs + c] = sum;
      }
    }
    return z;
  }

  /** The gradient of the weights, then that of the biases. */
  static double[] backward(
      float[] x, float[] slope, int rows, int features, int outputs, boolean transposed) {
    double[] gradient = new double[outputs * features + outputs];
    for (int i = 0; i < rows; i++) {
      for (int c = 0; c < outputs; c++) {
        double s = slope[i * outputs + c];
        gradient[outputs * features + c] += s;
        for (int j = 0; j < features; j++) {
          gradient[at(c, j, outputs, features, transposed)] += s * x[i * features + j];
        }
      }
    }
    return gradient;
  }

  /** The gradient of the rows. */
  static double[] backwardRows(
      float[] weight, float[] slope, int rows, int outputs, boolean transposed) {
    int features = weight.length / outputs;
    double[] gradient = new double[rows * features];
    for (int i = 0; i < rows; i++) {
      for (int j = 0; j < features; j++) {
        for (int c = 0; c < outputs; c++) {
          gradient[i * features + j] +=
              (double) slope[i * outputs + c] * weight[at(c, j, outputs, features, transposed)];
        }
      }
    }
    return gradient;
  }

  /** The squared norm of one row's own gradient. */
  static double square(
      float[] x, float[] slope, int row, int features, int outputs, boolean hasBias) {
    double inner = hasBias ? 1 : 0;
    for (int j = 0; j < features; j++) {
      inner += (double) x[row * features + j] * x[row * features + j];
    }
    double outer = 0;
    for (int c = 0; c < outputs; c++) {
      outer += (double) slope[row * outputs + c] * slope[row * outputs + c];
    }
    return inner * outer;
  }
}

package org.espalier.op;

/** kd_softmax_loss in plain double arithmetic, and the error that its gradient may have. */
final class KdSoftmaxLossReference {
  final double[][] gradient;
  final double[][] tolerance;
  double loss;
  double ce;
  double kl;
  double bound;

  /** Any of teacher, labels, bounds and mask may be null. */
  KdSoftmaxLossReference(
      double[][] student,
      double[][] teacher,
      long[] labels,
      double[][] bounds,
      boolean[] mask,
      KdSoftmaxLoss.Settings settings) {
    int n = student.length;
    int classes = n == 0 ? 0 : student[0].length;
    double temperature = settings.temperature();
    double alpha = settings.alpha();
    gradient = new double[n][classes];
    tolerance = new double[n][classes];
    double[][] limit = settings.beta() == 0 ? null : bounds == null ? teacher : bounds;
    long rows = 0;
    long valid = 0;
    for (int i = 0; i < n; i++) {
      boolean kept = mask == null || mask[i];
      rows += kept ? 1 : 0;
      valid += kept && labels != null && labels[i] != settings.ignoreIndex() ? 1 : 0;
    }
    for (int i = 0; i < n; i++) {
      if (mask != null && !mask[i]) {
        continue;
      }
      double[] g = gradient[i];
      double[] slack = tolerance[i];
      if (labels != null && labels[i] != settings.ignoreIndex()) {
        int y = (int) labels[i];
        double[] log = logSoftmax(student[i], 1);
        ce -= log[y] / valid;
        for (int c = 0; c < classes; c++) {
          double p = Math.exp(log[c]);
          g[c] += alpha * (p - (c == y ? 1 : 0)) / valid;
          slack[c] += alpha * (p + (c == y ? 1 : 0)) / valid;
        }
      }
      if (teacher != null) {
        double[] logS = logSoftmax(student[i], temperature);
        double[] logT = logSoftmax(teacher[i], temperature);
        double weight = (1 - alpha) * temperature / rows;
        for (int c = 0; c < classes; c++) {
          double p = Math.exp(logS[c]);
          double q = Math.exp(logT[c]);
          kl += q == 0 ? 0 : temperature * temperature * q * (logT[c] - logS[c]) / rows;
          g[c] += weight * (p - q);
          slack[c] += weight * (p + q);
        }
      }
      if (limit != null) {
        for (int c = 0; c < classes; c++) {
          double b = limit[i][c];
          double excess = b == Double.NEGATIVE_INFINITY ? 0 : Math.max(0, student[i][c] - b);
          bound += excess * excess / rows;
          g[c] += 2 * settings.beta() * excess / rows;
          slack[c] += 2 * settings.beta() * excess / rows;
        }
      }
      for (int c = 0; c < classes; c++) {
        slack[c] = slack[c] * 0x1p-21 + 0x1p-145;
      }
    }
    loss = alpha * ce + (1 - alpha) * kl + settings.beta() * bound;
  }

  private static double[] logSoftmax(double[] x, double temperature) {
    double max = Double.NEGATIVE_INFINITY;
    for (double v : x) {
      max = Math.max(max, v);
    }
    double sum = 0;
    for (double v : x) {
      sum += Math.exp((v - max) / temperature);
    }
    double[] log = new double[x.length];
    for (int i = 0; i < x.length; i++) {
      log[i] = (x[i] - max) / temperature - Math.log(sum);
    }
    return log;
  }
}

package org.espalier.op;

/** gradient_norm in plain double arithmetic. */
final class GradientNormReference {
  private GradientNormReference() {}

  static GradientNorm.Result compute(float[][] gradients, boolean[][] masks, boolean[][] gates) {
    double squares = 0;
    long nonFinite = 0;
    for (int t = 0; t < gradients.length; t++) {
      for (int i = 0; i < gradients[t].length; i++) {
        if ((masks[t] == null || masks[t][i]) && (gates[t] == null || gates[t][i])) {
          double g = gradients[t][i];
          squares += g * g;
          nonFinite += Double.isFinite(g) ? 0 : 1;
        }
      }
    }
    return new GradientNorm.Result(Math.sqrt(squares), nonFinite);
  }
}

package org.espalier.op;

/** The formulas of {@link Activation} in double. */
final class ActivationReference {
  private ActivationReference() {}

  static double value(Activation activation, double u) {
    return switch (activation.kind()) {
      case RELU -> Math.max(0, u);
      case LEAKY_RELU -> u < 0 ? activation.alpha() * u : u;
      case SIGMOID -> 1 / (1 + Math.exp(-Math.max(-88, u))); // which stays there below
      case TANH -> Math.tanh(u);
    };
  }

  /** The slope where the result is {@code y}. */
  static double slope(Activation activation, double y) {
    return switch (activation.kind()) {
      case RELU -> y > 0 ? 1 : 0;
      case LEAKY_RELU -> y > 0 ? 1 : activation.alpha();
      case SIGMOID -> y * (1 - y);
      case TANH -> 1 - y * y;
    };
  }
}

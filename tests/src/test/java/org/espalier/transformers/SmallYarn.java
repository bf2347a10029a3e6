package org.espalier.transformers;

/** A model of the kind of Qwen2 whose angles are changed by YaRN, or follow from how long a text is. */
final class SmallYarn extends SmallDecoder {
  private final double stretch;

  /**
   * @param scaling what its configuration says of angles
   * @param stretch by what queries and keys are multiplied
   */
  SmallYarn(String scaling, double[] angles, double stretch) {
    super("qwen2", ", \"rope_theta\": 10000.0, \"rope_scaling\": " + scaling);
    this.stretch = stretch;
    bias = true;
    turnedBy(angles);
  }

  /**
   * The angles of YaRN by the paper's ramp.
   *
   * @param low the pair up to which they stay
   * @param high the pair from which they are divided by {@code factor}
   */
  static double[] angles(double low, double high, double factor) {
    double[] angles = powers(10000, WIDTH);
    for (int i = 0; i < angles.length; i++) {
      double ramp = Math.min(1, Math.max(0, (i - low) / (high - low)));
      angles[i] = angles[i] / factor * ramp + angles[i] * (1 - ramp);
    }
    return angles;
  }

  /** Where the pair is that turns {@code times} times in {@code context} tokens: θ^(−2i / d) · context = 2π · times. */
  static double pair(double times, double context) {
    return WIDTH / 2.0 * Math.log(context / (2 * Math.PI * times)) / Math.log(10000);
  }

  @Override
  double stretch() {
    return stretch;
  }
}

package org.espalier.compress.onnx;

import org.espalier.InputException;

/** How the range of an activation follows from its distribution. */
public sealed interface Clipping {
  /** The range of all values that were seen. */
  record MinMax() implements Clipping {}

  /**
   * A share of the values is represented, see {@link ActivationHistogram#percentile}.
   *
   * @param percent in (50, 100]
   */
  record Percentile(double percent) implements Clipping {
    public Percentile {
      if (!(percent > 50 && percent <= 100)) {
        throw new IllegalArgumentException("percentile " + percent + " is not in (50, 100]");
      }
    }
  }

  /** The range of the least mean squared error. */
  record MeanSquaredError() implements Clipping {}

  /**
   * What a user calls it.
   *
   * @param text {@code minmax}, {@code mse} or {@code percentile:P}
   * @throws InputException if it is something else
   */
  static Clipping parse(String text) {
    if (text.equals("minmax")) {
      return new MinMax();
    }
    if (text.equals("mse")) {
      return new MeanSquaredError();
    }
    if (!text.startsWith("percentile:")) {
      throw new InputException("'" + text + "' is none of minmax, percentile:P and mse");
    }
    try {
      return new Percentile(Double.parseDouble(text.substring("percentile:".length())));
    } catch (IllegalArgumentException e) { // no number, or outside its range
      throw new InputException("'" + text + "': P must be above 50 and at most 100", e);
    }
  }

  /** The range of a distribution. */
  default ActivationRange range(ActivationHistogram histogram) {
    if (this instanceof Percentile p) {
      return histogram.percentile(p.percent());
    }
    return this instanceof MinMax ? histogram.minMax() : histogram.meanSquaredError();
  }
}

package org.espalier.compress.onnx;

/** How the range of an activation follows from its distribution. */
public sealed interface Clipping {
  /** Everything that was seen is represented. */
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

  /** The range of a distribution. */
  default ActivationRange range(ActivationHistogram histogram) {
    if (this instanceof Percentile p) {
      return histogram.percentile(p.percent());
    }
    return this instanceof MinMax ? histogram.minMax() : histogram.meanSquaredError();
  }
}

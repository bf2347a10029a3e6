package org.espalier.train;

import java.util.LinkedHashMap;
import java.util.Map;
import org.bytedeco.pytorch.Tensor;

/**
 * The objective on one batch.
 *
 * @param root a scalar whose backward pass gives the gradient of {@code value}; null where none was asked
 *     for. Its own value means nothing
 * @param value the weighted sum
 * @param parts unweighted, by the names of {@link Objective}'s fields
 * @param quality as in {@link TrainingListener.Validation#quality}
 */
record Loss(Tensor root, double value, Map<String, Double> parts, double quality) {
  /** The whole that this and another share of a batch make, without a root. */
  Loss plus(Loss other) {
    Map<String, Double> sums = new LinkedHashMap<>(parts);
    other.parts.forEach((name, part) -> sums.merge(name, part, Double::sum));
    return new Loss(null, value + other.value, sums, quality + other.quality);
  }
}

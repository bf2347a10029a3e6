package org.espalier.train;

import java.util.LinkedHashMap;
import java.util.Map;
import org.bytedeco.pytorch.BoolOptional;
import org.bytedeco.pytorch.Tensor;
import org.bytedeco.pytorch.TensorArrayRefOptional;

/**
 * The objective on one batch.
 *
 * @param root where a backward pass begins: a scalar, whose own value means nothing, or what {@code gradient} is
 *     of; null where none was asked for
 * @param gradient of {@code value}; null where the root is a scalar
 * @param value the weighted sum
 * @param parts unweighted, by the names of {@link Objective}'s fields
 * @param quality as in {@link TrainingListener.Validation#quality}; of logits NaN where a backward pass was asked for,
 *     because it takes a pass over them
 */
record Loss(Tensor root, Tensor gradient, double value, Map<String, Double> parts, double quality) {
  /** Of a scalar. */
  Loss(Tensor root, double value, Map<String, Double> parts, double quality) {
    this(root, null, value, parts, quality);
  }

  /** Runs backward: adds the gradients of the value to those of the parameters. */
  void backward() {
    if (gradient == null) {
      root.backward();
    } else {
      root.backward(gradient, new BoolOptional(), false, new TensorArrayRefOptional());
    }
  }

  /** The whole that this and another share of a batch make, without a root. */
  Loss plus(Loss other) {
    Map<String, Double> sums = new LinkedHashMap<>(parts);
    other.parts.forEach((name, part) -> sums.merge(name, part, Double::sum));
    return new Loss(null, value + other.value, sums, quality + other.quality);
  }
}

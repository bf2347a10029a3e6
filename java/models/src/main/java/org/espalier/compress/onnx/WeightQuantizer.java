package org.espalier.compress.onnx;

import java.util.Map;
import org.espalier.format.onnx.OnnxModel;

/**
 * Quantization that needs no ranges of activations: weights are rounded as they are, or fitted to examples. Of one use: what comes
 * after {@link #apply} throws an {@link IllegalStateException}. Not safe for several threads.
 */
public sealed interface WeightQuantizer extends TrainableQuantizer
    permits DynamicQuantizer, BlockQuantizer {
  /**
   * Fits the model to examples. Afterwards, until {@link #apply}, it is a float32 model that computes what it did before.
   *
   * @param source runs the examples: once or, where the statistics of all activations would take more
   *     than a quarter of this JVM's heap, several times
   * @throws org.espalier.InputException if a weight or an activation is not finite, naming it, or there are no
   *     examples
   * @throws IllegalStateException after {@link #apply}
   */
  void calibrate(ActivationSource source);

  /**
   * The weights that {@link #calibrate} left to be rounded to the nearest, with the reason: it does not see what they multiply in
   * bodies of loops, nor in branches that no example takes, nor as experts that none chooses.
   *
   * @throws IllegalStateException after {@link #apply}
   */
  Map<String, String> unseen();

  /**
   * Quantizes the {@link OnnxModel} in place.
   *
   * @throws org.espalier.InputException if weights are not finite, naming them; the model is then unusable
   * @throws IllegalStateException if it was called before
   */
  void apply();
}

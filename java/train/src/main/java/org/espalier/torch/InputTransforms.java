package org.espalier.torch;

import java.util.function.UnaryOperator;
import org.bytedeco.pytorch.Tensor;

/** Chooses what happens to activations before a matrix product or a convolution reads them. */
@FunctionalInterface
public interface InputTransforms {
  /**
   * The transform of one input of a node.
   *
   * @param node the node's name, as in {@link Parameter#nodes()}
   * @param input which input of the node it is
   * @return a differentiable function that keeps shape and type, or null for none
   */
  UnaryOperator<Tensor> transform(String node, int input);
}

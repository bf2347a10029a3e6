package org.espalier.torch;

import java.util.function.UnaryOperator;
import org.bytedeco.pytorch.Tensor;

/**
 * Chooses what happens to activations before a matrix product or a convolution reads them, and to what nodes
 * compute.
 */
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

  /**
   * The transform of the first output of a node, which all who read it see; a model whose nodes have no
   * outputs of that kind does not ask.
   *
   * @param output the name of the value
   * @return a differentiable function that keeps shape and type, or null for none
   */
  default UnaryOperator<Tensor> result(String output) {
    return null;
  }
}

package org.espalier.torch.onnx;

import org.bytedeco.pytorch.Tensor;

/** What a node computes, its attributes already read. */
@FunctionalInterface
interface Kernel {
  /**
   * @return new Java objects, one for each output of the node that is used (null where one is not);
   *     never an input itself, but possibly a view of it
   */
  Tensor[] apply(Inputs in);
}

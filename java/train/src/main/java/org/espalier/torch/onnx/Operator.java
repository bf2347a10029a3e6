package org.espalier.torch.onnx;

import java.util.function.Function;

/**
 * A table entry: one operator of ONNX or of ONNX Runtime.
 *
 * @param name as {@link OperatorTable#name} gives it
 * @param since the operator set from which on the entry's meaning is right
 * @param hostReads which inputs the kernel reads on the host; they may decide the output's shape
 * @param opaque whether the output's shape or values depend on more than the inputs' shapes and the
 *     inputs read on the host: on data, on chance, on training
 * @param product whether it is a matrix product or a convolution, whose inputs 0 and 1 can be
 *     transformed
 * @param build makes the kernel of a node
 */
record Operator(
    String name,
    int since,
    int[] hostReads,
    boolean opaque,
    boolean product,
    Function<Node, Kernel> build) {

  boolean readsOnHost(int input) {
    for (int i : hostReads) {
      if (i == input) {
        return true;
      }
    }
    return false;
  }

  /** The same, reading the values of some inputs on the host. */
  Operator reading(int... inputs) {
    return new Operator(name, since, inputs, opaque, product, build);
  }

  Operator asOpaque() {
    return new Operator(name, since, hostReads, true, product, build);
  }

  Operator asProduct() {
    return new Operator(name, since, hostReads, opaque, true, build);
  }
}

package org.espalier.compress.onnx.channels;

import java.util.Set;

/** Operators of ONNX itself that compute each number of what they give from those at its place. */
final class Elementwise {
  /** Operators of one input and output that treat each number for itself. */
  static final Set<String> UNARY =
      Set.of(
          "Abs",
          "Celu",
          "Dropout",
          "Elu",
          "Erf",
          "Exp",
          "Gelu",
          "HardSigmoid",
          "HardSwish",
          "Identity",
          "IsNaN",
          "LeakyRelu",
          "Log",
          "Mish",
          "Neg",
          "Reciprocal",
          "Relu",
          "Selu",
          "Sigmoid",
          "Softplus",
          "Softsign",
          "Sqrt",
          "Swish",
          "Tanh",
          "ThresholdedRelu");

  /** Operators that join their operands number by number. */
  static final Set<String> JOINING =
      Set.of(
          "Add", "Clip", "Div", "Max", "Mean", "Min", "Mul", "PRelu", "Pow", "Sub", "Sum", "Where");

  private Elementwise() {}
}

package org.espalier.torch.onnx;

import java.util.function.Function;
import org.bytedeco.pytorch.LongOptional;
import org.bytedeco.pytorch.Scalar;
import org.bytedeco.pytorch.Tensor;
import org.bytedeco.pytorch.global.torch;
import org.espalier.torch.onnx.OperatorTable.Sink;

/** Activation functions. Formulas and defaults are those of the ONNX operator specification. */
final class ActivationOperators {
  /** The exact form, which the compiler makes of the nodes that spell it out. */
  static final Operator GELU =
      OperatorTable.single("Gelu", 1, n -> in -> torch.gelu(in.get(0), "none"));

  private ActivationOperators() {}

  static void add(Sink table) {
    table.unary("Relu", 6, Tensor::relu);
    table.unary("Sigmoid", 6, Tensor::sigmoid);
    table.unary("Softplus", 1, x -> torch.softplus(x));
    table.unary("Softsign", 1, x -> x.div(x.abs().add(new Scalar(1))));
    table.unary("HardSwish", 14, x -> torch.hardswish(x));
    table.unary("Mish", 18, x -> torch.mish(x));
    table.one("LeakyRelu", 6, ActivationOperators::leakyRelu);
    table.one("Elu", 6, ActivationOperators::elu);
    table.one("Selu", 6, ActivationOperators::selu);
    table.one("Celu", 12, ActivationOperators::celu);
    table.one("Gelu", 20, ActivationOperators::gelu);
    table.one(OperatorTable.RUNTIME + "Gelu", 1, n -> in -> torch.gelu(in.get(0), "none"));
    table.one(OperatorTable.RUNTIME + "BiasGelu", 1, n -> in -> biasGelu(in, "none"));
    table.one(OperatorTable.RUNTIME + "FastGelu", 1, n -> in -> biasGelu(in, "tanh"));
    table.one("Swish", 24, n -> swish(n, 1));
    table.one(OperatorTable.RUNTIME + "QuickGelu", 1, n -> swish(n, 1.702f));
    table.one("HardSigmoid", 6, ActivationOperators::hardSigmoid);
    table.one("ThresholdedRelu", 10, ActivationOperators::thresholdedRelu);
    table.one("Shrink", 9, ActivationOperators::shrink);
    table.one("PRelu", 9, n -> ActivationOperators::prelu);
    table.one("Softmax", 1, n -> alongAxis(n, (x, axis) -> x.softmax(axis)));
    table.one("LogSoftmax", 1, n -> alongAxis(n, (x, axis) -> x.log_softmax(axis)));
    table.one("Hardmax", 1, n -> alongAxis(n, ActivationOperators::hardmax));
  }

  private static Function<Inputs, Tensor> leakyRelu(Node n) {
    double alpha = n.real("alpha", 0.01);
    return in -> torch.leaky_relu(in.get(0), new Scalar(alpha));
  }

  private static Function<Inputs, Tensor> elu(Node n) {
    double alpha = n.real("alpha", 1);
    return in -> torch.elu(in.get(0), new Scalar(alpha), new Scalar(1), new Scalar(1));
  }

  private static Function<Inputs, Tensor> selu(Node n) {
    double alpha = n.real("alpha", 1.67326319217681884765625);
    double gamma = n.real("gamma", 1.05070102214813232421875);
    return in -> torch.elu(in.get(0), new Scalar(alpha), new Scalar(gamma), new Scalar(1));
  }

  private static Function<Inputs, Tensor> celu(Node n) {
    double alpha = n.real("alpha", 1);
    return in -> torch.celu(in.get(0), new Scalar(alpha));
  }

  private static Function<Inputs, Tensor> gelu(Node n) {
    String approximate = n.choice("approximate", "none", "none", "tanh");
    return in -> torch.gelu(in.get(0), approximate);
  }

  private static Tensor biasGelu(Inputs in, String approximate) {
    return torch.gelu(in.has(1) ? in.get(0).add(in.get(1)) : in.get(0), approximate);
  }

  /** x · sigmoid(alpha · x). */
  private static Function<Inputs, Tensor> swish(Node n, double otherwise) {
    double alpha = n.real("alpha", otherwise);
    return alpha == 1
        ? in -> torch.silu(in.get(0))
        : in -> in.get(0).mul(in.get(0).mul(new Scalar(alpha)).sigmoid());
  }

  private static Function<Inputs, Tensor> hardSigmoid(Node n) {
    double alpha = n.real("alpha", 0.2f);
    double beta = n.real("beta", 0.5);
    return in ->
        torch.hardtanh(
            in.get(0).mul(new Scalar(alpha)).add(new Scalar(beta)), new Scalar(0), new Scalar(1));
  }

  private static Function<Inputs, Tensor> thresholdedRelu(Node n) {
    double alpha = n.real("alpha", 1);
    return in -> torch.threshold(in.get(0), new Scalar(alpha), new Scalar(0));
  }

  private static Function<Inputs, Tensor> shrink(Node n) {
    double bias = n.real("bias", 0);
    double lambda = n.real("lambd", 0.5);
    return in -> {
      Tensor x = in.get(0);
      Tensor low = x.lt(new Scalar(-lambda));
      Tensor high = x.gt(new Scalar(lambda));
      Tensor zero = torch.zeros_like(x);
      Tensor shrunk = torch.where(low, x.add(new Scalar(bias)), zero);
      return torch.where(high, x.sub(new Scalar(bias)), shrunk).to(ElementTypes.of(x));
    };
  }

  /** The slope broadcasts as in NumPy; that of libtorch's own prelu lies on axis 1. */
  private static Tensor prelu(Inputs in) {
    Tensor x = in.get(0);
    return torch.where(x.lt(new Scalar(0)), x.mul(in.get(1)), x);
  }

  private interface AxisFunction {
    Tensor apply(Tensor x, long axis);
  }

  /** Up to operator set 12 the axes from {@code axis} on are one. */
  private static Function<Inputs, Tensor> alongAxis(Node n, AxisFunction f) {
    if (n.opset() >= 13) {
      long axis = n.integer("axis", -1);
      return in -> f.apply(in.get(0), axis);
    }
    long axis = n.integer("axis", 1);
    return in -> {
      Tensor x = in.get(0);
      long from = axis < 0 ? axis + x.dim() : axis;
      if (from == x.dim() - 1) {
        return f.apply(x, -1);
      }
      return f.apply(x.flatten(from, -1), -1).reshape(x.shape());
    };
  }

  private static Tensor hardmax(Tensor x, long axis) {
    Tensor first = x.argmax(new LongOptional(axis), true);
    return torch.zeros_like(x).scatter(axis, first, new Scalar(1)).to(ElementTypes.of(x));
  }
}

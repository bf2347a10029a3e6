package org.espalier.torch.onnx;

import static org.espalier.torch.onnx.ScriptCall.number;

import org.espalier.torch.onnx.ScriptTable.Sink;

/** What {@link ActivationOperators} runs, in TorchScript. */
final class ScriptActivations {
  private ScriptActivations() {}

  static void add(Sink table) {
    table.unary("Relu", "torch.relu");
    table.unary("Sigmoid", "torch.sigmoid");
    table.unary("Softplus", "torch.softplus");
    table.unary("HardSwish", "torch.hardswish");
    table.unary("Mish", "torch.mish");
    table.one("Softsign", c -> "torch.div(" + c.in(0) + ", torch.abs(" + c.in(0) + ") + 1)");
    table.one("LeakyRelu", c -> call(c, "leaky_relu", c.node().real("alpha", 0.01)));
    table.one("Elu", c -> call(c, "elu", c.node().real("alpha", 1), 1, 1));
    table.one(
        "Selu",
        c ->
            call(
                c,
                "elu",
                c.node().real("alpha", 1.67326319217681884765625),
                c.node().real("gamma", 1.05070102214813232421875),
                1));
    table.one("Celu", c -> call(c, "celu", c.node().real("alpha", 1)));
    table.one(
        "Gelu",
        c ->
            "torch.gelu("
                + c.in(0)
                + ", approximate='"
                + c.node().choice("approximate", "none", "none", "tanh")
                + "')");
    table.one(OperatorTable.RUNTIME + "Gelu", c -> "torch.gelu(" + c.in(0) + ")");
    table.one(OperatorTable.RUNTIME + "BiasGelu", c -> biasGelu(c, "none"));
    table.one(OperatorTable.RUNTIME + "FastGelu", c -> biasGelu(c, "tanh"));
    table.one("Swish", c -> swish(c, 1));
    table.one(OperatorTable.RUNTIME + "QuickGelu", c -> swish(c, 1.702f));
    table.one(
        "HardSigmoid",
        c ->
            "torch.hardtanh("
                + c.in(0)
                + " * "
                + number(c.node().real("alpha", 0.2f))
                + " + "
                + number(c.node().real("beta", 0.5))
                + ", 0, 1)");
    table.one("ThresholdedRelu", c -> call(c, "threshold", c.node().real("alpha", 1), 0));
    table.one("Shrink", ScriptActivations::shrink);
    // The slope broadcasts as in NumPy; that of libtorch's own prelu lies on axis 1.
    table.one(
        "PRelu",
        c ->
            "torch.where("
                + c.in(0)
                + " < 0, torch.mul("
                + c.in(0)
                + ", "
                + c.in(1)
                + "), "
                + c.in(0)
                + ")");
    table.one("Softmax", c -> alongAxis(c, "softmax"));
    table.one("LogSoftmax", c -> alongAxis(c, "log_softmax"));
    table.one("Hardmax", ScriptActivations::hardmax);
  }

  private static String swish(ScriptCall c, double otherwise) {
    double alpha = c.node().real("alpha", otherwise);
    String x = c.in(0);
    return alpha == 1
        ? "torch.silu(" + x + ")"
        : "torch.mul(" + x + ", torch.sigmoid(torch.mul(" + x + ", " + number(alpha) + ")))";
  }

  private static String biasGelu(ScriptCall c, String approximate) {
    String x = c.has(1) ? "torch.add(" + c.in(0) + ", " + c.in(1) + ")" : c.in(0);
    return "torch.gelu(" + x + ", approximate='" + approximate + "')";
  }

  private static String call(ScriptCall c, String function, double... arguments) {
    StringBuilder text = new StringBuilder("torch." + function + "(" + c.in(0));
    for (double a : arguments) {
      text.append(", ").append(number(a));
    }
    return text.append(')').toString();
  }

  private static String shrink(ScriptCall c) {
    String x = c.in(0);
    String bias = number(c.node().real("bias", 0));
    double lambda = c.node().real("lambd", 0.5);
    String zero = c.let("torch.zeros_like(" + x + ")");
    String low =
        c.let(
            "torch.where("
                + x
                + " < "
                + number(-lambda)
                + ", "
                + x
                + " + "
                + bias
                + ", "
                + zero
                + ")");
    return "torch.where("
        + x
        + " > "
        + number(lambda)
        + ", "
        + x
        + " - "
        + bias
        + ", "
        + low
        + ").to("
        + x
        + ".dtype)";
  }

  /** Up to operator set 12 the axes from {@code axis} on are one. */
  private static String alongAxis(ScriptCall c, String function) {
    String x = c.in(0);
    if (c.node().opset() >= 13) {
      return "torch." + function + "(" + x + ", " + c.node().integer("axis", -1) + ")";
    }
    long axis = c.node().integer("axis", 1);
    return "torch."
        + function
        + "(torch.flatten("
        + x
        + ", "
        + axis
        + ", -1), -1).reshape("
        + x
        + ".size())";
  }

  private static String hardmax(ScriptCall c) {
    String x = c.in(0);
    boolean old = c.node().opset() < 13;
    long axis = c.node().integer("axis", old ? 1 : -1);
    String flat = old ? c.let("torch.flatten(" + x + ", " + axis + ", -1)") : x;
    String along = old ? "-1" : Long.toString(axis);
    String ones =
        "torch.scatter(torch.zeros_like("
            + flat
            + "), "
            + along
            + ", torch.argmax("
            + flat
            + ", "
            + along
            + ", True), 1)";
    return old ? ones + ".reshape(" + x + ".size())" : ones;
  }
}

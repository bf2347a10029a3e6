package org.espalier.torch.onnx;

import java.util.Map;
import org.bytedeco.pytorch.global.torch.ScalarType;
import org.espalier.torch.onnx.ScriptTable.Sink;

/** What {@link ElementwiseOperators} runs, in TorchScript. */
final class ScriptElementwise {
  private static final Map<String, String> UNARY =
      Map.ofEntries(
          Map.entry("Abs", "abs"),
          Map.entry("Acos", "acos"),
          Map.entry("Acosh", "acosh"),
          Map.entry("Asin", "asin"),
          Map.entry("Asinh", "asinh"),
          Map.entry("Atan", "atan"),
          Map.entry("Atanh", "atanh"),
          Map.entry("BitwiseNot", "bitwise_not"),
          Map.entry("Ceil", "ceil"),
          Map.entry("Cos", "cos"),
          Map.entry("Cosh", "cosh"),
          Map.entry("Erf", "erf"),
          Map.entry("Exp", "exp"),
          Map.entry("Floor", "floor"),
          Map.entry("IsNaN", "isnan"),
          Map.entry("Log", "log"),
          Map.entry("Neg", "neg"),
          Map.entry("Not", "logical_not"),
          Map.entry("Reciprocal", "reciprocal"),
          Map.entry("Round", "round"),
          Map.entry("Sign", "sign"),
          Map.entry("Sin", "sin"),
          Map.entry("Sinh", "sinh"),
          Map.entry("Sqrt", "sqrt"),
          Map.entry("Tan", "tan"),
          Map.entry("Tanh", "tanh"));

  private static final Map<String, String> BINARY =
      Map.ofEntries(
          Map.entry("And", "logical_and"),
          Map.entry("BitwiseAnd", "bitwise_and"),
          Map.entry("BitwiseOr", "bitwise_or"),
          Map.entry("BitwiseXor", "bitwise_xor"),
          Map.entry("Equal", "eq"),
          Map.entry("Greater", "gt"),
          Map.entry("GreaterOrEqual", "ge"),
          Map.entry("Less", "lt"),
          Map.entry("LessOrEqual", "le"),
          Map.entry("Or", "logical_or"),
          Map.entry("Xor", "logical_xor"));

  private ScriptElementwise() {}

  static void add(Sink table) {
    UNARY.forEach((name, function) -> table.unary(name, "torch." + function));
    BINARY.forEach((name, function) -> table.binary(name, "torch." + function));
    table.add("Identity", ScriptElementwise::identity);
    table.one("IsInf", ScriptElementwise::isInf);
    table.add("Add", c -> arithmetic(c, "add", "+"));
    table.add("Sub", c -> arithmetic(c, "sub", "-"));
    table.add("Mul", c -> arithmetic(c, "mul", "*"));
    table.one("Div", c -> c.call("_divide", c.in(0), c.in(1)));
    table.one("Pow", c -> "torch.pow(" + c.in(0) + ", " + c.in(1) + ").to(" + c.in(0) + ".dtype)");
    table.one(
        "Mod",
        c ->
            (c.node().flag("fmod", false) ? "torch.fmod(" : "torch.remainder(")
                + c.in(0)
                + ", "
                + c.in(1)
                + ")");
    table.one(
        "BitShift",
        c ->
            "torch.bitwise_"
                + (c.node().choice("direction", "", "LEFT", "RIGHT").equals("LEFT")
                    ? "left"
                    : "right")
                + "_shift("
                + c.in(0)
                + ", "
                + c.in(1)
                + ")");
    table.one("Max", c -> fold(c, "maximum"));
    table.one("Min", c -> fold(c, "minimum"));
    table.one("Sum", c -> fold(c, "add"));
    table.one("Mean", c -> "torch.div(" + fold(c, "add") + ", " + c.size() + ")");
    table.one("Clip", ScriptElementwise::clip);
    table.one("Where", c -> "torch.where(" + c.in(0) + ", " + c.in(1) + ", " + c.in(2) + ")");
    table.add("Cast", ScriptElementwise::cast);
    table.one("CastLike", ScriptElementwise::castLike);
  }

  private static ScriptValue[] identity(ScriptCall c) {
    ScriptValue list = c.list(0);
    return new ScriptValue[] {
      list == null ? ScriptValue.of(c.in(0)) : ScriptValue.ofList(list.list(), list.rank())
    };
  }

  private static String isInf(ScriptCall c) {
    boolean negative = c.node().flag("detect_negative", true);
    boolean positive = c.node().flag("detect_positive", true);
    if (!negative && !positive) {
      return "torch.zeros_like(" + c.in(0) + ", dtype=11)";
    }
    String function = negative && positive ? "isinf" : negative ? "isneginf" : "isposinf";
    return "torch." + function + "(" + c.in(0) + ")";
  }

  /** Sizes are computed with on the host. */
  private static ScriptValue[] arithmetic(ScriptCall c, String function, String sign) {
    ScriptValue a = c.list(0);
    ScriptValue b = c.list(1);
    if (a != null && b != null && a.rank() == 0 && b.rank() == 0) {
      String result = "[" + a.list() + "[0] " + sign + " " + b.list() + "[0]]";
      return new ScriptValue[] {ScriptValue.ofList(result, 0)};
    }
    String result = "torch." + function + "(" + c.in(0) + ", " + c.in(1) + ")";
    return new ScriptValue[] {ScriptValue.of(result)};
  }

  private static String fold(ScriptCall c, String function) {
    String result = c.in(0);
    for (int i = 1; i < c.size(); i++) {
      result = "torch." + function + "(" + result + ", " + c.in(i) + ")";
    }
    return result;
  }

  private static String clip(ScriptCall c) {
    return !c.has(1) && !c.has(2)
        ? c.in(0)
        : "torch.clamp(" + c.in(0) + ", " + c.orNone(1) + ", " + c.orNone(2) + ")";
  }

  private static ScriptValue[] cast(ScriptCall c) {
    ScalarType to = ElementwiseOperators.castTarget(c.node());
    ScriptValue list = c.list(0);
    return new ScriptValue[] {
      list != null && to == ScalarType.Long
          ? ScriptValue.ofList(list.list(), list.rank())
          : ScriptValue.of(c.in(0) + ".to(" + to.value + ")")
    };
  }

  private static String castLike(ScriptCall c) {
    ElementwiseOperators.passRounding(c.node());
    return c.in(0) + ".to(" + c.in(1) + ".dtype)";
  }
}

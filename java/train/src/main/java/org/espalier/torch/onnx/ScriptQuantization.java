package org.espalier.torch.onnx;

import org.bytedeco.pytorch.global.torch.ScalarType;
import org.espalier.torch.onnx.ScriptTable.Sink;

/** What {@link QuantizationOperators} and {@link MatrixOperators} run on integers, in TorchScript. */
final class ScriptQuantization {
  private ScriptQuantization() {}

  static void add(Sink table) {
    table.one("QuantizeLinear", ScriptQuantization::quantize);
    table.one("DequantizeLinear", ScriptQuantization::dequantize);
    table.one(
        QuantizationOperators.ROUNDING.name(),
        c ->
            c.call(
                "_dequantize",
                clipped(c, c.let(quantize(c))),
                c.in(1),
                c.orNone(2),
                "" + axis(c.node()),
                "None"));
    table.one(
        QuantizationOperators.OWN_ROUNDING.name(),
        c -> {
          ScriptValue[] found = c.unpack(c.call("_dynamic", c.in(0)), 3);
          return c.call(
              "_dequantize", found[0].tensor(), found[1].tensor(), found[2].tensor(), "1", "None");
        });
    table.add("DynamicQuantizeLinear", c -> c.unpack(c.call("_dynamic", c.in(0)), 3));
    table.one(
        "MatMulInteger",
        c -> {
          String a = c.let(c.call("_exact", c.in(0), c.orNone(2), "-1"));
          // A zero point for each row of A, for each column of B.
          String b = c.let(c.call("_exact", c.in(1), c.orNone(3), "-2"));
          return "torch.matmul(" + a + ", " + b + ").to(3)";
        });
  }

  /** The integers that a Clip keeps, where there is one. */
  private static String clipped(ScriptCall c, String integers) {
    long least = c.node().integer("least", Long.MIN_VALUE);
    long most = c.node().integer("most", Long.MAX_VALUE);
    return least == Long.MIN_VALUE && most == Long.MAX_VALUE
        ? integers
        : c.let(
            "torch.clamp("
                + integers
                + ", "
                + (least == Long.MIN_VALUE ? "None" : least)
                + ", "
                + (most == Long.MAX_VALUE ? "None" : most)
                + ")");
  }

  private static long axis(Node n) {
    if (n.opset() >= 21 && n.integer("block_size", 0) != 0) {
      throw n.unsupported("block_size = " + n.integer("block_size", 0));
    }
    return n.opset() >= 13 ? n.integer("axis", 1) : 1;
  }

  private static String quantize(ScriptCall c) {
    Node n = c.node();
    long axis = axis(n);
    if (n.opset() >= 19) {
      n.flag("saturate", true);
    }
    ScalarType wanted = QuantizationOperators.wanted(n);
    int type = wanted == null ? 0 : wanted.value;
    String precision = number(QuantizationOperators.asked(n, "precision", 23));
    return c.call("_quantize", c.in(0), c.in(1), c.orNone(2), "" + type, "" + axis, precision);
  }

  private static String dequantize(ScriptCall c) {
    String wanted = number(QuantizationOperators.asked(c.node(), "output_dtype", 23));
    return c.call("_dequantize", c.in(0), c.in(1), c.orNone(2), "" + axis(c.node()), wanted);
  }

  /** A type as TorchScript counts them, or None. */
  private static String number(ScalarType type) {
    return type == null ? "None" : "" + type.value;
  }
}

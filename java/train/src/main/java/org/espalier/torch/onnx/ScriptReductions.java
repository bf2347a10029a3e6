package org.espalier.torch.onnx;

import static org.espalier.torch.onnx.ScriptCall.flag;
import static org.espalier.torch.onnx.ScriptCall.ints;

import org.espalier.torch.onnx.ScriptTable.Sink;

/** What {@link ReductionOperators} runs, in TorchScript. */
final class ScriptReductions {
  private ScriptReductions() {}

  static void add(Sink table) {
    reduction(table, "ReduceSum", 13, ScriptReductions::sum);
    reduction(table, "ReduceMean", 18, (c, x, a, k) -> c.call("_mean", x, a, k));
    reduction(
        table, "ReduceMax", 18, (c, x, a, k) -> "torch.amax(" + x + ", " + a + ", " + k + ")");
    reduction(
        table, "ReduceMin", 18, (c, x, a, k) -> "torch.amin(" + x + ", " + a + ", " + k + ")");
    reduction(table, "ReduceProd", 18, (c, x, a, k) -> c.call("_product", x, a, k));
    reduction(table, "ReduceL1", 18, (c, x, a, k) -> sum(c, c.let("torch.abs(" + x + ")"), a, k));
    reduction(
        table, "ReduceL2", 18, (c, x, a, k) -> "torch.sqrt(" + sum(c, square(c, x), a, k) + ")");
    reduction(table, "ReduceSumSquare", 18, (c, x, a, k) -> sum(c, square(c, x), a, k));
    reduction(table, "ReduceLogSum", 18, (c, x, a, k) -> "torch.log(" + sum(c, x, a, k) + ")");
    reduction(
        table,
        "ReduceLogSumExp",
        18,
        (c, x, a, k) -> "torch.logsumexp(" + x + ", " + a + ", " + k + ")");
    table.one("CumSum", c -> cumulated(c, false));
    table.one("CumProd", c -> cumulated(c, true));
  }

  private static String cumulated(ScriptCall c, boolean product) {
    Node n = c.node();
    String exclusive = flag(n.flag("exclusive", false));
    String reverse = flag(n.flag("reverse", false));
    return c.call("_cumulate", c.in(0), c.integer(1), flag(product), exclusive, reverse);
  }

  private interface Reduction {
    /** All arguments are expressions; the axes are never empty unless the tensor has none. */
    String write(ScriptCall c, String x, String axes, String keep);
  }

  /**
   * @param axesInput the operator set from which on the axes are an input
   */
  private static void reduction(Sink table, String name, int axesInput, Reduction f) {
    table.one(name, c -> reduction(c, axesInput, f));
  }

  private static String reduction(ScriptCall c, int axesInput, Reduction f) {
    Node n = c.node();
    String keep = flag(n.flag("keepdims", true));
    long[] attribute = n.opset() < axesInput ? n.integers("axes", new long[0]) : null;
    boolean nothing = n.opset() >= axesInput && n.flag("noop_with_empty_axes", false);
    String x = c.in(0);
    long[] known = attribute != null ? attribute : c.has(1) ? c.constant(1) : new long[0];
    if (known != null && known.length > 0) {
      return f.write(c, x, ints(known), keep);
    }
    if (known == null && nothing) { // with no axes as with one more of length 1
      String given = c.let(c.ints(1));
      String none = "len(" + given + ") == 0";
      String one = c.let("torch.unsqueeze(" + x + ", -1) if " + none + " else " + x);
      String all = c.let("[-1] if " + none + " else " + given);
      return f.write(c, one, all, c.let("False if " + none + " else " + keep));
    }
    if (nothing) {
      return f.write(c, c.let("torch.unsqueeze(" + x + ", -1)"), ints(-1), flag(false));
    }
    String given = known != null ? ints() : c.ints(1);
    return f.write(c, x, c.let(c.call("_axes", x, given)), keep);
  }

  /** libtorch widens integers. */
  private static String sum(ScriptCall c, String x, String axes, String keep) {
    return "torch.sum(" + x + ", " + axes + ", " + keep + ", dtype=" + x + ".dtype)";
  }

  private static String square(ScriptCall c, String x) {
    return c.let("torch.mul(" + x + ", " + x + ")");
  }
}

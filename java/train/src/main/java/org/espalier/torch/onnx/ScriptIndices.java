package org.espalier.torch.onnx;

import static org.espalier.torch.onnx.ScriptCall.flag;

import org.espalier.torch.onnx.ScriptTable.Sink;

/** What {@link IndexOperators} runs, in TorchScript. */
final class ScriptIndices {
  private ScriptIndices() {}

  static void add(Sink table) {
    table.add("Gather", ScriptIndices::gather);
    table.one(
        "GatherElements",
        c -> {
          long axis = c.node().integer("axis", 0);
          return "torch.gather(" + c.in(0) + ", " + axis + ", " + wrapped(c, 1, axis) + ")";
        });
    table.one(
        "GatherND",
        c ->
            c.call(
                "_gather_nd",
                c.in(0),
                c.in(1),
                "" + (c.node().opset() >= 12 ? c.node().integer("batch_dims", 0) : 0)));
    table.one("Scatter", ScriptIndices::scatter);
    table.one("ScatterElements", ScriptIndices::scatter);
    table.one(
        "ScatterND",
        c -> c.call("_scatter_nd", c.in(0), c.in(1), c.in(2), "\"" + reduction(c.node()) + "\""));
    table.one(
        "TensorScatter",
        c ->
            c.call(
                "_tensor_scatter",
                c.in(0),
                c.in(1),
                c.orNone(2),
                "" + c.node().integer("axis", -2),
                flag(c.node().text("mode", "linear").equals("circular"))));
    table.one(
        "OneHot",
        c ->
            c.call(
                "_one_hot",
                c.in(0),
                c.integer(1),
                c.in(2),
                Long.toString(c.node().integer("axis", -1))));
    table.one("ArgMax", c -> extremum(c, "argmax"));
    table.one("ArgMin", c -> extremum(c, "argmin"));
    table.add("TopK", ScriptIndices::topK);
    table.one("NonZero", c -> "torch.t(torch.nonzero(" + c.in(0) + "))");
    table.one("Compress", ScriptIndices::compress);
  }

  private static String wrapped(ScriptCall c, int index, long axis) {
    return c.call("_wrap", c.in(index), c.in(0) + ".size(" + axis + ")");
  }

  private static ScriptValue[] gather(ScriptCall c) {
    long axis = c.node().integer("axis", 0);
    long[] fixed = c.constant(1);
    long[] shape = c.shape(1);
    ScriptValue list = c.list(0);
    if (fixed != null && list != null && list.rank() == 1 && shape.length <= 1) {
      String all = c.let(list.list());
      StringBuilder picked = new StringBuilder("[");
      for (int i = 0; i < fixed.length; i++) {
        picked.append(i == 0 ? "" : ", ").append(all).append('[').append(fixed[i]).append(']');
      }
      if (fixed.length > 0) {
        return new ScriptValue[] {ScriptValue.ofList(picked.append(']').toString(), shape.length)};
      }
    }
    String result;
    if (fixed != null && fixed.length == 1 && shape.length <= 1) {
      // A view; index_select would copy.
      result =
          shape.length == 0
              ? "torch.select(" + c.in(0) + ", " + axis + ", " + fixed[0] + ")"
              : "torch.narrow(" + c.in(0) + ", " + axis + ", " + fixed[0] + ", 1)";
    } else {
      result = c.call("_gather", c.in(0), c.in(1), Long.toString(axis));
    }
    return new ScriptValue[] {ScriptValue.of(result)};
  }

  /** The reduction by libtorch's name; none for none. */
  private static String reduction(Node n) {
    String onnx = IndexOperators.reduction(n);
    return onnx.equals("none") || onnx.equals("add") ? onnx : IndexOperators.torchReduction(onnx);
  }

  private static String scatter(ScriptCall c) {
    long axis = c.node().integer("axis", 0);
    String reduction = reduction(c.node());
    String arguments = "(" + c.in(0) + ", " + axis + ", " + wrapped(c, 1, axis) + ", " + c.in(2);
    return switch (reduction) {
      case "none" -> "torch.scatter" + arguments + ")";
      case "add" -> "torch.scatter_add" + arguments + ")";
      default -> "torch.scatter_reduce" + arguments + ", \"" + reduction + "\", include_self=True)";
    };
  }

  private static String extremum(ScriptCall c, String function) {
    long axis = c.node().integer("axis", 0);
    String keep = flag(c.node().flag("keepdims", true));
    boolean last = c.node().opset() >= 12 && c.node().flag("select_last_index", false);
    String x = c.in(0);
    if (!last) {
      return "torch." + function + "(" + x + ", " + axis + ", " + keep + ")";
    }
    return x
        + ".size("
        + axis
        + ") - 1 - torch."
        + function
        + "(torch.flip("
        + x
        + ", ["
        + axis
        + "]), "
        + axis
        + ", "
        + keep
        + ")";
  }

  /** Of equal elements the one with the lower index comes first. */
  private static ScriptValue[] topK(ScriptCall c) {
    long axis = c.node().integer("axis", -1);
    boolean largest = c.node().opset() < 11 || c.node().flag("largest", true);
    if (c.node().opset() >= 11) {
      c.node().flag("sorted", true);
    }
    ScriptValue[] sorted =
        c.unpack(
            "torch.sort("
                + c.in(0)
                + ", stable=True, dim="
                + axis
                + ", descending="
                + flag(largest)
                + ")",
            2);
    String k = c.integer(1);
    for (ScriptValue v : sorted) {
      v.tensor(c.let("torch.narrow(" + v.tensor() + ", " + axis + ", 0, " + k + ")"));
    }
    return sorted;
  }

  private static String compress(ScriptCall c) {
    boolean flat = !c.node().hasAttribute("axis");
    long axis = c.node().integer("axis", 0);
    return "torch.index_select("
        + c.in(0)
        + (flat ? ".reshape([-1])" : "")
        + ", "
        + axis
        + ", torch.nonzero("
        + c.in(1)
        + ").reshape([-1]))";
  }
}

package org.espalier.torch.onnx;

import static org.espalier.torch.onnx.ScriptCall.bound;
import static org.espalier.torch.onnx.ScriptCall.flag;
import static org.espalier.torch.onnx.ScriptCall.ints;

import ai.onnx.proto.OnnxMl.TensorProto;
import ai.onnx.proto.OnnxMl.TensorProto.DataType;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.stream.LongStream;
import org.bytedeco.pytorch.Tensor;
import org.espalier.format.onnx.OnnxInitializer;
import org.espalier.torch.onnx.ScriptTable.Sink;

/**
 * What {@link ShapeOperators} and {@link GenerationOperators} run, in TorchScript. Sizes stay computations:
 * where all that goes into a shape is known to be integers on the host, they are lists of integers there.
 */
final class ScriptShapes {
  private ScriptShapes() {}

  static void add(Sink table) {
    table.one("Reshape", ScriptShapes::reshape);
    table.one("Flatten", c -> c.call("_flatten", c.in(0), "" + c.node().integer("axis", 1)));
    table.add("Squeeze", ScriptShapes::squeeze);
    table.add("Unsqueeze", ScriptShapes::unsqueeze);
    table.one("Transpose", ScriptShapes::transpose);
    table.add("Concat", ScriptShapes::concat);
    table.add("Split", ScriptShapes::split);
    table.add("Slice", ScriptShapes::slice);
    table.one("Expand", c -> c.in(0) + ".expand(" + c.call("_expanded", c.in(0), c.ints(1)) + ")");
    table.one("Tile", c -> c.in(0) + ".repeat(" + c.ints(1) + ")");
    table.add("Shape", ScriptShapes::shape);
    table.add(
        "Size", c -> new ScriptValue[] {ScriptValue.ofList("[torch.numel(" + c.in(0) + ")]", 0)});
    table.one("Pad", ScriptShapes::pad);
    table.one(
        "DepthToSpace",
        c ->
            c.call(
                "_depth_to_space",
                c.in(0),
                "" + c.node().integer("blocksize", 1),
                flag(
                    c.node().opset() >= 11
                        && c.node().choice("mode", "DCR", "DCR", "CRD").equals("CRD"))));
    table.one(
        "SpaceToDepth",
        c -> c.call("_space_to_depth", c.in(0), "" + c.node().integer("blocksize", 1)));
    table.one(
        "Trilu",
        c ->
            (c.node().flag("upper", true) ? "torch.triu(" : "torch.tril(")
                + c.in(0)
                + ", "
                + (c.has(1) ? c.integer(1) : "0")
                + ")");
    table.one("ConstantOfShape", ScriptShapes::constantOfShape);
    table.one("Range", c -> c.call("_range", c.in(0), c.in(1), c.in(2)));
    table.one("EyeLike", ScriptShapes::eyeLike);
  }

  private static ScriptValue[] one(ScriptValue value) {
    return new ScriptValue[] {value};
  }

  private static String reshape(ScriptCall c) {
    boolean zeroIsZero = c.node().opset() >= 14 && c.node().flag("allowzero", false);
    long[] target = c.constant(1);
    boolean copies = target == null || Arrays.stream(target).anyMatch(size -> size == 0);
    String shape = c.ints(1);
    return c.in(0)
        + ".reshape("
        + (zeroIsZero || !copies ? shape : c.call("_target", c.in(0), shape))
        + ")";
  }

  /** The axes of a Squeeze or Unsqueeze as an expression; null where none are given. */
  private static String axes(ScriptCall c) {
    long[] attribute = c.node().opset() < 13 ? c.node().integers("axes", null) : null;
    return attribute != null ? ints(attribute) : c.has(1) ? c.ints(1) : null;
  }

  private static ScriptValue[] squeeze(ScriptCall c) {
    String axes = axes(c);
    ScriptValue list = c.list(0);
    if (list != null && list.rank() == 1 && ("[0]".equals(axes) || "[-1]".equals(axes))) {
      return one(ScriptValue.ofList(list.list(), 0));
    }
    return one(
        ScriptValue.of("torch.squeeze(" + c.in(0) + (axes == null ? "" : ", " + axes) + ")"));
  }

  private static ScriptValue[] unsqueeze(ScriptCall c) {
    String axes = axes(c);
    if (axes == null) {
      throw c.node().wrong("the axes are missing");
    }
    ScriptValue list = c.list(0);
    if (list != null && list.rank() == 0 && (axes.equals("[0]") || axes.equals("[-1]"))) {
      return one(ScriptValue.ofList(list.list(), 1));
    }
    return one(
        ScriptValue.of(
            axes.matches("\\[-?[0-9]+\\]")
                ? c.in(0) + ".unsqueeze(" + axes.substring(1, axes.length() - 1) + ")"
                : c.call("_unsqueeze", c.in(0), axes)));
  }

  private static String transpose(ScriptCall c) {
    long[] perm = c.node().integers("perm", null);
    return perm == null ? c.call("_reverse", c.in(0)) : c.in(0) + ".permute(" + ints(perm) + ")";
  }

  private static ScriptValue[] concat(ScriptCall c) {
    long axis = c.node().integer("axis", 0);
    List<String> lists = new ArrayList<>();
    for (int i = 0; i < c.size() && (axis == 0 || axis == -1); i++) {
      ScriptValue list = c.list(i);
      if (list != null && list.rank() == 1) {
        lists.add(list.list());
      }
    }
    return one(
        lists.size() == c.size()
            ? ScriptValue.ofList(String.join(" + ", lists), 1)
            : ScriptValue.of("torch.cat(" + c.all() + ", " + axis + ")"));
  }

  private static ScriptValue[] split(ScriptCall c) {
    long axis = c.node().integer("axis", 0);
    long[] attribute = c.node().opset() < 13 ? c.node().integers("split", null) : null;
    int outputs = c.node().outputs();
    long parts = c.node().opset() >= 18 ? c.node().integer("num_outputs", outputs) : outputs;
    String sizes =
        attribute != null
            ? ints(attribute)
            : c.has(1) ? c.ints(1) : c.call("_parts", c.in(0) + ".size(" + axis + ")", "" + parts);
    return c.unpack(
        "torch.split_with_sizes(" + c.in(0) + ", " + sizes + ", " + axis + ")", outputs);
  }

  private static ScriptValue[] slice(ScriptCall c) {
    long[] starts = c.constant(1);
    long[] ends = c.constant(2);
    long[] axes = c.has(3) ? c.constant(3) : starts == null ? null : upTo(starts.length);
    long[] steps = c.has(4) ? c.constant(4) : starts == null ? null : ones(starts.length);
    boolean known = starts != null && ends != null && axes != null && steps != null;
    if (!known || Arrays.stream(steps).anyMatch(step -> step <= 0)) {
      String none = ints();
      return one(
          ScriptValue.of(
              c.call(
                  "_slice",
                  c.in(0),
                  c.ints(1),
                  c.ints(2),
                  c.has(3) ? c.ints(3) : none,
                  c.has(4) ? c.ints(4) : none)));
    }
    ScriptValue list = c.list(0);
    if (list != null && list.rank() == 1 && starts.length == 1 && steps[0] == 1) {
      String part = c.let(list.list());
      return one(ScriptValue.ofList(part + "[" + bound(starts[0]) + ":" + bound(ends[0]) + "]", 1));
    }
    String result = c.in(0);
    for (int i = 0; i < starts.length; i++) {
      result =
          "torch.slice("
              + result
              + ", "
              + axes[i]
              + ", "
              + bound(starts[i])
              + ", "
              + bound(ends[i])
              + ", "
              + steps[i]
              + ")";
    }
    return one(ScriptValue.of(result));
  }

  private static long[] upTo(int count) {
    return LongStream.range(0, count).toArray();
  }

  static long[] ones(int count) {
    long[] ones = new long[count];
    Arrays.fill(ones, 1);
    return ones;
  }

  private static ScriptValue[] shape(ScriptCall c) {
    boolean parts = c.node().opset() >= 15;
    long start = parts ? c.node().integer("start", 0) : 0;
    long end = parts ? c.node().integer("end", Long.MAX_VALUE) : Long.MAX_VALUE;
    String size = c.in(0) + ".size()";
    boolean all = start == 0 && end == Long.MAX_VALUE;
    return one(
        ScriptValue.ofList(all ? size : size + "[" + bound(start) + ":" + bound(end) + "]", 1));
  }

  private static String pad(ScriptCall c) {
    String mode = c.node().choice("mode", "constant", "constant", "reflect", "edge", "wrap");
    String axes = c.has(3) ? c.ints(3) : ints();
    String x = c.in(0);
    return switch (mode) {
      case "constant" ->
          "torch.constant_pad_nd("
              + x
              + ", "
              + c.call("_pads", x, c.ints(1), axes)
              + ", "
              + (c.has(2) ? c.real(2) : "0")
              + ")";
      case "edge" -> c.call("_continue", x, c.ints(1), axes, "0");
      case "wrap" -> c.call("_continue", x, c.ints(1), axes, "1");
      default -> c.call("_continue", x, c.ints(1), axes, "2");
    };
  }

  private static String constantOfShape(ScriptCall c) {
    TensorProto value = c.node().tensor("value");
    if (value == null) {
      return "torch.zeros(" + c.ints(0) + ", dtype=6, device=" + c.device() + ")";
    }
    OnnxInitializer filling = OnnxInitializer.ofMessage(value);
    Tensor one = ElementTypes.tensor(filling, c.node().where());
    int type = ElementTypes.of(one).value;
    String number =
        ElementTypes.isFloating(ElementTypes.of(one))
            ? ScriptCall.number(one.item_double())
            : Long.toString(one.to(org.bytedeco.pytorch.global.torch.ScalarType.Long).item_long());
    return "torch.full("
        + c.ints(0)
        + ", "
        + number
        + ", dtype="
        + type
        + ", device="
        + c.device()
        + ")";
  }

  private static String eyeLike(ScriptCall c) {
    long k = c.node().integer("k", 0);
    String x = c.in(0);
    String type =
        c.node().hasAttribute("dtype")
            ? ""
                + ElementTypes.torch(
                        DataType.forNumber((int) c.node().integer("dtype", 0)), c.node().where())
                    .value
            : x + ".dtype";
    return "torch.tril(torch.triu(torch.ones_like("
        + x
        + ", dtype=6), "
        + k
        + "), "
        + k
        + ").to("
        + type
        + ")";
  }
}

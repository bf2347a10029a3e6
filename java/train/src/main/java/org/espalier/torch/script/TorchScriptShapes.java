package org.espalier.torch.script;

import static org.espalier.format.onnx.Attributes.attribute;
import static org.espalier.torch.script.TorchScriptOperators.unary;

import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.Map;
import java.util.function.BiPredicate;
import java.util.stream.LongStream;
import java.util.stream.Stream;
import org.bytedeco.pytorch.Scalar;
import org.bytedeco.pytorch.global.torch;
import org.espalier.torch.script.ScriptGraph.Ref;
import org.espalier.torch.script.ScriptGraph.Size;
import org.espalier.torch.script.TorchScriptOperators.Table;

/** Calls that move elements, and those of integers and lists that say how, known ones and computed ones. */
final class TorchScriptShapes {
  /** The longest list of sizes or axes: a loop that doubles a list would fill the memory. */
  private static final int LONGEST_LIST = 1000;

  private TorchScriptShapes() {}

  static void add(Table table) {
    table.add("aten::floordiv", TorchScriptShapes::floorDivide);
    table.add("aten::constant_pad_nd", c -> pad(c, "constant", 2));
    table.add("aten::pad", c -> pad(c, c.argument(2), 3));
    table.add("aten::flatten", TorchScriptShapes::flatten);
    for (String name : List.of("aten::view", "aten::reshape")) {
      table.add(name, TorchScriptShapes::reshape);
    }
    table.add("aten::t", c -> transpose(c, 0, 1));
    table.add("aten::transpose", c -> transpose(c, c.integer(1), c.integer(2)));
    table.add(
        "aten::permute",
        c -> unary(c, "Transpose", attribute("perm", positive(c, c.integers(1), c.tensor(0)))));
    table.add("aten::unsqueeze", TorchScriptShapes::unsqueeze);
    table.add("aten::squeeze", TorchScriptShapes::squeeze);
    table.add("aten::select", TorchScriptShapes::select);
    table.add("aten::slice", TorchScriptShapes::slice);
    table.add("aten::expand", TorchScriptShapes::expand);
    table.add(
        "aten::chunk",
        c ->
            c.split(
                c.tensor(0),
                (int) c.integer(1),
                List.of(c.tensor(0).name()),
                attribute("axis", c.integer(2))));
    table.add("aten::split_with_sizes", TorchScriptShapes::splitWithSizes);
    table.add("aten::cat", TorchScriptShapes::concat);
    table.add("aten::stack", TorchScriptShapes::stack);
    table.add("aten::dim", TorchScriptShapes::dim);
    table.add("aten::__getitem__", TorchScriptShapes::item);
    table.add("aten::len", c -> (long) c.list(0).size());
    table.add("aten::size", TorchScriptShapes::size);
    comparison(table, "lt", (a, b) -> a < b);
    comparison(table, "le", (a, b) -> a <= b);
    comparison(table, "gt", (a, b) -> a > b);
    comparison(table, "ge", (a, b) -> a >= b);
    comparison(table, "eq", Long::equals);
    comparison(table, "ne", (a, b) -> !a.equals(b));
    // The input is, and no entry makes anything else of it.
    table.add(
        "aten::is_floating_point",
        c -> c.tensor(0).constant() == null || c.tensor(0).constant().is_floating_point());
    // What a loop over range(start, end, step) calls.
    table.add(
        "aten::__range_length",
        c -> {
          if (c.integer(2) == 0) {
            throw c.unsupported("a step of 0");
          }
          long span = c.integer(1) - c.integer(0);
          return Math.max(0, -Math.floorDiv(-span, c.integer(2)));
        });
    table.add("aten::__derive_index", c -> c.integer(1) + c.integer(0) * c.integer(2));
    for (String name : List.of("prim::NumToTensor", "aten::Int")) {
      table.add(name, c -> c.argument(0));
    }
    for (String name : List.of("prim::ListConstruct", "prim::TupleConstruct")) {
      table.add(name, TorchScriptCall::arguments);
    }
    for (String name : List.of("prim::ListUnpack", "prim::TupleUnpack")) {
      table.add(name, c -> c.argument(0));
    }
  }

  /** A comparison of integers that are known. */
  private static void comparison(Table table, String aten, BiPredicate<Long, Long> holds) {
    table.add("aten::" + aten, c -> holds.test(c.integer(0), c.integer(1)));
  }

  /** Of integers that are known; null where it is of something else. */
  static Object known(TorchScriptCall c, String operator) {
    if (operator.equals("Add")
        && c.argument(0) instanceof List<?> first
        && c.argument(1) instanceof List<?> second) {
      if (first.size() + second.size() > LONGEST_LIST) {
        throw c.unsupported("a list of more than " + LONGEST_LIST);
      }
      return Stream.concat(first.stream(), second.stream()).map(v -> (Object) v).toList();
    }
    if (!(c.argument(0) instanceof Long a && c.argument(1) instanceof Long b)) {
      return null;
    }
    return switch (operator) {
      case "Add" -> a + b;
      case "Sub" -> a - b;
      case "Mul" -> a * b;
      default -> null;
    };
  }

  static boolean isSize(TorchScriptCall c, int i) {
    return c.argument(i) instanceof Size;
  }

  /** Arithmetic of integers, one of which is computed. */
  static Size sizes(TorchScriptCall c, String operator) {
    Ref result = c.emit(operator, 1, c.size(c.argument(0)).name(), c.size(c.argument(1)).name());
    return new Size(c.emit("Squeeze", 0, result.name(), c.longs(0).name()).name());
  }

  /** Sizes are not negative, so division that cuts is division that rounds down. */
  private static Object floorDivide(TorchScriptCall c) {
    if (c.argument(0) instanceof Long a && c.argument(1) instanceof Long b && b != 0) {
      return Math.floorDiv(a, b);
    }
    if (!(c.argument(1) instanceof Long b) || b <= 0) {
      throw c.unsupported("a divisor that is no known positive integer");
    }
    return sizes(c, "Div");
  }

  private static Object dim(TorchScriptCall c) {
    if (c.tensor(0).rank() < 0) {
      throw c.unsupported("a tensor of unknown rank");
    }
    return (long) c.tensor(0).rank();
  }

  /** Pads come from the last axis on, begin and end of each. */
  private static Ref pad(TorchScriptCall c, Object mode, int value) {
    Ref x = c.tensor(0);
    long[] given = c.integers(1);
    Map<Object, String> modes =
        Map.of("constant", "constant", "reflect", "reflect", "replicate", "edge");
    if (x.rank() < 0 || !modes.containsKey(mode)) {
      throw c.unsupported("the mode " + mode + " or a tensor of unknown rank");
    }
    long[] pads = new long[2 * x.rank()];
    for (int i = 0; i < given.length / 2; i++) {
      pads[x.rank() - 1 - i] = given[2 * i];
      pads[2 * x.rank() - 1 - i] = given[2 * i + 1];
    }
    Ref filling = c.real(c.size() > value && c.has(value) ? c.number(value) : 0);
    return c.emitted(
        "Pad",
        x.rank(),
        List.of(x.name(), c.longs(pads).name(), filling.name()),
        attribute("mode", modes.get(mode)));
  }

  private static Ref flatten(TorchScriptCall c) {
    Ref x = c.tensor(0);
    long start = c.integer(1);
    long end = c.integer(2);
    if (start < 1 || end != -1 && end != x.rank() - 1) {
      throw c.unsupported("other axes than all after the first or a later one");
    }
    if (start == 1) {
      return c.emitted("Flatten", 2, List.of(x.name()), attribute("axis", 1L));
    }
    long[] shape = new long[(int) start + 1]; // 0 is the size that is there
    shape[(int) start] = -1;
    return c.emit("Reshape", shape.length, x.name(), c.longs(shape).name());
  }

  private static Ref reshape(TorchScriptCall c) {
    int rank = c.list(1).size();
    return c.emit("Reshape", rank, c.tensor(0).name(), c.sizes(1).name());
  }

  private static long[] positive(TorchScriptCall c, long[] axes, Ref x) {
    if (x.rank() < 0) {
      throw c.unsupported("a tensor of unknown rank");
    }
    return Arrays.stream(axes).map(a -> a < 0 ? a + x.rank() : a).toArray();
  }

  private static Ref transpose(TorchScriptCall c, long one, long other) {
    Ref x = c.tensor(0);
    long[] pair = positive(c, new long[] {one, other}, x);
    long[] perm = LongStream.range(0, x.rank()).toArray();
    perm[(int) pair[0]] = pair[1];
    perm[(int) pair[1]] = pair[0];
    return unary(c, "Transpose", attribute("perm", perm));
  }

  private static Ref unsqueeze(TorchScriptCall c) {
    Ref x = c.tensor(0);
    return c.emit(
        "Unsqueeze", x.rank() < 0 ? -1 : x.rank() + 1, x.name(), c.longs(c.integer(1)).name());
  }

  private static Ref squeeze(TorchScriptCall c) {
    if (c.size() < 2) {
      throw c.unsupported("all axes");
    }
    Ref x = c.tensor(0);
    long[] axes = c.integers(1);
    return c.emit(
        "Squeeze", x.rank() < 0 ? -1 : x.rank() - axes.length, x.name(), c.longs(axes).name());
  }

  private static Ref select(TorchScriptCall c) {
    Ref x = c.tensor(0);
    Ref part =
        c.emitted(
            "Gather",
            x.rank(),
            List.of(x.name(), c.longs(c.integer(2)).name()),
            attribute("axis", c.integer(1)));
    return c.emit(
        "Squeeze", x.rank() < 0 ? -1 : x.rank() - 1, part.name(), c.longs(c.integer(1)).name());
  }

  private static Object item(TorchScriptCall c) {
    List<?> list = c.list(0);
    long index = c.integer(1) + (c.integer(1) < 0 ? list.size() : 0);
    if (index < 0 || index >= list.size()) {
      throw c.unsupported("an index outside its list");
    }
    return list.get((int) index);
  }

  /** An index of Python's slices, which count from the end where they are negative. */
  private static int place(long index, List<?> list) {
    return (int) Math.max(0, Math.min(list.size(), index < 0 ? index + list.size() : index));
  }

  private static Object slice(TorchScriptCall c) {
    if (c.argument(0) instanceof List<?> list) {
      if (c.has(3) && c.integer(3) != 1) {
        throw c.unsupported("a list of which some are left out");
      }
      int start = place(c.has(1) ? c.integer(1) : 0, list);
      int end = place(c.has(2) ? c.integer(2) : list.size(), list);
      return List.copyOf(list.subList(start, Math.max(start, end)));
    }
    Ref x = c.tensor(0);
    return c.emit(
        "Slice",
        x.rank(),
        x.name(),
        c.size(c.has(2) ? c.argument(2) : (Object) 0L).name(),
        c.size(c.has(3) ? c.argument(3) : (Object) Long.MAX_VALUE).name(),
        c.longs(c.integer(1)).name(),
        c.longs(c.has(4) ? c.integer(4) : 1).name());
  }

  private static Ref expand(TorchScriptCall c) {
    List<String> sizes = new ArrayList<>();
    for (Object size : c.list(1)) {
      // -1 leaves a size, which 1 does in a graph.
      sizes.add(c.size(size.equals(-1L) ? (Object) 1L : size).name());
    }
    Ref shape = c.emitted("Concat", 1, sizes, attribute("axis", 0L));
    return c.emit("Expand", sizes.size(), c.tensor(0).name(), shape.name());
  }

  private static List<Ref> splitWithSizes(TorchScriptCall c) {
    long[] sizes = c.integers(1);
    Ref x = c.tensor(0);
    return c.split(
        x, sizes.length, List.of(x.name(), c.longs(sizes).name()), attribute("axis", c.integer(2)));
  }

  private static Ref stack(TorchScriptCall c) {
    List<String> parts = new ArrayList<>();
    int rank = -1;
    String axis = c.longs(c.integer(1)).name();
    for (Object part : c.list(0)) {
      Ref x = c.tensor(part);
      rank = x.rank() < 0 ? -1 : x.rank() + 1;
      parts.add(c.emit("Unsqueeze", rank, x.name(), axis).name());
    }
    return c.emitted("Concat", rank, parts, attribute("axis", c.integer(1)));
  }

  private static Ref concat(TorchScriptCall c) {
    List<String> inputs = new ArrayList<>();
    int rank = -1;
    for (Object part : c.list(0)) {
      inputs.add(c.tensor(part).name());
      rank = c.tensor(part).rank();
    }
    return c.emitted("Concat", rank, inputs, attribute("axis", c.integer(1)));
  }

  /** One size, or all of them. */
  private static Object size(TorchScriptCall c) {
    Ref x = c.tensor(0);
    String shape = c.emit("Shape", 1, x.name()).name();
    if (c.size() > 1) {
      return size(c, shape, c.integer(1));
    }
    if (x.rank() < 0) {
      throw c.unsupported("a tensor of unknown rank");
    }
    return LongStream.range(0, x.rank()).mapToObj(i -> (Object) size(c, shape, i)).toList();
  }

  private static Size size(TorchScriptCall c, String shape, long axis) {
    Ref index =
        c.constant(torch.full(new long[0], new Scalar(axis)).to(torch.ScalarType.Long), "axis");
    return new Size(
        c.emitted("Gather", 0, List.of(shape, index.name()), attribute("axis", 0L)).name());
  }
}

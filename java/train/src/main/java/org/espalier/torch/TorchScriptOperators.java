package org.espalier.torch;

import static org.espalier.torch.TorchScriptImport.attribute;

import ai.onnx.proto.OnnxMl.AttributeProto;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.function.BiPredicate;
import java.util.function.Function;
import java.util.stream.LongStream;
import java.util.stream.Stream;
import org.bytedeco.pytorch.Scalar;
import org.bytedeco.pytorch.Tensor;
import org.bytedeco.pytorch.global.torch;
import org.espalier.torch.TorchScriptImport.Call;
import org.espalier.torch.TorchScriptImport.Ref;
import org.espalier.torch.TorchScriptImport.Size;

/**
 * The calls of a module that can be read as nodes of a graph. The order of arguments is that of libtorch's
 * operator schemas. Adding a call is adding an entry.
 */
final class TorchScriptOperators {
  /** An argument that is absent. */
  static final Object NONE = new Object();

  /** Of sizes and axes; a loop that doubles a list would fill the memory. */
  private static final int LONGEST_LIST = 1000;

  private static final Map<String, Entry> ENTRIES = new HashMap<>();

  /** Makes the nodes of a call and returns its result, a list where there are several. */
  @FunctionalInterface
  interface Entry {
    Object read(Call c);
  }

  static {
    Map.ofEntries(
            Map.entry("relu", "Relu"),
            Map.entry("sigmoid", "Sigmoid"),
            Map.entry("tanh", "Tanh"),
            Map.entry("erf", "Erf"),
            Map.entry("exp", "Exp"),
            Map.entry("log", "Log"),
            Map.entry("sqrt", "Sqrt"),
            Map.entry("abs", "Abs"),
            Map.entry("neg", "Neg"),
            Map.entry("hardswish", "HardSwish"),
            Map.entry("softplus", "Softplus"),
            Map.entry("selu", "Selu"),
            Map.entry("sin", "Sin"),
            Map.entry("cos", "Cos"),
            Map.entry("reciprocal", "Reciprocal"),
            Map.entry("contiguous", "Identity"),
            Map.entry("clone", "Identity"),
            Map.entry("detach", "Identity"),
            Map.entry("alias", "Identity"))
        .forEach((aten, onnx) -> same(aten, c -> unary(c, onnx)));
    same("gelu", TorchScriptOperators::gelu);
    same("silu", c -> binary(c, "Mul", c.tensor(0), unary(c, "Sigmoid")));
    same("leaky_relu", c -> unary(c, "LeakyRelu", attribute("alpha", c.number(1))));
    same("elu", TorchScriptOperators::elu);
    same("relu6", c -> clip(c, c.real(0), c.real(6)));
    same("clamp", c -> clip(c, bound(c, 1), bound(c, 2)));
    same("clamp_min", c -> clip(c, c.real(c.number(1)), null));
    same("clamp_max", c -> clip(c, null, c.real(c.number(1))));
    same(
        "hardsigmoid",
        c -> unary(c, "HardSigmoid", attribute("alpha", 1.0 / 6), attribute("beta", 0.5)));
    same("rsqrt", c -> c.emit("Reciprocal", c.tensor(0).rank(), unary(c, "Sqrt").name()));
    same("square", c -> binary(c, "Mul", c.tensor(0), c.tensor(0)));
    same("pow", c -> binary(c, "Pow", c.tensor(0), c.tensor(1)));
    same("hardtanh", c -> clip(c, c.real(c.number(1)), c.real(c.number(2))));
    same("softmax", c -> unary(c, "Softmax", attribute("axis", c.integer(1))));
    same("log_softmax", c -> unary(c, "LogSoftmax", attribute("axis", c.integer(1))));
    for (String dropout : List.of("dropout", "feature_dropout", "alpha_dropout")) {
      same(dropout, TorchScriptOperators::dropout);
    }
    same("add", c -> arithmetic(c, "Add"));
    same("sub", c -> arithmetic(c, "Sub"));
    same("mul", c -> arithmetic(c, "Mul"));
    same("div", c -> arithmetic(c, "Div"));
    add("aten::linear", c -> linear(c, c.tensor(0), c.tensor(1), c.has(2) ? c.tensor(2) : null));
    add("aten::addmm", TorchScriptOperators::addmm);
    for (String product : List.of("matmul", "mm", "bmm")) {
      add("aten::" + product, c -> binary(c, "MatMul", c.tensor(0), c.tensor(1)));
    }
    for (int axes = 1; axes <= 3; axes++) {
      int spatial = axes;
      add("aten::conv" + axes + "d", c -> convolution(c, spatial, 6));
      add("aten::conv_transpose" + axes + "d", c -> transposedConvolution(c, spatial, 7, 5, 6));
      add("aten::max_pool" + axes + "d", c -> maxPool(c, spatial));
      add("aten::avg_pool" + axes + "d", c -> averagePool(c, spatial));
      add("aten::adaptive_avg_pool" + axes + "d", TorchScriptOperators::globalAverage);
    }
    for (String name : List.of("aten::convolution", "aten::_convolution")) {
      add(name, TorchScriptOperators::generalConvolution);
    }
    add("aten::prelu", TorchScriptOperators::prelu);
    add("aten::maximum", c -> binary(c, "Max", c.tensor(0), c.tensor(1)));
    add("aten::minimum", c -> binary(c, "Min", c.tensor(0), c.tensor(1)));
    add("aten::floordiv", TorchScriptOperators::floorDivide);
    add("aten::scaled_dot_product_attention", TorchScriptOperators::attention);
    add("aten::constant_pad_nd", c -> pad(c, "constant", 2));
    add("aten::pad", c -> pad(c, c.argument(2), 3));
    add("aten::batch_norm", TorchScriptOperators::batchNorm);
    add("aten::layer_norm", TorchScriptOperators::layerNorm);
    add("aten::flatten", TorchScriptOperators::flatten);
    for (String name : List.of("aten::view", "aten::reshape")) {
      add(name, TorchScriptOperators::reshape);
    }
    add("aten::t", c -> transpose(c, 0, 1));
    add("aten::transpose", c -> transpose(c, c.integer(1), c.integer(2)));
    add(
        "aten::permute",
        c -> unary(c, "Transpose", attribute("perm", positive(c, c.integers(1), c.tensor(0)))));
    add("aten::unsqueeze", TorchScriptOperators::unsqueeze);
    add("aten::squeeze", TorchScriptOperators::squeeze);
    add("aten::select", TorchScriptOperators::select);
    add("aten::slice", TorchScriptOperators::slice);
    add("aten::expand", TorchScriptOperators::expand);
    add(
        "aten::chunk",
        c ->
            c.split(
                c.tensor(0),
                (int) c.integer(1),
                List.of(c.tensor(0).name()),
                attribute("axis", c.integer(2))));
    add("aten::split_with_sizes", TorchScriptOperators::splitWithSizes);
    add("aten::cat", TorchScriptOperators::concat);
    add("aten::stack", TorchScriptOperators::stack);
    add("aten::dim", TorchScriptOperators::dim);
    add("aten::__getitem__", TorchScriptOperators::item);
    add("aten::len", c -> (long) c.list(0).size());
    add("aten::mean", c -> reduce(c, "ReduceMean"));
    add("aten::sum", c -> reduce(c, "ReduceSum"));
    add("aten::size", TorchScriptOperators::size);
    comparison("lt", (a, b) -> a < b);
    comparison("le", (a, b) -> a <= b);
    comparison("gt", (a, b) -> a > b);
    comparison("ge", (a, b) -> a >= b);
    comparison("eq", Long::equals);
    comparison("ne", (a, b) -> !a.equals(b));
    // The input is, and no entry makes anything else of it.
    add(
        "aten::is_floating_point",
        c -> c.tensor(0).constant() == null || c.tensor(0).constant().is_floating_point());
    // What a loop over range(start, end, step) calls.
    add(
        "aten::__range_length",
        c -> {
          if (c.integer(2) == 0) {
            throw c.unsupported("a step of 0");
          }
          long span = c.integer(1) - c.integer(0);
          return Math.max(0, -Math.floorDiv(-span, c.integer(2)));
        });
    add("aten::__derive_index", c -> c.integer(1) + c.integer(0) * c.integer(2));
    for (String name : List.of("prim::NumToTensor", "aten::Int")) {
      add(name, c -> c.argument(0));
    }
    for (String name : List.of("prim::ListConstruct", "prim::TupleConstruct")) {
      add(name, Call::arguments);
    }
    for (String name : List.of("prim::ListUnpack", "prim::TupleUnpack")) {
      add(name, c -> c.argument(0));
    }
  }

  private TorchScriptOperators() {}

  /** The entry of a call; null where there is none. */
  static Entry find(String kind) {
    return ENTRIES.get(kind);
  }

  private static void add(String kind, Entry entry) {
    ENTRIES.put(kind, entry);
  }

  /** A call with a form that works in place, which is the same in a graph without branches. */
  private static void same(String aten, Function<Call, Object> f) {
    add("aten::" + aten, f::apply);
    add("aten::" + aten + "_", f::apply);
  }

  private static Ref unary(Call c, String operator, AttributeProto... attributes) {
    Ref x = c.tensor(0);
    return c.emitted(operator, x.rank(), List.of(x.name()), attributes);
  }

  private static Ref binary(Call c, String operator, Ref a, Ref b) {
    int rank = a.rank() < 0 || b.rank() < 0 ? -1 : Math.max(a.rank(), b.rank());
    return c.emit(operator, rank, a.name(), b.name());
  }

  /** Of integers that are known. */
  private static void comparison(String aten, BiPredicate<Long, Long> holds) {
    add("aten::" + aten, c -> holds.test(c.integer(0), c.integer(1)));
  }

  /** Of integers that are known; null where it is of something else. */
  private static Object known(Call c, String operator) {
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

  private static Object arithmetic(Call c, String operator) {
    Object known = known(c, operator);
    if (known != null) {
      return known;
    }
    if (isSize(c, 0) || isSize(c, 1)) {
      if (operator.equals("Div")) {
        throw c.unsupported("a quotient of sizes");
      }
      return sizes(c, operator);
    }
    boolean scaled = operator.equals("Add") || operator.equals("Sub");
    if (!scaled && c.has(2)) {
      throw c.unsupported("a rounding mode");
    }
    Ref second = c.tensor(1);
    if (scaled && c.number(2) != 1) {
      second = binary(c, "Mul", second, c.real(c.number(2)));
    }
    return binary(c, operator, c.tensor(0), second);
  }

  private static boolean isSize(Call c, int i) {
    return c.argument(i) instanceof Size;
  }

  /** Arithmetic of integers, one of which is computed. */
  private static Size sizes(Call c, String operator) {
    Ref result = c.emit(operator, 1, c.size(c.argument(0)).name(), c.size(c.argument(1)).name());
    return new Size(c.emit("Squeeze", 0, result.name(), c.longs(0).name()).name());
  }

  /** Sizes are not negative, so division that cuts is division that rounds down. */
  private static Object floorDivide(Call c) {
    if (c.argument(0) instanceof Long a && c.argument(1) instanceof Long b && b != 0) {
      return Math.floorDiv(a, b);
    }
    if (!(c.argument(1) instanceof Long b) || b <= 0) {
      throw c.unsupported("a divisor that is no known positive integer");
    }
    return sizes(c, "Div");
  }

  private static Object dim(Call c) {
    if (c.tensor(0).rank() < 0) {
      throw c.unsupported("a tensor of unknown rank");
    }
    return (long) c.tensor(0).rank();
  }

  /** x · ½ · (1 + erf(x / √2)), which is one operation again where it runs. */
  private static Ref gelu(Call c) {
    if (!"none".equals(c.argument(1))) {
      throw c.unsupported("the approximation " + c.argument(1));
    }
    Ref x = c.tensor(0);
    Ref scaled = binary(c, "Div", x, c.real(Math.sqrt(2)));
    Ref erf = c.emit("Erf", x.rank(), scaled.name());
    Ref gate = binary(c, "Add", erf, c.real(1));
    return binary(c, "Mul", binary(c, "Mul", x, gate), c.real(0.5));
  }

  private static Ref elu(Call c) {
    if (c.number(2) != 1 || c.number(3) != 1) {
      throw c.unsupported("a scale");
    }
    return unary(c, "Elu", attribute("alpha", c.number(1)));
  }

  /** A bound that is null is absent. */
  private static Ref clip(Call c, Ref low, Ref high) {
    Ref x = c.tensor(0);
    List<String> inputs = new ArrayList<>(List.of(x.name(), low == null ? "" : low.name()));
    if (high != null) {
      inputs.add(high.name());
    }
    return c.emitted("Clip", x.rank(), inputs);
  }

  private static Ref bound(Call c, int argument) {
    if (c.argument(argument) instanceof Ref computed && computed.rank() == 0) {
      return computed;
    }
    return c.has(argument) ? c.real(c.number(argument)) : null;
  }

  /** A slope a channel lies along the second axis. */
  private static Ref prelu(Call c) {
    Ref x = c.tensor(0);
    Ref slope = c.tensor(1);
    if (x.rank() < 0) {
      throw c.unsupported("a tensor of unknown rank");
    }
    if (x.rank() > 2) {
      long[] axes = LongStream.range(1, x.rank() - 1).toArray();
      slope = c.emit("Unsqueeze", x.rank() - 1, slope.name(), c.longs(axes).name());
    }
    return binary(c, "PRelu", x, slope);
  }

  private static Ref attention(Call c) {
    boolean plain = !c.has(3) && c.number(4) == 0 && !c.flag(5) && !(c.size() > 7 && c.flag(7));
    Ref q = c.tensor(0);
    Ref k = c.tensor(1);
    if (!plain || q.rank() < 3 || k.rank() != q.rank()) {
      throw c.unsupported("a mask, dropout or tensors of unknown rank");
    }
    Ref root;
    if (c.size() > 6 && c.has(6)) {
      root = c.real(1 / c.number(6));
    } else {
      Ref shape = c.emit("Shape", 1, q.name());
      Ref width = c.emitted("Gather", 1, List.of(shape.name(), c.longs(q.rank() - 1).name()));
      root =
          c.emit(
              "Sqrt", 1, c.emitted("Cast", 1, List.of(width.name()), attribute("to", 1L)).name());
    }
    long[] perm = LongStream.range(0, k.rank()).toArray();
    perm[perm.length - 2] = perm.length - 1;
    perm[perm.length - 1] = perm.length - 2;
    Ref turned = c.emitted("Transpose", k.rank(), List.of(k.name()), attribute("perm", perm));
    Ref scores = binary(c, "Div", c.emit("MatMul", q.rank(), q.name(), turned.name()), root);
    Ref shares = c.emitted("Softmax", q.rank(), List.of(scores.name()), attribute("axis", -1L));
    return c.emit("MatMul", q.rank(), shares.name(), c.tensor(2).name());
  }

  /** Pads come from the last axis on, begin and end of each. */
  private static Ref pad(Call c, Object mode, int value) {
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

  private static Ref dropout(Call c) {
    if (c.flag(2)) {
      throw c.unsupported("training switched on");
    }
    return unary(c, "Identity");
  }

  /** A weight that is constant keeps its layout where the input is a matrix. */
  private static Ref linear(Call c, Ref x, Ref w, Ref bias) {
    if (w.rank() != 2) {
      throw c.unsupported("a weight that is no matrix");
    }
    if (x.rank() == 2 && bias != null && bias.rank() == 1) {
      return c.emitted(
          "Gemm", 2, List.of(x.name(), w.name(), bias.name()), attribute("transB", 1L));
    }
    Ref turned =
        w.constant() != null
            ? c.constant(w.constant().t().contiguous(), w.name() + "_transposed")
            : c.emitted("Transpose", 2, List.of(w.name()), attribute("perm", new long[] {1, 0}));
    Ref product = c.emit("MatMul", x.rank(), x.name(), turned.name());
    return bias == null ? product : binary(c, "Add", product, bias);
  }

  private static Ref addmm(Call c) {
    Ref bias = c.tensor(0);
    return c.emitted(
        "Gemm",
        2,
        List.of(c.tensor(1).name(), c.tensor(2).name(), bias.name()),
        attribute("beta", c.number(3)),
        attribute("alpha", c.number(4)));
  }

  private static long[] filled(Call c, int argument, int axes) {
    if (c.argument(argument) instanceof String text) {
      throw c.unsupported("the padding '" + text + "'");
    }
    long[] given = c.integers(argument);
    return given.length == 1 && axes > 1
        ? LongStream.generate(() -> given[0]).limit(axes).toArray()
        : given;
  }

  private static long[] twice(long[] pads) {
    return LongStream.concat(Arrays.stream(pads), Arrays.stream(pads)).toArray();
  }

  private static Ref convolution(Call c, int axes, int groups) {
    List<String> inputs = new ArrayList<>(List.of(c.tensor(0).name(), c.tensor(1).name()));
    if (c.has(2)) {
      inputs.add(c.tensor(2).name());
    }
    return c.emitted(
        "Conv",
        axes + 2,
        inputs,
        attribute("strides", filled(c, 3, axes)),
        attribute("pads", twice(filled(c, 4, axes))),
        attribute("dilations", filled(c, 5, axes)),
        attribute("group", c.integer(groups)));
  }

  private static Ref transposedConvolution(
      Call c, int axes, int dilations, int outputPadding, int groups) {
    List<String> inputs = new ArrayList<>(List.of(c.tensor(0).name(), c.tensor(1).name()));
    if (c.has(2)) {
      inputs.add(c.tensor(2).name());
    }
    return c.emitted(
        "ConvTranspose",
        axes + 2,
        inputs,
        attribute("strides", filled(c, 3, axes)),
        attribute("pads", twice(filled(c, 4, axes))),
        attribute("output_padding", filled(c, outputPadding, axes)),
        attribute("dilations", filled(c, dilations, axes)),
        attribute("group", c.integer(groups)));
  }

  private static Ref generalConvolution(Call c) {
    int axes = c.tensor(1).rank() - 2;
    if (axes < 1) {
      throw c.unsupported("a kernel of unknown rank");
    }
    return c.flag(6) ? transposedConvolution(c, axes, 5, 7, 8) : convolution(c, axes, 8);
  }

  private static AttributeProto[] window(Call c, int axes, AttributeProto... others) {
    long[] kernel = filled(c, 1, axes);
    // Without a stride the windows do not overlap.
    long[] strides = c.integers(2).length == 0 ? kernel : filled(c, 2, axes);
    List<AttributeProto> all = new ArrayList<>(List.of(others));
    all.add(attribute("kernel_shape", kernel));
    all.add(attribute("strides", strides));
    all.add(attribute("pads", twice(filled(c, 3, axes))));
    return all.toArray(AttributeProto[]::new);
  }

  private static Ref maxPool(Call c, int axes) {
    return unary(
        c,
        "MaxPool",
        window(
            c,
            axes,
            attribute("dilations", filled(c, 4, axes)),
            attribute("ceil_mode", c.flag(5) ? 1L : 0L)));
  }

  private static Ref averagePool(Call c, int axes) {
    if (c.flag(4) || c.has(6)) {
      throw c.unsupported("ceil_mode or a divisor");
    }
    return unary(
        c, "AveragePool", window(c, axes, attribute("count_include_pad", c.flag(5) ? 1L : 0L)));
  }

  private static Ref globalAverage(Call c) {
    if (Arrays.stream(c.integers(1)).anyMatch(size -> size != 1)) {
      throw c.unsupported("an output of more than one element");
    }
    return unary(c, "GlobalAveragePool");
  }

  private static Ref batchNorm(Call c) {
    if (c.flag(5) || !c.has(3) || !c.has(4)) {
      throw c.unsupported("the statistics of the batch");
    }
    Ref mean = c.tensor(3);
    if (mean.constant() == null) {
      throw c.unsupported("statistics that are computed");
    }
    Tensor ones = torch.ones_like(mean.constant());
    Ref scale = c.has(1) ? c.tensor(1) : c.constant(ones, "ones");
    Ref shift = c.has(2) ? c.tensor(2) : c.constant(ones.mul(new Scalar(0)), "zeros");
    Ref x = c.tensor(0);
    return c.emitted(
        "BatchNormalization",
        x.rank(),
        List.of(x.name(), scale.name(), shift.name(), mean.name(), c.tensor(4).name()),
        attribute("epsilon", c.number(7)),
        attribute("momentum", 1 - c.number(6)));
  }

  private static Ref layerNorm(Call c) {
    if (!c.has(2)) {
      throw c.unsupported("no weight");
    }
    Ref x = c.tensor(0);
    List<String> inputs = new ArrayList<>(List.of(x.name(), c.tensor(2).name()));
    if (c.has(3)) {
      inputs.add(c.tensor(3).name());
    }
    return c.emitted(
        "LayerNormalization",
        x.rank(),
        inputs,
        attribute("axis", (long) -c.list(1).size()),
        attribute("epsilon", c.number(4)));
  }

  private static Ref flatten(Call c) {
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

  private static Ref reshape(Call c) {
    int rank = c.list(1).size();
    return c.emit("Reshape", rank, c.tensor(0).name(), c.sizes(1).name());
  }

  private static long[] positive(Call c, long[] axes, Ref x) {
    if (x.rank() < 0) {
      throw c.unsupported("a tensor of unknown rank");
    }
    return Arrays.stream(axes).map(a -> a < 0 ? a + x.rank() : a).toArray();
  }

  private static Ref transpose(Call c, long one, long other) {
    Ref x = c.tensor(0);
    long[] pair = positive(c, new long[] {one, other}, x);
    long[] perm = LongStream.range(0, x.rank()).toArray();
    perm[(int) pair[0]] = pair[1];
    perm[(int) pair[1]] = pair[0];
    return unary(c, "Transpose", attribute("perm", perm));
  }

  private static Ref unsqueeze(Call c) {
    Ref x = c.tensor(0);
    return c.emit(
        "Unsqueeze", x.rank() < 0 ? -1 : x.rank() + 1, x.name(), c.longs(c.integer(1)).name());
  }

  private static Ref squeeze(Call c) {
    if (c.size() < 2) {
      throw c.unsupported("all axes");
    }
    Ref x = c.tensor(0);
    long[] axes = c.integers(1);
    return c.emit(
        "Squeeze", x.rank() < 0 ? -1 : x.rank() - axes.length, x.name(), c.longs(axes).name());
  }

  private static Ref select(Call c) {
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

  private static Object item(Call c) {
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

  private static Object slice(Call c) {
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

  private static Ref expand(Call c) {
    List<String> sizes = new ArrayList<>();
    for (Object size : c.list(1)) {
      // -1 leaves a size, which 1 does in a graph.
      sizes.add(c.size(size.equals(-1L) ? (Object) 1L : size).name());
    }
    Ref shape = c.emitted("Concat", 1, sizes, attribute("axis", 0L));
    return c.emit("Expand", sizes.size(), c.tensor(0).name(), shape.name());
  }

  private static List<Ref> splitWithSizes(Call c) {
    long[] sizes = c.integers(1);
    Ref x = c.tensor(0);
    return c.split(
        x, sizes.length, List.of(x.name(), c.longs(sizes).name()), attribute("axis", c.integer(2)));
  }

  private static Ref stack(Call c) {
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

  private static Ref concat(Call c) {
    List<String> inputs = new ArrayList<>();
    int rank = -1;
    for (Object part : c.list(0)) {
      inputs.add(c.tensor(part).name());
      rank = c.tensor(part).rank();
    }
    return c.emitted("Concat", rank, inputs, attribute("axis", c.integer(1)));
  }

  private static Ref reduce(Call c, String operator) {
    if (c.size() < 4 || !c.has(1)) {
      throw c.unsupported("all axes");
    }
    Ref x = c.tensor(0);
    long[] axes = c.integers(1);
    boolean keep = c.flag(2);
    AttributeProto kept = attribute("keepdims", keep ? 1L : 0L);
    int rank = keep || x.rank() < 0 ? x.rank() : x.rank() - axes.length;
    return operator.equals("ReduceSum")
        ? c.emitted(operator, rank, List.of(x.name(), c.longs(axes).name()), kept)
        : c.emitted(operator, rank, List.of(x.name()), attribute("axes", axes), kept);
  }

  /** One size, or all of them. */
  private static Object size(Call c) {
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

  private static Size size(Call c, String shape, long axis) {
    Ref index =
        c.constant(torch.full(new long[0], new Scalar(axis)).to(torch.ScalarType.Long), "axis");
    return new Size(
        c.emitted("Gather", 0, List.of(shape, index.name()), attribute("axis", 0L)).name());
  }
}

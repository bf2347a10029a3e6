package org.espalier.torch;

import static org.espalier.torch.TorchScriptImport.attribute;

import ai.onnx.proto.OnnxMl.AttributeProto;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.function.Function;
import java.util.stream.LongStream;
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
      add("aten::max_pool" + axes + "d", c -> maxPool(c, spatial));
      add("aten::avg_pool" + axes + "d", c -> averagePool(c, spatial));
      add("aten::adaptive_avg_pool" + axes + "d", TorchScriptOperators::globalAverage);
    }
    for (String name : List.of("aten::convolution", "aten::_convolution")) {
      add(name, TorchScriptOperators::generalConvolution);
    }
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
    add("aten::cat", TorchScriptOperators::concat);
    add("aten::mean", c -> reduce(c, "ReduceMean"));
    add("aten::sum", c -> reduce(c, "ReduceSum"));
    add("aten::size", TorchScriptOperators::size);
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
  private static void same(String aten, Function<Call, Ref> f) {
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

  private static Ref arithmetic(Call c, String operator) {
    if (c.argument(0) instanceof Size || c.argument(1) instanceof Size) {
      throw c.unsupported("sizes");
    }
    boolean scaled = operator.equals("Add") || operator.equals("Sub");
    if (scaled && c.number(2) != 1 || !scaled && c.has(2)) {
      throw c.unsupported(scaled ? "a factor" : "a rounding mode");
    }
    return binary(c, operator, c.tensor(0), c.tensor(1));
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

  private static Ref clip(Call c, Ref low, Ref high) {
    Ref x = c.tensor(0);
    return c.emit("Clip", x.rank(), x.name(), low.name(), high.name());
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

  private static Ref generalConvolution(Call c) {
    if (c.flag(6) || c.tensor(1).rank() < 3) {
      throw c.unsupported("transposition, or a kernel of unknown rank");
    }
    return convolution(c, c.tensor(1).rank() - 2, 8);
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
        attribute("axis", (long) -c.integers(1).length),
        attribute("epsilon", c.number(4)));
  }

  private static Ref flatten(Call c) {
    Ref x = c.tensor(0);
    long end = c.integer(2);
    if (c.integer(1) != 1 || end != -1 && end != x.rank() - 1) {
      throw c.unsupported("other axes than all after the first");
    }
    return c.emitted("Flatten", 2, List.of(x.name()), attribute("axis", 1L));
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

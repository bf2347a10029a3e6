package org.espalier.torch.script;

import static org.espalier.format.onnx.Attributes.attribute;

import ai.onnx.proto.OnnxMl.AttributeProto;
import java.util.ArrayList;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.function.Function;
import java.util.stream.LongStream;
import org.espalier.torch.script.ScriptGraph.Ref;

/**
 * The calls of a module that can be read as nodes of a graph. The order of arguments is that of libtorch's
 * operator schemas. Adding a call is adding an entry here, or in the file of its family.
 */
final class TorchScriptOperators {
  /** An argument that is absent. */
  static final Object NONE = new Object();

  private static final Map<String, Entry> ENTRIES = new HashMap<>();

  /** Makes the nodes of a call and returns its result, a list where there are several. */
  @FunctionalInterface
  interface Entry {
    Object read(TorchScriptCall c);
  }

  /** Where a family's entries go. */
  @FunctionalInterface
  interface Table {
    void add(String kind, Entry entry);
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
    add("aten::prelu", TorchScriptOperators::prelu);
    add("aten::maximum", c -> binary(c, "Max", c.tensor(0), c.tensor(1)));
    add("aten::minimum", c -> binary(c, "Min", c.tensor(0), c.tensor(1)));
    add("aten::mean", c -> reduce(c, "ReduceMean"));
    add("aten::sum", c -> reduce(c, "ReduceSum"));
    TorchScriptLayers.add(TorchScriptOperators::add);
    TorchScriptShapes.add(TorchScriptOperators::add);
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
  private static void same(String aten, Function<TorchScriptCall, Object> f) {
    add("aten::" + aten, f::apply);
    add("aten::" + aten + "_", f::apply);
  }

  static Ref unary(TorchScriptCall c, String operator, AttributeProto... attributes) {
    Ref x = c.tensor(0);
    return c.emitted(operator, x.rank(), List.of(x.name()), attributes);
  }

  static Ref binary(TorchScriptCall c, String operator, Ref a, Ref b) {
    int rank = a.rank() < 0 || b.rank() < 0 ? -1 : Math.max(a.rank(), b.rank());
    return c.emit(operator, rank, a.name(), b.name());
  }

  private static Object arithmetic(TorchScriptCall c, String operator) {
    Object known = TorchScriptShapes.known(c, operator);
    if (known != null) {
      return known;
    }
    if (TorchScriptShapes.isSize(c, 0) || TorchScriptShapes.isSize(c, 1)) {
      if (operator.equals("Div")) {
        throw c.unsupported("a quotient of sizes");
      }
      return TorchScriptShapes.sizes(c, operator);
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

  /** x · ½ · (1 + erf(x / √2)), which is one operation again where it runs. */
  private static Ref gelu(TorchScriptCall c) {
    if (!"none".equals(c.argument(1))) {
      throw c.unsupported("the approximation " + c.argument(1));
    }
    Ref x = c.tensor(0);
    Ref scaled = binary(c, "Div", x, c.real(Math.sqrt(2)));
    Ref erf = c.emit("Erf", x.rank(), scaled.name());
    Ref gate = binary(c, "Add", erf, c.real(1));
    return binary(c, "Mul", binary(c, "Mul", x, gate), c.real(0.5));
  }

  private static Ref elu(TorchScriptCall c) {
    if (c.number(2) != 1 || c.number(3) != 1) {
      throw c.unsupported("a scale");
    }
    return unary(c, "Elu", attribute("alpha", c.number(1)));
  }

  /** A bound that is null is absent. */
  private static Ref clip(TorchScriptCall c, Ref low, Ref high) {
    Ref x = c.tensor(0);
    List<String> inputs = new ArrayList<>(List.of(x.name(), low == null ? "" : low.name()));
    if (high != null) {
      inputs.add(high.name());
    }
    return c.emitted("Clip", x.rank(), inputs);
  }

  private static Ref bound(TorchScriptCall c, int argument) {
    if (c.argument(argument) instanceof Ref computed && computed.rank() == 0) {
      return computed;
    }
    return c.has(argument) ? c.real(c.number(argument)) : null;
  }

  /** A slope a channel lies along the second axis. */
  private static Ref prelu(TorchScriptCall c) {
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

  private static Ref dropout(TorchScriptCall c) {
    if (c.flag(2)) {
      throw c.unsupported("training switched on");
    }
    return unary(c, "Identity");
  }

  private static Ref reduce(TorchScriptCall c, String operator) {
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
}

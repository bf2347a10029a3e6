package org.espalier.compress.onnx;

import ai.onnx.proto.OnnxMl.NodeProto;
import ai.onnx.proto.OnnxMl.TensorProto.DataType;
import java.util.ArrayList;
import java.util.HashMap;
import java.util.HashSet;
import java.util.LinkedHashMap;
import java.util.LinkedHashSet;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.stream.IntStream;
import org.espalier.format.onnx.Attributes;
import org.espalier.format.onnx.OnnxInitializer;
import org.espalier.format.onnx.OnnxModel;

/**
 * The operators between int8 convolutions and int8 products that ONNX Runtime runs on 8-bit integers too,
 * where DequantizeLinear stands before and QuantizeLinear behind them. Left float, each would cost two
 * conversions, and the change between the layouts of int8 and of float images besides.
 *
 * <ul>
 *   <li>Some pass values on and have one grid on both sides: {@code MaxPool}, {@code Reshape}.
 *   <li>The others compute new values, which have a grid of their own: {@code Add}, {@code Concat}.
 * </ul>
 *
 * <p>An operator is taken where integers are there anyway, in one operand at least, and where they are
 * wanted: by a product or an operator that is taken. What leads to an output of the model alone stays float.
 */
final class IntegerOperators {
  private static final Set<String> PASSING =
      Set.of(
          "Expand",
          "Flatten",
          "MaxPool",
          "Reshape",
          "Resize",
          "Slice",
          "Squeeze",
          "Tile",
          "Transpose",
          "Unsqueeze");

  private static final Set<String> UNARY =
      Set.of("AveragePool", "GlobalAveragePool", "LeakyRelu", "Sigmoid");

  /** The operators of two images, which round more than one of them did. */
  static final Set<String> BINARY = Set.of("Add", "Mul");

  private final OnnxModel model;
  private final Set<String> left;
  private final Map<String, NodeProto> producers;
  private final Map<String, List<NodeProto>> consumers;
  private final Set<String> outputs;

  /** By the first output of an operator. */
  private final Map<String, List<Integer>> operands = new HashMap<>();

  private final Map<String, String> passed = new LinkedHashMap<>();
  private final Map<String, Float> factors = new HashMap<>();
  private final Set<String> results = new LinkedHashSet<>();
  private final Set<String> entries = new HashSet<>();

  /**
   * An empty list of operators.
   *
   * @param left which of {@link #BINARY} stay float where they have no constant operand
   */
  IntegerOperators(OnnxModel model, Set<String> left) {
    this.model = model;
    this.left = left;
    this.producers = model.producers();
    this.consumers = model.consumers();
    this.outputs = model.outputNames();
  }

  /**
   * Finds the operators.
   *
   * @param convolutions the outputs of the int8 Convs
   * @param read what int8 products read
   */
  void find(Set<String> convolutions, Set<String> read) {
    convolutions.forEach(conv -> results.add(result(producers.get(conv))));
    Set<String> wanted = new HashSet<>(read);
    List<NodeProto> candidates = new ArrayList<>();
    List<NodeProto> nodes = model.nodes();
    for (int i = nodes.size() - 1; i >= 0; i--) {
      NodeProto n = nodes.get(i);
      List<Integer> data = data(n);
      if (!data.isEmpty() && wanted.contains(result(n))) {
        candidates.add(0, n);
        data.forEach(d -> wanted.add(n.getInput(d)));
      }
    }
    candidates.forEach(this::take);
  }

  private void take(NodeProto n) {
    List<Integer> data = data(n);
    List<String> floats = new ArrayList<>();
    boolean integers = false;
    for (int d : data) {
      String value = n.getInput(d);
      if (results.contains(value) || passed.containsKey(value)) {
        integers = true;
      } else if (model.constant(value) == null) {
        floats.add(value);
      }
    }
    if (!integers || !floats.stream().allMatch(this::canBeRounded)) {
      return;
    }
    if (factor(n) > 0 && !floats.isEmpty()) {
      return;
    }
    results.addAll(floats);
    entries.addAll(floats);
    operands.put(n.getOutput(0), data);
    if (PASSING.contains(n.getOpType())) {
      passed.put(n.getOutput(0), n.getInput(0));
    } else if (factor(n) > 0) {
      passed.put(n.getOutput(0), n.getInput(data.get(0)));
      factors.put(n.getOutput(0), factor(n));
    } else {
      results.add(result(n));
    }
  }

  /** Whether a value can be on a grid for all who read it. */
  private boolean canBeRounded(String value) {
    NodeProto n = producers.get(value);
    return n != null && n.getOutput(0).equals(value);
  }

  /**
   * The value on a grid that an operator leads to: its first output or, where nothing else reads that, what
   * a Relu or Clip makes of it. The grid clips as they do, and the runtime leaves them out.
   */
  private String result(NodeProto n) {
    String output = n.getOutput(0);
    List<NodeProto> next = consumers.getOrDefault(output, List.of());
    boolean clipped =
        next.size() == 1
            && !outputs.contains(output)
            && !PASSING.contains(n.getOpType())
            && factor(n) == 0
            && (OnnxModel.isOwn(next.get(0), "Relu") || OnnxModel.isOwn(next.get(0), "Clip"))
            && next.get(0).getInput(0).equals(output)
            && next.get(0).getOutputCount() == 1;
    return clipped ? next.get(0).getOutput(0) : output;
  }

  /** The inputs that an operator reads as integers; empty where it has no form for them. */
  private List<Integer> data(NodeProto n) {
    if (n.getOutputCount() != 1 || !OnnxModel.isOwn(n)) {
      return List.of();
    }
    String op = n.getOpType();
    if (factor(n) > 0) {
      return List.of(model.constant(n.getInput(0)) == null ? 0 : 1);
    }
    if (UNARY.contains(op) || PASSING.contains(op) && passes(n)) {
      return List.of(0);
    }
    boolean several =
        op.equals("Concat")
            || BINARY.contains(op)
                && n.getInputCount() == 2
                && !n.getInput(0).equals(n.getInput(1))
                && !(left.contains(op) && n.getInputList().stream().allMatch(this::isVariable));
    List<Integer> all = IntStream.range(0, n.getInputCount()).boxed().toList();
    return several && all.stream().allMatch(i -> isVariableOrScalar(n.getInput(i)))
        ? all
        : List.of();
  }

  /**
   * The positive number that a node multiplies with; 0 for all other nodes. The integers stay, their step is
   * another.
   */
  private float factor(NodeProto n) {
    boolean divides = OnnxModel.isOwn(n, "Div");
    if (!divides && !OnnxModel.isOwn(n, "Mul") || n.getInputCount() != 2) {
      return 0;
    }
    OnnxInitializer first = divides ? null : model.constant(n.getInput(0));
    OnnxInitializer second = model.constant(n.getInput(1));
    OnnxInitializer c = second != null ? second : first;
    // A constant of more dimensions than the image would give it them.
    if (c == null || c.type() != DataType.FLOAT || c.elements() != 1 || c.dims().length > 1) {
      return 0;
    }
    float factor = divides ? 1 / c.floats().get(0) : c.floats().get(0);
    // Beyond that a step might be no normal float.
    return factor >= 0x1p-20f && factor <= 0x1p20f ? factor : 0;
  }

  private static boolean passes(NodeProto n) {
    return !OnnxModel.isOwn(n, "Resize")
        || Attributes.find(n, "mode") == null
        || Attributes.find(n, "mode").getS().toStringUtf8().equals("nearest");
  }

  private boolean isVariable(String value) {
    return model.constant(value) == null;
  }

  /** One number is exact on a grid of its own. */
  private boolean isVariableOrScalar(String value) {
    OnnxInitializer c = model.constant(value);
    if (c == null) {
      return true;
    }
    float number = c.type() == DataType.FLOAT && c.elements() == 1 ? c.floats().get(0) : Float.NaN;
    return number == 0 || Float.isFinite(number) && Math.abs(number) >= 256 * Float.MIN_NORMAL;
  }

  /** The values that have grids of their own, which all their readers see. */
  Set<String> results() {
    return results;
  }

  /**
   * The channels of an image that a float operator makes and that operators here read beside int8 Convs; 0 for
   * all other values. The runtime lays out the images of int8 Convs with their channels last, and carries that on
   * through an operator only where it saves transpositions: an operand that came from no such Conv would stop it.
   */
  int entryChannels(String value) {
    if (!entries.contains(value)) {
      return 0;
    }
    for (NodeProto n : consumers.get(value)) {
      OnnxInitializer w = OnnxModel.isOwn(n, "Conv") ? model.constant(n.getInput(1)) : null;
      if (w != null && w.dims().length == 4 && n.getInput(0).equals(value)) {
        return Math.toIntExact(w.dims()[1] * Attributes.integer(n, "group", 1));
      }
    }
    return 0;
  }

  /** Whether a value has the grid of another, see {@link #root}. */
  boolean isPassed(String value) {
    return passed.containsKey(value);
  }

  /** The values that have the grids of others. */
  Set<String> passed() {
    return passed.keySet();
  }

  /** The value whose grid a value has: itself, unless operators only pass values on. */
  String root(String value) {
    String root = value;
    while (passed.containsKey(root)) {
      root = passed.get(root);
    }
    return root;
  }

  /** What a value's grid is multiplied with to that of its {@link #root}. */
  float factor(String value) {
    float factor = 1;
    for (String v = value; passed.containsKey(v); v = passed.get(v)) {
      factor *= factors.getOrDefault(v, 1f);
    }
    return factor;
  }

  /** The step of a value's integers, where those that are no other's have these ranges. */
  float scale(String value, Map<String, ActivationRange> ranges) {
    return ranges.get(root(value)).scale() * factor(value);
  }

  /** The range of a value, likewise. */
  ActivationRange range(String value, Map<String, ActivationRange> ranges) {
    ActivationRange root = ranges.get(root(value));
    float factor = factor(value);
    return new ActivationRange(root.min() * factor, root.max() * factor);
  }

  /** Whether a value's integers are another's with another step. */
  boolean isScaled(String value) {
    return factors.containsKey(value);
  }

  /** The value that an operator passes on as this one. */
  String source(String value) {
    return passed.get(value);
  }

  /** The inputs that the operator with this first output reads as integers; empty if it is float. */
  List<Integer> operands(String output) {
    return operands.getOrDefault(output, List.of());
  }

  /** The bounds of the Clip that makes a value, where they are constants; null elsewhere. */
  static float[] bounds(OnnxModel model, NodeProto n) {
    if (n == null || !OnnxModel.isOwn(n, "Clip")) {
      return null;
    }
    float[] bounds = {Float.NEGATIVE_INFINITY, Float.POSITIVE_INFINITY};
    for (int i = 0; i < 2; i++) {
      if (n.getInputCount() > i + 1 && !n.getInput(i + 1).isEmpty()) {
        OnnxInitializer c = model.constant(n.getInput(i + 1));
        if (c == null || c.type() != DataType.FLOAT || c.elements() != 1) {
          return null;
        }
        bounds[i] = c.floats().get(0);
      }
    }
    return bounds;
  }
}

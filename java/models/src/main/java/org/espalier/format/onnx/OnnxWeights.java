package org.espalier.format.onnx;

import ai.onnx.proto.OnnxMl.NodeProto;
import ai.onnx.proto.OnnxMl.TensorProto.DataType;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.Collections;
import java.util.EnumSet;
import java.util.HashSet;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Optional;
import java.util.Set;
import java.util.TreeSet;
import org.espalier.format.onnx.OnnxWeight.Kind;
import org.espalier.format.onnx.OnnxWeight.Use;

/**
 * Finds the weights of a model: constant floating-point tensors of rank 2 or more that MatMul, Gemm, Conv,
 * ConvTranspose, LSTM, GRU or RNN multiply with something that is not constant, or that Gather looks up in, less the scales of integers, in the
 * main graph, in branches of If and in bodies of loops. A weight may come through Identity, Transpose and Cast nodes.
 */
public final class OnnxWeights {
  static final Set<DataType> FLOATING =
      EnumSet.of(DataType.FLOAT, DataType.FLOAT16, DataType.BFLOAT16, DataType.DOUBLE);

  private static final Set<String> THROUGH = Set.of("Identity", "Transpose", "Cast");

  /** Exporters put one or two nodes between a weight and its use. */
  private static final int MAX_PATH = 8;

  private final OnnxModel model;
  private final Map<String, NodeProto> producers;
  private final Set<String> scales;
  private final Map<String, List<Use>> uses = new LinkedHashMap<>();

  private OnnxWeights(OnnxModel model) {
    this.model = model;
    this.producers = model.allProducers();
    this.scales = IntegerScales.of(model, producers);
  }

  /** The weights of {@code model}, in the order in which its nodes use them, names unique. */
  public static List<OnnxWeight> of(OnnxModel model) {
    OnnxWeights finder = new OnnxWeights(model);
    model.allNodes().forEach(finder::visit);
    return finder.weights();
  }

  /**
   * The names of the weights that branches of If or bodies of loops use.
   *
   * @param shared those that the main graph uses too, or those that it does not
   */
  public static List<String> inner(OnnxModel model, boolean shared) {
    Map<String, NodeProto> main = model.producers();
    return of(model).stream()
        .filter(w -> w.uses().stream().anyMatch(use -> !main.containsKey(use.node())))
        .filter(w -> shared == w.uses().stream().anyMatch(use -> main.containsKey(use.node())))
        .map(OnnxWeight::name)
        .toList();
  }

  /**
   * What to say of matrices that are no weights because the nodes that read them are not looked into: Einsum,
   * operators that are not ONNX's own, and what loops hand to their bodies; empty without any.
   */
  public static Optional<String> outOfReach(OnnxModel model) {
    Set<String> weights = new HashSet<>();
    of(model).forEach(weight -> weights.add(weight.value()));
    Set<String> unknown = new HashSet<>();
    Set<String> operators = new TreeSet<>();
    for (NodeProto n : model.allNodes()) {
      if (!OnnxModel.isOwn(n) || n.getOpType().equals("Einsum") || !InnerGraphs.of(n).isEmpty()) {
        for (int i = 0; i < n.getInputCount(); i++) {
          String value = n.getInput(i);
          if (!weights.contains(value) && !isNoWeight(n, i) && isMatrix(model.constant(value))) {
            unknown.add(value);
            operators.add(n.getOpType());
          }
        }
      }
    }
    return unknown.isEmpty()
        ? Optional.empty()
        : Optional.of(
            unknown.size()
                + (unknown.size() == 1
                    ? " float matrix stays as it is, read by "
                    : " float matrices stay as they are, read by ")
                + String.join(", ", operators));
  }

  /** Whether an input is a table of cosines or sines of places, or the scales of integers. */
  private static boolean isNoWeight(NodeProto n, int input) {
    return switch (FusedNodes.isRuntimes(n) ? n.getOpType() : "") {
      case "RotaryEmbedding" -> input > 0;
      case "GroupQueryAttention" -> input == 7 || input == 8;
      case "MatMulNBits" -> input == 2;
      case "GatherBlockQuantized" -> input == 2;
      default -> false;
    };
  }

  private static boolean isMatrix(OnnxInitializer constant) {
    return constant != null && FLOATING.contains(constant.type()) && constant.dims().length >= 2;
  }

  private void visit(NodeProto n) {
    if (!OnnxModel.isOwn(n)) {
      return;
    }
    switch (n.getOpType()) {
      case "MatMul" -> {
        add(n, Kind.MATMUL, 1, -1, -2, 1);
        add(n, Kind.MATMUL, 0, -2, -1, 1);
      }
      case "Gemm" -> {
        boolean b = Attributes.integer(n, "transB", 0) != 0;
        add(n, Kind.GEMM, 1, b ? 0 : 1, b ? 1 : 0, 1);
        boolean a = Attributes.integer(n, "transA", 0) != 0;
        add(n, Kind.GEMM, 0, a ? 1 : 0, a ? 0 : 1, 1);
      }
      case "Conv" -> add(n, Kind.CONV, 1, 0, 1, Math.max(1, Attributes.integer(n, "group", 1)));
      case "ConvTranspose" ->
          add(n, Kind.CONV_TRANSPOSE, 1, 1, 0, Math.max(1, Attributes.integer(n, "group", 1)));
      case "LSTM", "GRU", "RNN" -> {
        add(n, Kind.valueOf(n.getOpType()), 1, 1, 2, 1);
        add(n, Kind.valueOf(n.getOpType()), 2, 1, 2, 1);
      }
      case "Gather" -> {
        if (Attributes.integer(n, "axis", 0) == 0) {
          add(n, Kind.EMBEDDING, 0, 0, 1, 1);
        }
      }
      default -> {}
    }
  }

  /**
   * What identifies a node: its first output that has a name, since recurrent layers may leave out
   * some; for a node without any its own name.
   */
  public static String identity(NodeProto n) {
    return n.getOutputList().stream()
        .filter(output -> !output.isEmpty())
        .findFirst()
        .orElse(n.getName());
  }

  /** Negative axes count from the end. */
  private void add(NodeProto n, Kind kind, int input, int outputAxis, int reductionAxis, long g) {
    if (n.getInputCount() <= Math.max(1, input) || identity(n).isEmpty()) {
      return;
    }
    List<String> path = new ArrayList<>();
    int[] axes = trace(n.getInput(input), path);
    String other = n.getInput(input == 0 ? 1 : 0);
    boolean folds = model.constant(other) != null || trace(other, new ArrayList<>()) != null;
    if (axes == null || axes.length < 2 || folds) {
      return;
    }
    if (kind == Kind.EMBEDDING && scales.contains(path.get(0))) {
      return; // the rows' integers are looked up beside them
    }
    int out = axes[Math.floorMod(outputAxis, axes.length)];
    int reduced = axes[Math.floorMod(reductionAxis, axes.length)];
    uses.computeIfAbsent(path.get(0), k -> new ArrayList<>())
        .add(
            new Use(
                kind,
                identity(n),
                input,
                out,
                reduced,
                Arrays.stream(axes).boxed().toList(),
                g,
                path));
  }

  /**
   * Follows a value back to a constant tensor.
   *
   * @param path receives the values from the constant to {@code value}
   * @return for each axis of {@code value} the axis of the constant; null if it is no
   *     floating-point constant
   */
  private int[] trace(String value, List<String> path) {
    List<NodeProto> between = new ArrayList<>();
    path.add(value);
    OnnxInitializer constant = model.constant(value);
    while (constant == null) {
      NodeProto n = producers.get(path.get(path.size() - 1));
      if (n == null || n.getInputCount() < 1 || !THROUGH.contains(n.getOpType())) {
        return null;
      }
      between.add(n);
      if (between.size() > MAX_PATH) {
        return null;
      }
      path.add(n.getInput(0));
      constant = model.constant(n.getInput(0));
    }
    if (!FLOATING.contains(constant.type())) {
      return null;
    }
    Collections.reverse(path);
    int[] axes = new int[constant.dims().length];
    for (int i = 0; i < axes.length; i++) {
      axes[i] = i;
    }
    for (int i = between.size() - 1; i >= 0 && axes != null; i--) {
      if (between.get(i).getOpType().equals("Transpose")) {
        int[] order = AxisOrder.of(between.get(i), axes.length);
        int[] before = axes;
        axes = order == null ? null : Arrays.stream(order).map(from -> before[from]).toArray();
      }
    }
    return axes;
  }

  private List<OnnxWeight> weights() {
    Map<String, List<NodeProto>> consumers = model.readers();
    Set<String> names = new HashSet<>();
    List<OnnxWeight> weights = new ArrayList<>();
    uses.forEach(
        (value, list) -> {
          String base = name(value, list.get(0));
          String name = base;
          for (int i = 1; !names.add(name); i++) {
            name = base + "_" + i;
          }
          weights.add(new OnnxWeight(name, value, list, otherUses(list, consumers)));
        });
    return weights;
  }

  private static int otherUses(List<Use> uses, Map<String, List<NodeProto>> consumers) {
    Set<String> weightNodes = new HashSet<>();
    Set<String> between = new HashSet<>();
    for (Use u : uses) {
      weightNodes.add(u.node());
      between.addAll(u.path());
    }
    int others = 0;
    Set<String> seen = new HashSet<>();
    for (String v : between) {
      for (NodeProto n : consumers.getOrDefault(v, List.of())) {
        boolean known = weightNodes.contains(identity(n)) || between.contains(identity(n));
        if (!known && seen.add(identity(n))) {
          others++;
        }
      }
    }
    return others;
  }

  private String name(String value, Use first) {
    boolean anonymous =
        value.startsWith("onnx::")
            || value.chars().allMatch(Character::isDigit)
            || producers.containsKey(value);
    if (!anonymous) {
      return value;
    }
    NodeProto n = producers.get(first.node());
    // Exporters that know a module's path write it into both names; older ones only number them.
    String place = n.getName().contains("/") ? n.getName() : first.node();
    if (!place.contains("/")) {
      place = n.getName().isEmpty() ? first.node() : n.getName();
    }
    place = place.replaceFirst("^/+", "").replaceFirst("_output_0$", "");
    place = place.replaceFirst("/" + n.getOpType() + "$", "").replace('/', '.');
    return place
        + switch (first.kind()) {
          case LSTM, GRU, RNN -> first.input() == 1 ? ".W" : ".R";
          default -> ".weight";
        };
  }
}

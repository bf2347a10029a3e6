package org.espalier.torch.onnx;

import ai.onnx.proto.OnnxMl.NodeProto;
import ai.onnx.proto.OnnxMl.TensorProto.DataType;
import java.nio.FloatBuffer;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.Collection;
import java.util.HashMap;
import java.util.HashSet;
import java.util.LinkedHashMap;
import java.util.LinkedHashSet;
import java.util.List;
import java.util.Map;
import java.util.Set;
import org.espalier.InputException;
import org.espalier.format.onnx.OnnxInitializer;
import org.espalier.format.onnx.OnnxModel;
import org.espalier.format.onnx.OnnxWeight;
import org.espalier.format.onnx.OnnxWeight.Use;
import org.espalier.format.onnx.OnnxWeights;
import org.espalier.torch.Parameter.Kind;

/**
 * Finds the constants of a model that training changes. Constants that only normalize the model's inputs, a mean that
 * is subtracted or a deviation that is divided by, are no parameters.
 */
public final class GraphParameters {
  /** A value of this magnitude or more stands for minus infinity in a mask. */
  private static final float MASK = 1e4f;

  /** The same in what is added to a product with a weight: the bias of outputs as large as millions, too. */
  private static final float MASK_OF_OUTPUTS = 1e9f;

  /** Operators through whose first input a parameter may come. */
  private static final Set<String> THROUGH =
      Set.of(
          "Cast",
          "Expand",
          "Flatten",
          "Gather",
          "Identity",
          "Reshape",
          "Slice",
          "Split",
          "Squeeze",
          "Tile",
          "Transpose",
          "Unsqueeze");

  private final OnnxModel model;
  private final Map<String, NodeProto> producers;
  private final Map<String, List<NodeProto>> consumers;
  private final Map<String, Entry> entries = new LinkedHashMap<>();
  private final Map<String, OnnxWeight> weights = new LinkedHashMap<>();
  private final Set<String> names = new HashSet<>();
  private final Set<String> statistics = new LinkedHashSet<>();

  /** See {@link #preparedInputs}; whether several numbers were subtracted or divided by. */
  private final Map<String, Boolean> prepared = new HashMap<>();

  /** The first outputs of products and convolutions with a weight. */
  private final Set<String> products = new HashSet<>();

  /** The parameters of them that have one output channel. */
  private final Set<String> single = new HashSet<>();

  /**
   * A parameter.
   *
   * @param name unique among the parameters
   * @param constant the initializer or the output of the Constant node that holds it
   * @param nodes the first outputs of the nodes that it feeds
   */
  public record Entry(
      String name,
      String constant,
      Kind kind,
      int outputAxis,
      int reductionAxis,
      List<String> nodes) {}

  private GraphParameters(OnnxModel model) {
    this.model = model;
    this.producers = model.producers();
    this.consumers = model.consumers();
    model.inputs().forEach(input -> prepared.put(input.getName(), false));
    for (OnnxWeight w : OnnxWeights.of(model)) {
      OnnxInitializer constant = model.constant(w.value());
      if (constant.type() != DataType.FLOAT) {
        throw new InputException(
            model.name()
                + ": the weight "
                + w.name()
                + " is "
                + constant.type()
                + "; only float32 models can be trained");
      }
      weights.put(w.value(), w);
      names.add(w.name());
      w.uses().forEach(use -> products.add(use.node()));
      w.uses().stream()
          .filter(use -> constant.dims()[use.outputAxis()] == 1)
          .forEach(use -> single.add(use.node()));
    }
  }

  /**
   * The parameters of {@code model} in the order in which its nodes use them.
   *
   * @throws InputException where a weight is no float32
   */
  public static GraphParameters of(OnnxModel model) {
    GraphParameters found = new GraphParameters(model);
    model.nodes().forEach(found::visit);
    return found;
  }

  public Collection<Entry> parameters() {
    return entries.values();
  }

  /**
   * Inputs, and what is made of them before anything is learned: a mean that is subtracted, a deviation that is divided by, what
   * comes behind these, and numbers for all columns alike.
   */
  Set<String> preparedInputs() {
    return prepared.keySet();
  }

  /** The constants that batch norms update while they are trained. */
  public Set<String> statistics() {
    return statistics;
  }

  private void visit(NodeProto n) {
    if (OnnxModel.isOwn(n) && prepares(n)) {
      return;
    }
    int[] read =
        switch (OperatorTable.name(n)) {
          case "Add", "Sub", "Mul", "Div", "MatMul" -> new int[] {0, 1};
          case "Gemm", "LayerNormalization" -> new int[] {0, 1, 2}; // a table may be normed
          case "Conv",
                  "ConvTranspose",
                  "InstanceNormalization",
                  "GroupNormalization",
                  "BatchNormalization" ->
              new int[] {1, 2};
          case "PRelu",
                  "RMSNormalization",
                  "SimplifiedLayerNormalization",
                  OperatorTable.RUNTIME + "BiasGelu",
                  OperatorTable.RUNTIME + "FastGelu" ->
              new int[] {1};
          case OperatorTable.RUNTIME + "FusedMatMul" -> new int[] {0, 1};
          case OperatorTable.RUNTIME + "SkipLayerNormalization" -> new int[] {2, 3, 4};
          case OperatorTable.RUNTIME + "SkipSimplifiedLayerNormalization" -> new int[] {2, 3};
          case OperatorTable.RUNTIME + "EmbedLayerNormalization" -> new int[] {2, 3, 4, 5, 6};
          case OperatorTable.RUNTIME + "MultiHeadAttention" -> new int[] {3};
          case OperatorTable.RUNTIME + "Attention" -> new int[] {1, 2};
          case "Gather" -> new int[] {0};
          case "LSTM", "GRU", "RNN" -> new int[] {1, 2, 3, 7};
          case "Einsum", "Concat", "Sum" -> allOf(n);
          default -> new int[0];
        };
    for (int i : read) {
      if (i < n.getInputCount()) {
        trace(n, i, n.getInput(i));
      }
    }
    if (n.getOpType().equals("BatchNormalization")) {
      for (int i = 3; i < Math.min(5, n.getInputCount()); i++) {
        if (model.initializer(n.getInput(i)) != null
            && model.initializer(n.getInput(i)).type() == DataType.FLOAT) {
          statistics.add(n.getInput(i));
        }
      }
    }
  }

  /**
   * Whether a node gives an input, or what was made of it, another form, or scales or shifts its columns or channels. A product
   * or sum with several numbers right behind an input may be of what is learned.
   */
  private boolean prepares(NodeProto n) {
    Boolean before = prepared.get(n.getInputCount() == 0 ? "" : n.getInput(0));
    switch (n.getOpType()) {
      case "Cast",
          "DequantizeLinear",
          "Flatten",
          "Identity",
          "QuantizeLinear",
          "Reshape",
          "Squeeze",
          "Transpose",
          "Unsqueeze":
        break;
      case "Sub", "Div":
        boolean several = isVector(n.getInput(1)) && model.constant(n.getInput(1)).elements() > 1;
        before = before != null && isVector(n.getInput(1)) ? before || several : null;
        break;
      case "Add", "Mul":
        String constant = n.getInput(before == null ? 0 : 1);
        before = before == null ? prepared.get(n.getInput(1)) : before;
        boolean isOne = isVector(constant) && model.constant(constant).elements() == 1;
        before = before != null && (isOne || before && isVector(constant)) ? before : null;
        break;
      default:
        return false;
    }
    if (before != null) {
      prepared.put(n.getOutput(0), before);
    }
    return before != null;
  }

  /** Whether a value is a constant of one number, or of one for each place along one axis. */
  private boolean isVector(String value) {
    OnnxInitializer constant = model.constant(value);
    return constant != null && Arrays.stream(constant.dims()).filter(n -> n != 1).count() <= 1;
  }

  private static int[] allOf(NodeProto n) {
    int[] all = new int[n.getInputCount()];
    Arrays.setAll(all, i -> i);
    return all;
  }

  private void trace(NodeProto reader, int input, String value) {
    String v = value;
    while (model.constant(v) == null) {
      NodeProto p = producers.get(v);
      if (p == null || p.getInputCount() == 0 || !THROUGH.contains(p.getOpType())) {
        return;
      }
      v = p.getInput(0);
    }
    add(reader, input, v);
  }

  private void add(NodeProto reader, int input, String constant) {
    String node = Fusion.identity(reader);
    Entry known = entries.get(constant);
    if (known != null) {
      if (!known.nodes().contains(node)) {
        List<String> nodes = new ArrayList<>(known.nodes());
        nodes.add(node);
        entries.put(
            constant,
            new Entry(
                known.name(),
                constant,
                known.kind(),
                known.outputAxis(),
                known.reductionAxis(),
                List.copyOf(nodes)));
      }
      return;
    }
    if (model.constant(constant).elements() == 0) {
      return;
    }
    OnnxWeight w = weights.get(constant);
    if (w != null) {
      Use use =
          w.uses().stream()
              .filter(u -> u.kind() != OnnxWeight.Kind.EMBEDDING)
              .findFirst()
              .orElse(w.uses().get(0));
      Kind kind =
          switch (use.kind()) {
            case MATMUL, GEMM -> Kind.LINEAR;
            case CONV -> Kind.CONVOLUTION;
            case CONV_TRANSPOSE -> Kind.TRANSPOSED_CONVOLUTION;
            case LSTM, GRU, RNN -> Kind.RECURRENT;
            case EMBEDDING -> Kind.EMBEDDING;
          };
      entries.put(
          constant,
          new Entry(
              w.name(), constant, kind, use.outputAxis(), use.reductionAxis(), List.of(node)));
    } else if (isParameter(constant, isBias(reader, input) ? MASK_OF_OUTPUTS : MASK)
        || isOneBias(constant)) {
      entries.put(
          constant,
          new Entry(name(reader, input, constant), constant, Kind.OTHER, -1, -1, List.of(node)));
    }
  }

  /** Whether a node adds this input to its product, or to one before it. */
  private boolean isBias(NodeProto reader, int input) {
    return switch (reader.getOpType()) {
      case "Gemm", "Conv", "ConvTranspose" -> input == 2 && products.contains(reader.getOutput(0));
      case "Add" -> products.contains(reader.getInput(1 - input));
      default -> false;
    };
  }

  /**
   * @param mask from this magnitude on it is none
   */
  private boolean isParameter(String value, float mask) {
    OnnxInitializer i = model.initializer(value);
    if (i == null || i.type() != DataType.FLOAT || i.elements() < 2 || statistics.contains(value)) {
      return false;
    }
    FloatBuffer values = i.floats();
    for (int k = 0; k < values.capacity(); k++) {
      // Not NaN-safe on purpose: a NaN is trained and noticed, not hidden.
      if (Math.abs(values.get(k)) >= mask) {
        return false;
      }
    }
    return true;
  }

  /** Whether a constant of one element is the bias of products with one output, and no number of a formula. */
  private boolean isOneBias(String constant) {
    OnnxInitializer i = model.initializer(constant);
    return i != null
        && i.type() == DataType.FLOAT
        && i.elements() == 1
        && i.dims().length > 0
        && consumers.get(constant).stream().allMatch(this::addsToSingle);
  }

  private boolean addsToSingle(NodeProto n) {
    return switch (n.getOpType()) {
      case "Gemm", "Conv", "ConvTranspose" -> single.contains(n.getOutput(0));
      case "Add" -> n.getInputList().stream().anyMatch(single::contains);
      default -> false;
    };
  }

  private String name(NodeProto reader, int input, String constant) {
    boolean anonymous =
        constant.startsWith("onnx::") || constant.chars().allMatch(Character::isDigit);
    String base = anonymous ? place(reader) + suffix(reader.getOpType(), input) : constant;
    String name = base;
    for (int i = 1; !names.add(name); i++) {
      name = base + "_" + i;
    }
    return name;
  }

  /** The module's path that exporters write into a node's name, or what else identifies it. */
  private static String place(NodeProto n) {
    String place = n.getName().isEmpty() ? Fusion.identity(n) : n.getName();
    return place
        .replaceFirst("^/+", "")
        .replaceFirst("_output_0$", "")
        .replaceFirst("/" + n.getOpType() + "$", "")
        .replace('/', '.');
  }

  private static String suffix(String type, int input) {
    return switch (type) {
      case "Add", "Sub", "BiasGelu", "FastGelu", "MultiHeadAttention" -> ".bias";
      case "Attention", "Gemm", "Conv", "ConvTranspose" -> input == 2 ? ".bias" : ".weight";
      case "SkipLayerNormalization" -> List.of(".weight", ".bias", ".skip_bias").get(input - 2);
      case "SkipSimplifiedLayerNormalization" -> input == 2 ? ".weight" : ".skip_bias";
      case "EmbedLayerNormalization" ->
          List.of(".words", ".places", ".parts", ".weight", ".bias").get(input - 2);
      case "LayerNormalization",
              "InstanceNormalization",
              "GroupNormalization",
              "BatchNormalization" ->
          input == 2 ? ".bias" : ".weight";
      case "LSTM", "GRU", "RNN" -> List.of("", ".W", ".R", ".B", "", "", "", ".P").get(input);
      default -> ".weight";
    };
  }
}

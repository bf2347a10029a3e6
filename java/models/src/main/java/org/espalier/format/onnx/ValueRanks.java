package org.espalier.format.onnx;

import ai.onnx.proto.OnnxMl.NodeProto;
import ai.onnx.proto.OnnxMl.ValueInfoProto;
import java.util.Collection;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.Set;

/**
 * The number of axes of values, as far as it is known: of constants, of values whose type the graph gives, and of what
 * operators make of these without changing it. It serves the check of a graph that was read, branches and bodies
 * included, and believes what the graph says. Rewriting goes by {@code org.espalier.compress.onnx.channels.ValueShapes}, which
 * does not.
 */
final class ValueRanks {
  private static final Set<String> AS_FIRST =
      Set.of(
          "Abs",
          "Attention",
          "AveragePool",
          "BatchNormalization",
          "Cast",
          "Clip",
          "Conv",
          "ConvTranspose",
          "Dropout",
          "Elu",
          "Erf",
          "Exp",
          "GlobalAveragePool",
          "GlobalMaxPool",
          "GroupNormalization",
          "HardSigmoid",
          "HardSwish",
          "Identity",
          "InstanceNormalization",
          "LRN",
          "LayerNormalization",
          "LeakyRelu",
          "LpPool",
          "MaxPool",
          "Neg",
          "PRelu",
          "Pad",
          "RMSNormalization",
          "Relu",
          "Resize",
          "RotaryEmbedding",
          "Sigmoid",
          "Softmax",
          "Softplus",
          "Sqrt",
          "Swish",
          "Tanh",
          "TensorScatter",
          "Transpose");

  private static final Set<String> BROADCAST = Set.of("Add", "Div", "Mul", "Sub");

  private final Map<String, Integer> ranks = new HashMap<>();

  void add(Collection<OnnxInitializer> constants) {
    constants.forEach(c -> ranks.put(c.name(), c.dims().length));
  }

  /** Takes what a graph says of values. */
  void describe(List<ValueInfoProto> values) {
    for (ValueInfoProto v : values) {
      if (v.getType().getTensorType().hasShape()) {
        ranks.put(v.getName(), v.getType().getTensorType().getShape().getDimCount());
      }
    }
  }

  /** Follows a node of ONNX's own operators, whatever the graph says of what it gives. */
  void follow(NodeProto n) {
    if (n.getOutputCount() == 0 || n.getInputCount() == 0) {
      return;
    }
    Integer rank = null;
    if (AS_FIRST.contains(n.getOpType())) {
      rank = of(n.getInput(0));
    } else if (n.getOpType().equals("Flatten")) {
      rank = 2;
    } else if (BROADCAST.contains(n.getOpType())) {
      Integer a = of(n.getInput(0));
      Integer b = n.getInputCount() < 2 ? null : of(n.getInput(1));
      rank = a == null || b == null ? null : (Integer) Math.max(a, b);
    }
    if (rank != null) {
      ranks.put(n.getOutput(0), rank);
    }
  }

  /** How many axes a value has; null where that is not known. */
  Integer of(String value) {
    return ranks.get(value);
  }
}

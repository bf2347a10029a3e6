package org.espalier.format.onnx;

import ai.onnx.proto.OnnxMl.NodeProto;
import ai.onnx.proto.OnnxMl.TensorProto.DataType;
import java.util.ArrayList;
import java.util.HashMap;
import java.util.HashSet;
import java.util.List;
import java.util.Map;
import java.util.Set;

/**
 * Finds Casts from float32 to float32. Converters to float16 left them around what they did not convert, and they would
 * part a product from what it can be fused with.
 */
final class IdleCasts {
  /** Operators whose outputs have the type of their first input, but for what {@link #FIRST_ALONE} says. */
  private static final Set<String> SAME_TYPE =
      Set.of(
          "Abs",
          "Add",
          "Attention",
          "AveragePool",
          "BatchNormalization",
          "Clip",
          "Concat",
          "Conv",
          "ConvTranspose",
          "Div",
          "Dropout",
          "Elu",
          "Erf",
          "Exp",
          "Expand",
          "Flatten",
          "GRU",
          "Gather",
          "Gemm",
          "GlobalAveragePool",
          "HardSigmoid",
          "HardSwish",
          "Identity",
          "InstanceNormalization",
          "LSTM",
          "LayerNormalization",
          "LeakyRelu",
          "Log",
          "LogSoftmax",
          "MatMul",
          "Max",
          "MaxPool",
          "Min",
          "Mul",
          "Neg",
          "PRelu",
          "Pad",
          "Pow",
          "RMSNormalization",
          "RNN",
          "Reciprocal",
          "ReduceMax",
          "ReduceMean",
          "ReduceSum",
          "Relu",
          "Reshape",
          "Resize",
          "RotaryEmbedding",
          "Sigmoid",
          "SimplifiedLayerNormalization",
          "Slice",
          "Softmax",
          "Softplus",
          "Split",
          "Sqrt",
          "Squeeze",
          "Sub",
          "Swish",
          "Tanh",
          "TensorScatter",
          "Transpose",
          "Unsqueeze");

  /** The same of ONNX Runtime's own. */
  private static final Set<String> RUNTIME_SAME_TYPE =
      Set.of(
          "Attention",
          "BiasGelu",
          "FastGelu",
          "FusedMatMul",
          "Gelu",
          "GroupQueryAttention",
          "MultiHeadAttention",
          "QuickGelu",
          "RotaryEmbedding",
          "SkipLayerNormalization",
          "SkipSimplifiedLayerNormalization");

  /** Of those, the ones whose further outputs are masks and indices. */
  private static final Set<String> FIRST_ALONE = Set.of("Dropout", "MaxPool");

  private IdleCasts() {}

  /**
   * The nodes of a model without such Casts.
   *
   * @param nodes of its main graph, in topological order
   */
  static List<NodeProto> removed(OnnxModel model, List<NodeProto> nodes) {
    Set<String> wide = new HashSet<>();
    model.initializers().stream()
        .filter(i -> i.type() == DataType.FLOAT)
        .forEach(i -> wide.add(i.name()));
    model.inputs().stream()
        .filter(v -> v.getType().getTensorType().getElemType() == DataType.FLOAT_VALUE)
        .forEach(v -> wide.add(v.getName()));
    Set<String> outputs = model.outputNames();
    Map<String, String> renamed = new HashMap<>();
    // What the Casts that are gone made of the last values of the graph.
    Map<String, String> ends = new HashMap<>();
    Set<String> made = new HashSet<>();
    List<NodeProto> kept = new ArrayList<>();
    for (NodeProto n : nodes) {
      String from =
          n.getInputCount() == 0 ? "" : renamed.getOrDefault(n.getInput(0), n.getInput(0));
      String to = n.getOutputCount() == 0 ? "" : n.getOutput(0);
      boolean isWide = wide.contains(from) && hasTypeOfFirst(n);
      if (n.getOpType().equals("Cast")) {
        isWide = n.getAttributeList().stream().anyMatch(a -> a.getI() == DataType.FLOAT_VALUE);
        if (isWide && wide.contains(from) && !outputs.contains(to)) {
          renamed.put(to, from);
          continue;
        }
        if (isWide && wide.contains(from) && made.contains(from) && !outputs.contains(from)) {
          outputs.add(from);
          ends.put(from, to);
          continue;
        }
      } else if (n.getOpType().equals("Constant")) {
        isWide =
            n.getAttributeList().stream()
                .anyMatch(a -> a.hasT() && a.getT().getDataType() == DataType.FLOAT_VALUE);
      }
      if (isWide) {
        wide.addAll(FIRST_ALONE.contains(n.getOpType()) ? List.of(to) : n.getOutputList());
      }
      made.addAll(n.getOutputList());
      kept.add(n);
    }
    renamed.replaceAll((cast, value) -> ends.getOrDefault(value, value));
    renamed.putAll(ends);
    return kept.stream().map(n -> InnerGraphs.renamed(n, renamed)).toList();
  }

  private static boolean hasTypeOfFirst(NodeProto n) {
    return OnnxModel.isOwn(n)
        ? SAME_TYPE.contains(n.getOpType())
        : FusedNodes.isRuntimes(n) && RUNTIME_SAME_TYPE.contains(n.getOpType());
  }
}

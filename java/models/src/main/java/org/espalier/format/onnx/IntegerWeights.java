package org.espalier.format.onnx;

import ai.onnx.proto.OnnxMl.NodeProto;
import ai.onnx.proto.OnnxMl.TensorProto.DataType;
import java.util.EnumSet;
import java.util.LinkedHashMap;
import java.util.Map;
import java.util.Set;
import org.espalier.format.onnx.OnnxWeight.Kind;

/**
 * Weights of int8 or uint8, an element a byte: constants of rank 2 or more that products, convolutions, recurrent layers and
 * look-ups read as integers, or as floats behind a DequantizeLinear.
 */
public final class IntegerWeights {
  private static final Set<String> THROUGH =
      Set.of("Cast", "DequantizeLinear", "Identity", "Reshape", "Transpose");

  private final OnnxModel model;
  private final Map<String, NodeProto> producers;
  private final Map<String, Set<Kind>> kinds = new LinkedHashMap<>();

  private IntegerWeights(OnnxModel model) {
    this.model = model;
    this.producers = model.allProducers();
  }

  /** What the constants of a model are used for, by their names. */
  public static Map<String, Set<Kind>> kinds(OnnxModel model) {
    IntegerWeights found = new IntegerWeights(model);
    model.allNodes().forEach(found::visit);
    return found.kinds;
  }

  private void visit(NodeProto n) {
    if (!OnnxModel.isOwn(n) && !FusedNodes.isRuntimes(n)) {
      return;
    }
    switch (n.getOpType()) {
      case "MatMul", "MatMulInteger" -> add(n, Kind.MATMUL, 0, 1);
      case "QLinearMatMul" -> add(n, Kind.MATMUL, 0, 3);
      case "DynamicQuantizeMatMul", "MatMulIntegerToFloat", "QAttention" -> add(n, Kind.MATMUL, 1);
      case "Gemm" -> add(n, Kind.GEMM, 0, 1);
      case "QGemm" -> add(n, Kind.GEMM, 0, 3);
      case "Conv", "ConvInteger" -> add(n, Kind.CONV, 1);
      case "QLinearConv" -> add(n, Kind.CONV, 3);
      case "ConvTranspose" -> add(n, Kind.CONV_TRANSPOSE, 1);
      case "LSTM", "DynamicQuantizeLSTM" -> add(n, Kind.LSTM, 1, 2);
      case "GRU" -> add(n, Kind.GRU, 1, 2);
      case "RNN" -> add(n, Kind.RNN, 1, 2);
      case "Gather" -> add(n, Kind.EMBEDDING, 0);
      default -> {}
    }
  }

  private void add(NodeProto n, Kind kind, int... inputs) {
    for (int input : inputs) {
      String value = input < n.getInputCount() ? n.getInput(input) : "";
      OnnxInitializer constant = model.constant(value);
      NodeProto before = producers.get(value);
      while (constant == null
          && before != null
          && THROUGH.contains(before.getOpType())
          && before.getInputCount() > 0) {
        value = before.getInput(0);
        constant = model.constant(value);
        before = producers.get(value);
      }
      if (constant != null
          && (constant.type() == DataType.INT8 || constant.type() == DataType.UINT8)
          && constant.dims().length >= 2) {
        kinds.computeIfAbsent(value, v -> EnumSet.noneOf(Kind.class)).add(kind);
      }
    }
  }
}

package org.espalier.format.onnx;

import ai.onnx.proto.OnnxMl.NodeProto;
import ai.onnx.proto.OnnxMl.TensorProto.DataType;
import java.nio.ByteBuffer;
import java.util.EnumSet;
import java.util.LinkedHashMap;
import java.util.Map;
import java.util.OptionalInt;
import java.util.Set;
import java.util.TreeSet;
import org.espalier.format.onnx.OnnxWeight.Kind;

/**
 * Weights of int8 or uint8, an element a byte: constants of rank 2 or more that products, convolutions, recurrent layers and
 * look-ups read as integers, or as floats behind a DequantizeLinear.
 */
public final class IntegerWeights {
  private static final Set<String> THROUGH =
      Set.of("Cast", "DequantizeLinear", "Identity", "Reshape", "Transpose");

  /** In place of a zero point that is no constant of 8 bits. */
  private static final Integer UNKNOWN = Integer.MIN_VALUE;

  private final OnnxModel model;
  private final Map<String, NodeProto> producers;
  private final Map<String, Weight> found = new LinkedHashMap<>();

  /**
   * A weight.
   *
   * @param kinds what it is used for
   * @param zeroPoints the integers that 0 is, as those say who read it; empty where nobody says one, which is 0 then
   */
  public record Weight(Set<Kind> kinds, Set<Integer> zeroPoints) {
    /** The integer that 0 is; empty where there are several, or one is not known. */
    public OptionalInt zeroPoint() {
      if (zeroPoints.isEmpty()) {
        return OptionalInt.of(0);
      }
      Integer first = zeroPoints.iterator().next();
      return zeroPoints.size() > 1 || first.equals(UNKNOWN)
          ? OptionalInt.empty()
          : OptionalInt.of(first);
    }
  }

  private IntegerWeights(OnnxModel model) {
    this.model = model;
    this.producers = model.allProducers();
  }

  /** Those of a model, by the names of the constants. */
  public static Map<String, Weight> of(OnnxModel model) {
    IntegerWeights weights = new IntegerWeights(model);
    model.allNodes().forEach(weights::visit);
    return weights.found;
  }

  private void visit(NodeProto n) {
    if (!OnnxModel.isOwn(n) && !FusedNodes.isRuntimes(n)) {
      return;
    }
    switch (n.getOpType()) {
      case "MatMul", "Gemm" -> {
        Kind kind = n.getOpType().equals("Gemm") ? Kind.GEMM : Kind.MATMUL;
        add(n, kind, 0, -1);
        add(n, kind, 1, -1);
      }
      case "MatMulInteger" -> {
        add(n, Kind.MATMUL, 0, 2);
        add(n, Kind.MATMUL, 1, 3);
      }
      case "QLinearMatMul" -> {
        add(n, Kind.MATMUL, 0, 2);
        add(n, Kind.MATMUL, 3, 5);
      }
      case "QGemm" -> {
        add(n, Kind.GEMM, 0, 2);
        add(n, Kind.GEMM, 3, 5);
      }
      case "DynamicQuantizeMatMul" -> add(n, Kind.MATMUL, 1, 3);
      case "MatMulIntegerToFloat" -> add(n, Kind.MATMUL, 1, 5);
      case "QAttention" -> add(n, Kind.MATMUL, 1, 7);
      case "Conv" -> add(n, Kind.CONV, 1, -1);
      case "ConvInteger" -> add(n, Kind.CONV, 1, 3);
      case "QLinearConv" -> add(n, Kind.CONV, 3, 5);
      case "ConvTranspose" -> add(n, Kind.CONV_TRANSPOSE, 1, -1);
      case "LSTM", "GRU", "RNN" -> {
        add(n, Kind.valueOf(n.getOpType()), 1, -1);
        add(n, Kind.valueOf(n.getOpType()), 2, -1);
      }
      case "DynamicQuantizeLSTM" -> {
        add(n, Kind.LSTM, 1, 9);
        add(n, Kind.LSTM, 2, 11);
      }
      case "Gather" -> add(n, Kind.EMBEDDING, 0, -1);
      default -> {}
    }
  }

  /**
   * Adds what a node reads.
   *
   * @param input where it reads it
   * @param zeroInput where it reads its zero point; −1 where it reads none
   */
  private void add(NodeProto n, Kind kind, int input, int zeroInput) {
    String value = input(n, input);
    String zero = zeroInput < 0 ? "" : input(n, zeroInput);
    OnnxInitializer constant = model.constant(value);
    NodeProto before = producers.get(value);
    while (constant == null
        && before != null
        && THROUGH.contains(before.getOpType())
        && before.getInputCount() > 0) {
      zero = before.getOpType().equals("DequantizeLinear") ? input(before, 2) : zero;
      value = before.getInput(0);
      constant = model.constant(value);
      before = producers.get(value);
    }
    if (constant != null && isOfBytes(constant) && constant.dims().length >= 2) {
      Weight weight =
          found.computeIfAbsent(
              value, v -> new Weight(EnumSet.noneOf(Kind.class), new TreeSet<>()));
      weight.kinds.add(kind);
      if (!zero.isEmpty()) {
        weight.zeroPoints.addAll(zeroPoints(model.constant(zero)));
      }
    }
  }

  private static String input(NodeProto n, int i) {
    return i < n.getInputCount() ? n.getInput(i) : "";
  }

  private static boolean isOfBytes(OnnxInitializer constant) {
    return constant.type() == DataType.INT8 || constant.type() == DataType.UINT8;
  }

  private static Set<Integer> zeroPoints(OnnxInitializer zero) {
    if (zero == null || !isOfBytes(zero)) {
      return Set.of(UNKNOWN);
    }
    Set<Integer> values = new TreeSet<>();
    ByteBuffer data = zero.data();
    while (data.hasRemaining()) {
      byte value = data.get();
      values.add(zero.type() == DataType.UINT8 ? Byte.toUnsignedInt(value) : value);
    }
    return values;
  }
}

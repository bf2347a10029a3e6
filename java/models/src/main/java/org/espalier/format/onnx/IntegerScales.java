package org.espalier.format.onnx;

import ai.onnx.proto.OnnxMl.NodeProto;
import ai.onnx.proto.OnnxMl.TensorProto.DataType;
import java.util.ArrayDeque;
import java.util.Collections;
import java.util.Deque;
import java.util.HashSet;
import java.util.List;
import java.util.Map;
import java.util.Set;

/**
 * Finds the scales of a quantized model: the floating-point constants that its integers are multiplied with. They are
 * operands of the operators of quantized models, or a Mul multiplies with them the result of MatMulInteger, of
 * ConvInteger or of a look-up in a table of 8 bits.
 */
public final class IntegerScales {
  private final OnnxModel model;
  private final Map<String, NodeProto> producers;
  private final Set<String> scales = new HashSet<>();

  /** Values that were looked at as factors. */
  private final Set<String> seen = new HashSet<>();

  private IntegerScales(OnnxModel model, Map<String, NodeProto> producers) {
    this.model = model;
    this.producers = producers;
  }

  /** The constants of a model that are scales, by the values that hold them. */
  public static Set<String> of(OnnxModel model) {
    return of(model, model.allProducers());
  }

  /**
   * The same.
   *
   * @param producers of all values of the model
   */
  static Set<String> of(OnnxModel model, Map<String, NodeProto> producers) {
    IntegerScales finder = new IntegerScales(model, producers);
    model.allNodes().forEach(finder::visit);
    return Collections.unmodifiableSet(finder.scales);
  }

  private void visit(NodeProto n) {
    switch (n.getOpType()) {
      case "DequantizeLinear", "QuantizeLinear" -> add(n, 1);
      case "MatMulNBits" -> add(n, 2, 3); // zero points may be floats
      case "GatherBlockQuantized" -> add(n, 2);
      case "QLinearConv", "QLinearMatMul" -> add(n, 1, 4, 6);
      case "QGemm" -> add(n, 1, 4, 7);
      case "Mul" -> {
        if (n.getInputList().stream().anyMatch(this::isInteger)) {
          n.getInputList().stream().filter(f -> !isInteger(f)).forEach(this::addFactors);
        }
      }
      default -> {}
    }
  }

  private void add(NodeProto n, int... inputs) {
    for (int input : inputs) {
      if (input < n.getInputCount()) {
        addConstant(n.getInput(input));
      }
    }
  }

  private boolean addConstant(String value) {
    OnnxInitializer constant = model.constant(value);
    if (constant != null && OnnxWeights.FLOATING.contains(constant.type())) {
      scales.add(value);
    }
    return constant != null;
  }

  /** Whether a value is a float that was an integer of a product or of a table. */
  private boolean isInteger(String value) {
    NodeProto about = producers.get(value);
    NodeProto cast =
        about != null && about.getOpType().equals("Sub") ? producers.get(about.getInput(0)) : about;
    NodeProto source =
        cast == null || !cast.getOpType().equals("Cast") ? null : producers.get(cast.getInput(0));
    return switch (source == null ? "" : source.getOpType()) {
      case "MatMulInteger", "ConvInteger" -> true;
      case "Gather" -> {
        OnnxInitializer table = model.constant(source.getInput(0));
        yield table != null && (table.type() == DataType.INT8 || table.type() == DataType.UINT8);
      }
      default -> false;
    };
  }

  /** Adds what a value is made of by look-ups and products. */
  private void addFactors(String factor) {
    Deque<String> left = new ArrayDeque<>(List.of(factor));
    while (!left.isEmpty()) {
      String value = left.pop();
      if (!seen.add(value) || addConstant(value)) {
        continue;
      }
      NodeProto n = producers.get(value);
      switch (n == null ? "" : n.getOpType()) {
        case "Cast", "Gather", "Identity" -> left.push(n.getInput(0));
        case "Mul" -> n.getInputList().forEach(left::push);
        default -> {}
      }
    }
  }
}

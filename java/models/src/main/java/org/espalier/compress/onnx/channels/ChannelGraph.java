package org.espalier.compress.onnx.channels;

import ai.onnx.proto.OnnxMl.NodeProto;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.Set;
import org.espalier.format.onnx.Attributes;
import org.espalier.format.onnx.OnnxInitializer;
import org.espalier.format.onnx.OnnxModel;
import org.espalier.format.onnx.OnnxWeight;
import org.espalier.format.onnx.OnnxWeight.Kind;
import org.espalier.format.onnx.OnnxWeight.Use;
import org.espalier.format.onnx.OnnxWeights;

/** What the search for hidden channels asks of a model, which does not change meanwhile. */
final class ChannelGraph {
  final OnnxModel model;
  final Map<String, NodeProto> producers;
  final ValueShapes shapes;
  private final Map<String, List<NodeProto>> consumers;
  private final Set<String> outputs;

  /** The one use of a weight that is used once, by the output of the node. */
  private final Map<String, Use> uses = new HashMap<>();

  private final Map<String, OnnxWeight> weights = new HashMap<>();

  ChannelGraph(OnnxModel model) {
    this.model = model;
    producers = model.producers();
    consumers = model.consumers();
    outputs = model.outputNames();
    shapes = new ValueShapes(model);
    for (OnnxWeight weight : OnnxWeights.of(model)) {
      Use use = weight.uses().get(0);
      if (!weight.isShared()
          && producers.containsKey(use.node())
          && isProduct(weight, use, producers.get(use.node()))) {
        uses.put(use.node(), use);
        weights.put(use.node(), weight);
      }
    }
  }

  private boolean isProduct(OnnxWeight weight, Use use, NodeProto n) {
    OnnxInitializer w = model.constant(weight.value());
    boolean alone = use.path().stream().allMatch(v -> consumers(v).size() == 1 && !isOutput(v));
    if (!alone || !w.isFloat() || use.input() != 1 || w.elements() == 0) {
      return false;
    }
    return switch (use.kind()) {
      case MATMUL -> w.dims().length == 2;
      case GEMM ->
          Attributes.integer(n, "transA", 0) == 0
              && Attributes.real(n, "alpha", 1) == 1
              && Attributes.real(n, "beta", 1) == 1;
      case CONV -> w.dims().length > 2 && use.isDirect() && n.getOutputCount() == 1;
      default -> false;
    };
  }

  /** The nodes that read a value. */
  List<NodeProto> consumers(String value) {
    return consumers.getOrDefault(value, List.of());
  }

  Map<String, List<NodeProto>> consumers() {
    return consumers;
  }

  boolean isOutput(String value) {
    return outputs.contains(value);
  }

  /** How a product reads the constant weight that it alone reads; null if a node is no such product. */
  Use use(NodeProto n) {
    return n.getOutputCount() == 0 ? null : uses.get(n.getOutput(0));
  }

  /** The weight of such a product. */
  OnnxWeight weight(NodeProto n) {
    return weights.get(n.getOutput(0));
  }

  /** Whether it is a convolution of each channel for itself, with such a weight. */
  boolean isDepthwise(NodeProto n) {
    Use use = use(n);
    return use != null
        && use.kind() == Kind.CONV
        && use.groups() > 1
        && use.groups() == model.constant(weight(n).value()).dims()[0];
  }

  /** How many numbers a product makes for each row or pixel; 0 if it is none whose weight is a constant for it alone. */
  int numbers(NodeProto n) {
    Use use = use(n);
    if (use != null && use.groups() == 1) {
      return Math.toIntExact(model.constant(weight(n).value()).dims()[use.outputAxis()]);
    }
    FusedAttention attention = FusedAttention.of(n, shapes);
    String weight = attention == null ? null : attention.weight();
    OnnxInitializer c = weight == null ? null : model.constant(weight);
    return c != null && c.isFloat() && c.dims().length == 2
        ? Math.toIntExact(c.dims()[1] / 3) // of queries, keys and values
        : 0;
  }
}

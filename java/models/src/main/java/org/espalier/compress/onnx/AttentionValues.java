package org.espalier.compress.onnx;

import ai.onnx.proto.OnnxMl.AttributeProto;
import ai.onnx.proto.OnnxMl.NodeProto;
import ai.onnx.proto.OnnxMl.TensorProto.DataType;
import java.nio.LongBuffer;
import java.util.List;
import java.util.Map;
import org.espalier.compress.onnx.ProductSite.Product;
import org.espalier.format.onnx.OnnxInitializer;
import org.espalier.format.onnx.OnnxModel;

/**
 * Attention as exporters write it: channel c of the context is a mean over the tokens, with weights that add up
 * to 1, of channel c of the values.
 *
 * <pre>
 *   values [B, T, H·D] → Reshape [B, T, H, D] → Transpose [B, H, T, D] → MatMul(Softmax, ·)
 *                      → Transpose [B, T, H, D] → Reshape [B, T, H·D] = context
 * </pre>
 *
 * <p>So whatever shifts and scales the channels of the values shifts and scales those of the context alike.
 */
final class AttentionValues {
  private final OnnxModel model;
  private final Map<String, NodeProto> producers;
  private final Map<String, List<NodeProto>> consumers;

  AttentionValues(
      OnnxModel model, Map<String, NodeProto> producers, Map<String, List<NodeProto>> consumers) {
    this.model = model;
    this.producers = producers;
    this.consumers = consumers;
  }

  /**
   * The product that makes the values, which nothing but the context reads, and the context nothing but its
   * site.
   *
   * @param context the site of the product behind the attention
   * @param products all that may be changed, by their {@link Product#biasAdd}
   * @return null where the site's activation is no such context
   */
  Product behind(ProductSite context, Map<String, Product> products) {
    if (readers(context.activation).size() != context.products.size()) {
      return null;
    }
    NodeProto join = producers.get(context.activation);
    NodeProto back = only(join, "Reshape", 0);
    NodeProto mean = only(back, "Transpose", 0);
    NodeProto heads = only(mean, "MatMul", 1);
    NodeProto split = only(heads, "Transpose", 0);
    if (split == null
        || !split.getOpType().equals("Reshape")
        || !swapsTokensAndHeads(back)
        || !swapsTokensAndHeads(heads)
        || !isMean(producers.get(mean.getInput(0)))) {
      return null;
    }
    long[] joined = shape(join);
    long[] parts = shape(split);
    Product values = products.get(split.getInput(0));
    boolean fits =
        values != null
            && values.columns == context.channels
            && joined != null
            && joined.length == 3
            && joined[2] == context.channels
            && parts != null
            && parts.length == 4
            && parts[2] > 0
            && parts[3] > 0
            && parts[2] * parts[3] == context.channels;
    return fits && readers(split.getInput(0)).size() == 1 && !isOutput(split.getInput(0))
        ? values
        : null;
  }

  /** What produces an input of {@code n}, an {@code op}, and is read by it alone; null otherwise. */
  private NodeProto only(NodeProto n, String op, int input) {
    if (n == null || !n.getOpType().equals(op) || isOutput(n.getOutput(0))) {
      return null;
    }
    String value = n.getInput(input);
    return readers(value).size() == 1 ? producers.get(value) : null;
  }

  /** The readers of a value other than those that ask for its shape. */
  private List<NodeProto> readers(String value) {
    return consumers.getOrDefault(value, List.of()).stream()
        .filter(n -> !n.getOpType().equals("Shape"))
        .toList();
  }

  private boolean isOutput(String value) {
    return ProductSite.isOutput(model, value);
  }

  private static boolean swapsTokensAndHeads(NodeProto transpose) {
    AttributeProto permutation = Nodes.find(transpose, "perm");
    return permutation != null && permutation.getIntsList().equals(List.of(0L, 2L, 1L, 3L));
  }

  /** Whether it makes rows of weights that add up to 1. */
  private boolean isMean(NodeProto n) {
    if (n == null || !n.getOpType().equals("Softmax")) {
      return false;
    }
    long axis = Nodes.integer(n, "axis", model.opset("") >= 13 ? -1 : 1);
    return axis == -1 || axis == 3;
  }

  private long[] shape(NodeProto reshape) {
    OnnxInitializer target = model.constant(reshape.getInput(1));
    if (target == null || target.type() != DataType.INT64) {
      return null;
    }
    LongBuffer values = target.data().asLongBuffer();
    long[] dims = new long[values.remaining()];
    values.get(dims);
    return dims;
  }
}

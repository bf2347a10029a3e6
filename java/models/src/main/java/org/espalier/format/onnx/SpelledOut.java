package org.espalier.format.onnx;

import ai.onnx.proto.OnnxMl.NodeProto;
import ai.onnx.proto.OnnxMl.TensorProto.DataType;
import ai.onnx.proto.OnnxMl.ValueInfoProto;
import java.util.Map;

/** Finds operations that exporters write as several nodes, in a model's main graph. */
public final class SpelledOut {
  private final OnnxModel model;
  private final Map<String, NodeProto> producers;

  public SpelledOut(OnnxModel model) {
    this.model = model;
    producers = model.producers();
  }

  /**
   * A layer norm over the last axis, x − mean divided by its deviation, times γ plus β.
   *
   * @param gamma a constant vector of float32, as {@code beta}
   */
  public record LayerNorm(String x, String gamma, String beta, double epsilon) {}

  /** (x − mean) / sqrt(mean((x − mean)²) + ε) · γ + β over the last axis, of which a node is the last; null where it is not. */
  public LayerNorm layerNorm(NodeProto add) {
    if (!OnnxModel.isOwn(add, "Add") || add.getInputCount() != 2) {
      return null;
    }
    for (int i = 0; i < 2; i++) {
      LayerNorm found = layerNorm(add.getInput(i), add.getInput(1 - i));
      if (found != null) {
        return found;
      }
    }
    return null;
  }

  private LayerNorm layerNorm(String scaled, String beta) {
    NodeProto mul = producer(scaled, "Mul");
    if (mul == null || !isVector(beta)) {
      return null;
    }
    for (int i = 0; i < 2; i++) {
      String gamma = mul.getInput(1 - i);
      NodeProto div = producer(mul.getInput(i), "Div");
      if (div == null || !isVector(gamma)) {
        continue;
      }
      NodeProto root = producer(div.getInput(1), "Sqrt");
      NodeProto sum = root == null ? null : producer(root.getInput(0), "Add");
      String x = centred(div.getInput(0));
      if (sum == null || x == null) {
        continue;
      }
      for (int k = 0; k < 2; k++) {
        Double epsilon = scalar(sum.getInput(1 - k));
        String square = mean(sum.getInput(k));
        if (epsilon != null && square != null && x.equals(squared(square))) {
          return new LayerNorm(x, gamma, beta, epsilon);
        }
      }
    }
    return null;
  }

  /** The x of x − mean(x); null for other values. */
  private String centred(String value) {
    NodeProto sub = producer(value, "Sub");
    return sub != null && sub.getInput(0).equals(mean(sub.getInput(1))) ? sub.getInput(0) : null;
  }

  /** The x of (x − mean(x))²; null for other values. */
  private String squared(String value) {
    NodeProto mul = producer(value, "Mul");
    if (mul != null && mul.getInput(0).equals(mul.getInput(1))) {
      return centred(mul.getInput(0));
    }
    NodeProto pow = producer(value, "Pow");
    return pow != null && isScalar(pow.getInput(1), 2) ? centred(pow.getInput(0)) : null;
  }

  /** The x of a mean over its last axis that keeps the axis; null for other values. */
  private String mean(String value) {
    NodeProto n = producer(value, "ReduceMean");
    if (n == null
        || Attributes.integer(n, "keepdims", 1) == 0
        || Attributes.integer(n, "noop_with_empty_axes", 0) != 0) {
      return null;
    }
    long[] axes = Attributes.integers(n, "axes");
    if (n.getInputCount() > 1) {
      OnnxInitializer c = model.constant(n.getInput(1));
      axes =
          c == null || c.type() != DataType.INT64 || c.elements() != 1
              ? null
              : new long[] {c.data().getLong(0)};
    }
    if (axes == null || axes.length != 1) {
      return null;
    }
    ValueInfoProto info = model.valueInfo(n.getInput(0));
    boolean last =
        axes[0] == -1
            || info != null
                && info.getType().getTensorType().hasShape()
                && info.getType().getTensorType().getShape().getDimCount() == axes[0] + 1;
    return last ? n.getInput(0) : null;
  }

  /** What makes a value, if that is this operator of ONNX itself; else null. */
  public NodeProto producer(String value, String type) {
    NodeProto n = producers.get(value);
    return n != null && OnnxModel.isOwn(n, type) ? n : null;
  }

  /** Whether a value is a constant vector of float32. */
  public boolean isVector(String value) {
    OnnxInitializer c = model.constant(value);
    return c != null && c.dims().length == 1 && c.type() == DataType.FLOAT;
  }

  /** The value of a constant float of one element; null for others. */
  private Double scalar(String value) {
    OnnxInitializer c = model.constant(value);
    return c != null && c.elements() == 1 && c.dims().length <= 1 && c.type() == DataType.FLOAT
        ? (double) c.floats().get(0)
        : null;
  }

  /** Whether a value is a constant float of one element that is about a number. */
  public boolean isScalar(String value, double wanted) {
    Double v = scalar(value);
    return v != null && Math.abs(v - wanted) <= 1e-6 * wanted;
  }
}

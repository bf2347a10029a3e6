package org.espalier.torch.onnx;

import ai.onnx.proto.OnnxMl.NodeProto;
import ai.onnx.proto.OnnxMl.TensorProto.DataType;
import ai.onnx.proto.OnnxMl.ValueInfoProto;
import java.util.ArrayList;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import org.espalier.compress.onnx.RoundedActivations;
import org.espalier.format.onnx.Attributes;
import org.espalier.format.onnx.OnnxInitializer;
import org.espalier.format.onnx.OnnxModel;
import org.espalier.format.onnx.OnnxWeights;

/**
 * Finds the nodes into which exporters spell one operation of libtorch out: a product with a bias, a
 * layer norm, a GELU. Their last node becomes the whole operation; the others go where nothing else
 * reads them.
 */
final class Fusion {
  /**
   * A node to compile.
   *
   * @param operator the table entry to use; null for that of the node's own type
   * @param identity the name that identifies the node to the outside
   */
  record Source(NodeProto node, Operator operator, String identity) {}

  private final OnnxModel model;
  private final Map<String, NodeProto> producers;
  private final Map<String, Integer> uses = new HashMap<>();

  private Fusion(OnnxModel model) {
    this.model = model;
    this.producers = model.producers();
    for (NodeProto n : model.nodes()) {
      OnnxModel.uses(n).forEach(v -> uses.merge(v, 1, Integer::sum));
    }
    model.outputs().forEach(v -> uses.merge(v.getName(), 1, Integer::sum));
  }

  /** The nodes of the main graph in order, fused where that is possible. */
  static List<Source> apply(OnnxModel model) {
    Fusion fusion = new Fusion(model);
    List<Source> sources = new ArrayList<>();
    for (NodeProto n : model.nodes()) {
      Source s = null;
      if (OnnxModel.isOwn(n)) {
        s =
            switch (n.getOpType()) {
              case "Add" -> fusion.add(n);
              case "Mul" -> fusion.gelu(n);
              case "DequantizeLinear" -> fusion.rounding(n);
              default -> null;
            };
      }
      sources.add(s != null ? s : new Source(n, null, identity(n)));
    }
    return sources;
  }

  static String identity(NodeProto n) {
    return OnnxWeights.identity(n);
  }

  /** QuantizeLinear or DynamicQuantizeLinear and behind it DequantizeLinear: what x is rounded to. */
  private Source rounding(NodeProto n) {
    NodeProto q = RoundedActivations.source(model, producers, n);
    if (q == null) {
      return null;
    }
    return new Source(
        q.toBuilder().clearOutput().addOutput(n.getOutput(0)).build(),
        q.getOpType().equals("QuantizeLinear")
            ? QuantizationOperators.ROUNDING
            : QuantizationOperators.OWN_ROUNDING,
        identity(n));
  }

  private Source add(NodeProto n) {
    for (int i = 0; i < 2 && n.getInputCount() == 2; i++) {
      Source s = linear(n, n.getInput(i), n.getInput(1 - i));
      s = s != null ? s : layerNorm(n, n.getInput(i), n.getInput(1 - i));
      if (s != null) {
        return s;
      }
    }
    return null;
  }

  /** Add(MatMul(x, W), b) with a constant matrix W and a constant vector b of its columns. */
  private Source linear(NodeProto n, String product, String bias) {
    NodeProto p = producer(product, "MatMul");
    if (p == null || uses.get(product) != 1) {
      return null;
    }
    OnnxInitializer w = model.constant(p.getInput(1));
    OnnxInitializer b = model.constant(bias);
    if (w == null
        || b == null
        || w.dims().length != 2
        || b.dims().length != 1
        || w.type() != b.type()
        || b.dims()[0] != w.dims()[1]) {
      return null;
    }
    NodeProto fused =
        n.toBuilder()
            .setOpType("MatMul")
            .clearInput()
            .addInput(p.getInput(0))
            .addInput(p.getInput(1))
            .addInput(bias)
            .clearAttribute()
            .build();
    return new Source(fused, MatrixOperators.LINEAR, identity(p));
  }

  /** (x − mean) / sqrt(mean((x − mean)²) + ε) · γ + β over the last axis. */
  private Source layerNorm(NodeProto n, String scaled, String beta) {
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
          NodeProto fused =
              n.toBuilder()
                  .setOpType("LayerNormalization")
                  .clearInput()
                  .addInput(x)
                  .addInput(gamma)
                  .addInput(beta)
                  .clearAttribute()
                  .addAttribute(Attributes.attribute("epsilon", epsilon))
                  .build();
          return new Source(fused, NormalizationOperators.LAYER_NORM, identity(n));
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

  /** x · ½ · (1 + erf(x / √2)), the factors in any order. */
  private Source gelu(NodeProto n) {
    if (n.getInputCount() != 2) {
      return null;
    }
    for (int i = 0; i < 2; i++) {
      NodeProto inner = producer(n.getInput(i), "Mul");
      if (inner != null) {
        String[] factors = {inner.getInput(0), inner.getInput(1), n.getInput(1 - i)};
        String x = geluInput(factors);
        if (x != null) {
          NodeProto fused =
              n.toBuilder().setOpType("Gelu").clearInput().addInput(x).clearAttribute().build();
          return new Source(fused, ActivationOperators.GELU, identity(n));
        }
      }
    }
    return null;
  }

  private String geluInput(String[] factors) {
    for (int half = 0; half < 3; half++) {
      for (int gate = 0; gate < 3; gate++) {
        if (gate != half && isScalar(factors[half], 0.5)) {
          String x = factors[3 - half - gate];
          if (isGate(factors[gate], x)) {
            return x;
          }
        }
      }
    }
    return null;
  }

  /** Whether {@code value} is 1 + erf(x / √2). */
  private boolean isGate(String value, String x) {
    NodeProto add = producer(value, "Add");
    for (int i = 0; add != null && i < 2; i++) {
      NodeProto erf = producer(add.getInput(i), "Erf");
      if (erf == null || !isScalar(add.getInput(1 - i), 1)) {
        continue;
      }
      NodeProto div = producer(erf.getInput(0), "Div");
      if (div != null) {
        return div.getInput(0).equals(x) && isScalar(div.getInput(1), Math.sqrt(2));
      }
      NodeProto mul = producer(erf.getInput(0), "Mul");
      return mul != null
          && (mul.getInput(0).equals(x) && isScalar(mul.getInput(1), Math.sqrt(0.5))
              || mul.getInput(1).equals(x) && isScalar(mul.getInput(0), Math.sqrt(0.5)));
    }
    return false;
  }

  private NodeProto producer(String value, String type) {
    NodeProto n = producers.get(value);
    return n != null && OnnxModel.isOwn(n) && n.getOpType().equals(type) ? n : null;
  }

  private boolean isVector(String value) {
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

  private boolean isScalar(String value, double wanted) {
    Double v = scalar(value);
    return v != null && Math.abs(v - wanted) <= 1e-6 * wanted;
  }
}

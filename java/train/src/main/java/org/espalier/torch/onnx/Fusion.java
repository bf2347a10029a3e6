package org.espalier.torch.onnx;

import ai.onnx.proto.OnnxMl.NodeProto;
import java.util.ArrayList;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import org.espalier.compress.onnx.RoundedActivations;
import org.espalier.format.onnx.Attributes;
import org.espalier.format.onnx.OnnxInitializer;
import org.espalier.format.onnx.OnnxModel;
import org.espalier.format.onnx.OnnxWeights;
import org.espalier.format.onnx.SpelledOut;

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
  private final SpelledOut spelled;
  private final Map<String, Integer> uses = new HashMap<>();

  private Fusion(OnnxModel model) {
    this.model = model;
    this.producers = model.producers();
    this.spelled = new SpelledOut(model);
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
    RoundedActivations.Rounded rounded = RoundedActivations.of(model, producers, n);
    if (rounded == null) {
      return null;
    }
    NodeProto q = rounded.source();
    NodeProto.Builder whole = q.toBuilder().clearOutput().addOutput(n.getOutput(0));
    if (rounded.least() != null) {
      whole.addAttribute(Attributes.attribute("least", (long) rounded.least()));
    }
    if (rounded.most() != null) {
      whole.addAttribute(Attributes.attribute("most", (long) rounded.most()));
    }
    return new Source(
        whole.build(),
        q.getOpType().equals("QuantizeLinear")
            ? QuantizationOperators.ROUNDING
            : QuantizationOperators.OWN_ROUNDING,
        identity(n));
  }

  private Source add(NodeProto n) {
    for (int i = 0; i < 2 && n.getInputCount() == 2; i++) {
      Source s = linear(n, n.getInput(i), n.getInput(1 - i));
      if (s != null) {
        return s;
      }
    }
    return layerNorm(n);
  }

  /** Add(MatMul(x, W), b) with a constant matrix W and a constant vector b of its columns. */
  private Source linear(NodeProto n, String product, String bias) {
    NodeProto p = spelled.producer(product, "MatMul");
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

  private Source layerNorm(NodeProto n) {
    SpelledOut.LayerNorm norm = spelled.layerNorm(n);
    if (norm == null) {
      return null;
    }
    NodeProto fused =
        n.toBuilder()
            .setOpType("LayerNormalization")
            .clearInput()
            .addInput(norm.x())
            .addInput(norm.gamma())
            .addInput(norm.beta())
            .clearAttribute()
            .addAttribute(Attributes.attribute("epsilon", norm.epsilon()))
            .build();
    return new Source(fused, NormalizationOperators.LAYER_NORM, identity(n));
  }

  /** x · ½ · (1 + erf(x / √2)), the factors in any order. */
  private Source gelu(NodeProto n) {
    if (n.getInputCount() != 2) {
      return null;
    }
    for (int i = 0; i < 2; i++) {
      NodeProto inner = spelled.producer(n.getInput(i), "Mul");
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
        if (gate != half && spelled.isScalar(factors[half], 0.5)) {
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
    NodeProto add = spelled.producer(value, "Add");
    for (int i = 0; add != null && i < 2; i++) {
      NodeProto erf = spelled.producer(add.getInput(i), "Erf");
      if (erf == null || !spelled.isScalar(add.getInput(1 - i), 1)) {
        continue;
      }
      NodeProto div = spelled.producer(erf.getInput(0), "Div");
      if (div != null) {
        return div.getInput(0).equals(x) && spelled.isScalar(div.getInput(1), Math.sqrt(2));
      }
      NodeProto mul = spelled.producer(erf.getInput(0), "Mul");
      return mul != null
          && (mul.getInput(0).equals(x) && spelled.isScalar(mul.getInput(1), Math.sqrt(0.5))
              || mul.getInput(1).equals(x) && spelled.isScalar(mul.getInput(0), Math.sqrt(0.5)));
    }
    return false;
  }
}

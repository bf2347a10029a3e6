package org.espalier.compress.onnx.layers;

import ai.onnx.proto.OnnxMl.NodeProto;
import java.util.List;
import org.espalier.format.onnx.Attributes;

/** ONNX Runtime's operators that add two values, and a bias where there is one, and normalize the sum; they give both. */
final class SkippedNorm {
  private static final String LAYER_NORM = "SkipLayerNormalization";
  private static final String RMS_NORM = "SkipSimplifiedLayerNormalization";

  private static final int SUM = 3;

  private SkippedNorm() {}

  /** Whether a node is one. */
  static boolean is(NodeProto n) {
    return n.getDomain().equals("com.microsoft")
        && List.of(LAYER_NORM, RMS_NORM).contains(n.getOpType());
  }

  /** The name of the sum; empty where it is not given. */
  static String sum(NodeProto n) {
    return n.getOutputCount() > SUM ? n.getOutput(SUM) : "";
  }

  /** The place of the bias among the inputs. */
  private static int bias(NodeProto n) {
    return n.getOpType().equals(LAYER_NORM) ? 4 : 3;
  }

  /** A node that normalizes another one's sum. */
  static NodeProto ofSum(NodeProto n, NodeProto other) {
    NodeProto.Builder made =
        n.toBuilder().setInput(0, other.getInput(0)).setInput(1, other.getInput(1));
    int bias = bias(n);
    String added = other.getInputCount() > bias(other) ? other.getInput(bias(other)) : "";
    while (made.getInputCount() <= bias) {
      made.addInput("");
    }
    return made.setInput(bias, added).build();
  }

  /** A node that normalizes a value as another normalizes its sum. */
  static NodeProto ofValue(NodeProto n, String value) {
    boolean whole = n.getOpType().equals(LAYER_NORM);
    NodeProto.Builder made =
        NodeProto.newBuilder()
            .setName(n.getName())
            .setOpType(whole ? "LayerNormalization" : "SimplifiedLayerNormalization")
            .addInput(value)
            .addInput(n.getInput(2))
            .addOutput(n.getOutput(0))
            .addAttribute(Attributes.attribute("axis", -1))
            .addAllAttribute(
                n.getAttributeList().stream().filter(a -> a.getName().equals("epsilon")).toList());
    if (whole && n.getInputCount() > 3) {
      made.addInput(n.getInput(3));
    }
    return made.build();
  }
}

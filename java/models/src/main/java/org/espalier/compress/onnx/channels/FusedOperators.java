package org.espalier.compress.onnx.channels;

import ai.onnx.proto.OnnxMl.NodeProto;
import java.util.Set;
import org.espalier.format.onnx.OnnxModel;

/**
 * How channels and heads pass through operators that do several steps at once: those of ONNX Runtime, and those of ONNX
 * since operator set 23.
 */
final class FusedOperators {
  /** Of what ONNX Runtime adds. */
  static final String DOMAIN = "com.microsoft";

  /** Of one input, number by number, or of its sum with a second one that is a constant for each channel. */
  private static final Set<String> ACTIVATIONS =
      Set.of("BiasGelu", "FastGelu", "Gelu", "QuickGelu");

  private FusedOperators() {}

  static boolean isActivation(NodeProto n) {
    return n.getDomain().equals(DOMAIN) && ACTIVATIONS.contains(n.getOpType());
  }

  static boolean isRotation(NodeProto n) {
    return (n.getDomain().equals(DOMAIN) || OnnxModel.isOwn(n))
        && n.getOpType().equals("RotaryEmbedding");
  }

  /** The table of cosines of a rotation. */
  static String cosines(NodeProto n) {
    return n.getInput(OnnxModel.isOwn(n) ? 1 : 2);
  }

  /** Whether what it gives has the shape of its first input. */
  static boolean keepsShape(NodeProto n) {
    return isActivation(n)
        || isRotation(n)
        || n.getDomain().equals(DOMAIN)
            && Set.of("SkipLayerNormalization", "SkipSimplifiedLayerNormalization")
                .contains(n.getOpType());
  }
}

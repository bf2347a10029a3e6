package org.espalier.compress.onnx;

import ai.onnx.proto.OnnxMl.NodeProto;
import java.util.Set;

/** What of the operators that ONNX Runtime adds to those of ONNX treats channels or heads for themselves. */
final class RuntimeOperators {
  static final String DOMAIN = "com.microsoft";

  /** Of one input, number by number, or of its sum with a second one that is a constant for each channel. */
  private static final Set<String> ACTIVATIONS =
      Set.of("BiasGelu", "FastGelu", "Gelu", "QuickGelu");

  private RuntimeOperators() {}

  static boolean isActivation(NodeProto n) {
    return n.getDomain().equals(DOMAIN) && ACTIVATIONS.contains(n.getOpType());
  }

  static boolean isRotation(NodeProto n) {
    return n.getDomain().equals(DOMAIN) && n.getOpType().equals("RotaryEmbedding");
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

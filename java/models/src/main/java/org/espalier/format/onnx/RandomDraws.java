package org.espalier.format.onnx;

import ai.onnx.proto.OnnxMl.NodeProto;
import java.util.List;
import java.util.Optional;
import java.util.Set;

/** Nodes that draw random numbers whenever the model runs, as the noise of a speech synthesizer. */
public final class RandomDraws {
  private static final Set<String> OPERATORS =
      Set.of(
          "Bernoulli",
          "Multinomial",
          "RandomNormal",
          "RandomNormalLike",
          "RandomUniform",
          "RandomUniformLike");

  private RandomDraws() {}

  /** Whether a node is one. */
  public static boolean isOne(NodeProto n) {
    return OnnxModel.isOwn(n) && OPERATORS.contains(n.getOpType());
  }

  /** That a model has such nodes, without a seed of their own, for people; empty where it has none. */
  public static Optional<String> of(OnnxModel model) {
    List<NodeProto> drawing =
        model.allNodes().stream()
            .filter(RandomDraws::isOne)
            .filter(n -> n.getAttributeList().stream().noneMatch(a -> a.getName().equals("seed")))
            .toList();
    if (drawing.isEmpty()) {
      return Optional.empty();
    }
    int others = drawing.size() - 1;
    return Optional.of(
        GraphCheck.describe(drawing.get(0))
            + (others == 0
                ? " draws"
                : " and " + others + (others == 1 ? " other draw" : " others draw"))
            + " random numbers, so that no two runs agree: what is measured of outputs is of these"
            + " too, unless the examples switch them off, as by a noise scale of 0");
  }
}

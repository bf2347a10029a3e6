package org.espalier.torch.onnx;

import java.util.function.Function;
import org.bytedeco.pytorch.Tensor;
import org.bytedeco.pytorch.global.torch;
import org.bytedeco.pytorch.global.torch.ScalarType;
import org.espalier.torch.onnx.OperatorTable.Sink;

/** Losses over class indices; classes lie on axis 1. */
final class LossOperators {
  /** An index that no label has. */
  private static final long NONE = -100;

  private LossOperators() {}

  static void add(Sink table) {
    table.one("NegativeLogLikelihoodLoss", 12, LossOperators::negativeLogLikelihood);
    table.add(OperatorTable.several("SoftmaxCrossEntropyLoss", 12, LossOperators::crossEntropy));
  }

  private static long reduction(Node n) {
    return switch (n.choice("reduction", "mean", "none", "mean", "sum")) {
      case "none" -> 0;
      case "mean" -> 1;
      default -> 2;
    };
  }

  private static Function<Inputs, Tensor> negativeLogLikelihood(Node n) {
    long reduction = reduction(n);
    long ignored = n.integer("ignore_index", NONE);
    return in -> loss(in, in.get(0), reduction, ignored);
  }

  private static Kernel crossEntropy(Node n) {
    long reduction = reduction(n);
    long ignored = n.integer("ignore_index", NONE);
    return in -> {
      Tensor logarithms = in.get(0).log_softmax(1);
      return new Tensor[] {loss(in, logarithms, reduction, ignored), logarithms};
    };
  }

  private static Tensor loss(Inputs in, Tensor logarithms, long reduction, long ignored) {
    Tensor labels = in.get(1).to(ScalarType.Long);
    return torch.nll_loss_nd(logarithms, labels, in.optional(2), reduction, ignored);
  }
}

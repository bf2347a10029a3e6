package org.espalier.compress.onnx;

import ai.onnx.proto.OnnxMl.NodeProto;
import java.util.ArrayDeque;
import java.util.Deque;
import java.util.HashSet;
import java.util.Map;
import java.util.Set;
import org.espalier.format.onnx.OnnxModel;

/**
 * Products that choose what a model goes on with, as which experts compute: their largest numbers are found by a TopK whose
 * results stay in the model. Small matrices, of which an error of a rounding may be another expert.
 */
final class Routers {
  static final String REASON =
      "its largest outputs choose what the model goes on with, as experts, and rounded it would"
          + " choose others";

  /** What may lie between a product and what is chosen by. */
  private static final Set<String> THROUGH =
      Set.of("Add", "Cast", "Identity", "Mul", "Sigmoid", "Softmax");

  private Routers() {}

  /** The values that are such products, with others on the way. */
  static Set<String> of(OnnxModel model) {
    Map<String, NodeProto> producers = model.producers();
    Set<String> outputs = new HashSet<>(model.outputNames());
    Deque<String> left = new ArrayDeque<>();
    for (NodeProto n : model.nodes()) {
      if (OnnxModel.isOwn(n, "TopK") && n.getOutputList().stream().noneMatch(outputs::contains)) {
        left.add(n.getInput(0));
      }
    }
    Set<String> found = new HashSet<>();
    while (!left.isEmpty()) {
      String value = left.pop();
      NodeProto n = producers.get(value);
      if (found.add(value) && n != null && OnnxModel.isOwn(n) && THROUGH.contains(n.getOpType())) {
        left.addAll(n.getInputList());
      }
    }
    return found;
  }
}

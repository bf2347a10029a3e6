package org.espalier.compress.onnx;

import ai.onnx.proto.OnnxMl.NodeProto;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import org.espalier.compress.onnx.ProductSite.Product;
import org.espalier.format.onnx.ConstantVector;
import org.espalier.format.onnx.OnnxModel;

/** What the biases of products take up. Nodes that shared a bias, as those of two branches, share what it becomes. */
final class BiasChanges {
  private final OnnxModel model;
  private final OnnxModel.Names names;

  /** By the outputs of the nodes that add biases. */
  private final Map<String, double[]> changes = new HashMap<>();

  /** The new vectors, by the old ones and what was added to them. */
  private final Map<List<Object>, String> vectors = new HashMap<>();

  BiasChanges(OnnxModel model, OnnxModel.Names names) {
    this.model = model;
    this.names = names;
  }

  /** Adds what the biases of a product take up, as far as it has any. */
  void add(Product p, double[] change) {
    p.biasAdds.forEach(output -> changes.put(output, change));
  }

  /** Whether the node of an output adds a bias that takes something up. */
  boolean contains(String output) {
    return changes.containsKey(output);
  }

  /** The node with the vector that its bias becomes. */
  NodeProto changed(NodeProto n) {
    double[] change = changes.get(n.getOutput(0));
    int input = ConstantVector.input(model, n, change.length);
    String vector =
        vectors.computeIfAbsent(
            List.of(n.getInput(input), change),
            key -> ConstantVector.changed(model, names, n, input, change).getInput(input));
    return n.toBuilder().setInput(input, vector).build();
  }
}

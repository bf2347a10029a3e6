package org.espalier.format.onnx;

import ai.onnx.proto.OnnxMl.NodeProto;
import ai.onnx.proto.OnnxMl.TensorProto.DataType;
import java.util.ArrayList;
import java.util.HashMap;
import java.util.HashSet;
import java.util.List;
import java.util.Map;
import java.util.Set;

/**
 * Finds Casts from float32 to float32. Converters to float16 left them around what they did not convert, and they would
 * part a product from what it can be fused with.
 */
final class IdleCasts {
  private IdleCasts() {}

  /**
   * The nodes of a model without such Casts.
   *
   * @param nodes of its main graph, in topological order
   */
  static List<NodeProto> removed(OnnxModel model, List<NodeProto> nodes) {
    ValueTypes types = ValueTypes.ofGiven(model);
    nodes.forEach(types::follow);
    Set<String> outputs = model.outputNames();
    Map<String, String> renamed = new HashMap<>();
    // What the Casts that are gone made of the last values of the graph.
    Map<String, String> ends = new HashMap<>();
    Set<String> made = new HashSet<>();
    List<NodeProto> kept = new ArrayList<>();
    for (NodeProto n : nodes) {
      if (isIdle(n, types)) {
        String from = renamed.getOrDefault(n.getInput(0), n.getInput(0));
        String to = n.getOutput(0);
        if (!outputs.contains(to)) {
          renamed.put(to, from);
          continue;
        }
        if (made.contains(from) && outputs.add(from)) {
          ends.put(from, to);
          continue;
        }
      }
      made.addAll(n.getOutputList());
      kept.add(n);
    }
    renamed.replaceAll((cast, value) -> ends.getOrDefault(value, value));
    renamed.putAll(ends);
    return kept.stream().map(n -> InnerGraphs.renamed(n, renamed)).toList();
  }

  private static boolean isIdle(NodeProto n, ValueTypes types) {
    return OnnxModel.isOwn(n, "Cast")
        && types.of(n.getInput(0)) == DataType.FLOAT
        && types.of(n.getOutput(0)) == DataType.FLOAT;
  }
}

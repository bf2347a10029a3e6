package org.espalier.format.onnx;

import ai.onnx.proto.OnnxMl.NodeProto;
import ai.onnx.proto.OnnxMl.TensorProto.DataType;
import java.util.ArrayList;
import java.util.HashMap;
import java.util.List;
import java.util.Map;

/**
 * Vectors of 16 bits that are cast to float32 before they are used, as biases of models that are made of checkpoints of 16 bits:
 * stored as float32 they are constants that rewriting sees, and take next to no room.
 */
public final class CastVectors {
  private CastVectors() {}

  /** Makes float32 of all constants of at most one dimension that nothing but Casts to float32 reads. */
  public static void widen(OnnxModel model) {
    Map<String, List<NodeProto>> readers = model.consumers();
    Map<String, String> renamed = new HashMap<>();
    for (OnnxInitializer i : List.copyOf(model.initializers())) {
      List<NodeProto> casts = readers.getOrDefault(i.name(), List.of());
      if (HalfPrecision.isHalf(i.type())
          && i.dims().length <= 1
          && !casts.isEmpty()
          && !model.outputNames().contains(i.name())
          && casts.stream().allMatch(n -> isToFloat(n) && !isOutput(model, n))) {
        model.replaceInitializer(i.asFloat32());
        casts.forEach(n -> renamed.put(n.getOutput(0), i.name()));
      }
    }
    if (!renamed.isEmpty()) {
      List<NodeProto> nodes = new ArrayList<>();
      for (NodeProto n : model.nodes()) {
        if (n.getOutputCount() != 1 || !renamed.containsKey(n.getOutput(0))) {
          nodes.add(InnerGraphs.renamed(n, renamed));
        }
      }
      model.setNodes(nodes);
    }
  }

  private static boolean isToFloat(NodeProto n) {
    return OnnxModel.isOwn(n, "Cast")
        && Attributes.integer(n, "to", DataType.UNDEFINED_VALUE) == DataType.FLOAT_VALUE;
  }

  private static boolean isOutput(OnnxModel model, NodeProto n) {
    return model.outputNames().contains(n.getOutput(0));
  }
}

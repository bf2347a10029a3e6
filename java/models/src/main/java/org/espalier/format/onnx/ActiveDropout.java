package org.espalier.format.onnx;

import ai.onnx.proto.OnnxMl.NodeProto;
import ai.onnx.proto.OnnxMl.TensorProto.DataType;
import java.util.ArrayList;
import java.util.List;
import java.util.Set;

/**
 * Dropout nodes that were exported to be trained (training_mode is true): whenever the model runs they drop values by
 * chance, unless the runtime optimizes them away, as ONNX Runtime does by default.
 */
public final class ActiveDropout {
  private static final int TRAINING_MODE = 2;

  private ActiveDropout() {}

  /**
   * Has such nodes of the main graph pass on what they are given, as all other Dropout nodes do outside training: with
   * the same input a model then gives the same output everywhere.
   *
   * @return what was changed, for people; null where nothing was
   */
  public static String evaluate(OnnxModel model) {
    List<NodeProto> nodes = new ArrayList<>(model.nodes());
    List<NodeProto> changed = new ArrayList<>();
    nodes.replaceAll(
        n -> {
          if (!isActive(model, n)) {
            return n;
          }
          changed.add(n);
          NodeProto.Builder evaluated = n.toBuilder().clearInput();
          return evaluated.addAllInput(n.getInputList().subList(0, TRAINING_MODE)).build();
        });
    if (changed.isEmpty()) {
      return null;
    }
    model.setNodes(nodes);
    Set<String> used = model.consumers().keySet();
    changed.stream()
        .map(n -> n.getInput(TRAINING_MODE))
        .distinct()
        .filter(mode -> model.initializer(mode) != null && !used.contains(mode))
        .forEach(model::removeInitializer);
    int others = changed.size() - 1;
    return GraphCheck.describe(changed.get(0))
        + (others == 0 ? " was" : " and " + others + (others == 1 ? " other were" : " others were"))
        + " exported for training (training_mode is true); nothing is dropped here, nor by what is"
        + " written";
  }

  private static boolean isActive(OnnxModel model, NodeProto n) {
    if (!OnnxModel.isOwn(n, "Dropout") || n.getInputCount() <= TRAINING_MODE) {
      return false;
    }
    OnnxInitializer mode = model.constant(n.getInput(TRAINING_MODE));
    return mode != null
        && mode.type() == DataType.BOOL
        && mode.elements() == 1
        && mode.data().get(0) != 0;
  }
}

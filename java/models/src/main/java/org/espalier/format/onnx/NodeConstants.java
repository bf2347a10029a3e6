package org.espalier.format.onnx;

import ai.onnx.proto.OnnxMl.GraphProto;
import ai.onnx.proto.OnnxMl.NodeProto;
import ai.onnx.proto.OnnxMl.TensorProto;
import java.util.ArrayList;
import java.util.HashMap;
import java.util.HashSet;
import java.util.List;
import java.util.Map;
import java.util.Set;

/** The tensors of Constant nodes and of the graphs inside nodes, by the value they define. */
final class NodeConstants {
  /** A tensor in a node of the main graph, or in a graph inside that. */
  private record Constant(int node, TensorProto tensor) {}

  private final List<NodeProto> nodes;
  private final Map<String, Constant> constants = new HashMap<>();

  /**
   * @param nodes of the main graph; must not change
   */
  NodeConstants(List<NodeProto> nodes) {
    this.nodes = nodes;
    for (int k = 0; k < nodes.size(); k++) {
      find(nodes.get(k), k);
    }
  }

  private void find(NodeProto n, int place) {
    if (holdsTensor(n)) {
      constants.put(n.getOutput(0), new Constant(place, n.getAttribute(0).getT()));
    }
    for (GraphProto g : InnerGraphs.of(n)) {
      // What a body is fed is no constant, whatever it is without.
      Set<String> fed = new HashSet<>(Set.of(""));
      g.getInputList().forEach(v -> fed.add(v.getName()));
      g.getInitializerList().stream()
          .filter(t -> !fed.contains(t.getName()))
          .forEach(t -> constants.put(t.getName(), new Constant(place, t)));
      g.getNodeList().forEach(inner -> find(inner, place));
    }
  }

  private static boolean holdsTensor(NodeProto n) {
    return n.getOpType().equals("Constant")
        && n.getOutputCount() == 1
        && n.getAttributeCount() == 1
        && n.getAttribute(0).hasT();
  }

  /** The tensor of a value; null if it is none of these constants. */
  TensorProto tensor(String value) {
    Constant c = constants.get(value);
    return c == null ? null : c.tensor();
  }

  /** The nodes with other tensors for some of these constants. */
  List<NodeProto> replaced(Map<String, TensorProto> replacements) {
    Set<Integer> places = new HashSet<>();
    replacements.keySet().forEach(value -> places.add(constants.get(value).node()));
    List<NodeProto> changed = new ArrayList<>(nodes);
    places.forEach(place -> changed.set(place, replaced(nodes.get(place), replacements)));
    return changed;
  }

  private static NodeProto replaced(NodeProto n, Map<String, TensorProto> replacements) {
    if (holdsTensor(n) && replacements.containsKey(n.getOutput(0))) {
      NodeProto.Builder b = n.toBuilder();
      b.getAttributeBuilder(0).setT(replacements.get(n.getOutput(0)));
      return b.build();
    }
    return InnerGraphs.changed(n, g -> replaced(g, replacements));
  }

  private static GraphProto replaced(GraphProto g, Map<String, TensorProto> replacements) {
    GraphProto.Builder b = g.toBuilder();
    for (int i = 0; i < b.getInitializerCount(); i++) {
      TensorProto t = b.getInitializer(i);
      b.setInitializer(i, replacements.getOrDefault(t.getName(), t));
    }
    for (int k = 0; k < b.getNodeCount(); k++) {
      b.setNode(k, replaced(b.getNode(k), replacements));
    }
    return b.build();
  }
}

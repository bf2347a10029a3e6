package org.espalier.format.onnx;

import ai.onnx.proto.OnnxMl.NodeProto;
import java.util.ArrayDeque;
import java.util.ArrayList;
import java.util.Deque;
import java.util.HashMap;
import java.util.List;
import java.util.Map;

/**
 * Puts nodes into topological order, which ONNX demands and some converters do not keep: ONNX Runtime sorts
 * what it reads.
 */
final class NodeOrder {
  private enum State {
    NEW,
    OPEN,
    DONE
  }

  private final List<NodeProto> nodes;
  private final Map<String, Integer> producers = new HashMap<>();
  private final State[] states;
  private final List<NodeProto> sorted = new ArrayList<>();

  private NodeOrder(List<NodeProto> nodes) {
    this.nodes = nodes;
    states = new State[nodes.size()];
    for (int i = 0; i < states.length; i++) {
      states[i] = State.NEW;
      for (String output : nodes.get(i).getOutputList()) {
        producers.putIfAbsent(output, i);
      }
    }
    producers.remove("");
  }

  /**
   * The nodes, each after those whose values it uses. Nodes that are in order keep it; those of a cycle
   * stay out of order.
   */
  static List<NodeProto> sorted(List<NodeProto> nodes) {
    NodeOrder order = new NodeOrder(nodes);
    for (int i = 0; i < nodes.size(); i++) {
      order.visit(i);
    }
    return order.sorted;
  }

  /** Depth first, with a stack of its own: a chain may be as long as the model. */
  private void visit(int first) {
    Deque<Integer> stack = new ArrayDeque<>(List.of(first));
    while (!stack.isEmpty()) {
      int i = stack.peek();
      if (states[i] == State.NEW) {
        states[i] = State.OPEN;
        for (String value : OnnxModel.uses(nodes.get(i))) {
          Integer producer = producers.get(value);
          if (producer != null && states[producer] == State.NEW) {
            stack.push(producer);
          }
        }
      } else {
        stack.pop();
        if (states[i] == State.OPEN) {
          states[i] = State.DONE;
          sorted.add(nodes.get(i));
        }
      }
    }
  }
}

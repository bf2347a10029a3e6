package org.espalier.format.onnx;

import ai.onnx.proto.OnnxMl.AttributeProto;
import ai.onnx.proto.OnnxMl.GraphProto;
import ai.onnx.proto.OnnxMl.NodeProto;
import ai.onnx.proto.OnnxMl.SparseTensorProto;
import ai.onnx.proto.OnnxMl.TensorProto;
import ai.onnx.proto.OnnxMl.ValueInfoProto;
import java.util.ArrayList;
import java.util.HashMap;
import java.util.LinkedHashSet;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.function.UnaryOperator;

/** The graphs that nodes hold: branches of If, bodies of Loop and Scan. They see the values of the graphs around them. */
public final class InnerGraphs {
  private final Set<String> defined;
  private final OnnxModel.Names names;

  private InnerGraphs(Set<String> defined, OnnxModel.Names names) {
    this.defined = defined;
    this.names = names;
  }

  /** The graphs of a node, without those inside them. */
  public static List<GraphProto> of(NodeProto n) {
    List<GraphProto> graphs = new ArrayList<>();
    for (AttributeProto a : n.getAttributeList()) {
      if (a.hasG()) {
        graphs.add(a.getG());
      }
      graphs.addAll(a.getGraphsList());
    }
    return graphs;
  }

  /** Adds a node, and behind it all nodes inside it, each before those inside it. */
  static void addNodes(NodeProto n, List<NodeProto> all) {
    all.add(n);
    of(n).forEach(g -> g.getNodeList().forEach(inner -> addNodes(inner, all)));
  }

  /** Adds the values that a node and the graphs inside it use. */
  static void addUses(NodeProto n, Set<String> used) {
    used.addAll(n.getInputList());
    for (GraphProto g : of(n)) {
      g.getNodeList().forEach(inner -> addUses(inner, used));
      g.getOutputList().forEach(v -> used.add(v.getName()));
    }
  }

  /** Adds all names of values and nodes of a node and the graphs inside it. */
  static void addNames(NodeProto n, Set<String> names) {
    names.add(n.getName());
    names.addAll(n.getInputList());
    names.addAll(n.getOutputList());
    for (GraphProto g : of(n)) {
      g.getInitializerList().forEach(t -> names.add(t.getName()));
      g.getInputList().forEach(v -> names.add(v.getName()));
      g.getNodeList().forEach(inner -> addNames(inner, names));
    }
  }

  /** A node with its graphs changed, each by one call; the node itself where it has none. */
  public static NodeProto changed(NodeProto n, UnaryOperator<GraphProto> change) {
    if (of(n).isEmpty()) {
      return n;
    }
    NodeProto.Builder b = n.toBuilder();
    for (AttributeProto.Builder a : b.getAttributeBuilderList()) {
      if (a.hasG()) {
        a.setG(change.apply(a.getG()));
      }
      for (int k = 0; k < a.getGraphsCount(); k++) {
        a.setGraphs(k, change.apply(a.getGraphs(k)));
      }
    }
    return b.build();
  }

  /** A node with other nodes in its graphs, made of those of each by one call; the node itself where it has none. */
  public static NodeProto withNodes(NodeProto n, UnaryOperator<List<NodeProto>> change) {
    return changed(
        n, g -> g.toBuilder().clearNode().addAllNode(change.apply(g.getNodeList())).build());
  }

  /** A node with each node of its graphs changed; the node itself where it has none. */
  public static NodeProto withEachNode(NodeProto n, UnaryOperator<NodeProto> change) {
    return withNodes(n, nodes -> nodes.stream().map(change).toList());
  }

  /**
   * Nodes in whose graphs each value has a name that no other value of the model has. Branches may use the
   * same names, and hide those of the graph around them; afterwards a name alone says which value is meant.
   *
   * @param nodes of the main graph
   * @param outer the names that the main graph defines
   */
  static List<NodeProto> withUniqueNames(List<NodeProto> nodes, Set<String> outer) {
    if (nodes.stream().allMatch(n -> of(n).isEmpty())) {
      return nodes;
    }
    InnerGraphs renaming = new InnerGraphs(outer, OnnxModel.names(nodes, outer));
    return nodes.stream()
        .map(n -> changed(n, graph -> renaming.renamed(graph, new HashMap<>())))
        .toList();
  }

  private GraphProto renamed(GraphProto g, Map<String, String> outer) {
    Map<String, String> scope = new HashMap<>(outer);
    for (String name : definedIn(g)) {
      // What one graph defines twice stays wrong.
      scope.put(name, defined.add(name) ? name : names.unique(name));
    }
    boolean same = scope.entrySet().stream().allMatch(e -> e.getKey().equals(e.getValue()));
    GraphProto.Builder b = g.toBuilder();
    for (int k = 0; k < b.getNodeCount(); k++) {
      NodeProto n = changed(b.getNode(k), inner -> renamed(inner, scope));
      b.setNode(k, same ? n : renamedNode(n, scope));
    }
    if (same) {
      return b.build();
    }
    for (TensorProto.Builder t : b.getInitializerBuilderList()) {
      t.setName(scope.getOrDefault(t.getName(), t.getName()));
    }
    for (SparseTensorProto.Builder s : b.getSparseInitializerBuilderList()) {
      TensorProto.Builder t = s.getValuesBuilder();
      t.setName(scope.getOrDefault(t.getName(), t.getName()));
    }
    for (List<ValueInfoProto.Builder> values :
        List.of(b.getInputBuilderList(), b.getOutputBuilderList(), b.getValueInfoBuilderList())) {
      values.forEach(v -> v.setName(scope.getOrDefault(v.getName(), v.getName())));
    }
    return b.build();
  }

  /** The names that the graphs of nodes define, those inside them too. */
  static Set<String> defined(List<NodeProto> nodes) {
    Set<String> names = new LinkedHashSet<>();
    for (NodeProto n : nodes) {
      for (GraphProto g : of(n)) {
        names.addAll(definedIn(g));
        names.addAll(defined(g.getNodeList()));
      }
    }
    return names;
  }

  /** The names that a graph defines, without those inside its nodes. */
  private static Set<String> definedIn(GraphProto g) {
    Set<String> names = new LinkedHashSet<>();
    g.getInputList().forEach(v -> names.add(v.getName()));
    g.getInitializerList().forEach(t -> names.add(t.getName()));
    g.getSparseInitializerList().forEach(s -> names.add(s.getValues().getName()));
    g.getNodeList().forEach(n -> names.addAll(n.getOutputList()));
    names.remove("");
    return names;
  }

  /** A node with the new names of the values that it and its graphs read, and of those that it makes. */
  public static NodeProto renamed(NodeProto n, Map<String, String> names) {
    return changed(
        renamedNode(n, names),
        g -> {
          GraphProto.Builder b = g.toBuilder();
          for (int k = 0; k < b.getNodeCount(); k++) {
            b.setNode(k, renamed(b.getNode(k), names));
          }
          for (ValueInfoProto.Builder v : b.getOutputBuilderList()) {
            v.setName(names.getOrDefault(v.getName(), v.getName()));
          }
          return b.build();
        });
  }

  /** A node whose inputs and outputs have other names; its graphs keep theirs. */
  static NodeProto renamedNode(NodeProto n, Map<String, String> names) {
    NodeProto.Builder b = n.toBuilder();
    for (int i = 0; i < n.getInputCount(); i++) {
      b.setInput(i, names.getOrDefault(n.getInput(i), n.getInput(i)));
    }
    for (int i = 0; i < n.getOutputCount(); i++) {
      b.setOutput(i, names.getOrDefault(n.getOutput(i), n.getOutput(i)));
    }
    return b.build();
  }
}

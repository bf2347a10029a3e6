package org.espalier.compress.onnx;

import ai.onnx.proto.OnnxMl.AttributeProto;
import ai.onnx.proto.OnnxMl.GraphProto;
import ai.onnx.proto.OnnxMl.NodeProto;
import ai.onnx.proto.OnnxMl.TensorProto.DataType;
import ai.onnx.proto.OnnxMl.ValueInfoProto;
import java.util.ArrayList;
import java.util.Collection;
import java.util.HashSet;
import java.util.LinkedHashMap;
import java.util.LinkedHashSet;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.function.Function;
import java.util.function.Predicate;
import org.espalier.format.onnx.Attributes;
import org.espalier.format.onnx.InnerGraphs;
import org.espalier.format.onnx.OnnxInitializer;
import org.espalier.format.onnx.OnnxModel;

/** The values of float32 in the branches of a model's main graph, to be looked at when the model runs. */
final class BranchValues {
  private BranchValues() {}

  /**
   * What nodes in branches of If make.
   *
   * @param wanted which values
   */
  static Set<String> of(OnnxModel model, Predicate<String> wanted) {
    Set<String> values = new LinkedHashSet<>();
    for (NodeProto n : model.nodes()) {
      if (OnnxModel.isOwn(n, "If")) {
        for (GraphProto g : InnerGraphs.of(n)) {
          values.addAll(made(g));
        }
      }
    }
    values.removeIf(wanted.negate());
    return values;
  }

  private static Set<String> made(GraphProto g) {
    Set<String> made = new LinkedHashSet<>();
    g.getNodeList().stream()
        .filter(n -> !OnnxModel.isOwn(n, "Constant"))
        .forEach(n -> made.addAll(n.getOutputList()));
    // Which the main graph has already.
    g.getOutputList().forEach(v -> made.remove(v.getName()));
    made.remove("");
    return made;
  }

  /** The nodes in branches of If, by their first outputs. */
  static Map<String, NodeProto> nodes(OnnxModel model) {
    Map<String, NodeProto> nodes = new LinkedHashMap<>();
    for (NodeProto n : model.nodes()) {
      if (OnnxModel.isOwn(n, "If")) {
        InnerGraphs.of(n).forEach(g -> g.getNodeList().forEach(inner -> add(inner, nodes)));
      }
    }
    return nodes;
  }

  private static void add(NodeProto n, Map<String, NodeProto> nodes) {
    if (n.getOutputCount() > 0) {
      nodes.put(n.getOutput(0), n);
    }
  }

  /**
   * Has a model give such values as values of its main graph, of no elements where their branch was not taken.
   *
   * @param some of them
   * @return the values that they are in the main graph, with what they are in the branches
   */
  static Map<String, String> lift(OnnxModel model, Collection<String> some) {
    Set<String> chosen = new HashSet<>(some);
    return lift(
        model,
        branch -> {
          Set<String> values = made(branch);
          values.retainAll(chosen);
          return values;
        });
  }

  /**
   * The same of what nodes in branches read first, wherever that is made.
   *
   * @param readers the first outputs of these nodes
   */
  static Map<String, String> liftInputs(OnnxModel model, Set<String> readers) {
    return lift(
        model,
        branch -> {
          Set<String> values = new LinkedHashSet<>();
          for (NodeProto n : branch.getNodeList()) {
            if (n.getOutputCount() > 0 && readers.contains(n.getOutput(0))) {
              values.add(n.getInput(0));
            }
          }
          return values;
        });
  }

  private static Map<String, String> lift(
      OnnxModel model, Function<GraphProto, Set<String>> wanted) {
    Map<String, String> lifted = new LinkedHashMap<>();
    OnnxModel.Names names = model.names();
    List<NodeProto> nodes = new ArrayList<>();
    for (NodeProto n : model.nodes()) {
      nodes.add(OnnxModel.isOwn(n, "If") ? lifted(n, wanted, names, lifted) : n);
    }
    model.setNodes(nodes);
    return lifted;
  }

  private static NodeProto lifted(
      NodeProto n,
      Function<GraphProto, Set<String>> wanted,
      OnnxModel.Names names,
      Map<String, String> lifted) {
    NodeProto.Builder b = n.toBuilder();
    for (AttributeProto attribute : n.getAttributeList()) {
      for (String value : wanted.apply(attribute.getG())) {
        String outside = names.unique(value + "_seen");
        lifted.put(outside, value);
        b.addOutput(outside);
        for (AttributeProto.Builder a : b.getAttributeBuilderList()) {
          if (a.hasG()) {
            boolean makes = a.getName().equals(attribute.getName());
            a.setG(makes ? giving(a.getG(), value, names) : givingNothing(a.getG(), names));
          }
        }
      }
    }
    return b.build();
  }

  /** A graph may give a value already, or not have made it, so it gives a copy. */
  private static GraphProto giving(GraphProto g, String value, OnnxModel.Names names) {
    return giving(g, Nodes.node("Identity", names.unique(value + "_given"), value));
  }

  private static GraphProto givingNothing(GraphProto g, OnnxModel.Names names) {
    String name = names.unique("nothing");
    NodeProto.Builder constant =
        NodeProto.newBuilder()
            .setOpType("Constant")
            .addOutput(name)
            .addAttribute(
                Attributes.attribute("value", OnnxInitializer.floats(name, new long[] {0})));
    return giving(g, constant);
  }

  /** A graph with a node more, whose output it gives. */
  private static GraphProto giving(GraphProto g, NodeProto.Builder n) {
    ValueInfoProto.Builder output = ValueInfoProto.newBuilder().setName(n.getOutput(0));
    output.getTypeBuilder().getTensorTypeBuilder().setElemType(DataType.FLOAT_VALUE);
    return g.toBuilder().addNode(n).addOutput(output).build();
  }
}

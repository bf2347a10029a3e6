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
import java.util.function.Predicate;
import org.espalier.format.onnx.Attributes;
import org.espalier.format.onnx.InnerGraphs;
import org.espalier.format.onnx.OnnxInitializer;
import org.espalier.format.onnx.OnnxModel;

/** The values of float32 that nodes make in the branches of a model's main graph, to be looked at when the model runs. */
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

  /**
   * Has a model give such values as values of its main graph, of no elements where their branch was not taken.
   *
   * @param some of them
   * @return the values that they are in the main graph, with what they are in the branches
   */
  static Map<String, String> lift(OnnxModel model, Collection<String> some) {
    Map<String, String> lifted = new LinkedHashMap<>();
    OnnxModel.Names names = model.names();
    List<NodeProto> nodes = new ArrayList<>();
    for (NodeProto n : model.nodes()) {
      nodes.add(OnnxModel.isOwn(n, "If") ? lifted(n, new HashSet<>(some), names, lifted) : n);
    }
    model.setNodes(nodes);
    return lifted;
  }

  private static NodeProto lifted(
      NodeProto n, Set<String> some, OnnxModel.Names names, Map<String, String> lifted) {
    NodeProto.Builder b = n.toBuilder();
    for (AttributeProto attribute : n.getAttributeList()) {
      Set<String> here = made(attribute.getG());
      here.retainAll(some);
      for (String value : here) {
        String outside = names.unique(value + "_seen");
        lifted.put(outside, value);
        b.addOutput(outside);
        for (AttributeProto.Builder a : b.getAttributeBuilderList()) {
          if (a.hasG()) {
            boolean makes = a.getName().equals(attribute.getName());
            a.setG(makes ? giving(a.getG(), value) : givingNothing(a.getG(), names));
          }
        }
      }
    }
    return b.build();
  }

  private static GraphProto giving(GraphProto g, String value) {
    ValueInfoProto.Builder output = ValueInfoProto.newBuilder().setName(value);
    output.getTypeBuilder().getTensorTypeBuilder().setElemType(DataType.FLOAT_VALUE);
    return g.toBuilder().addOutput(output).build();
  }

  private static GraphProto givingNothing(GraphProto g, OnnxModel.Names names) {
    String name = names.unique("nothing");
    NodeProto.Builder constant =
        NodeProto.newBuilder()
            .setOpType("Constant")
            .addOutput(name)
            .addAttribute(
                Attributes.attribute("value", OnnxInitializer.floats(name, new long[] {0})));
    return giving(g.toBuilder().addNode(constant).build(), name);
  }
}

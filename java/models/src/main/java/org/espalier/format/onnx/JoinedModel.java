package org.espalier.format.onnx;

import ai.onnx.proto.OnnxMl.GraphProto;
import ai.onnx.proto.OnnxMl.ModelProto;
import ai.onnx.proto.OnnxMl.NodeProto;
import ai.onnx.proto.OnnxMl.OperatorSetIdProto;
import ai.onnx.proto.OnnxMl.TensorProto;
import ai.onnx.proto.OnnxMl.ValueInfoProto;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.function.UnaryOperator;
import org.espalier.InputException;

/** Two models as one, of which the second reads what the first gives. */
public final class JoinedModel {
  /** Operators of ONNX that mean the same in all operator sets from {@link #OLDEST} on. */
  private static final Set<String> STEADY =
      Set.of(
          "Add",
          "Clip",
          "Concat",
          "Constant",
          "Div",
          "DynamicQuantizeLinear",
          "Flatten",
          "Gemm",
          "Identity",
          "LeakyRelu",
          "MatMul",
          "MatMulInteger",
          "Mul",
          "Relu",
          "Sigmoid",
          "Sub",
          "Tanh");

  private static final int OLDEST = 11;

  private JoinedModel() {}

  /**
   * The first model's inputs and the second's outputs, which keep their names where the first has no such value.
   *
   * @param value of the first, which the second reads as its one input
   * @throws InputException where the two ask for operator sets that no model can import together, or are 2 GiB together
   */
  public static OnnxModel of(OnnxModel first, String value, OnnxModel second) {
    if (second.inputs().size() != 1) {
      throw new InputException(
          second.name()
              + " has "
              + second.inputs().size()
              + " inputs; one that reads what another gives has one");
    }
    OnnxModel joined = first.copy();
    joined.requireIrVersion(second.irVersion());
    ModelProto proto = second.toProto();
    for (OperatorSetIdProto set : proto.getOpsetImportList()) {
      importSet(joined, second, set);
    }
    OnnxModel.Names free = joined.names();
    Map<String, String> names = new HashMap<>();
    names.put(second.inputs().get(0).getName(), value);
    UnaryOperator<String> named = n -> n.isEmpty() ? n : names.computeIfAbsent(n, free::unique);
    GraphProto graph = proto.getGraph();
    graph.getOutputList().forEach(o -> named.apply(o.getName()));
    GraphProto.Builder whole = joined.toProto().getGraph().toBuilder().clearOutput();
    for (TensorProto tensor : graph.getInitializerList()) {
      whole.addInitializer(tensor.toBuilder().setName(named.apply(tensor.getName())));
    }
    for (NodeProto node : graph.getNodeList()) {
      node.getOutputList().forEach(named::apply);
      NodeProto renamed = InnerGraphs.renamed(node, names);
      String name = node.getName().isEmpty() ? "" : free.unique(node.getName());
      whole.addNode(renamed.toBuilder().setName(name));
    }
    for (ValueInfoProto output : graph.getOutputList()) {
      whole.addOutput(output.toBuilder().setName(named.apply(output.getName())));
    }
    return OnnxModel.of(joined.toProto().toBuilder().setGraph(whole).build(), first.name());
  }

  private static void importSet(OnnxModel joined, OnnxModel second, OperatorSetIdProto set) {
    String domain = OnnxModel.domain(set.getDomain());
    long known = joined.opset(domain);
    if (known == 0) {
      joined.setOpset(domain, set.getVersion());
    }
    if (known == 0 || known == set.getVersion()) {
      return;
    }
    List<String> others =
        second.allNodes().stream()
            .filter(n -> OnnxModel.domain(n.getDomain()).equals(domain))
            .filter(n -> !isSteady(n))
            .map(NodeProto::getOpType)
            .distinct()
            .toList();
    if (!others.isEmpty() || !domain.isEmpty() || Math.min(known, set.getVersion()) < OLDEST) {
      throw new InputException(
          second.name()
              + " is of operator set "
              + set.getVersion()
              + (domain.isEmpty() ? "" : " of " + domain)
              + ", what it follows of "
              + known
              + ", and a model has one"
              + (others.isEmpty() ? "" : ", in which " + others + " may be others")
              + "; one exported with set "
              + known
              + " can follow it");
    }
  }

  /** A Softmax of rows is one in each set, as long as its axis is said to be the last. */
  private static boolean isSteady(NodeProto n) {
    return STEADY.contains(n.getOpType())
        || n.getOpType().equals("Softmax") && Attributes.integer(n, "axis", 0) == -1;
  }
}

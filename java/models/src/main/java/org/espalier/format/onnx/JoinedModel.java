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
          "Abs",
          "Add",
          "And",
          "Cast",
          "Clip",
          "Concat",
          "Constant",
          "ConstantOfShape",
          "DequantizeLinear",
          "Div",
          "DynamicQuantizeLinear",
          "Elu",
          "Equal",
          "Erf",
          "Exp",
          "Expand",
          "Flatten",
          "Gather",
          "Gemm",
          "Greater",
          "Identity",
          "If",
          "LeakyRelu",
          "Less",
          "Log",
          "LogSoftmax",
          "MatMul",
          "MatMulInteger",
          "Max",
          "Min",
          "Mul",
          "Neg",
          "Not",
          "Or",
          "Pow",
          "QuantizeLinear",
          "Reciprocal",
          "ReduceSum",
          "Relu",
          "Reshape",
          "Shape",
          "Sigmoid",
          "Sign",
          "Slice",
          "Softmax",
          "Softplus",
          "Sqrt",
          "Squeeze",
          "Sub",
          "Sum",
          "Tanh",
          "Transpose",
          "Unsqueeze",
          "Where");

  /** Attributes that came to some of them later. */
  private static final Set<String> LATER =
      Set.of(
          "allowzero",
          "block_size",
          "end",
          "output_dtype",
          "precision",
          "round_mode",
          "saturate",
          "start");

  private static final int OLDEST = 13;

  private JoinedModel() {}

  /**
   * Refuses two models that cannot be one.
   *
   * @throws InputException where {@link #of} does not take them, whatever their size
   */
  public static void check(OnnxModel first, OnnxModel second) {
    if (second.inputs().size() != 1) {
      throw new InputException(
          second.name()
              + " has "
              + second.inputs().size()
              + " inputs; one that reads what another gives has one");
    }
    ModelProto proto = second.toProto();
    if (proto.getFunctionsCount() > 0 || proto.getGraph().getSparseInitializerCount() > 0) {
      throw new InputException(
          second.name() + " has functions or sparse weights, with which no model follows another");
    }
    for (OperatorSetIdProto set : proto.getOpsetImportList()) {
      String domain = OnnxModel.domain(set.getDomain());
      long known = first.opset(domain);
      if (known != 0 && known != set.getVersion()) {
        checkSteady(second, domain, set.getVersion(), known);
      }
    }
  }

  private static void checkSteady(OnnxModel second, String domain, long own, long known) {
    List<String> others =
        second.allNodes().stream()
            .filter(n -> OnnxModel.domain(n.getDomain()).equals(domain))
            .filter(n -> !isSteady(n))
            .map(NodeProto::getOpType)
            .distinct()
            .toList();
    if (!others.isEmpty() || !domain.isEmpty() || Math.min(known, own) < OLDEST) {
      throw new InputException(
          second.name()
              + " is of operator set "
              + own
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

  private static boolean isSteady(NodeProto n) {
    return STEADY.contains(n.getOpType())
        && n.getAttributeList().stream().noneMatch(a -> LATER.contains(a.getName()));
  }

  /**
   * The first model's inputs and the second's outputs, which keep their names where the first has no such value.
   *
   * @param value of the first, which the second reads as its one input
   * @throws InputException where the second has other inputs too, the two ask for operator sets that no model can import
   *     together, or they are 2 GiB together
   */
  public static OnnxModel of(OnnxModel first, String value, OnnxModel second) {
    check(first, second);
    OnnxModel joined = first.copy();
    joined.requireIrVersion(second.irVersion());
    ModelProto proto = second.toProto();
    for (OperatorSetIdProto set : proto.getOpsetImportList()) {
      String domain = OnnxModel.domain(set.getDomain());
      if (joined.opset(domain) == 0) {
        joined.setOpset(domain, set.getVersion());
      }
    }
    OnnxModel.Names free = joined.names();
    InnerGraphs.defined(second.nodes()).forEach(free::unique); // which stay as they are
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
}

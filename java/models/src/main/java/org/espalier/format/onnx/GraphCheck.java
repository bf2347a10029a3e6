package org.espalier.format.onnx;

import ai.onnx.proto.OnnxMl.AttributeProto;
import ai.onnx.proto.OnnxMl.GraphProto;
import ai.onnx.proto.OnnxMl.GraphProtoOrBuilder;
import ai.onnx.proto.OnnxMl.ModelProtoOrBuilder;
import ai.onnx.proto.OnnxMl.NodeProto;
import ai.onnx.proto.OnnxMl.OperatorSetIdProto;
import ai.onnx.proto.OnnxMl.SparseTensorProto;
import ai.onnx.proto.OnnxMl.ValueInfoProto;
import java.util.HashMap;
import java.util.HashSet;
import java.util.List;
import java.util.Map;
import java.util.Set;
import org.espalier.InputException;

/**
 * Checks a model's graph and those inside its nodes: operator sets are imported once, names are unique, every node
 * comes after what it uses and has the inputs and attributes that its operator asks for, and outputs exist.
 */
final class GraphCheck {
  /** Of operators that are looked into; so many they take in all operator sets. */
  private static final Map<String, Integer> LEAST_INPUTS = leastInputs();

  private static Map<String, Integer> leastInputs() {
    Map<String, Integer> least = new HashMap<>();
    String one =
        "ArgMax AveragePool Cast Clip Concat ConstantOfShape Dropout Erf Exp Flatten"
            + " GlobalAveragePool GlobalMaxPool HardSigmoid HardSwish Identity LeakyRelu LpPool Max"
            + " MaxPool Mean Min Neg Pad Reciprocal ReduceL2 ReduceMax ReduceMean ReduceMin"
            + " ReduceSum Relu Reshape Resize Shape Sigmoid Slice Softmax Split Sqrt Squeeze Sum"
            + " Swish Tanh Transpose Unsqueeze Upsample";
    String two =
        "Add And Conv ConvTranspose DequantizeLinear Div Equal Expand Gather GatherElements"
            + " GatherND Gemm Greater LayerNormalization Less MatMul Mul Or PRelu Pow"
            + " QuantizeLinear RMSNormalization Sub TensorScatter Tile";
    String three =
        "Attention GRU GroupNormalization InstanceNormalization LSTM RNN RotaryEmbedding Where";
    List.of(one.split(" ")).forEach(op -> least.put(op, 1));
    List.of(two.split(" ")).forEach(op -> least.put(op, 2));
    List.of(three.split(" ")).forEach(op -> least.put(op, 3));
    least.put("BatchNormalization", 5);
    return Map.copyOf(least);
  }

  private final String name;
  private final Map<String, OnnxInitializer> initializers;

  /**
   * @param name what messages call the model
   * @param initializers those of the main graph, by their names
   */
  GraphCheck(String name, Map<String, OnnxInitializer> initializers) {
    this.name = name;
    this.initializers = initializers;
  }

  /**
   * Checks that a model imports operator sets, each once.
   *
   * @throws InputException that names the operator set
   */
  void operatorSets(ModelProtoOrBuilder model) {
    if (model.getOpsetImportCount() == 0 && model.getIrVersion() >= 3) {
      throw new InputException(name + " is not an ONNX model: it imports no operator set");
    }
    Set<String> domains = new HashSet<>();
    for (OperatorSetIdProto o : model.getOpsetImportList()) {
      if (!domains.add(OnnxModel.domain(o.getDomain())) || o.getVersion() < 1) {
        throw new InputException(
            name
                + " imports the operator set '"
                + o.getDomain()
                + "' twice or in version "
                + o.getVersion());
      }
    }
  }

  /**
   * Checks the main graph and those inside its nodes.
   *
   * @param graph says all but nodes and initializers
   * @throws InputException that names the node and the value
   */
  void mainGraph(GraphProtoOrBuilder graph, List<NodeProto> nodes) {
    Scope scope = new Scope(null);
    scope.names.addAll(initializers.keySet());
    for (SparseTensorProto s : graph.getSparseInitializerList()) {
      define(s.getValues().getName(), scope, "a sparse initializer");
    }
    Set<String> inputs = new HashSet<>();
    for (ValueInfoProto v : graph.getInputList()) {
      if (v.getName().isEmpty() || !inputs.add(v.getName())) {
        throw new InputException(name + " has two graph inputs of the name '" + v.getName() + "'");
      }
    }
    scope.names.addAll(inputs);
    scope.ranks.describe(graph.getValueInfoList());
    scope.ranks.describe(graph.getInputList());
    scope.ranks.add(initializers.values());
    check(nodes, graph.getOutputList(), scope);
  }

  /**
   * The names that a graph may use: its own and those of the graphs around it; and how many axes
   * its values have, where it says so.
   */
  private record Scope(Scope outer, Set<String> names, ValueRanks ranks) {
    Scope(Scope outer) {
      this(outer, new HashSet<>(), new ValueRanks());
    }

    boolean contains(String value) {
      for (Scope s = this; s != null; s = s.outer) {
        if (s.names.contains(value)) {
          return true;
        }
      }
      return false;
    }
  }

  private void check(List<NodeProto> list, List<ValueInfoProto> outputs, Scope scope) {
    list.forEach(n -> checkNode(n, scope));
    for (ValueInfoProto v : outputs) {
      if (!scope.contains(v.getName())) {
        throw new InputException(name + ": nothing defines the graph output '" + v.getName() + "'");
      }
    }
  }

  private void checkNode(NodeProto n, Scope scope) {
    checkOperator(n, scope);
    for (String in : n.getInputList()) {
      if (!in.isEmpty() && !scope.contains(in)) {
        throw new InputException(
            name
                + ": the node "
                + describe(n)
                + " uses "
                + in
                + ", which no graph input, initializer or earlier node defines");
      }
    }
    for (AttributeProto a : n.getAttributeList()) {
      if (a.hasG()) {
        checkInner(a.getG(), scope);
      }
      for (GraphProto g : a.getGraphsList()) {
        checkInner(g, scope);
      }
    }
    for (String out : n.getOutputList()) {
      if (!out.isEmpty()) {
        define(out, scope, "the node " + describe(n));
      }
    }
  }

  /** Checks what is known of a node's operator. */
  private void checkOperator(NodeProto n, Scope scope) {
    if (n.getOpType().isEmpty()) {
      throw new InputException(name + ": the node " + describe(n) + " has no operator");
    }
    int least = OnnxModel.isOwn(n) ? LEAST_INPUTS.getOrDefault(n.getOpType(), 0) : 0;
    if (n.getInputCount() < least) {
      throw new InputException(
          name
              + ": the node "
              + describe(n)
              + " has "
              + n.getInputCount()
              + " inputs; "
              + n.getOpType()
              + " takes at least "
              + least);
    }
    if (least > 0 && n.getOutputCount() == 0) {
      throw new InputException(name + ": the node " + describe(n) + " has no output");
    }
    String problem = null;
    if (OnnxModel.isOwn(n)) {
      problem = NodeAttributes.problem(n, initializers, scope.ranks);
      problem = problem == null ? NodeOperands.problem(n, initializers, scope.ranks) : problem;
      scope.ranks.follow(n);
    }
    if (problem != null) {
      throw new InputException(name + ": the node " + describe(n) + ": " + problem);
    }
  }

  private void checkInner(GraphProto g, Scope outer) {
    Scope scope = new Scope(outer);
    g.getInputList().forEach(v -> scope.names.add(v.getName()));
    g.getInitializerList().forEach(t -> scope.names.add(t.getName()));
    g.getSparseInitializerList().forEach(t -> scope.names.add(t.getValues().getName()));
    check(g.getNodeList(), g.getOutputList(), scope);
  }

  private void define(String value, Scope scope, String by) {
    if (!scope.names.add(value)) {
      throw new InputException(name + ": " + by + " defines " + value + ", which exists already");
    }
  }

  /** What messages call a node: its operator, and its name or that of its first output. */
  static String describe(NodeProto n) {
    return n.getOpType() + " '" + (n.getName().isEmpty() ? output(n) : n.getName()) + "'";
  }

  private static String output(NodeProto n) {
    return n.getOutputCount() == 0 ? "" : n.getOutput(0);
  }
}

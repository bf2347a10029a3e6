package org.espalier.torch.onnx;

import ai.onnx.proto.OnnxMl.NodeProto;
import java.util.ArrayList;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.TreeSet;
import java.util.function.BinaryOperator;
import java.util.function.Function;
import java.util.function.UnaryOperator;
import org.bytedeco.pytorch.Tensor;
import org.espalier.format.onnx.OnnxModel;

/** All operators that can be run. Adding one is adding an entry to the file of its family. */
final class OperatorTable {
  /** How the names of ONNX Runtime's own operators begin. */
  static final String RUNTIME = "com.microsoft.";

  /** An operator whose meaning changed has several entries, oldest first. */
  private static final Map<String, List<Operator>> ENTRIES = new HashMap<>();

  static {
    ElementwiseOperators.add(OperatorTable::add);
    ActivationOperators.add(OperatorTable::add);
    ShapeOperators.add(OperatorTable::add);
    IndexOperators.add(OperatorTable::add);
    GenerationOperators.add(OperatorTable::add);
    ReductionOperators.add(OperatorTable::add);
    MatrixOperators.add(OperatorTable::add);
    ConvolutionOperators.add(OperatorTable::add);
    PoolingOperators.add(OperatorTable::add);
    NormalizationOperators.add(OperatorTable::add);
    AttentionOperators.add(OperatorTable::add);
    StandardAttention.add(OperatorTable::add);
    ResizeOperators.add(OperatorTable::add);
    RecurrentOperators.add(OperatorTable::add);
    QuantizationOperators.add(OperatorTable::add);
    LossOperators.add(OperatorTable::add);
  }

  private OperatorTable() {}

  /** Receives the entries of a family. */
  interface Sink {
    void add(Operator operator);

    default void one(String name, int since, Function<Node, Function<Inputs, Tensor>> build) {
      add(single(name, since, build));
    }

    default void unary(String name, int since, UnaryOperator<Tensor> f) {
      one(name, since, n -> in -> f.apply(in.get(0)));
    }

    default void binary(String name, int since, BinaryOperator<Tensor> f) {
      one(name, since, n -> in -> f.apply(in.get(0), in.get(1)));
    }
  }

  /** An operator with one output. */
  static Operator single(String name, int since, Function<Node, Function<Inputs, Tensor>> build) {
    return several(
        name,
        since,
        n -> {
          Function<Inputs, Tensor> f = build.apply(n);
          return in -> new Tensor[] {f.apply(in)};
        });
  }

  /** An operator with several outputs. */
  static Operator several(String name, int since, Function<Node, Kernel> build) {
    return new Operator(name, since, new int[0], false, false, build);
  }

  private static void add(Operator operator) {
    ENTRIES.computeIfAbsent(operator.name(), k -> new ArrayList<>()).add(operator);
  }

  /** What the operator of a node is called here: with its domain where it is not of ONNX itself. */
  static String name(NodeProto n) {
    return OnnxModel.isOwn(n) ? n.getOpType() : n.getDomain() + "." + n.getOpType();
  }

  static Set<String> names() {
    return new TreeSet<>(ENTRIES.keySet());
  }

  /** The entries of an operator, oldest first; empty where there is none. */
  static List<Operator> find(String name) {
    return ENTRIES.getOrDefault(name, List.of());
  }
}

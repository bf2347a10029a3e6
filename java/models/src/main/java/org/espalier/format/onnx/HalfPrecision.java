package org.espalier.format.onnx;

import ai.onnx.proto.OnnxMl.AttributeProto;
import ai.onnx.proto.OnnxMl.AttributeProto.AttributeType;
import ai.onnx.proto.OnnxMl.GraphProto;
import ai.onnx.proto.OnnxMl.NodeProto;
import ai.onnx.proto.OnnxMl.SparseTensorProto;
import ai.onnx.proto.OnnxMl.TensorProto;
import ai.onnx.proto.OnnxMl.TensorProto.DataType;
import ai.onnx.proto.OnnxMl.TypeProto;
import ai.onnx.proto.OnnxMl.ValueInfoProto;
import java.util.ArrayList;
import java.util.HashMap;
import java.util.HashSet;
import java.util.List;
import java.util.Map;
import java.util.Set;
import org.espalier.InputException;

/**
 * Graphs that compute in float16 or bfloat16, as graphs that compute in float32: {@link #widen} before a model is
 * quantized or trained, {@link #narrow} before it is written.
 *
 * <p>On a CPU that is what they are anyway. ONNX Runtime has next to no products of 16-bit floats there: it puts a Cast
 * before and behind each node. And it fuses int8 products with what surrounds them in float32 alone. Results
 * differ by the rounding between nodes, which is left out.
 */
public final class HalfPrecision {
  /** A smaller constant saves less than its Cast takes. */
  private static final int LEAST_ELEMENTS = 256;

  /** Cast knows bfloat16 since this version. */
  private static final long BRAIN_OPSET = 13;

  /** Attributes of several operators that say what type they make. */
  private static final Set<String> TYPES =
      Set.of("to", "dtype", "output_dtype", "output_datatype", "precision", "softmax_precision");

  private final OnnxModel model;
  private final OnnxModel.Names names;

  /** New names of values: of the float32 forms of inputs and outputs. */
  private final Map<String, String> renamed = new HashMap<>();

  private HalfPrecision(OnnxModel model) {
    this.model = model;
    this.names = model.names();
  }

  /** Whether any tensor, input or output of a model, or what one of its nodes makes, is float16 or bfloat16. */
  public static boolean isIn(OnnxModel model) {
    return model.initializers().stream().anyMatch(i -> isHalf(i.type()))
        || model.inputs().stream().anyMatch(v -> isHalf(v.getType()))
        || model.outputs().stream().anyMatch(v -> isHalf(v.getType()))
        || model.allNodes().stream().anyMatch(HalfPrecision::makesHalf);
  }

  private static boolean makesHalf(NodeProto n) {
    return n.getAttributeList().stream()
            .anyMatch(a -> a.hasT() && isHalf(a.getT().getDataType()) || isHalfType(a))
        || InnerGraphs.of(n).stream()
            .anyMatch(
                g ->
                    g.getInitializerList().stream().anyMatch(t -> isHalf(t.getDataType()))
                        || g.getInputList().stream().anyMatch(v -> isHalf(v.getType())));
  }

  /**
   * Lets a model compute in float32. Inputs and outputs keep their types, behind Casts; constants and values keep
   * their names, but for inputs and outputs of 16 bits, inside the graph.
   *
   * @return whether there was anything to change
   * @throws InputException if an input or output is a sequence of 16-bit floats, which nothing casts
   */
  public static boolean widen(OnnxModel model) {
    OnnxModel before = model.copy();
    boolean changed = widenOutputsToo(model);
    if (changed) {
      castOutputs(model, before);
    }
    return changed;
  }

  /** As {@link #widen}, but with outputs of float32, of which training takes its loss. */
  public static boolean widenOutputsToo(OnnxModel model) {
    if (!isIn(model)) {
      return false;
    }
    new HalfPrecision(model).widen();
    return true;
  }

  private void widen() {
    // The names of functions are their own, so these come before any has another.
    model.rewrite(HalfPrecision::widened, HalfPrecision::widened, this::widened);
    model.constantInitializers();
    List<NodeProto> nodes = new ArrayList<>();
    Set<String> inputs = new HashSet<>();
    for (ValueInfoProto input : model.inputs()) {
      inputs.add(input.getName());
      if (isHalf(castable(input))) {
        String wide = names.unique(input.getName() + "_float32");
        renamed.put(input.getName(), wide);
        nodes.add(cast(input.getName(), wide, DataType.FLOAT));
      }
    }
    for (OnnxInitializer i : List.copyOf(model.initializers())) {
      if (isHalf(i.type())) {
        model.replaceInitializer(i.asFloat32());
      }
    }
    for (ValueInfoProto output : model.outputs()) {
      if (isHalf(castable(output)) && !inputs.contains(output.getName())) {
        model.setOutputType(output.getName(), DataType.FLOAT);
      }
    }
    model.nodes().forEach(n -> nodes.add(widened(n)));
    model.setNodes(IdleCasts.removed(model, nodes));
  }

  /**
   * Gives the outputs of a widened model the types that they had.
   *
   * @param before the model before {@link #widenOutputsToo}
   */
  public static void castOutputs(OnnxModel model, OnnxModel before) {
    HalfPrecision precision = new HalfPrecision(model);
    List<NodeProto> casts = new ArrayList<>();
    for (ValueInfoProto output : before.outputs()) {
      String name = output.getName();
      ValueInfoProto now = model.valueInfo(name);
      if (!isHalf(output.getType()) || now == null || isHalf(now.getType())) {
        continue;
      }
      DataType type = DataType.forNumber(elementType(output));
      String wide = precision.names.unique(name + "_float32");
      precision.renamed.put(name, wide);
      model.setOutputType(name, type);
      casts.add(cast(wide, name, type));
      OnnxInitializer constant = model.initializer(name);
      if (constant != null) {
        model.removeInitializer(name);
        model.addInitializer(constant.withName(wide));
      }
    }
    List<NodeProto> nodes = new ArrayList<>();
    model.nodes().forEach(n -> nodes.add(InnerGraphs.renamed(n, precision.renamed)));
    nodes.addAll(casts);
    model.setNodes(nodes);
  }

  /** The type of an input or output. */
  private TypeProto castable(ValueInfoProto v) {
    if (!v.getType().hasTensorType() && isHalf(v.getType())) {
      throw new InputException(
          model.name()
              + ": "
              + v.getName()
              + " holds a sequence, a map or an optional value of 16-bit floats, which no operator"
              + " casts; export the model in float32");
    }
    return v.getType();
  }

  private static int elementType(ValueInfoProto v) {
    return v.getType().getTensorType().getElemType();
  }

  static NodeProto cast(String from, String to, DataType type) {
    return NodeProto.newBuilder()
        .setOpType("Cast")
        .addInput(from)
        .addOutput(to)
        .addAttribute(Attributes.attribute("to", type.getNumber()))
        .build();
  }

  private NodeProto widened(NodeProto n) {
    NodeProto.Builder b =
        InnerGraphs.changed(InnerGraphs.renamedNode(n, renamed), this::widened).toBuilder();
    for (AttributeProto.Builder a : b.getAttributeBuilderList()) {
      if (isHalfType(a.build())) {
        a.setI(DataType.FLOAT_VALUE);
      }
      if (a.hasT() && isHalf(a.getT().getDataType())) {
        a.setT(widened(a.getT()));
      }
      if (a.hasSparseTensor()) {
        a.setSparseTensor(widened(a.getSparseTensor()));
      }
      if (a.hasTp()) {
        a.setTp(widened(a.getTp()));
      }
    }
    return b.build();
  }

  private GraphProto widened(GraphProto g) {
    GraphProto.Builder b = g.toBuilder();
    for (int i = 0; i < b.getInitializerCount(); i++) {
      b.setInitializer(i, widened(g.getInitializer(i)));
    }
    for (int i = 0; i < b.getSparseInitializerCount(); i++) {
      b.setSparseInitializer(i, widened(g.getSparseInitializer(i)));
    }
    for (List<ValueInfoProto.Builder> values :
        List.of(b.getInputBuilderList(), b.getOutputBuilderList(), b.getValueInfoBuilderList())) {
      for (ValueInfoProto.Builder v : values) {
        v.setName(renamed.getOrDefault(v.getName(), v.getName())).setType(widened(v.getType()));
      }
    }
    for (int k = 0; k < b.getNodeCount(); k++) {
      b.setNode(k, widened(b.getNode(k)));
    }
    return b.build();
  }

  private static TensorProto widened(TensorProto t) {
    return isHalf(t.getDataType()) ? OnnxInitializer.ofMessage(t).asFloat32().message() : t;
  }

  private static SparseTensorProto widened(SparseTensorProto s) {
    return s.toBuilder().setValues(widened(s.getValues())).build();
  }

  private static TypeProto widened(TypeProto type) {
    TypeProto.Builder b = type.toBuilder();
    switch (type.getValueCase()) {
      case TENSOR_TYPE -> {
        if (isHalf(type)) {
          b.getTensorTypeBuilder().setElemType(DataType.FLOAT_VALUE);
        }
      }
      case SPARSE_TENSOR_TYPE -> {
        if (isHalf(type)) {
          b.getSparseTensorTypeBuilder().setElemType(DataType.FLOAT_VALUE);
        }
      }
      case SEQUENCE_TYPE ->
          b.getSequenceTypeBuilder().setElemType(widened(type.getSequenceType().getElemType()));
      case OPTIONAL_TYPE ->
          b.getOptionalTypeBuilder().setElemType(widened(type.getOptionalType().getElemType()));
      case MAP_TYPE ->
          b.getMapTypeBuilder().setValueType(widened(type.getMapType().getValueType()));
      default -> {}
    }
    return b.build();
  }

  private static boolean isHalf(TypeProto type) {
    return switch (type.getValueCase()) {
      case TENSOR_TYPE -> isHalf(type.getTensorType().getElemType());
      case SPARSE_TENSOR_TYPE -> isHalf(type.getSparseTensorType().getElemType());
      case SEQUENCE_TYPE -> isHalf(type.getSequenceType().getElemType());
      case OPTIONAL_TYPE -> isHalf(type.getOptionalType().getElemType());
      case MAP_TYPE -> isHalf(type.getMapType().getValueType());
      default -> false;
    };
  }

  private static boolean isHalfType(AttributeProto a) {
    return a.getType() == AttributeType.INT
        && TYPES.contains(a.getName())
        && (a.getI() == DataType.FLOAT16_VALUE || a.getI() == DataType.BFLOAT16_VALUE);
  }

  private static boolean isHalf(int type) {
    return type == DataType.FLOAT16_VALUE || type == DataType.BFLOAT16_VALUE;
  }

  /** Whether a type is one of the two of 16 bits. */
  public static boolean isHalf(DataType type) {
    return type == DataType.FLOAT16 || type == DataType.BFLOAT16;
  }

  /**
   * Stores float32 constants that 16 bits hold exactly in 16 bits, each behind a Cast, which a runtime carries
   * out once: what of a widened model is not quantized takes no more room than before.
   */
  public static void narrow(OnnxModel model) {
    HalfPrecision precision = new HalfPrecision(model);
    List<NodeProto> nodes = new ArrayList<>();
    for (OnnxInitializer i : List.copyOf(model.initializers())) {
      OnnxInitializer half = precision.narrowed(i);
      if (half != null) {
        model.removeInitializer(i.name());
        model.addInitializer(half);
        nodes.add(cast(half.name(), i.name(), DataType.FLOAT));
      }
    }
    model.nodes().forEach(n -> precision.narrow(n, nodes));
    model.setNodes(nodes);
  }

  private void narrow(NodeProto n, List<NodeProto> out) {
    OnnxInitializer tensor =
        n.getOpType().equals("Constant") && n.getOutputCount() == 1
            ? model.constant(n.getOutput(0))
            : null;
    OnnxInitializer half = tensor == null ? null : narrowed(tensor);
    if (half == null) {
      out.add(InnerGraphs.changed(n, this::narrowed));
      return;
    }
    NodeProto.Builder b = n.toBuilder().setOutput(0, half.name());
    b.getAttributeBuilder(0).setT(half.message());
    out.add(b.build());
    out.add(cast(half.name(), n.getOutput(0), DataType.FLOAT));
  }

  private GraphProto narrowed(GraphProto g) {
    GraphProto.Builder b = g.toBuilder().clearNode();
    List<NodeProto> nodes = new ArrayList<>();
    for (int i = 0; i < g.getInitializerCount(); i++) {
      OnnxInitializer half = narrowed(OnnxInitializer.ofMessage(g.getInitializer(i)));
      if (half != null) {
        b.setInitializer(i, half.message());
        nodes.add(cast(half.name(), g.getInitializer(i).getName(), DataType.FLOAT));
      }
    }
    g.getNodeList().forEach(n -> narrow(n, nodes));
    return b.addAllNode(nodes).build();
  }

  /** A float32 tensor in 16 bits, under a name of its own; null where no type holds its values, or it is small. */
  private OnnxInitializer narrowed(OnnxInitializer i) {
    if (i.type() != DataType.FLOAT || i.elements() < LEAST_ELEMENTS) {
      return null;
    }
    boolean brain = model.opset("") >= BRAIN_OPSET;
    for (DataType type :
        brain ? List.of(DataType.FLOAT16, DataType.BFLOAT16) : List.of(DataType.FLOAT16)) {
      OnnxInitializer half = i.rounded(type);
      if (half.asFloat32().data().equals(i.data())) {
        return half.withName(names.unique(i.name() + "_half"));
      }
    }
    return null;
  }
}

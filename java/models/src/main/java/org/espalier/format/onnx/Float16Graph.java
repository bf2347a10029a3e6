package org.espalier.format.onnx;

import ai.onnx.proto.OnnxMl.AttributeProto;
import ai.onnx.proto.OnnxMl.GraphProto;
import ai.onnx.proto.OnnxMl.NodeProto;
import ai.onnx.proto.OnnxMl.TensorProto;
import ai.onnx.proto.OnnxMl.TensorProto.DataType;
import ai.onnx.proto.OnnxMl.ValueInfoProto;
import java.util.ArrayList;
import java.util.EnumMap;
import java.util.HashMap;
import java.util.HashSet;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.function.Predicate;

/**
 * Rewrites a graph of float32 as one that computes in float16, with Casts around nodes that stay as they are. Inputs and
 * outputs of the model keep their types, but for keys and values of tokens that were read before, which a runtime keeps from
 * step to step. Of one use.
 */
public final class Float16Graph {
  /** Attributes that say what type a node gives. */
  private static final Set<String> TYPES = Set.of("to", "dtype", "output_datatype");

  /** Operators that make a type by themselves. */
  private static final Set<String> MAKE_TYPE = Set.of("Cast", "Constant", "ConstantOfShape");

  /** Operators that compute nothing: tables of 16 bits are looked up in, and what is found is cast. */
  private static final Set<String> MOVE =
      Set.of(
          "Concat",
          "Expand",
          "Flatten",
          "Gather",
          "GatherElements",
          "GatherND",
          "Identity",
          "Reshape",
          "Slice",
          "Split",
          "Squeeze",
          "Transpose",
          "Unsqueeze");

  private enum Form {
    FLOAT32,
    FLOAT16
  }

  private final OnnxModel model;
  private final OnnxModel.Names names;
  private final ValueTypes types;
  private final Predicate<NodeProto> stays;

  /** In which forms values of float32 are read. */
  private final Map<String, Set<Form>> read = new HashMap<>();

  /** Values of float32 that nodes give as float16 now. */
  private final Set<String> halves = new HashSet<>();

  /** Values of float32 that are tensors of the model or of Constant nodes, of any graph. */
  private final Set<String> constants = new HashSet<>();

  /** Outputs that stay float32. */
  private final Set<String> outputs;

  /** Outputs that become float16. */
  private final Set<String> halfOutputs = new HashSet<>();

  /** Names of the forms that do not have the value's own. */
  private final Map<String, Map<Form, String>> renamed = new HashMap<>();

  private Float16Graph(OnnxModel model, Predicate<NodeProto> stays) {
    this.model = model;
    this.stays = stays;
    this.names = model.names();
    this.types = ValueTypes.of(model);
    this.outputs = model.outputNames();
    outputs.removeIf(PastInput::isNext);
  }

  /**
   * Rewrites a model in place. Weights keep their names; where nodes of both kinds read one, there are two.
   *
   * @param stays which nodes compute as they do, with all that is inside them; other nodes take float16 wherever they
   *     took float32. What calls a function of the model, or takes what is no tensor, must stay.
   */
  public static void narrow(OnnxModel model, Predicate<NodeProto> stays) {
    new Float16Graph(model, stays).narrow();
  }

  /** Whether nodes of a model compute in 16 bits, where others only keep constants in them. */
  public static boolean isOne(OnnxModel model) {
    ValueTypes types = ValueTypes.of(model);
    return model.allNodes().stream()
        .filter(
            n ->
                !OnnxModel.isOwn(n)
                    || !MAKE_TYPE.contains(n.getOpType()) && !MOVE.contains(n.getOpType()))
        .flatMap(n -> n.getOutputList().stream())
        .map(types::of)
        .anyMatch(HalfPrecision::isHalf);
  }

  /**
   * A copy of a rewritten model whose nodes compute in float32 and round what they give to float16, as devices do that
   * sum in float32. ONNX Runtime's CPU computes in float32 too, but rounds nothing between nodes: it tells whether
   * float16 holds a model's values of this copy alone. Attention that makes caches longer stays as it is: between Casts ONNX Runtime
   * would plan to write the longer cache over the shorter one.
   */
  public static OnnxModel rounding(OnnxModel narrowed) {
    OnnxModel copy = narrowed.copy();
    copy.setNodes(rounding(copy.nodes(), ValueTypes.of(copy), copy.names()));
    return copy;
  }

  private static List<NodeProto> rounding(
      List<NodeProto> nodes, ValueTypes types, OnnxModel.Names names) {
    List<NodeProto> result = new ArrayList<>();
    for (NodeProto n : nodes) {
      if (!InnerGraphs.of(n).isEmpty()) {
        result.add(InnerGraphs.withNodes(n, inner -> rounding(inner, types, names)));
        continue;
      }
      if (OnnxModel.isOwn(n) && MAKE_TYPE.contains(n.getOpType()) || makesCaches(n)) {
        result.add(n);
        continue;
      }
      NodeProto.Builder b = n.toBuilder();
      List<NodeProto> behind = new ArrayList<>();
      for (int i = 0; i < n.getInputCount(); i++) {
        if (types.of(n.getInput(i)) == DataType.FLOAT16) {
          b.setInput(i, names.unique(n.getInput(i) + "_exact"));
          result.add(HalfPrecision.cast(n.getInput(i), b.getInput(i), DataType.FLOAT));
        }
      }
      for (int i = 0; i < n.getOutputCount(); i++) {
        if (types.of(n.getOutput(i)) == DataType.FLOAT16) {
          b.setOutput(i, names.unique(n.getOutput(i) + "_exact"));
          behind.add(HalfPrecision.cast(b.getOutput(i), n.getOutput(i), DataType.FLOAT16));
        }
      }
      result.add(b.build());
      result.addAll(behind);
    }
    return result;
  }

  /** Whether a node takes caches and gives them longer, beside something else. */
  private static boolean makesCaches(NodeProto n) {
    return n.getOutputCount() > 1
        && n.getInputList().stream().anyMatch(PastInput::isOne)
        && n.getOutputList().stream().anyMatch(PastInput::isNext);
  }

  private void narrow() {
    model.constantInitializers();
    for (OnnxInitializer i : model.initializers()) {
      if (i.type() == DataType.FLOAT) {
        constants.add(i.name());
      }
    }
    for (ValueInfoProto input : model.inputs()) {
      if (PastInput.isOne(input.getName()) && isFloat(input.getName())) {
        halves.add(input.getName());
        model.setInputType(input.getName(), DataType.FLOAT16);
      }
    }
    model.nodes().forEach(this::look);
    for (ValueInfoProto output : model.outputs()) {
      String name = output.getName();
      reads(name, outputs.contains(name) ? Form.FLOAT32 : Form.FLOAT16);
      if (!outputs.contains(name) && isFloat(name)) {
        halfOutputs.add(name);
        model.setOutputType(name, DataType.FLOAT16);
      }
    }
    List<NodeProto> nodes = new ArrayList<>();
    for (ValueInfoProto input : model.inputs()) {
      addCast(input.getName(), nodes);
    }
    for (OnnxInitializer i : List.copyOf(model.initializers())) {
      if (constants.contains(i.name()) && isRead(i.name(), Form.FLOAT16)) {
        String half = name(i.name(), Form.FLOAT16);
        OnnxInitializer rounded = i.rounded(DataType.FLOAT16).withName(half);
        if (half.equals(i.name())) {
          model.replaceInitializer(rounded);
        } else {
          model.addInitializer(rounded);
        }
      }
    }
    model.nodes().forEach(n -> nodes.addAll(written(n)));
    model.removeValueInfo(value -> true);
    model.setNodes(nodes);
  }

  private boolean isFloat(String value) {
    return types.of(value) == DataType.FLOAT;
  }

  private void reads(String value, Form form) {
    if (isFloat(value)) {
      read.computeIfAbsent(value, v -> new HashSet<>()).add(form);
    }
  }

  private boolean isRead(String value, Form form) {
    return read.getOrDefault(value, Set.of()).contains(form);
  }

  /** Notes what a node reads and gives, and what those inside it do. */
  private void look(NodeProto n) {
    if (isConstant(n)) {
      constants.add(n.getOutput(0));
      return;
    }
    if (stays(n)) {
      OnnxModel.uses(n).forEach(v -> reads(v, Form.FLOAT32));
      return;
    }
    for (int i = 0; i < n.getInputCount(); i++) {
      reads(n.getInput(i), form(n, i));
    }
    n.getOutputList().stream().filter(this::isFloat).forEach(halves::add);
    for (GraphProto g : InnerGraphs.of(n)) {
      for (TensorProto t : g.getInitializerList()) {
        if (t.getDataType() == DataType.FLOAT_VALUE) {
          constants.add(t.getName());
        }
      }
      g.getInputList().stream()
          .map(ValueInfoProto::getName)
          .filter(this::isFloat)
          .forEach(halves::add);
      g.getNodeList().forEach(this::look);
      g.getOutputList().forEach(v -> reads(v.getName(), Form.FLOAT16));
    }
  }

  /** What a node that changes reads as an input: the scales of images are float32 whatever these are. */
  private static Form form(NodeProto n, int input) {
    boolean scales = input > 0 && (OnnxModel.isOwn(n, "Resize") || OnnxModel.isOwn(n, "Upsample"));
    return scales ? Form.FLOAT32 : Form.FLOAT16;
  }

  /** Whether a node is a tensor of float32. */
  private boolean isConstant(NodeProto n) {
    return OnnxModel.isOwn(n, "Constant")
        && isFloat(n.getOutput(0))
        && model.constant(n.getOutput(0)) != null;
  }

  /** Whether a node computes as it does; of constants those do that are no tensors. */
  private boolean stays(NodeProto n) {
    return OnnxModel.isOwn(n, "Constant") || stays.test(n);
  }

  /** The form in which a value of float32 has its own name. */
  private Form named(String value) {
    boolean half =
        constants.contains(value) ? !isRead(value, Form.FLOAT32) : halves.contains(value);
    boolean narrow = halfOutputs.contains(value) || half && !outputs.contains(value);
    return narrow ? Form.FLOAT16 : Form.FLOAT32;
  }

  /** What a value is called in a form. */
  private String name(String value, Form form) {
    if (!isFloat(value) || named(value) == form) {
      return value;
    }
    return renamed
        .computeIfAbsent(value, v -> new EnumMap<>(Form.class))
        .computeIfAbsent(
            form, f -> names.unique(value + (f == Form.FLOAT16 ? "_float16" : "_float32")));
  }

  /** Adds the other form of a value that is made in one, if it is read. */
  private void addCast(String value, List<NodeProto> nodes) {
    if (!isFloat(value)) {
      return;
    }
    boolean half = halves.contains(value);
    if (isRead(value, half ? Form.FLOAT32 : Form.FLOAT16)) {
      String wide = name(value, Form.FLOAT32);
      String narrow = name(value, Form.FLOAT16);
      nodes.add(
          half
              ? HalfPrecision.cast(narrow, wide, DataType.FLOAT)
              : HalfPrecision.cast(wide, narrow, DataType.FLOAT16));
    }
  }

  /** What becomes of a node. */
  private List<NodeProto> written(NodeProto n) {
    List<NodeProto> nodes = new ArrayList<>();
    if (isConstant(n)) {
      for (Form form : Form.values()) {
        if (isRead(n.getOutput(0), form)) {
          nodes.add(constant(n, form));
        }
      }
      return nodes;
    }
    if (stays(n)) {
      Map<String, String> wide = new HashMap<>();
      OnnxModel.uses(n).forEach(v -> wide.put(v, name(v, Form.FLOAT32)));
      nodes.add(InnerGraphs.renamed(n, wide));
    } else {
      nodes.add(narrowed(n));
    }
    n.getOutputList().forEach(v -> addCast(v, nodes));
    return nodes;
  }

  private NodeProto constant(NodeProto n, Form form) {
    String value = n.getOutput(0);
    String called = name(value, form);
    NodeProto.Builder b = n.toBuilder().setOutput(0, called);
    if (!called.equals(value)) {
      b.clearName();
    }
    if (form == Form.FLOAT16) {
      OnnxInitializer half = model.constant(value).rounded(DataType.FLOAT16);
      b.clearAttribute().addAttribute(Attributes.attribute("value", half));
    }
    return b.build();
  }

  private NodeProto narrowed(NodeProto n) {
    NodeProto.Builder b = InnerGraphs.changed(n, this::narrowed).toBuilder();
    for (int i = 0; i < n.getInputCount(); i++) {
      b.setInput(i, name(n.getInput(i), form(n, i)));
    }
    for (int i = 0; i < n.getOutputCount(); i++) {
      b.setOutput(i, name(n.getOutput(i), Form.FLOAT16));
    }
    for (AttributeProto.Builder a : b.getAttributeBuilderList()) {
      if (TYPES.contains(a.getName()) && a.getI() == DataType.FLOAT_VALUE) {
        a.setI(DataType.FLOAT16_VALUE);
      } else if (a.hasT() && a.getT().getDataType() == DataType.FLOAT_VALUE) {
        a.setT(OnnxInitializer.ofMessage(a.getT()).rounded(DataType.FLOAT16).message());
      }
    }
    return b.build();
  }

  private GraphProto narrowed(GraphProto g) {
    GraphProto.Builder b = g.toBuilder().clearInitializer().clearNode().clearValueInfo();
    for (TensorProto t : g.getInitializerList()) {
      OnnxInitializer i = OnnxInitializer.ofMessage(t);
      if (!constants.contains(i.name()) || isRead(i.name(), Form.FLOAT32)) {
        b.addInitializer(t);
      }
      if (constants.contains(i.name()) && isRead(i.name(), Form.FLOAT16)) {
        String called = name(i.name(), Form.FLOAT16);
        b.addInitializer(i.rounded(DataType.FLOAT16).withName(called).message());
      }
    }
    List<NodeProto> nodes = new ArrayList<>();
    for (ValueInfoProto.Builder v : b.getInputBuilderList()) {
      addCast(v.getName(), nodes);
      narrow(v);
    }
    g.getNodeList().forEach(n -> nodes.addAll(written(n)));
    b.getOutputBuilderList().forEach(this::narrow);
    return b.addAllNode(nodes).build();
  }

  private void narrow(ValueInfoProto.Builder v) {
    if (isFloat(v.getName())) {
      v.setName(name(v.getName(), Form.FLOAT16));
      if (v.getType().hasTensorType()) {
        v.getTypeBuilder().getTensorTypeBuilder().setElemType(DataType.FLOAT16_VALUE);
      }
    }
  }
}

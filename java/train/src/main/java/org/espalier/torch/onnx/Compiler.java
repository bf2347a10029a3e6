package org.espalier.torch.onnx;

import ai.onnx.proto.OnnxMl.AttributeProto;
import ai.onnx.proto.OnnxMl.GraphProto;
import ai.onnx.proto.OnnxMl.NodeProto;
import ai.onnx.proto.OnnxMl.TensorProto;
import ai.onnx.proto.OnnxMl.TensorProto.DataType;
import ai.onnx.proto.OnnxMl.ValueInfoProto;
import java.nio.ByteBuffer;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.HashMap;
import java.util.HashSet;
import java.util.List;
import java.util.Map;
import java.util.Objects;
import java.util.Set;
import java.util.TreeSet;
import org.bytedeco.pytorch.Tensor;
import org.espalier.InputException;
import org.espalier.compress.onnx.FloatWeights;
import org.espalier.format.onnx.OnnxInitializer;
import org.espalier.format.onnx.OnnxModel;
import org.espalier.torch.onnx.Fusion.Source;

/**
 * Turns a model into steps. For every value it notes what it depends on: constants only (then it is
 * computed here), parameters, the shapes of the inputs only (then it is computed once a shape), or
 * their data.
 */
final class Compiler {
  /** The newest operator set whose operators the table describes. */
  static final long NEWEST_OPSET = 26;

  private final OnnxModel model;
  private final Frame frame;
  private final Map<String, Operator> control = new HashMap<>();

  private Scope scope = new Scope(null);
  private int slots;

  /** By slot. */
  private final List<Boolean> constant = new ArrayList<>();

  private final List<Boolean> inner = new ArrayList<>();

  private final List<Boolean> weight = new ArrayList<>();
  private final List<Boolean> shapeKnown = new ArrayList<>();
  private final List<Boolean> valueKnown = new ArrayList<>();

  /** The integers of constants that came as such, for kernels that choose by them. */
  private final Map<Integer, OnnxInitializer> initializers = new HashMap<>();

  private record Scope(Scope outer, Map<String, Integer> names) {
    Scope(Scope outer) {
      this(outer, new HashMap<>());
    }

    Integer find(String name) {
      Integer slot = names.get(name);
      return slot != null || outer == null ? slot : outer.find(name);
    }
  }

  Compiler(OnnxModel model, Frame frame) {
    this.model = model;
    this.frame = frame;
    ControlOperators.add(o -> control.put(o.name(), o), this::block);
  }

  boolean isConstant(int slot) {
    return constant.get(slot);
  }

  boolean isValueKnown(int slot) {
    return valueKnown.get(slot);
  }

  /** The slot of a value of the main graph. */
  int slot(String name) {
    return scope.find(name);
  }

  int slots() {
    return slots;
  }

  /** Whether the slot belongs to a graph inside a node. */
  boolean isInner(int slot) {
    return inner.get(slot);
  }

  /** Compiles the main graph; steps that depend on constants only have run already. */
  List<Step> compile(Map<String, Tensor> variables) {
    long opset = model.opset("");
    if (opset < 1 || opset > NEWEST_OPSET) {
      throw new InputException(
          model.name()
              + " uses operator set "
              + opset
              + " of ONNX; 11 to "
              + NEWEST_OPSET
              + " can be run");
    }
    refuseUnknown();
    model.inputs().forEach(v -> define(v.getName(), false, false, true, false));
    for (OnnxInitializer i : model.initializers()) {
      Tensor variable = variables.get(i.name());
      if (variable == null) {
        initializer(i);
      } else {
        frame.set(define(i.name(), false, true, true, false), variable);
      }
    }
    List<Source> sources = useful(Fusion.apply(model));
    List<Step> steps = new ArrayList<>();
    for (Source s : sources) {
      Tensor variable = s.node().getOutputCount() > 0 ? variables.get(s.node().getOutput(0)) : null;
      if (variable != null) {
        // A Constant node that holds a parameter.
        frame.set(define(s.node().getOutput(0), false, true, true, false), variable);
      } else {
        step(s, steps);
      }
    }
    for (ValueInfoProto v : model.outputs()) {
      if (scope.find(v.getName()) == null) {
        throw new InputException(model.name() + ": nothing computes the output " + v.getName());
      }
    }
    return steps;
  }

  /** Names every operator at once that the table lacks. */
  private void refuseUnknown() {
    Set<String> unknown = new TreeSet<>();
    model.nodes().forEach(n -> addUnknown(n, unknown));
    if (!unknown.isEmpty()) {
      throw new InputException(
          model.name()
              + " uses operators that are not supported: "
              + String.join(", ", unknown)
              + FloatWeights.quantized(model)
                  .map(how -> "; " + how + "; take the model that it was made of")
                  .orElse(""));
    }
  }

  private void addUnknown(NodeProto n, Set<String> unknown) {
    String type = OperatorTable.name(n);
    if (operator(n) == null) {
      boolean other = control.containsKey(type) || !OperatorTable.find(type).isEmpty();
      unknown.add(type + (other ? " of operator set " + opset(n) : ""));
    }
    for (AttributeProto a : n.getAttributeList()) {
      if (a.hasG()) {
        a.getG().getNodeList().forEach(inner -> addUnknown(inner, unknown));
      }
    }
  }

  private Operator operator(NodeProto n) {
    String type = OperatorTable.name(n);
    Operator found = control.get(type);
    for (Operator o : OperatorTable.find(type)) {
      found = o.since() <= opset(n) ? o : found;
    }
    return found;
  }

  /** The version of the operators of a node's domain. */
  private long opset(NodeProto n) {
    return model.opset(n.getDomain());
  }

  /** The nodes that the outputs depend on. */
  private List<Source> useful(List<Source> sources) {
    Set<String> read = new HashSet<>();
    model.outputs().forEach(v -> read.add(v.getName()));
    List<Source> useful = new ArrayList<>();
    for (int i = sources.size() - 1; i >= 0; i--) {
      Source s = sources.get(i);
      if (s.node().getOutputList().stream().anyMatch(read::contains)) {
        useful.add(0, s);
        read.addAll(OnnxModel.uses(s.node()));
      }
    }
    return useful;
  }

  private int define(
      String name, boolean isConstant, boolean isWeight, boolean shape, boolean value) {
    int slot = slots++;
    frame.reserve(slots);
    inner.add(scope.outer() != null);
    constant.add(isConstant);
    weight.add(isWeight);
    shapeKnown.add(shape);
    valueKnown.add(value);
    if (!name.isEmpty()) {
      scope.names.put(name, slot);
    }
    return slot;
  }

  private void initializer(OnnxInitializer i) {
    int slot = define(i.name(), true, false, true, true);
    initializers.put(slot, i);
  }

  /** Reads the data of a constant when the first step needs it. */
  private void materialize(int slot) {
    OnnxInitializer i = initializers.get(slot);
    if (i != null && frame.get(slot) == null) {
      Tensor t =
          frame.place(ElementTypes.tensor(i, model.name() + ": the initializer " + i.name()));
      t.retainReference();
      frame.set(slot, t);
    }
  }

  void materializeOutputs() {
    model.outputs().forEach(v -> materialize(slot(v.getName())));
  }

  /** What is known of what a step makes, as {@link #define} takes it. */
  private record Known(boolean constant, boolean weight, boolean shapes, boolean values) {}

  /**
   * What follows from all that a step reads.
   *
   * @param sources the slots of its inputs, negative where it has none
   */
  private Known known(Operator operator, int[] sources) {
    boolean allConstant = !operator.opaque();
    boolean allWeight = !operator.opaque() && sources.length > 0;
    boolean allShapes = !operator.opaque();
    boolean allValues = !operator.opaque();
    boolean hostKnown = true;
    for (int i = 0; i < sources.length; i++) {
      int s = sources[i];
      if (s >= 0) {
        allConstant &= constant.get(s);
        allWeight &= weight.get(s) || constant.get(s);
        allShapes &= shapeKnown.get(s);
        allValues &= valueKnown.get(s);
        hostKnown &= valueKnown.get(s) || !operator.readsOnHost(i);
      }
    }
    boolean describes = operator.name().equals("Shape") || operator.name().equals("Size");
    boolean values = allValues || describes && allShapes;
    return new Known(
        allConstant, allWeight && !allConstant, values || allShapes && hostKnown, values);
  }

  /** What messages call a node. */
  private String where(Source source) {
    NodeProto n = source.node();
    return model.name()
        + ": "
        + n.getOpType()
        + " "
        + (n.getName().isEmpty() ? "" : n.getName() + " ")
        + "(output "
        + source.identity()
        + ")";
  }

  /** Gives the outputs of a node slots; −1 stands for an output that it does not have. */
  private int[] defineOutputs(NodeProto n, Known made) {
    int[] targets = new int[n.getOutputCount()];
    for (int i = 0; i < targets.length; i++) {
      targets[i] =
          n.getOutput(i).isEmpty()
              ? -1
              : define(n.getOutput(i), made.constant, made.weight, made.shapes, made.values);
    }
    return targets;
  }

  private void step(Source source, List<Step> steps) {
    NodeProto n = source.node();
    long opset = opset(n);
    String where = where(source);
    Operator operator = source.operator() != null ? source.operator() : operator(n);
    int[] sources = new int[n.getInputCount()];
    for (int i = 0; i < sources.length; i++) {
      sources[i] = n.getInput(i).isEmpty() ? -1 : scope.find(n.getInput(i));
      if (sources[i] >= 0) {
        materialize(sources[i]);
      }
    }
    Node node = new Node(n, opset, where, i -> integers(sources[i]));
    if (n.getOpType().equals("QuantizeLinear") && sources.length > 2 && isFourBits(n.getInput(2))) {
      throw node.unsupported("a zero point of 4 bits");
    }
    Kernel kernel = operator.build().apply(node);
    node.refuseUnread();
    Known made = known(operator, sources);
    int[] targets = defineOutputs(n, made);
    boolean[] activations = new boolean[Math.min(2, sources.length)];
    for (int i = 0; i < activations.length; i++) {
      activations[i] = sources[i] >= 0 && !constant.get(sources[i]) && !weight.get(sources[i]);
    }
    int[] reads =
        OnnxModel.uses(n).stream()
            .map(scope::find)
            .filter(Objects::nonNull)
            .mapToInt(Integer::intValue)
            .toArray();
    Step step =
        new Step(
            frame,
            operator,
            kernel,
            sources,
            targets,
            reads,
            where,
            n,
            opset,
            source.identity(),
            activations);
    if (made.constant && !control.containsValue(operator)) {
      step.run();
    } else {
      steps.add(step);
    }
  }

  /** Whether a constant or an input of the graph is of integers of 4 bits, which libtorch holds as 8. */
  private boolean isFourBits(String name) {
    Integer slot = scope.find(name);
    OnnxInitializer constant = slot == null ? null : initializers.get(slot);
    DataType type =
        constant != null
            ? constant.type()
            : model.inputs().stream()
                .filter(v -> v.getName().equals(name))
                .map(v -> DataType.forNumber(v.getType().getTensorType().getElemType()))
                .findFirst()
                .orElse(null);
    return type == DataType.INT4 || type == DataType.UINT4;
  }

  private long[] integers(int slot) {
    OnnxInitializer c = slot < 0 ? null : initializers.get(slot);
    if (c == null && slot >= 0 && constant.get(slot) && frame.get(slot) != null) {
      Tensor t = frame.get(slot);
      return ElementTypes.isInteger(ElementTypes.of(t)) && t.numel() == 1
          ? new long[] {t.item_long()}
          : null;
    }
    if (c == null || c.type() != DataType.INT64 && c.type() != DataType.INT32) {
      return null;
    }
    ByteBuffer data = c.data();
    long[] values = new long[Math.toIntExact(c.elements())];
    for (int i = 0; i < values.length; i++) {
      values[i] = c.type() == DataType.INT64 ? data.getLong(8 * i) : data.getInt(4 * i);
    }
    return values;
  }

  /** Compiles a graph inside a node, which sees the values around it. */
  private Block block(GraphProto graph) {
    Scope outer = scope;
    scope = new Scope(outer);
    int first = slots;
    try {
      int[] inputs = new int[graph.getInputCount()];
      for (int i = 0; i < inputs.length; i++) {
        inputs[i] = define(graph.getInput(i).getName(), false, false, false, false);
      }
      for (TensorProto t : graph.getInitializerList()) {
        initializer(OnnxInitializer.ofMessage(t));
      }
      List<Step> steps = new ArrayList<>();
      for (NodeProto n : graph.getNodeList()) {
        step(new Source(n, null, Fusion.identity(n)), steps);
      }
      int[] outputs = new int[graph.getOutputCount()];
      for (int i = 0; i < outputs.length; i++) {
        outputs[i] = scope.find(graph.getOutput(i).getName());
        materialize(outputs[i]);
      }
      int[] own =
          steps.stream()
              .flatMapToInt(s -> Arrays.stream(s.targets()))
              .filter(s -> s >= first)
              .toArray();
      return new Block(frame, steps, inputs, outputs, own);
    } finally {
      scope = outer;
    }
  }
}

package org.espalier.torch;

import ai.onnx.proto.OnnxMl.AttributeProto;
import ai.onnx.proto.OnnxMl.GraphProto;
import ai.onnx.proto.OnnxMl.ModelProto;
import ai.onnx.proto.OnnxMl.NodeProto;
import ai.onnx.proto.OnnxMl.OperatorSetIdProto;
import ai.onnx.proto.OnnxMl.TensorProto;
import ai.onnx.proto.OnnxMl.TensorProto.DataType;
import ai.onnx.proto.OnnxMl.TypeProto;
import ai.onnx.proto.OnnxMl.ValueInfoProto;
import com.google.protobuf.ByteString;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.HashMap;
import java.util.HashSet;
import java.util.List;
import java.util.Locale;
import java.util.Map;
import java.util.Set;
import java.util.TreeSet;
import java.util.stream.LongStream;
import org.bytedeco.javacpp.BytePointer;
import org.bytedeco.javacpp.PointerScope;
import org.bytedeco.pytorch.AbstractTensor;
import org.bytedeco.pytorch.Block;
import org.bytedeco.pytorch.Graph;
import org.bytedeco.pytorch.IValue;
import org.bytedeco.pytorch.IValueOptional;
import org.bytedeco.pytorch.JitModule;
import org.bytedeco.pytorch.JitNode;
import org.bytedeco.pytorch.NoGradGuard;
import org.bytedeco.pytorch.Scalar;
import org.bytedeco.pytorch.StringVectorOptional;
import org.bytedeco.pytorch.Tensor;
import org.bytedeco.pytorch.global.torch;
import org.bytedeco.pytorch.global.torch.ScalarType;
import org.bytedeco.pytorch.graph_node_list;
import org.bytedeco.pytorch.named_buffer_list;
import org.bytedeco.pytorch.named_parameter_list;
import org.espalier.InputException;
import org.espalier.format.onnx.Attributes;
import org.espalier.format.onnx.OnnxModel;

/**
 * Reads a TorchScript module as an ONNX graph, as it is in evaluation: libtorch inlines its methods and folds
 * what depends on no input, and each call that is left becomes a node by {@link TorchScriptOperators}.
 * Parameters keep their names. The graph must give what the module gives on two batches of made-up examples,
 * or it is refused.
 */
public final class TorchScriptImport {
  private static final int OPSET = 17;

  /** Between libtorch's calls and the graph's, relative to the largest output. */
  private static final double AGREEMENT = 1e-4;

  private final String name;
  private final GraphProto.Builder graph = GraphProto.newBuilder().setName("torchscript");

  /** By the address of their data. */
  private final Map<Long, String> parameterNames = new HashMap<>();

  /** What is no call of the table. */
  private static final Set<String> READ_HERE = Set.of("prim::Constant", "prim::Loop", "prim::If");

  /** Of all loops together. */
  private static final int MOST_ROUNDS = 10_000;

  private int rounds;
  private final Set<String> names = new HashSet<>();
  private final Map<String, Ref> constants = new HashMap<>();

  /** What is known of a value of the module's graph, by its number. */
  private final Map<Long, Object> values = new HashMap<>();

  /**
   * A tensor of the graph.
   *
   * @param rank -1 where it is not known
   * @param constant its value where it is constant; else null
   */
  record Ref(String name, int rank, Tensor constant) {}

  /** An integer that the graph computes, an int64 tensor of rank 0. */
  record Size(String name) {}

  private TorchScriptImport(String name) {
    this.name = name;
  }

  /**
   * Reads a module with one input.
   *
   * @param example the shape of an example, without the batch
   * @throws InputException where the file is no module, calls what the table does not know (all of it in one
   *     message), or the graph does not give what the module gives
   */
  public static OnnxModel read(Path file, List<Long> example) {
    try (TorchScriptModel model = TorchScriptModel.read(file);
        PointerScope scope = new PointerScope();
        NoGradGuard noGrad = new NoGradGuard()) {
      if (model.inputNames().size() != 1) {
        throw new InputException(
            file + " has the inputs " + model.inputNames() + "; labelled examples have one");
      }
      model.train(false);
      OnnxModel graph = new TorchScriptImport(file.toString()).read(model, example);
      compare(file, model, graph, example);
      return graph;
    }
  }

  private OnnxModel read(TorchScriptModel model, List<Long> example) {
    nameParameters(model.module());
    Graph g;
    try {
      JitModule frozen = torch.freeze(model.module(), new StringVectorOptional(), false);
      g = frozen.get_method("forward").graph();
    } catch (RuntimeException e) {
      throw new InputException(
          name + " cannot be inlined by libtorch: " + Libtorch.firstLine(e), e);
    }
    refuseUnknown(g);
    String input = unique(model.inputNames().get(0));
    TypeProto.Builder type = TypeProto.newBuilder();
    type.getTensorTypeBuilder().setElemType(DataType.FLOAT.getNumber()).getShapeBuilder();
    type.getTensorTypeBuilder().getShapeBuilder().addDimBuilder().setDimParam("n");
    example.forEach(
        size -> type.getTensorTypeBuilder().getShapeBuilder().addDimBuilder().setDimValue(size));
    graph.addInput(ValueInfoProto.newBuilder().setName(input).setType(type));
    values.put(g.inputs().at(1).unique(), new Ref(input, example.size() + 1, null));
    read(g.nodes());
    Object result = values.get(g.outputs().at(0).unique());
    Object first = result instanceof List<?> tuple && !tuple.isEmpty() ? tuple.get(0) : result;
    if (!(first instanceof Ref output)) {
      throw new InputException(name + " returns no tensor that depends on its input");
    }
    graph.addNode(node("Identity", List.of(output.name()), unique("output")));
    TypeProto.Builder floats = TypeProto.newBuilder();
    floats.getTensorTypeBuilder().setElemType(DataType.FLOAT.getNumber());
    graph.addOutput(
        ValueInfoProto.newBuilder()
            .setName(graph.getNode(graph.getNodeCount() - 1).getOutput(0))
            .setType(floats));
    return OnnxModel.of(
        ModelProto.newBuilder()
            .setIrVersion(8)
            .setProducerName("espalier")
            .addOpsetImport(OperatorSetIdProto.newBuilder().setVersion(OPSET))
            .setGraph(graph)
            .build(),
        name);
  }

  private void nameParameters(JitModule module) {
    named_parameter_list parameters = module.named_parameters();
    var p = parameters.begin();
    for (long i = 0; i < parameters.size(); i++, p.increment()) {
      parameterNames.put(
          p.multiply().value().data_ptr().address(), p.multiply().name().getString());
    }
    named_buffer_list buffers = module.named_buffers();
    var b = buffers.begin();
    for (long i = 0; i < buffers.size(); i++, b.increment()) {
      parameterNames.put(
          b.multiply().value().data_ptr().address(), b.multiply().name().getString());
    }
  }

  private void refuseUnknown(Graph g) {
    Set<String> unknown = new TreeSet<>();
    findUnknown(g.nodes(), unknown);
    if (!unknown.isEmpty()) {
      throw unknown(String.join(", ", unknown));
    }
  }

  private InputException unknown(String calls) {
    return new InputException(
        name
            + " calls what cannot be read as a graph: "
            + calls
            + "; export the model to ONNX instead");
  }

  private static void findUnknown(graph_node_list nodes, Set<String> unknown) {
    JitNode end = nodes.end().multiply();
    for (JitNode n = nodes.begin().multiply(); !n.equals(end); n = n.next()) {
      String kind = kind(n);
      if (!READ_HERE.contains(kind) && TorchScriptOperators.find(kind) == null) {
        unknown.add(kind);
      }
      // Of the branches of an If one is not read; what the other calls is looked at then.
      if (kind.equals("prim::Loop")) {
        findUnknown(n.blocks().at(0).nodes(), unknown);
      }
    }
  }

  private static String kind(JitNode n) {
    return n.kind().toQualString().getString();
  }

  private void read(graph_node_list nodes) {
    JitNode end = nodes.end().multiply();
    for (JitNode n = nodes.begin().multiply(); !n.equals(end); n = n.next()) {
      read(n);
    }
  }

  private void read(JitNode n) {
    String kind = kind(n);
    if (kind.equals("prim::Loop")) {
      unroll(n);
      return;
    } else if (kind.equals("prim::If")) {
      choose(n);
      return;
    }
    if (kind.equals("prim::Constant")) {
      values.put(n.output().unique(), constant(torch.toIValue(n.output())));
      return;
    }
    List<Object> arguments = new ArrayList<>();
    for (long i = 0; i < n.inputs().size(); i++) {
      arguments.add(values.get(n.input(i).unique()));
    }
    Call call = new Call(kind, arguments);
    TorchScriptOperators.Entry entry = TorchScriptOperators.find(kind);
    if (entry == null) {
      throw unknown(kind);
    }
    Object result = entry.read(call);
    int outputs = (int) n.outputs().size();
    if (!kind.endsWith("Unpack")) {
      values.put(n.output().unique(), result);
    } else if (result instanceof List<?> all && all.size() == outputs) {
      for (int i = 0; i < outputs; i++) {
        values.put(n.output(i).unique(), all.get(i));
      }
    } else {
      throw call.unsupported("something that is no list of " + outputs);
    }
  }

  /** A loop over what the shape of an example fixes: axes, for the most part. */
  private void unroll(JitNode n) {
    Call call = new Call("prim::Loop", List.of());
    boolean counts = Boolean.TRUE.equals(values.get(n.input(1).unique()));
    if (!counts || !(values.get(n.input(0).unique()) instanceof Long trips)) {
      throw call.unsupported("a number of rounds that is computed");
    }
    Block body = n.blocks().at(0);
    List<Object> carried = new ArrayList<>();
    for (long i = 2; i < n.inputs().size(); i++) {
      carried.add(values.get(n.input(i).unique()));
    }
    for (long round = 0; round < trips; round++) {
      if (++rounds > MOST_ROUNDS) {
        throw call.unsupported("more than " + MOST_ROUNDS + " rounds");
      }
      values.put(body.inputs().at(0).unique(), round);
      for (int i = 0; i < carried.size(); i++) {
        values.put(body.inputs().at(i + 1).unique(), carried.get(i));
      }
      read(body.nodes());
      if (!Boolean.TRUE.equals(values.get(body.outputs().at(0).unique()))) {
        throw call.unsupported("an end that is computed");
      }
      for (int i = 0; i < carried.size(); i++) {
        carried.set(i, values.get(body.outputs().at(i + 1).unique()));
      }
    }
    for (int i = 0; i < carried.size(); i++) {
      values.put(n.output(i).unique(), carried.get(i));
    }
  }

  private void choose(JitNode n) {
    if (!(values.get(n.input(0).unique()) instanceof Boolean condition)) {
      throw new Call("prim::If", List.of()).unsupported("a condition that is computed");
    }
    Block chosen = n.blocks().at(condition ? 0 : 1);
    read(chosen.nodes());
    for (long i = 0; i < n.outputs().size(); i++) {
      values.put(n.output(i).unique(), values.get(chosen.outputs().at(i).unique()));
    }
  }

  /** A value of Java, a {@link Ref}, or {@link TorchScriptOperators#NONE}. */
  private Object constant(IValueOptional optional) {
    if (!optional.has_value() || optional.get().isNone()) {
      return TorchScriptOperators.NONE;
    }
    IValue v = optional.get();
    if (v.isTensor()) {
      return constant(v.toTensor(), "constant");
    } else if (v.isInt()) {
      return v.toInt();
    } else if (v.isDouble()) {
      return v.toDouble();
    } else if (v.isBool()) {
      return v.toBool();
    } else if (v.isString()) {
      return v.toStringRef().getString();
    } else if (v.isIntList()) {
      List<Object> list = new ArrayList<>();
      for (long i = 0; i < v.toListRef().size(); i++) {
        list.add(v.toListRef().get(i).toInt());
      }
      return list;
    }
    return v; // something that no entry of the table takes
  }

  private Ref constant(Tensor t, String otherwise) {
    String known = parameterNames.get(t.numel() == 0 ? 0 : t.data_ptr().address());
    String key = known == null ? null : known + Arrays.toString(t.shape()) + t.is_contiguous();
    Ref made = key == null ? null : constants.get(key);
    if (made != null) {
      return made;
    }
    Ref ref = new Ref(unique(known == null ? otherwise : known), (int) t.dim(), t);
    graph.addInitializer(proto(t, ref.name()));
    if (key != null) {
      constants.put(key, ref);
    }
    return ref;
  }

  private TensorProto proto(Tensor t, String as) {
    DataType type =
        switch (t.scalar_type().intern()) {
          case Float -> DataType.FLOAT;
          case Double -> DataType.DOUBLE;
          case Long -> DataType.INT64;
          case Int -> DataType.INT32;
          case Bool -> DataType.BOOL;
          default ->
              throw new InputException(
                  name + ": the constant " + as + " has elements of " + t.scalar_type().intern());
        };
    Tensor plain = t.detach().cpu().contiguous();
    byte[] bytes = new byte[Math.toIntExact(plain.nbytes())];
    if (bytes.length > 0) {
      new BytePointer(plain.data_ptr()).capacity(bytes.length).get(bytes);
    }
    TensorProto.Builder b = TensorProto.newBuilder().setName(as).setDataType(type.getNumber());
    LongStream.of(plain.shape()).forEach(b::addDims);
    return b.setRawData(ByteString.copyFrom(bytes)).build();
  }

  private String unique(String wanted) {
    String unique = wanted;
    for (int i = 1; !names.add(unique); i++) {
      unique = wanted + "_" + i;
    }
    return unique;
  }

  private static NodeProto node(
      String operator, List<String> inputs, String output, AttributeProto... attributes) {
    return NodeProto.newBuilder()
        .setOpType(operator)
        .setName(output)
        .addAllInput(inputs)
        .addOutput(output)
        .addAllAttribute(List.of(attributes))
        .build();
  }

  /** A call of the module while it is read. */
  final class Call {
    private final String kind;
    private final List<Object> arguments;

    Call(String kind, List<Object> arguments) {
      this.kind = kind;
      this.arguments = arguments;
    }

    int size() {
      return arguments.size();
    }

    Object argument(int i) {
      return arguments.get(i);
    }

    List<Object> arguments() {
      return arguments;
    }

    boolean has(int i) {
      return i < arguments.size() && arguments.get(i) != TorchScriptOperators.NONE;
    }

    List<?> list(int i) {
      if (arguments.get(i) instanceof List<?> list) {
        return list;
      }
      throw unsupported("an argument that is no list");
    }

    /** A tensor; a number becomes a constant of float32. */
    Ref tensor(int i) {
      return tensor(arguments.get(i));
    }

    Ref tensor(Object value) {
      if (value instanceof Ref ref) {
        return ref;
      }
      if (value instanceof Number number) {
        return real(number.doubleValue());
      }
      throw unsupported("an argument that is no tensor");
    }

    /** A constant of float32. */
    Ref real(double value) {
      return constant(torch.full(new long[0], new Scalar(value)).to(ScalarType.Float), "constant");
    }

    Ref constant(Tensor t, String otherwise) {
      return TorchScriptImport.this.constant(t, otherwise);
    }

    long integer(int i) {
      if (arguments.get(i) instanceof Long value) {
        return value;
      }
      throw unsupported("an integer that is computed");
    }

    double number(int i) {
      if (arguments.get(i) instanceof Number value) {
        return value.doubleValue();
      }
      throw unsupported("a number that is computed");
    }

    boolean flag(int i) {
      if (arguments.get(i) instanceof Boolean value) {
        return value;
      }
      throw unsupported("a flag that is computed");
    }

    long[] integers(int i) {
      if (arguments.get(i) instanceof Long value) {
        return new long[] {value};
      }
      if (arguments.get(i) instanceof List<?> list
          && list.stream().allMatch(Long.class::isInstance)) {
        return list.stream().mapToLong(v -> (Long) v).toArray();
      }
      throw unsupported("a list of other than known integers");
    }

    /** A list of integers, known or computed, as an int64 tensor of rank 1. */
    Ref sizes(int i) {
      List<String> parts = new ArrayList<>();
      for (Object value : list(i)) {
        parts.add(size(value).name());
      }
      return emitted("Concat", 1, parts, Attributes.attribute("axis", 0));
    }

    /** A constant of int64 and rank 1. */
    Ref longs(long... of) {
      return constant(AbstractTensor.create(of, new long[] {of.length}), "constant");
    }

    Ref emit(String operator, int rank, String... inputs) {
      return emitted(operator, rank, List.of(inputs));
    }

    Ref emitted(String operator, int rank, List<String> inputs, AttributeProto... attributes) {
      String output = unique(operator.toLowerCase(Locale.ROOT));
      graph.addNode(node(operator, inputs, output, attributes));
      return new Ref(output, rank, null);
    }

    /** A node of several outputs of one rank. */
    List<Ref> split(Ref x, int outputs, List<String> inputs, AttributeProto... attributes) {
      List<Ref> parts = new ArrayList<>();
      for (int i = 0; i < outputs; i++) {
        parts.add(new Ref(unique("split"), x.rank(), null));
      }
      graph.addNode(
          node("Split", inputs, parts.get(0).name(), attributes).toBuilder()
              .clearOutput()
              .addAllOutput(parts.stream().map(Ref::name).toList()));
      return parts;
    }

    /** An integer, known or computed, as an int64 tensor of rank 1. */
    Ref size(Object value) {
      if (value instanceof Size s) {
        return emit("Unsqueeze", 1, s.name(), longs(0).name());
      } else if (value instanceof Long known) {
        return longs(known);
      }
      throw unsupported("sizes that are no integers");
    }

    InputException unsupported(String what) {
      return new InputException(
          name + ": " + kind + " with " + what + " cannot be read as a graph");
    }
  }

  /** Batches of 2 and of 3: a graph with a size in it would fit only one. */
  private static void compare(
      Path file, TorchScriptModel model, OnnxModel made, List<Long> example) {
    try (OnnxGraph graph = new OnnxGraph(made)) {
      for (long batch = 2; batch <= 3; batch++) {
        long[] shape = new long[example.size() + 1];
        shape[0] = batch;
        long elements = batch;
        for (int i = 1; i < shape.length; i++) {
          shape[i] = example.get(i - 1);
          elements *= shape[i];
        }
        Tensor x =
            torch
                .arange(new Scalar(elements))
                .to(ScalarType.Float)
                .mul(new Scalar(0.7))
                .sin()
                .reshape(shape);
        Tensor expected =
            model.forward(Map.of(model.inputNames().get(0), x)).values().iterator().next();
        Tensor actual =
            graph.forward(Map.of(graph.inputNames().get(0), x)).values().iterator().next();
        boolean fits = Arrays.equals(expected.shape(), actual.shape());
        double difference =
            fits ? actual.sub(expected).abs().max().item_double() : Double.POSITIVE_INFINITY;
        double largest = Math.max(1, expected.abs().max().item_double());
        if (!(difference <= AGREEMENT * largest)) {
          throw new InputException(
              file
                  + " cannot be read as a graph: the graph gives something else than the module ("
                  + (fits
                      ? "a difference of " + difference
                      : "the shape " + Arrays.toString(actual.shape()))
                  + "); export the model to ONNX instead");
        }
      }
    }
  }
}

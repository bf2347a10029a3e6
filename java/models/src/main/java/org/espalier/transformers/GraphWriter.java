package org.espalier.transformers;

import ai.onnx.proto.OnnxMl.AttributeProto;
import ai.onnx.proto.OnnxMl.GraphProto;
import ai.onnx.proto.OnnxMl.ModelProto;
import ai.onnx.proto.OnnxMl.NodeProto;
import ai.onnx.proto.OnnxMl.OperatorSetIdProto;
import ai.onnx.proto.OnnxMl.TensorProto.DataType;
import ai.onnx.proto.OnnxMl.TensorShapeProto;
import ai.onnx.proto.OnnxMl.TypeProto;
import ai.onnx.proto.OnnxMl.ValueInfoProto;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.HashSet;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.function.Supplier;
import java.util.stream.Collectors;
import java.util.stream.IntStream;
import org.espalier.InputException;
import org.espalier.format.onnx.Attributes;
import org.espalier.format.onnx.OnnxInitializer;
import org.espalier.format.onnx.OnnxModel;

/**
 * A graph that is written node by node, in float32, with the tensors of a checkpoint under their own names. Methods that
 * write nodes return the value that these give; {@code path} says where in the model they stand, as {@code
 * encoder.layer.0.output.dense}, which is also how the checkpoint calls their tensors.
 */
final class GraphWriter {
  /** Operators of ONNX itself, with LayerNormalization. */
  private static final long OPSET = 17;

  /** The version of the format that goes with them. */
  private static final long IR_VERSION = 8;

  /** The domain of ONNX Runtime's own operators. */
  static final String RUNTIME = "com.microsoft";

  private final CheckpointTensors checkpoint;
  private final WeightLayout layout;
  private final GraphProto.Builder graph = GraphProto.newBuilder().setName("main_graph");
  private final Map<String, OnnxInitializer> tensors = new LinkedHashMap<>();
  private final Map<String, String> written = new LinkedHashMap<>();
  private final List<String> told = new ArrayList<>();
  private final Set<Path> files = new HashSet<>();
  private boolean usesRuntime;

  /**
   * @param layout of the weights of linear layers
   */
  GraphWriter(CheckpointTensors checkpoint, WeightLayout layout) {
    this.checkpoint = checkpoint;
    this.layout = layout;
    files.addAll(checkpoint.files());
  }

  /**
   * What the names of a model's tensors begin with where it lies in one that has a head.
   *
   * @param prefix how such begin
   * @param known what such a tensor is called behind it
   * @return {@code prefix}, or nothing where the checkpoint is of the model alone
   */
  String base(String prefix, String known) {
    return checkpoint.has(prefix + known) ? prefix : "";
  }

  /** Has people told what a graph has that neither the configuration nor the checkpoint says. */
  void tell(String note) {
    told.add(note);
  }

  /** What people are told. */
  List<String> told() {
    return told;
  }

  boolean has(String tensor) {
    return checkpoint.has(tensor);
  }

  /** A tensor of the checkpoint that the graph does without. */
  void ignore(String name) {
    checkpoint.ignore(name);
  }

  /** An input of int64 [batch, tokens]. */
  String input(String name, String tokens) {
    graph.addInput(value(name, DataType.INT64, "batch_size", tokens));
    return name;
  }

  /**
   * An input of floats.
   *
   * @param dims numbers, or names of lengths that are not known
   */
  String floatInput(String name, Object... dims) {
    graph.addInput(value(name, DataType.FLOAT, dims));
    return name;
  }

  /** Has the last node, which makes {@code from}, give it out under another name. */
  void output(String name, String from, Object... dims) {
    NodeProto.Builder last = graph.getNodeBuilder(graph.getNodeCount() - 1);
    if (!last.getOutputList().equals(List.of(from))) {
      throw new IllegalStateException(from + " is not what the last node makes");
    }
    last.setOutput(0, name);
    declareOutput(name, dims);
  }

  /** Gives out a value that a node has made under this name. */
  void declareOutput(String name, Object... dims) {
    graph.addOutput(value(name, DataType.FLOAT, dims));
  }

  /**
   * Takes an output back, so that more is computed of its value.
   *
   * @return how long its last axis is, or -1 where there is no such output, or its last length is not known
   */
  long takeOutput(String name) {
    for (int i = 0; i < graph.getOutputCount(); i++) {
      if (graph.getOutput(i).getName().equals(name)) {
        TensorShapeProto shape = graph.getOutput(i).getType().getTensorType().getShape();
        TensorShapeProto.Dimension last = shape.getDim(shape.getDimCount() - 1);
        if (last.hasDimValue()) {
          graph.removeOutput(i);
          return last.getDimValue();
        }
      }
    }
    return -1;
  }

  /** Whether the graph takes an input of this name. */
  boolean hasInput(String name) {
    return graph.getInputList().stream().anyMatch(input -> input.getName().equals(name));
  }

  private static ValueInfoProto value(String name, DataType type, Object... dims) {
    TypeProto.Tensor.Builder tensor = TypeProto.Tensor.newBuilder().setElemType(type.getNumber());
    for (Object dim : dims) {
      if (dim instanceof Long length) {
        tensor.getShapeBuilder().addDimBuilder().setDimValue(length);
      } else {
        tensor.getShapeBuilder().addDimBuilder().setDimParam((String) dim);
      }
    }
    return ValueInfoProto.newBuilder()
        .setName(name)
        .setType(TypeProto.newBuilder().setTensorType(tensor))
        .build();
  }

  /** A node of ONNX itself with one output. */
  String node(String op, String path, List<String> inputs, AttributeProto... attributes) {
    return named(op, path + "/" + op, inputs, attributes);
  }

  /** A node of ONNX itself whose one output, and so itself, is called so. */
  String named(String op, String output, List<String> inputs, AttributeProto... attributes) {
    graph.addNode(node(op, output, inputs, List.of(output), attributes));
    return output;
  }

  /** A node of ONNX Runtime's own. */
  void runtimeNode(
      String op,
      String path,
      List<String> inputs,
      List<String> outputs,
      AttributeProto... attributes) {
    usesRuntime = true;
    graph.addNode(node(op, path + "/" + op, inputs, outputs, attributes).setDomain(RUNTIME));
  }

  private static NodeProto.Builder node(
      String op,
      String name,
      List<String> inputs,
      List<String> outputs,
      AttributeProto... attributes) {
    return NodeProto.newBuilder()
        .setOpType(op)
        .setName(name)
        .addAllInput(inputs)
        .addAllOutput(outputs)
        .addAllAttribute(Arrays.asList(attributes));
  }

  /**
   * A tensor of the checkpoint as float32.
   *
   * @param dims what its shape must be
   * @throws InputException if there is none, or it has another shape or is not of floats
   */
  String weight(String name, long... dims) {
    return asFloat32(checkpoint.floats(name, dims));
  }

  /**
   * A tensor of the checkpoint, for what is computed with it once and for all.
   *
   * @throws InputException as for {@link #weight}
   */
  OnnxInitializer floats(String name, long... dims) {
    return checkpoint.floats(name, dims);
  }

  /** A constant of floats as float32. */
  String asFloat32(OnnxInitializer floats) {
    String name = constant(floats);
    return floats.type() == DataType.FLOAT
        ? name
        : once(
            name + "/Cast",
            () ->
                node(
                    "Cast", name, List.of(name), Attributes.attribute("to", DataType.FLOAT_VALUE)));
  }

  /** Tensors of another checkpoint that the graph has too lie in these files. */
  void addFiles(Set<Path> more) {
    files.addAll(more);
  }

  /** What is written at most once. */
  String once(String key, Supplier<String> write) {
    String known = written.get(key);
    if (known == null) {
      known = write.get();
      written.put(key, known);
    }
    return known;
  }

  /** A value cut into parts of one length along its last axis. */
  List<String> parts(String x, String path, int count) {
    return nodes("Split", path, count, List.of(x), Attributes.attribute("axis", -1L));
  }

  /**
   * A node of ONNX itself with several outputs.
   *
   * @param count how many
   */
  List<String> nodes(
      String op, String path, int count, List<String> inputs, AttributeProto... attributes) {
    String name = path + "/" + op;
    List<String> outputs = IntStream.range(0, count).mapToObj(i -> name + "/" + i).toList();
    graph.addNode(node(op, name, inputs, outputs, attributes));
    return outputs;
  }

  /** The lengths of a value's axes. */
  String shape(String x) {
    return once(x + "/Shape", () -> node("Shape", x, List.of(x)));
  }

  /** How long an axis of a value is: a whole number. */
  String length(String x, long axis) {
    String path = x + "/length" + axis;
    return once(path, () -> node("Gather", path, List.of(shape(x), whole(axis))));
  }

  /** A constant of whole numbers in one dimension. */
  String wholes(long... values) {
    return constant(
        OnnxInitializer.int64s(
            "integers/"
                + Arrays.stream(values).mapToObj(Long::toString).collect(Collectors.joining("_")),
            new long[] {values.length},
            values));
  }

  /** A whole number. */
  String whole(long value) {
    return constant(OnnxInitializer.int64s("integer/" + value, new long[0], value));
  }

  /** A number. */
  String number(float value) {
    return constant(OnnxInitializer.floats("number/" + value, new long[0], value));
  }

  /** A constant; one of this name may be there already. */
  String constant(OnnxInitializer constant) {
    tensors.putIfAbsent(constant.name(), constant);
    return constant.name();
  }

  /**
   * x·Wᵀ + b, with W as {@code torch.nn.Linear} has it, [out, in].
   *
   * @param bias whether there is a b
   */
  String linear(String x, String path, long in, long out, boolean bias) {
    return linear(x, path, path, in, out, bias);
  }

  /**
   * The same.
   *
   * @param place where the nodes stand, of a layer that several values pass
   */
  String linear(String x, String path, String place, long in, long out, boolean bias) {
    String product = linearProduct(x, path, place, in, out);
    return bias ? node("Add", place, List.of(product, weight(path + ".bias", out))) : product;
  }

  private String linearProduct(String x, String path, String place, long in, long out) {
    if (WordsLinear.isOne(checkpoint, path)) {
      return new WordsLinear(this, checkpoint, layout, path, in, out).product(x, place);
    }
    if (QuantizedLinear.isOne(checkpoint, path)) {
      return new QuantizedLinear(this, checkpoint, path, in, out).product(x, place);
    }
    if (Float8Linear.isOne(checkpoint, path)) {
      return new Float8Linear(this, checkpoint, layout, path, in, out).product(x, place);
    }
    return product(x, place, weight(path + ".weight", out, in));
  }

  /**
   * x·W + b, with W as GPT-2's {@code Conv1D} has it, [in, out].
   *
   * @throws InputException if the weight is integers, other than in words, which have the inputs of any layer in rows
   */
  String turnedLinear(String x, String path, long in, long out) {
    if (WordsLinear.isOne(checkpoint, path)) {
      return linear(x, path, in, out, true);
    }
    if (QuantizedLinear.isOne(checkpoint, path)) {
      throw new InputException(
          checkpoint.place()
              + ": "
              + path
              + " is integers, of which no row is an output in a model of this model_type");
    }
    String product = node("MatMul", path, List.of(x, weight(path + ".weight", in, out)));
    return node("Add", path, List.of(product, weight(path + ".bias", out)));
  }

  /** x·Wᵀ of a table [out, in] that may be looked up in too. */
  String product(String x, String path, String table) {
    String turned =
        once(
            table + "/Transpose",
            () ->
                node(
                    "Transpose",
                    table,
                    List.of(table),
                    Attributes.attribute("perm", new long[] {1, 0})));
    return node("MatMul", path, List.of(x, turned));
  }

  /** (x − mean) / √(variance + ε) · w + b over the last axis, as {@code torch.nn.LayerNorm}. */
  String layerNorm(String x, String path, long width, double epsilon) {
    return layerNorm(x, path, width, epsilon, true);
  }

  /**
   * The same.
   *
   * @param bias whether there is a b
   */
  String layerNorm(String x, String path, long width, double epsilon, boolean bias) {
    boolean old =
        !checkpoint.has(path + ".weight")
            && checkpoint.has(path + ".gamma"); // as TensorFlow has them
    List<String> inputs = new ArrayList<>();
    inputs.add(x);
    inputs.add(weight(path + (old ? ".gamma" : ".weight"), width));
    if (bias) {
      inputs.add(weight(path + (old ? ".beta" : ".bias"), width));
    }
    return node(
        "LayerNormalization",
        path,
        inputs,
        Attributes.attribute("axis", -1L),
        Attributes.attribute("epsilon", epsilon));
  }

  /**
   * x / √(mean of squares + ε) · w over the last axis.
   *
   * @param scale w
   */
  String rootMeanSquareNorm(String x, String path, String scale, double epsilon) {
    return node(
        "SimplifiedLayerNormalization",
        path,
        List.of(x, scale),
        Attributes.attribute("axis", -1L),
        Attributes.attribute("epsilon", epsilon),
        Attributes.attribute("stash_type", 1L));
  }

  /**
   * An activation by the name that configurations give it.
   *
   * @param name one of {@link #ACTIVATIONS}
   */
  String activation(String name, String x, String path) {
    return switch (name) {
      case "relu" -> node("Relu", path, List.of(x));
      case "silu", "swish" ->
          node("Mul", path + "/act", List.of(x, node("Sigmoid", path, List.of(x))));
      case "quick_gelu" -> {
        String scaled = node("Mul", path + "/scaled", List.of(x, number(1.702f)));
        yield node("Mul", path + "/act", List.of(x, node("Sigmoid", path, List.of(scaled))));
      }
      case "gelu" -> {
        String scaled = node("Div", path, List.of(x, number((float) Math.sqrt(2))));
        String one =
            node("Add", path + "/erf", List.of(node("Erf", path, List.of(scaled)), number(1)));
        String all = node("Mul", path + "/erf", List.of(x, one));
        yield node("Mul", path + "/act", List.of(all, number(0.5f)));
      }
      case "gelu_new", "gelu_pytorch_tanh" -> {
        // 0.5 · x · (1 + tanh(√(2/π) · (x + 0.044715 · x³)))
        String cube = node("Pow", path, List.of(x, number(3)));
        String part = node("Mul", path + "/cube", List.of(cube, number(0.044715f)));
        String sum = node("Add", path + "/cube", List.of(x, part));
        String angle =
            node("Mul", path + "/tanh", List.of(sum, number((float) Math.sqrt(2 / Math.PI))));
        String one =
            node("Add", path + "/tanh", List.of(node("Tanh", path, List.of(angle)), number(1)));
        String half = node("Mul", path + "/half", List.of(x, number(0.5f)));
        yield node("Mul", path + "/act", List.of(half, one));
      }
      default -> throw new IllegalArgumentException(name);
    };
  }

  /** The names of activations that are known. */
  static final List<String> ACTIVATIONS =
      List.of("gelu", "gelu_new", "gelu_pytorch_tanh", "quick_gelu", "relu", "silu", "swish");

  /** The model that was written. */
  OnnxModel model() {
    ModelProto.Builder model =
        ModelProto.newBuilder()
            .setIrVersion(IR_VERSION)
            .setProducerName("espalier")
            .addOpsetImport(OperatorSetIdProto.newBuilder().setVersion(OPSET))
            .setGraph(graph);
    if (usesRuntime) {
      model.addOpsetImport(OperatorSetIdProto.newBuilder().setDomain(RUNTIME).setVersion(1));
    }
    List<OnnxInitializer> all = new ArrayList<>(tensors.values());
    return OnnxModel.of(model.build(), checkpoint.place(), all, files);
  }
}

package org.espalier.torch.script;

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
import java.util.ArrayList;
import java.util.Arrays;
import java.util.HashMap;
import java.util.HashSet;
import java.util.List;
import java.util.Locale;
import java.util.Map;
import java.util.Set;
import java.util.stream.LongStream;
import org.bytedeco.javacpp.BytePointer;
import org.bytedeco.pytorch.JitModule;
import org.bytedeco.pytorch.Tensor;
import org.bytedeco.pytorch.named_buffer_list;
import org.bytedeco.pytorch.named_parameter_list;
import org.espalier.InputException;
import org.espalier.format.onnx.OnnxModel;

/** The ONNX graph that a TorchScript module becomes while it is read: nodes, constants and their names. */
final class ScriptGraph {
  private static final int OPSET = 17;

  /**
   * A tensor of the graph.
   *
   * @param rank -1 where it is not known
   * @param constant its value where it is constant; else null
   */
  record Ref(String name, int rank, Tensor constant) {}

  /** An integer that the graph computes, an int64 tensor of rank 0. */
  record Size(String name) {}

  private final String name;
  private final GraphProto.Builder graph = GraphProto.newBuilder().setName("torchscript");

  /** The names of the module's parameters and buffers, by the address of their data. */
  private final Map<Long, String> parameterNames = new HashMap<>();

  private final Set<String> names = new HashSet<>();
  private final Map<String, Ref> constants = new HashMap<>();

  /**
   * A graph without nodes.
   *
   * @param name what messages call the module
   */
  ScriptGraph(String name, JitModule module) {
    this.name = name;
    named_parameter_list parameters = module.named_parameters();
    var p = parameters.begin();
    for (long i = 0; i < parameters.size(); i++, p.increment()) {
      parameterNames.put(address(p.multiply().value()), p.multiply().name().getString());
    }
    named_buffer_list buffers = module.named_buffers();
    var b = buffers.begin();
    for (long i = 0; i < buffers.size(); i++, b.increment()) {
      parameterNames.put(address(b.multiply().value()), b.multiply().name().getString());
    }
  }

  /** Where a tensor's elements are; 0 where it has none. */
  private static long address(Tensor t) {
    return t.numel() == 0 ? 0 : t.data_ptr().address();
  }

  /** What messages call the module. */
  String name() {
    return name;
  }

  /**
   * Adds the input.
   *
   * @param example the shape of an example, without the batch
   */
  Ref input(String wanted, List<Long> example) {
    String input = unique(wanted);
    TypeProto.Builder type = TypeProto.newBuilder();
    type.getTensorTypeBuilder().setElemType(DataType.FLOAT.getNumber()).getShapeBuilder();
    type.getTensorTypeBuilder().getShapeBuilder().addDimBuilder().setDimParam("n");
    example.forEach(
        size -> type.getTensorTypeBuilder().getShapeBuilder().addDimBuilder().setDimValue(size));
    graph.addInput(ValueInfoProto.newBuilder().setName(input).setType(type));
    return new Ref(input, example.size() + 1, null);
  }

  /**
   * A constant; parameters keep their names, and are there once.
   *
   * @param otherwise the name of what is no parameter
   */
  Ref constant(Tensor t, String otherwise) {
    String known = parameterNames.get(address(t));
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

  /**
   * Adds a node of one output.
   *
   * @param rank of the output; -1 where it is not known
   */
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

  /** The graph with an output, as a model. */
  OnnxModel toModel(Ref output) {
    String name = unique("output");
    graph.addNode(node("Identity", List.of(output.name()), name));
    TypeProto.Builder floats = TypeProto.newBuilder();
    floats.getTensorTypeBuilder().setElemType(DataType.FLOAT.getNumber());
    graph.addOutput(ValueInfoProto.newBuilder().setName(name).setType(floats));
    return OnnxModel.of(
        ModelProto.newBuilder()
            .setIrVersion(8)
            .setProducerName("espalier")
            .addOpsetImport(OperatorSetIdProto.newBuilder().setVersion(OPSET))
            .setGraph(graph)
            .build(),
        this.name);
  }
}

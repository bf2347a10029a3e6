package org.espalier.online.model;

import ai.onnx.proto.OnnxMl.GraphProto;
import ai.onnx.proto.OnnxMl.ModelProto;
import ai.onnx.proto.OnnxMl.NodeProto;
import ai.onnx.proto.OnnxMl.OperatorSetIdProto;
import ai.onnx.proto.OnnxMl.TensorProto;
import ai.onnx.proto.OnnxMl.TensorProto.DataType;
import ai.onnx.proto.OnnxMl.TensorShapeProto;
import ai.onnx.proto.OnnxMl.TypeProto;
import ai.onnx.proto.OnnxMl.ValueInfoProto;
import java.util.List;
import java.util.Random;
import org.espalier.format.onnx.OnnxModel;

/** Small ONNX models for learning. */
public final class OnnxModels {
  private OnnxModels() {}

  /** x [batch, in] → MatMul, Add, Tanh, MatMul, Add → y [batch, out]. */
  public static OnnxModel perceptron(int in, int hidden, int out) {
    Random random = new Random(1);
    GraphProto.Builder graph =
        GraphProto.newBuilder()
            .setName("perceptron")
            .addInput(value("x", in))
            .addOutput(value("y", out))
            .addInitializer(weight("first.weight", random, in, hidden))
            .addInitializer(weight("first.bias", random, hidden))
            .addInitializer(weight("second.weight", random, hidden, out))
            .addInitializer(weight("second.bias", random, out))
            .addNode(node("MatMul", "a", "x", "first.weight"))
            .addNode(node("Add", "b", "a", "first.bias"))
            .addNode(node("Tanh", "c", "b"))
            .addNode(node("MatMul", "d", "c", "second.weight"))
            .addNode(node("Add", "y", "d", "second.bias"));
    return OnnxModel.of(
        ModelProto.newBuilder()
            .setIrVersion(8)
            .addOpsetImport(OperatorSetIdProto.newBuilder().setVersion(17))
            .setGraph(graph)
            .build(),
        "perceptron");
  }

  /** The perceptron, for which a missing value, NaN, is the number of its column in {@code means}. */
  public static OnnxModel imputing(int in, int hidden, int out) {
    ModelProto.Builder model = perceptron(in, hidden, out).toProto().toBuilder();
    GraphProto.Builder graph = model.getGraphBuilder();
    NodeProto first = graph.getNode(0).toBuilder().setInput(0, "imputed").build();
    graph
        .setNode(0, first)
        .addInitializer(weight("means", new Random(2), in))
        .addNode(0, node("Where", "imputed", "missing", "means", "x"))
        .addNode(0, node("IsNaN", "missing", "x"));
    return OnnxModel.of(model.build(), "imputing perceptron");
  }

  private static NodeProto node(String type, String output, String... inputs) {
    return NodeProto.newBuilder()
        .setOpType(type)
        .addAllInput(List.of(inputs))
        .addOutput(output)
        .build();
  }

  private static ValueInfoProto value(String name, int width) {
    TensorShapeProto.Builder shape = TensorShapeProto.newBuilder();
    shape.addDimBuilder().setDimParam("batch");
    shape.addDimBuilder().setDimValue(width);
    return ValueInfoProto.newBuilder()
        .setName(name)
        .setType(
            TypeProto.newBuilder()
                .setTensorType(
                    TypeProto.Tensor.newBuilder()
                        .setElemType(DataType.FLOAT_VALUE)
                        .setShape(shape)))
        .build();
  }

  private static TensorProto weight(String name, Random random, int... dims) {
    TensorProto.Builder tensor =
        TensorProto.newBuilder().setName(name).setDataType(DataType.FLOAT_VALUE);
    int n = 1;
    for (int d : dims) {
      tensor.addDims(d);
      n *= d;
    }
    for (int i = 0; i < n; i++) {
      tensor.addFloatData((float) (random.nextGaussian() / Math.sqrt(dims[0])));
    }
    return tensor.build();
  }
}

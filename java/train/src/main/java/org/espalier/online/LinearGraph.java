package org.espalier.online;

import ai.onnx.proto.OnnxMl.AttributeProto;
import ai.onnx.proto.OnnxMl.GraphProto;
import ai.onnx.proto.OnnxMl.ModelProto;
import ai.onnx.proto.OnnxMl.NodeProto;
import ai.onnx.proto.OnnxMl.OperatorSetIdProto;
import ai.onnx.proto.OnnxMl.TensorProto;
import ai.onnx.proto.OnnxMl.TensorProto.DataType;
import ai.onnx.proto.OnnxMl.TensorShapeProto;
import ai.onnx.proto.OnnxMl.TypeProto;
import ai.onnx.proto.OnnxMl.ValueInfoProto;
import org.espalier.format.onnx.OnnxModel;

/** A linear model as an ONNX graph, for any runtime. */
final class LinearGraph {
  private static final int OPERATOR_SET = 13;
  private static final int IR_VERSION = 7;

  private LinearGraph() {}

  /**
   * {@code features} [batch, features] → Gemm → {@code outputs} [batch, outputs]; where the loss is for
   * classes also {@code probabilities}, by Softmax, or by Sigmoid of the one output of a binary loss.
   *
   * @param weight [outputs, features], row by row
   */
  static OnnxModel of(float[] weight, float[] bias, Loss loss) {
    int features = weight.length / bias.length;
    GraphProto.Builder graph =
        GraphProto.newBuilder()
            .setName("linear")
            .addInput(value("features", features))
            .addOutput(value("outputs", bias.length))
            .addNode(
                NodeProto.newBuilder()
                    .setOpType("Gemm")
                    .addInput("features")
                    .addInput("weight")
                    .addInput("bias")
                    .addOutput("outputs")
                    .addAttribute(integer("transB", 1)));
    if (loss.isForClasses()) {
      NodeProto.Builder node =
          NodeProto.newBuilder().addInput("outputs").addOutput("probabilities");
      if (loss instanceof Loss.Binary) {
        node.setOpType("Sigmoid");
      } else {
        node.setOpType("Softmax").addAttribute(integer("axis", -1));
      }
      graph.addNode(node).addOutput(value("probabilities", bias.length));
    }
    graph.addInitializer(tensor("weight", weight, bias.length, features));
    graph.addInitializer(tensor("bias", bias, bias.length));
    return OnnxModel.of(
        ModelProto.newBuilder()
            .setIrVersion(IR_VERSION)
            .setProducerName("espalier")
            .addOpsetImport(OperatorSetIdProto.newBuilder().setVersion(OPERATOR_SET))
            .setGraph(graph)
            .build(),
        "linear");
  }

  private static TensorProto tensor(String name, float[] values, long... dims) {
    TensorProto.Builder tensor =
        TensorProto.newBuilder().setName(name).setDataType(DataType.FLOAT.getNumber());
    for (long d : dims) {
      tensor.addDims(d);
    }
    for (float v : values) {
      tensor.addFloatData(v);
    }
    return tensor.build();
  }

  private static AttributeProto integer(String name, long value) {
    return AttributeProto.newBuilder()
        .setName(name)
        .setType(AttributeProto.AttributeType.INT)
        .setI(value)
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
                        .setElemType(DataType.FLOAT.getNumber())
                        .setShape(shape)))
        .build();
  }
}

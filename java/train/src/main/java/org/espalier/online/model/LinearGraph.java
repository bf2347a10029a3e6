package org.espalier.online.model;

import static org.espalier.format.onnx.Attributes.attribute;

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
import org.espalier.online.Loss;
import org.espalier.op.Activation;

/** Layers one after the other as an ONNX graph, for any runtime. */
final class LinearGraph {
  private static final int OPERATOR_SET = 13;
  private static final int IR_VERSION = 7;

  /** The name of the graph's input. */
  static final String INPUT = "features";

  private final GraphProto.Builder graph;

  /** What the last layer gives. */
  private String value = INPUT;

  /**
   * @param name of the graph
   * @param features how many an example has
   */
  LinearGraph(String name, int features) {
    graph = GraphProto.newBuilder().setName(name).addInput(value(INPUT, features));
  }

  /**
   * {@code features} [batch, features] → Gemm → {@code outputs} [batch, outputs]; where the loss is for
   * classes also {@code probabilities}, by Softmax, or by Sigmoid of the one output of a binary loss.
   *
   * @param weight [outputs, features], row by row
   */
  static OnnxModel of(float[] weight, float[] bias, Loss loss) {
    LinearGraph graph = new LinearGraph("linear", weight.length / bias.length);
    graph.layer("weight", weight, "bias", bias, "outputs");
    return graph.model(bias.length, loss);
  }

  /**
   * Adds a layer.
   *
   * @param weight [outputs, features], row by row
   * @param output what it gives
   */
  void layer(String weightName, float[] weight, String biasName, float[] bias, String output) {
    graph
        .addNode(
            NodeProto.newBuilder()
                .setOpType("Gemm")
                .addInput(value)
                .addInput(weightName)
                .addInput(biasName)
                .addOutput(output)
                .addAttribute(attribute("transB", 1)))
        .addInitializer(tensor(weightName, weight, bias.length, weight.length / bias.length))
        .addInitializer(tensor(biasName, bias, bias.length));
    value = output;
  }

  /** Adds the activation behind a layer. */
  void activation(Activation activation, String output) {
    NodeProto.Builder node = NodeProto.newBuilder().addInput(value).addOutput(output);
    switch (activation.kind()) {
      case RELU -> node.setOpType("Relu");
      case SIGMOID -> node.setOpType("Sigmoid");
      case TANH -> node.setOpType("Tanh");
      case LEAKY_RELU ->
          node.setOpType("LeakyRelu").addAttribute(attribute("alpha", activation.alpha()));
    }
    graph.addNode(node);
    value = output;
  }

  /** The model, whose last layer gives {@code outputs}; with probabilities where the loss is for classes. */
  OnnxModel model(int outputs, Loss loss) {
    graph.addOutput(value("outputs", outputs));
    if (loss.isForClasses()) {
      NodeProto.Builder node =
          NodeProto.newBuilder().addInput("outputs").addOutput("probabilities");
      if (loss instanceof Loss.Binary) {
        node.setOpType("Sigmoid");
      } else {
        node.setOpType("Softmax").addAttribute(attribute("axis", -1));
      }
      graph.addNode(node).addOutput(value("probabilities", outputs));
    }
    return OnnxModel.of(
        ModelProto.newBuilder()
            .setIrVersion(IR_VERSION)
            .setProducerName("espalier")
            .addOpsetImport(OperatorSetIdProto.newBuilder().setVersion(OPERATOR_SET))
            .setGraph(graph)
            .build(),
        graph.getName());
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

package org.espalier.format.onnx;

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
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.FloatBuffer;
import java.util.ArrayList;
import java.util.List;
import java.util.Random;

/** Models that are small enough to be made in a test and real enough to run. */
public final class SmallModels {
  private SmallModels() {}

  /** x [n, 8] times w [8, 6], plus b, Relu, then Gemm with w2 [4, 6] transposed: y [n, 4]. */
  public static ModelProto mlp() {
    Random random = new Random(1);
    return model(
        13,
        GraphProto.newBuilder()
            .setName("mlp")
            .addInput(value("x", DataType.FLOAT, -1, 8))
            .addInitializer(floats("w", random, 1, 8, 6))
            .addInitializer(floats("b", random, 1, 6))
            .addInitializer(floats("w2", random, 1, 4, 6))
            .addInitializer(floats("b2", random, 1, 4))
            .addNode(node("MatMul", "/layer/MatMul", List.of("x", "w"), "h"))
            .addNode(node("Add", "/layer/Add", List.of("h", "b"), "a"))
            .addNode(node("Relu", "/Relu", List.of("a"), "r"))
            .addNode(
                node("Gemm", "/head/Gemm", List.of("r", "w2", "b2"), "y", attribute("transB", 1)))
            .addOutput(value("y", DataType.FLOAT, -1, 4)));
  }

  /**
   * A model whose first input is of another element type.
   *
   * @param type its number, which need not be one that ONNX has
   */
  public static ModelProto withInputType(ModelProto model, int type) {
    ModelProto.Builder changed = model.toBuilder();
    changed
        .getGraphBuilder()
        .getInputBuilder(0)
        .getTypeBuilder()
        .getTensorTypeBuilder()
        .setElemType(type);
    return changed.build();
  }

  /** x [n, width] → MatMul + Add → Relu → MatMul + Add → [n, outputs]. */
  public static ModelProto perceptron(
      Random random, int width, int hidden, int outputs, String output) {
    return model(
        14,
        GraphProto.newBuilder()
            .setName("perceptron")
            .addInput(value("x", DataType.FLOAT, -1, width))
            .addInitializer(floats("w1", random, 0.3f, width, hidden))
            .addInitializer(floats("b1", random, 0.1f, hidden))
            .addInitializer(floats("w2", random, 0.3f, hidden, outputs))
            .addInitializer(floats("b2", random, 0.1f, outputs))
            .addNode(node("MatMul", "m1", List.of("x", "w1"), "p1"))
            .addNode(node("Add", "a1", List.of("p1", "b1"), "h1"))
            .addNode(node("Relu", "r1", List.of("h1"), "h"))
            .addNode(node("MatMul", "m2", List.of("h", "w2"), "p2"))
            .addNode(node("Add", "a2", List.of("p2", "b2"), output))
            .addOutput(value(output, DataType.FLOAT, -1, outputs)));
  }

  /** x [n, 3, 16, 16] through two Convs with bias (the second depthwise) and a Gemm: y [n, 10]. */
  public static ModelProto cnn() {
    Random random = new Random(2);
    return model(
        13,
        GraphProto.newBuilder()
            .setName("cnn")
            .addInput(value("x", DataType.FLOAT, -1, 3, 16, 16))
            .addInitializer(floats("conv1.weight", random, 0.3f, 16, 3, 3, 3))
            .addInitializer(floats("conv1.bias", random, 0.3f, 16))
            .addInitializer(floats("conv2.weight", random, 0.5f, 16, 1, 3, 3))
            .addInitializer(floats("conv3.weight", random, 0.3f, 32, 16, 1, 1))
            .addInitializer(floats("conv3.bias", random, 0.3f, 32))
            .addInitializer(floats("fc.weight", random, 0.3f, 10, 32))
            .addInitializer(floats("fc.bias", random, 0.3f, 10))
            .addNode(
                node(
                    "Conv",
                    "/conv1/Conv",
                    List.of("x", "conv1.weight", "conv1.bias"),
                    "c1",
                    attribute("pads", 1, 1, 1, 1),
                    attribute("strides", 2, 2)))
            .addNode(node("Relu", "/relu1/Relu", List.of("c1"), "r1"))
            .addNode(
                node(
                    "Conv",
                    "/conv2/Conv",
                    List.of("r1", "conv2.weight"),
                    "c2",
                    attribute("group", 16),
                    attribute("pads", 1, 1, 1, 1)))
            .addNode(node("Conv", "/conv3/Conv", List.of("c2", "conv3.weight", "conv3.bias"), "c3"))
            .addNode(node("Relu", "/relu3/Relu", List.of("c3"), "r3"))
            .addNode(node("GlobalAveragePool", "/pool", List.of("r3"), "p"))
            .addNode(node("Flatten", "/flatten", List.of("p"), "f", attribute("axis", 1)))
            .addNode(
                node(
                    "Gemm",
                    "/fc/Gemm",
                    List.of("f", "fc.weight", "fc.bias"),
                    "y",
                    attribute("transB", 1)))
            .addOutput(value("y", DataType.FLOAT, -1, 10)));
  }

  /**
   * x [n, 3, 8] through Conv and a grouped ConvTranspose to [n, 4, 8], which LSTM (both directions),
   * GRU and RNN read as 8 steps, and a Gemm: y [n, 4].
   */
  public static ModelProto recurrent() {
    Random random = new Random(3);
    return model(
        14,
        GraphProto.newBuilder()
            .setName("recurrent")
            .addInput(value("x", DataType.FLOAT, -1, 3, 8))
            .addInitializer(floats("down.weight", random, 0.5f, 8, 3, 3))
            .addInitializer(floats("up.weight", random, 0.5f, 8, 2, 2))
            .addInitializer(floats("up.bias", random, 0.5f, 4))
            .addInitializer(floats("lstm.W", random, 0.5f, 2, 24, 4))
            .addInitializer(floats("lstm.R", random, 0.5f, 2, 24, 6))
            .addInitializer(floats("lstm.B", random, 0.5f, 2, 48))
            .addInitializer(floats("gru.W", random, 0.5f, 1, 24, 6))
            .addInitializer(floats("gru.R", random, 0.5f, 1, 24, 8))
            .addInitializer(floats("onnx::RNN_9", random, 0.5f, 1, 6, 8))
            .addInitializer(floats("onnx::RNN_10", random, 0.5f, 1, 6, 6))
            .addInitializer(floats("fc.weight", random, 0.5f, 6, 4))
            .addInitializer(OnnxInitializer.int64s("axis", new long[] {1}, 0).message())
            .addNode(
                node(
                    "Conv",
                    "/down/Conv",
                    List.of("x", "down.weight"),
                    "d",
                    list("strides", 2),
                    list("pads", 1, 1)))
            .addNode(node("Relu", "/Relu", List.of("d"), "r"))
            .addNode(
                node(
                    "ConvTranspose",
                    "/up/ConvTranspose",
                    List.of("r", "up.weight", "up.bias"),
                    "u",
                    list("strides", 2),
                    attribute("group", 2)))
            .addNode(node("Transpose", "", List.of("u"), "t", attribute("perm", 2, 0, 1)))
            .addNode(
                node(
                        "LSTM",
                        "/lstm/LSTM",
                        List.of("t", "lstm.W", "lstm.R", "lstm.B"),
                        "",
                        attribute("hidden_size", 6),
                        text("direction", "bidirectional"))
                    .toBuilder()
                    .addOutput("l")
                    .build())
            .addNode(
                node(
                        "GRU",
                        "/gru/GRU",
                        List.of("l", "gru.W", "gru.R"),
                        "",
                        attribute("hidden_size", 8))
                    .toBuilder()
                    .addOutput("g")
                    .build())
            .addNode(
                node(
                        "RNN",
                        "/rnn/RNN",
                        List.of("g", "onnx::RNN_9", "onnx::RNN_10"),
                        "",
                        attribute("hidden_size", 6))
                    .toBuilder()
                    .addOutput("h")
                    .build())
            .addNode(node("Squeeze", "", List.of("h", "axis"), "s"))
            .addNode(node("Gemm", "/fc/Gemm", List.of("s", "fc.weight"), "y"))
            .addOutput(value("y", DataType.FLOAT, -1, 4)));
  }

  /** A model of a graph, in the version of the format that knows {@code opset}. */
  public static ModelProto model(long opset, GraphProto.Builder graph) {
    return ModelProto.newBuilder()
        .setIrVersion(7)
        .setProducerName("test")
        .addOpsetImport(OperatorSetIdProto.newBuilder().setVersion(opset))
        .setGraph(graph)
        .build();
  }

  public static NodeProto node(
      String op, String name, List<String> inputs, String output, AttributeProto... attributes) {
    return NodeProto.newBuilder()
        .setOpType(op)
        .setName(name)
        .addAllInput(inputs)
        .addOutput(output)
        .addAllAttribute(List.of(attributes))
        .build();
  }

  /** A list of int64. */
  public static TensorProto int64s(String name, long... values) {
    return OnnxInitializer.int64s(name, new long[] {values.length}, values).message();
  }

  /** An INT attribute of one value, an INTS attribute of several. */
  public static AttributeProto attribute(String name, long... values) {
    if (values.length != 1) {
      return list(name, values);
    }
    return AttributeProto.newBuilder()
        .setName(name)
        .setType(AttributeProto.AttributeType.INT)
        .setI(values[0])
        .build();
  }

  /** An INTS attribute. */
  public static AttributeProto list(String name, long... values) {
    AttributeProto.Builder b =
        AttributeProto.newBuilder().setName(name).setType(AttributeProto.AttributeType.INTS);
    for (long v : values) {
      b.addInts(v);
    }
    return b.build();
  }

  /** A STRING attribute. */
  public static AttributeProto text(String name, String value) {
    return AttributeProto.newBuilder()
        .setName(name)
        .setType(AttributeProto.AttributeType.STRING)
        .setS(ByteString.copyFromUtf8(value))
        .build();
  }

  /** A FLOAT attribute. */
  public static AttributeProto real(String name, float value) {
    return AttributeProto.newBuilder()
        .setName(name)
        .setType(AttributeProto.AttributeType.FLOAT)
        .setF(value)
        .build();
  }

  /** An If whose branches are the same. */
  public static NodeProto choice(
      String name, String condition, String output, GraphProto.Builder branch) {
    NodeProto.Builder choice = node("If", name, List.of(condition), output).toBuilder();
    for (String attribute : List.of("then_branch", "else_branch")) {
      choice.addAttribute(
          AttributeProto.newBuilder()
              .setName(attribute)
              .setType(AttributeProto.AttributeType.GRAPH)
              .setG(branch));
    }
    return choice.build();
  }

  /** A value; a negative dimension stands for a symbol, equal ones for the same. */
  public static ValueInfoProto value(String name, DataType type, long... dims) {
    TypeProto.Builder b = TypeProto.newBuilder();
    b.getTensorTypeBuilder().setElemType(type.getNumber()).getShapeBuilder();
    for (long d : dims) {
      var dim = b.getTensorTypeBuilder().getShapeBuilder().addDimBuilder();
      if (d < 0) {
        dim.setDimParam("n" + -d);
      } else {
        dim.setDimValue(d);
      }
    }
    return ValueInfoProto.newBuilder().setName(name).setType(b).build();
  }

  /** A FLOAT tensor of normally distributed values. */
  public static TensorProto floats(String name, Random random, float deviation, long... dims) {
    int n = 1;
    for (long d : dims) {
      n *= (int) d;
    }
    ByteBuffer data = ByteBuffer.allocate(4 * n).order(ByteOrder.LITTLE_ENDIAN);
    for (int i = 0; i < n; i++) {
      data.putFloat((float) random.nextGaussian() * deviation);
    }
    return tensor(name, DataType.FLOAT, data.flip(), dims);
  }

  /** A FLOAT tensor of these values. */
  public static TensorProto floats(String name, float[] values, long... dims) {
    return OnnxInitializer.floats(name, dims, values).message();
  }

  /** The values of a FLOAT constant of a model. */
  public static float[] values(OnnxModel model, String constant) {
    FloatBuffer floats = model.constant(constant).floats();
    float[] values = new float[floats.remaining()];
    floats.get(values);
    return values;
  }

  /** One FLOAT of no dimensions. */
  public static TensorProto number(String name, float value) {
    return floats(name, new float[] {value});
  }

  /** The node of a line «OUTPUT OPERATOR INPUTS», with - for an input that is left out. */
  public static NodeProto line(String line, AttributeProto... attributes) {
    List<String> parts = new ArrayList<>(List.of(line.split(" ")));
    parts.replaceAll(part -> part.equals("-") ? "" : part);
    return node(
        parts.get(1), "/" + parts.get(0), parts.subList(2, parts.size()), parts.get(0), attributes);
  }

  public static TensorProto tensor(String name, DataType type, ByteBuffer raw, long... dims) {
    TensorProto.Builder b = TensorProto.newBuilder().setName(name).setDataType(type.getNumber());
    for (long d : dims) {
      b.addDims(d);
    }
    return b.setRawData(ByteString.copyFrom(raw)).build();
  }
}

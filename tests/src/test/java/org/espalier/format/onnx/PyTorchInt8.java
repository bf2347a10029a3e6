package org.espalier.format.onnx;

import static org.espalier.format.onnx.SmallModels.attribute;
import static org.espalier.format.onnx.SmallModels.floats;
import static org.espalier.format.onnx.SmallModels.line;
import static org.espalier.format.onnx.SmallModels.tensor;
import static org.espalier.format.onnx.SmallModels.value;

import ai.onnx.proto.OnnxMl.GraphProto;
import ai.onnx.proto.OnnxMl.TensorProto;
import ai.onnx.proto.OnnxMl.TensorProto.DataType;
import java.nio.ByteBuffer;
import java.util.Random;

/** A model that was trained to be quantized and not converted. */
public final class PyTorchInt8 {
  private PyTorchInt8() {}

  /**
   * As PyTorch exports a network of modules that quantize as they are trained: weights are floats that the graph rounds to int8
   * with a step for each output, activations become uint8 of 7 bits by a Clip, zero points are Casts or have one dimension, and
   * equal constants are one behind Identities.
   */
  public static OnnxModel model(int features) {
    Random random = new Random(12);
    GraphProto.Builder graph =
        GraphProto.newBuilder()
            .setName("main_graph")
            .addInput(value("x", DataType.FLOAT, -1, features))
            .addOutput(value("y", DataType.FLOAT, -1, 2))
            .addInitializer(floats("net.0.bias", random, 0.1f, 16))
            .addInitializer(floats("net.2.bias", random, 0.1f, 2))
            .addInitializer(one(DataType.UINT8, "none", 0))
            .addInitializer(one(DataType.UINT8, "most", 127));
    to7Bits(graph, "x", 6 / 127f, 63);
    weight(graph, random, "net.0.weight", 16, features);
    graph.addNode(line("a Gemm x_d net.0.weight_d net.0.bias", attribute("transB", 1)));
    graph.addNode(line("b Relu a"));
    to7Bits(graph, "b", 3 / 127f, 0);
    weight(graph, random, "net.2.weight", 2, 16);
    graph.addNode(line("c Gemm b_d net.2.weight_d net.2.bias", attribute("transB", 1)));
    to7Bits(graph, "c", 20 / 127f, 60);
    graph.addNode(line("y Identity c_d"));
    return OnnxModel.of(SmallModels.model(17, graph), "PyTorch");
  }

  private static void to7Bits(GraphProto.Builder graph, String value, float scale, int zero) {
    ByteBuffer zeros = ByteBuffer.wrap(new byte[] {(byte) zero});
    String grid = value + "_scale " + value + "_zero";
    graph
        .addInitializer(floats(value + "_scale", new float[] {scale}, 1))
        .addInitializer(tensor(value + "_one", DataType.UINT8, zeros, 1))
        .addNode(line(value + "_zero Identity " + value + "_one"))
        .addNode(line(value + "_q QuantizeLinear " + value + " " + grid))
        .addNode(line(value + "_c Clip " + value + "_q none most"))
        .addNode(line(value + "_d DequantizeLinear " + value + "_c " + grid));
  }

  /** The steps are of 255 between the largest magnitudes, so that −128 is met where the largest is negative. */
  private static void weight(
      GraphProto.Builder graph, Random random, String name, int rows, int columns) {
    float[] values = new float[rows * columns];
    for (int i = 0; i < values.length; i++) {
      values[i] = (float) (0.3 * random.nextGaussian());
    }
    float[] scales = new float[rows];
    for (int i = 0; i < values.length; i++) {
      int r = i * rows / values.length;
      scales[r] = Math.max(scales[r], Math.abs(values[i]) / 127.5f);
    }
    graph.addInitializer(floats(name, values, rows, values.length / rows));
    String grid = name + "_scale " + name + "_zero";
    graph
        .addInitializer(floats(name + "_scale", scales, rows))
        .addInitializer(
            tensor(name + "_zeros", DataType.INT32, ByteBuffer.wrap(new byte[4 * rows]), rows))
        .addNode(
            line(
                name + "_zero Cast " + name + "_zeros", attribute("to", DataType.INT8.getNumber())))
        .addNode(line(name + "_q QuantizeLinear " + name + " " + grid, attribute("axis", 0)))
        .addNode(line(name + "_d DequantizeLinear " + name + "_q " + grid, attribute("axis", 0)));
  }

  private static TensorProto one(DataType type, String name, int value) {
    return tensor(name, type, ByteBuffer.wrap(new byte[] {(byte) value}));
  }
}

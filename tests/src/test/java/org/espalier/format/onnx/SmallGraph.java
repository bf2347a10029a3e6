package org.espalier.format.onnx;

import static org.espalier.format.onnx.SmallModels.floats;
import static org.espalier.format.onnx.SmallModels.node;

import ai.onnx.proto.OnnxMl.AttributeProto;
import ai.onnx.proto.OnnxMl.GraphProto;
import ai.onnx.proto.OnnxMl.TensorProto.DataType;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.util.Arrays;
import java.util.List;
import java.util.Random;

/** A graph that grows node by node, with random weights. */
class SmallGraph {
  final GraphProto.Builder graph;
  final Random random;
  private int made;

  SmallGraph(String name, long seed) {
    graph = GraphProto.newBuilder().setName(name);
    random = new Random(seed);
  }

  /** Adds a node with one output, whose name is given back. */
  final String add(String op, List<String> inputs, AttributeProto... attributes) {
    String name = op + "_" + made++;
    graph.addNode(node(op, "/" + name, inputs, name, attributes));
    return name;
  }

  /** Adds a tensor of random floats. */
  final String weight(String name, float deviation, long... dims) {
    graph.addInitializer(floats(name, random, deviation, dims));
    return name;
  }

  final String vector(String name, float value, long n) {
    float[] values = new float[(int) n];
    Arrays.fill(values, value);
    graph.addInitializer(OnnxInitializer.floats(name, new long[] {n}, values).message());
    return name;
  }

  final String scalar(String name, float value) {
    ByteBuffer data = ByteBuffer.allocate(4).order(ByteOrder.LITTLE_ENDIAN).putFloat(0, value);
    graph.addInitializer(SmallModels.tensor(name, DataType.FLOAT, data));
    return name;
  }

  final String index(String name, long value) {
    graph.addInitializer(OnnxInitializer.int64s(name, new long[0], value).message());
    return name;
  }

  /** Adds a vector of integers. */
  final String shape(String name, long... values) {
    graph.addInitializer(SmallModels.int64s(name, values));
    return name;
  }
}

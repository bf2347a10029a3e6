package org.espalier.format.onnx;

import static org.espalier.format.onnx.SmallModels.attribute;
import static org.espalier.format.onnx.SmallModels.floats;
import static org.espalier.format.onnx.SmallModels.list;
import static org.espalier.format.onnx.SmallModels.node;
import static org.espalier.format.onnx.SmallModels.value;

import ai.onnx.proto.OnnxMl.AttributeProto;
import ai.onnx.proto.OnnxMl.GraphProto;
import ai.onnx.proto.OnnxMl.ModelProto;
import ai.onnx.proto.OnnxMl.NodeProto;
import ai.onnx.proto.OnnxMl.TensorProto.DataType;
import ai.onnx.proto.OnnxMl.ValueInfoProto;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.Random;

/** A graph that grows node by node, with random weights. */
class SmallGraph {
  private static final String RUNTIME = "com.microsoft";

  final GraphProto.Builder graph;
  final Random random;
  private final List<ValueInfoProto> presents = new ArrayList<>();
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

  /** The same of ONNX Runtime's own. */
  final String runtime(String op, List<String> inputs, AttributeProto... attributes) {
    String name = add(op, inputs, attributes);
    graph.getNodeBuilder(graph.getNodeCount() - 1).setDomain(RUNTIME);
    return name;
  }

  /**
   * The same with several outputs.
   *
   * @param outputs empty where one is not used
   */
  final void runtime(
      String op, List<String> inputs, List<String> outputs, AttributeProto... attributes) {
    NodeProto.Builder n =
        node(op, "/" + outputs.get(0), inputs, outputs.get(0), attributes).toBuilder();
    graph.addNode(n.addAllOutput(outputs.subList(1, outputs.size())).setDomain(RUNTIME));
  }

  /** The model, which may have nodes of ONNX Runtime's own. */
  final ModelProto runtimeModel(int opset) {
    ModelProto.Builder model = SmallModels.model(opset, graph).toBuilder();
    model.addOpsetImportBuilder().setDomain(RUNTIME).setVersion(1);
    return model.build();
  }

  /** Adds an input for what a layer read before, {@code key} or {@code value}: [n, heads, past, each]. */
  final String past(int layer, String kind, long heads, long each) {
    String name = "past_key_values." + layer + "." + kind;
    graph.addInput(value(name, DataType.FLOAT, -1, heads, -3, each));
    return name;
  }

  /** Declares the output for that and what it reads now, which comes behind the graph's own: [n, heads, all, each]. */
  final String present(int layer, String kind, long heads, long each) {
    String name = "present." + layer + "." + kind;
    presents.add(value(name, DataType.FLOAT, -1, heads, -4, each));
    return name;
  }

  /** Adds what a decoder gives: logits [n, t, vocabulary], and what it has read. */
  final void outputs(int vocabulary) {
    graph.addOutput(value("logits", DataType.FLOAT, -1, -2, vocabulary)).addAllOutput(presents);
  }

  /** Rows of numbers [n, t, heads · each] as [n, heads, t, each]. */
  final String heads(String x, long heads, long each) {
    String apart = add("Reshape", List.of(x, shape(0, 0, heads, each)));
    return add("Transpose", List.of(apart), list("perm", 0, 2, 1, 3));
  }

  /** The same the other way round. */
  final String together(String x, long width) {
    String rows = add("Transpose", List.of(x), list("perm", 0, 2, 1, 3));
    return add("Reshape", List.of(rows, shape(0, 0, width)));
  }

  /**
   * What is added to scores: 0 where a token may look, and the least float elsewhere, [n, 1, t, all].
   *
   * @param past whether there are keys and values that were read before
   */
  final String mask(boolean past) {
    String both = visible(past);
    return add("Where", List.of(both, scalar("nothing", 0), scalar("least", -Float.MAX_VALUE)));
  }

  /** Whether a token may look there, [n, 1, t, all]. */
  final String visible(boolean past) {
    String zero = index("zero", 0);
    String one = index("one", 1);
    String length = add("Gather", List.of(add("Shape", List.of("input_ids")), one));
    String begin = zero;
    if (past) {
      String read = add("Shape", List.of("past_key_values.0.key"));
      begin = add("Gather", List.of(read, index("two", 2)));
      length = add("Add", List.of(begin, length));
    }
    String rows = add("Range", List.of(begin, length, one));
    String columns = add("Range", List.of(zero, length, one));
    String row = add("Unsqueeze", List.of(rows, shape(-1)));
    String column = add("Unsqueeze", List.of(columns, shape(0)));
    String before = add("LessOrEqual", List.of(column, row));
    String real = add("Cast", List.of("attention_mask"), attribute("to", 9));
    String there = add("Unsqueeze", List.of(real, shape(1, 2)));
    return add("And", List.of(before, there));
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

  /** Adds a vector of integers under a name of its own. */
  final String shape(long... values) {
    return shape("shape_" + graph.getInitializerCount(), values);
  }

  /** Adds a vector of integers. */
  final String shape(String name, long... values) {
    graph.addInitializer(SmallModels.int64s(name, values));
    return name;
  }
}

package org.espalier.encoder;

import static org.espalier.format.onnx.Attributes.attribute;

import ai.onnx.proto.OnnxMl.NodeProto;
import ai.onnx.proto.OnnxMl.TensorProto.DataType;
import ai.onnx.proto.OnnxMl.TensorShapeProto.Dimension;
import ai.onnx.proto.OnnxMl.ValueInfoProto;
import java.util.ArrayList;
import java.util.List;
import java.util.function.Consumer;
import java.util.function.Function;
import org.espalier.evaluate.EncodedImages;
import org.espalier.evaluate.Pooling;
import org.espalier.format.onnx.OnnxInitializer;
import org.espalier.format.onnx.OnnxModel;
import org.espalier.format.onnx.TextInput;

/** An encoder's graph that gives what {@link Encoder#features} gives, of padded batches too. */
final class EncoderGraph {
  /** The operator set that {@link Pooling#LAST} takes. */
  static final long OF_LAST = 11;

  private static final String MASK = TextInput.ATTENTION_MASK.inputName();

  private final OnnxModel model;
  private final OnnxModel.Names names;
  private final List<NodeProto> nodes;

  private EncoderGraph(OnnxModel model) {
    this.model = model;
    names = model.names();
    nodes = new ArrayList<>(model.nodes());
  }

  /**
   * Adds the nodes that make features of the first output.
   *
   * @param pooled makes one row an example of the first output
   * @param read what reads them, as [batch, width] or in more dimensions, row by row
   * @return the value that it reads
   */
  static String addFeatures(
      OnnxModel model, Function<EncoderGraph, String> pooled, ValueInfoProto read) {
    EncoderGraph graph = new EncoderGraph(model);
    String features =
        graph.add(
            "LpNormalization",
            List.of(pooled.apply(graph)),
            node -> node.addAttribute(attribute("axis", -1)));
    List<Dimension> dims = read.getType().getTensorType().getShape().getDimList();
    if (dims.size() > 2) {
      long[] shape = dims.stream().mapToLong(Dimension::getDimValue).toArray();
      shape[0] = 0; // as many as there are
      features = graph.reshape(features, shape);
    }
    model.setNodes(graph.nodes);
    return features;
  }

  /**
   * A row for each text.
   *
   * @param pooling of an output of tokens; null for one that is pooled already
   */
  String ofTexts(Pooling pooling) {
    String hidden = hidden();
    return pooling == null
        ? hidden
        : switch (pooling) {
          case MEAN -> sum(hidden);
          case CLS -> token(hidden, 0);
          case LAST -> last(hidden);
        };
  }

  /**
   * A row for each image.
   *
   * @param pooling of an output of tokens
   */
  String ofImages(EncodedImages features, Pooling pooling) {
    String hidden = hidden();
    if (features.rank() == 2) {
      return hidden;
    }
    if (features.rank() == 3) {
      return pooling == Pooling.CLS ? token(hidden, 0) : mean(transposed(hidden, 0, 2, 1));
    }
    return mean(features.isChannelsFirst() ? hidden : transposed(hidden, 0, 3, 1, 2));
  }

  /** The first output of floats, as float32. */
  private String hidden() {
    ValueInfoProto output = model.mainOutput();
    int type = output.getType().getTensorType().getElemType();
    return type == DataType.FLOAT_VALUE ? output.getName() : cast(output.getName());
  }

  private String transposed(String value, long... axes) {
    return add("Transpose", List.of(value), node -> node.addAttribute(attribute("perm", axes)));
  }

  /** The mean over all places of maps [batch, width, …]. */
  private String mean(String maps) {
    return reshape(add("GlobalAveragePool", List.of(maps), node -> {}), 0, -1);
  }

  /** The sum over the tokens of a text: what is scaled to length 1 afterwards need not be divided by their number. */
  private String sum(String hidden) {
    String ids = TextInput.INPUT_IDS.inputName();
    return weighted(hidden, cast(isMasked() ? MASK : add("Equal", List.of(ids, ids), node -> {})));
  }

  /** The state of a text's last token: the one behind which, itself counted, the mask has one 1. */
  private String last(String hidden) {
    if (!isMasked()) {
      return token(hidden, -1);
    }
    String ones = cast(MASK);
    String axis = names.unique("axis");
    model.addInitializer(OnnxInitializer.int64s(axis, new long[0], 1));
    String behind =
        add("CumSum", List.of(ones, axis), node -> node.addAttribute(attribute("reverse", 1L)));
    String one = names.unique("one");
    model.addInitializer(OnnxInitializer.floats(one, new long[0], 1));
    String is = cast(add("Equal", List.of(behind, one), node -> {}));
    return weighted(hidden, add("Mul", List.of(is, ones), node -> {}));
  }

  private boolean isMasked() {
    return model.inputs().stream().anyMatch(i -> i.getName().equals(MASK));
  }

  /** The sum over tokens of a text by weights [batch, tokens]. */
  private String weighted(String hidden, String weights) {
    String row = reshape(weights, 0, 1, -1);
    return reshape(add("MatMul", List.of(row, hidden), node -> {}), 0, -1);
  }

  private String token(String hidden, long place) {
    String index = names.unique("place");
    model.addInitializer(OnnxInitializer.int64s(index, new long[0], place));
    return add("Gather", List.of(hidden, index), node -> node.addAttribute(attribute("axis", 1)));
  }

  private String cast(String value) {
    return add(
        "Cast",
        List.of(value),
        node -> node.addAttribute(attribute("to", (long) DataType.FLOAT_VALUE)));
  }

  private String reshape(String value, long... shape) {
    String name = names.unique("shape");
    model.addInitializer(OnnxInitializer.int64s(name, new long[] {shape.length}, shape));
    return add("Reshape", List.of(value, name), node -> {});
  }

  private String add(String operator, List<String> inputs, Consumer<NodeProto.Builder> more) {
    String output = names.unique("encoder_" + operator);
    NodeProto.Builder node =
        NodeProto.newBuilder()
            .setName(output)
            .setOpType(operator)
            .addAllInput(inputs)
            .addOutput(output);
    more.accept(node);
    nodes.add(node.build());
    return output;
  }
}

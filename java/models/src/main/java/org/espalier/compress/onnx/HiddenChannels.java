package org.espalier.compress.onnx;

import ai.onnx.proto.OnnxMl.NodeProto;
import ai.onnx.proto.OnnxMl.TensorProto.DataType;
import java.util.ArrayDeque;
import java.util.ArrayList;
import java.util.Deque;
import java.util.HashMap;
import java.util.HashSet;
import java.util.LinkedHashSet;
import java.util.List;
import java.util.Map;
import java.util.Set;
import org.espalier.format.onnx.OnnxInitializer;
import org.espalier.format.onnx.OnnxModel;
import org.espalier.format.onnx.OnnxWeight;
import org.espalier.format.onnx.OnnxWeight.Kind;
import org.espalier.format.onnx.OnnxWeight.Use;
import org.espalier.format.onnx.OnnxWeights;

/**
 * Channels that only products with constant weights make and read, with operators between them that treat each
 * channel for itself: the inner width of a feed-forward block, the channels of images between convolutions. Nothing
 * else of the graph, and nobody outside, knows how many there are, so their number can change.
 *
 * @param name of the first weight that makes them
 * @param size how many there are
 * @param weights the weights that make them, as people call them
 * @param makers the outputs of the products that make them
 * @param slices the constants with one entry a channel, weights that make and read them included
 * @param readers the products that sum over them
 * @param depthwise the outputs of the depthwise convolutions among the operators
 * @param values the values of the graph that have them
 */
record HiddenChannels(
    String name,
    int size,
    List<String> weights,
    Set<String> makers,
    List<Slice> slices,
    List<Reader> readers,
    Set<String> depthwise,
    Set<String> values) {

  /**
   * A constant with an axis of the channels.
   *
   * @param node the output of the node that reads it
   * @param input which input of the node it is, or leads to
   * @param constant its name
   * @param block how many entries of the axis a channel has, one after the other: 1, or the pixels of an image that
   *     was made flat
   */
  record Slice(String node, int input, String constant, int axis, int block) {
    private Slice renamed(Map<String, Map<Integer, String>> inputs) {
      String now = inputs.getOrDefault(node, Map.of()).getOrDefault(input, constant);
      return new Slice(node, input, now, axis, block);
    }
  }

  /**
   * A product that sums over the channels.
   *
   * @param activation what it reads
   * @param node its output
   * @param weight what people call its weight
   * @param slice the constant that holds the weight
   * @param bias the output of the node that adds a constant to it, itself included; null where none does, or not
   *     to the same effect everywhere
   * @param image whether the channels are the second axis of the activation; else they are the last
   */
  record Reader(
      String activation, String node, String weight, Slice slice, String bias, boolean image) {}

  /**
   * The same where nodes read other constants now.
   *
   * @param inputs what an input of a node is now, by the output of the node
   */
  HiddenChannels renamed(Map<String, Map<Integer, String>> inputs) {
    return new HiddenChannels(
        name,
        size,
        weights,
        makers,
        slices.stream().map(slice -> slice.renamed(inputs)).toList(),
        readers.stream()
            .map(
                r ->
                    new Reader(
                        r.activation(),
                        r.node(),
                        r.weight(),
                        r.slice().renamed(inputs),
                        r.bias(),
                        r.image()))
            .toList(),
        depthwise,
        values);
  }

  /** Operators of one input and output that treat each number for itself. */
  private static final Set<String> UNARY =
      Set.of(
          "Abs",
          "Celu",
          "Dropout",
          "Elu",
          "Erf",
          "Exp",
          "Gelu",
          "HardSigmoid",
          "HardSwish",
          "Identity",
          "LeakyRelu",
          "Log",
          "Mish",
          "Neg",
          "Reciprocal",
          "Relu",
          "Selu",
          "Sigmoid",
          "Softplus",
          "Softsign",
          "Sqrt",
          "Tanh",
          "ThresholdedRelu");

  /** Operators that join their operands number by number. */
  private static final Set<String> JOINING =
      Set.of("Add", "Clip", "Div", "Max", "Mean", "Min", "Mul", "PRelu", "Pow", "Sub", "Sum");

  /** Operators on images that treat each channel for itself. */
  private static final Set<String> SPATIAL =
      Set.of("AveragePool", "GlobalAveragePool", "GlobalMaxPool", "MaxPool");

  /** The hidden channels of a model in graph order; those of a set of weights are found once. */
  static List<HiddenChannels> find(OnnxModel model) {
    return new Search(model).all();
  }

  /** Walks from the output of a product over everything that has the same channels. */
  private static final class Search {
    private final OnnxModel model;
    private final Map<String, NodeProto> producers;
    private final Map<String, List<NodeProto>> consumers;
    private final Set<String> outputs;

    /** The one use of a weight that is used once, by the output of the node. */
    private final Map<String, Use> uses = new HashMap<>();

    private final Map<String, OnnxWeight> weights = new HashMap<>();
    private final Set<String> seen = new HashSet<>();

    // Of one walk:
    private final Deque<String> open = new ArrayDeque<>();
    private Set<String> values;
    private List<String> made;
    private Set<String> makers;
    private Set<Slice> slices;
    private List<Reader> readers;
    private Set<String> depthwise;
    private int size;
    private boolean image;
    private int rank;
    private boolean fits;

    Search(OnnxModel model) {
      this.model = model;
      producers = model.producers();
      consumers = model.consumers();
      outputs = model.outputNames();
      for (OnnxWeight weight : OnnxWeights.of(model)) {
        Use use = weight.uses().get(0);
        if (!weight.isShared()
            && producers.containsKey(use.node())
            && isProduct(weight, use, producers.get(use.node()))) {
          uses.put(use.node(), use);
          weights.put(use.node(), weight);
        }
      }
    }

    private boolean isProduct(OnnxWeight weight, Use use, NodeProto n) {
      OnnxInitializer w = model.constant(weight.value());
      boolean alone =
          use.path().stream()
              .allMatch(
                  v -> consumers.getOrDefault(v, List.of()).size() == 1 && !outputs.contains(v));
      if (!alone || w.type() != DataType.FLOAT || use.input() != 1 || w.elements() == 0) {
        return false;
      }
      return switch (use.kind()) {
        case MATMUL -> w.dims().length == 2;
        case GEMM ->
            Nodes.integer(n, "transA", 0) == 0
                && Nodes.real(n, "alpha", 1) == 1
                && Nodes.real(n, "beta", 1) == 1;
        case CONV -> w.dims().length > 2 && use.isDirect() && n.getOutputCount() == 1;
        default -> false;
      };
    }

    private boolean isDepthwise(NodeProto n) {
      Use use = uses.get(n.getOutput(0));
      return use != null
          && use.kind() == Kind.CONV
          && use.groups() > 1
          && use.groups() == model.constant(weights.get(n.getOutput(0)).value()).dims()[0];
    }

    List<HiddenChannels> all() {
      List<HiddenChannels> found = new ArrayList<>();
      for (NodeProto n : model.nodes()) {
        if (n.getOutputCount() == 0 || seen.contains(n.getOutput(0))) {
          continue;
        }
        Use use = uses.get(n.getOutput(0));
        if (use == null || use.groups() > 1) {
          continue;
        }
        begin(n, use);
        while (fits && !open.isEmpty()) {
          visit(open.remove());
        }
        seen.addAll(values);
        if (fits && !readers.isEmpty()) {
          found.add(
              new HiddenChannels(
                  made.get(0),
                  size,
                  List.copyOf(made),
                  Set.copyOf(makers),
                  List.copyOf(slices),
                  List.copyOf(readers),
                  Set.copyOf(depthwise),
                  Set.copyOf(values)));
        }
      }
      return found;
    }

    private void begin(NodeProto n, Use use) {
      open.clear();
      values = new LinkedHashSet<>();
      made = new ArrayList<>();
      makers = new HashSet<>();
      slices = new LinkedHashSet<>();
      readers = new ArrayList<>();
      depthwise = new HashSet<>();
      OnnxInitializer w = model.constant(weights.get(n.getOutput(0)).value());
      size = Math.toIntExact(w.dims()[use.outputAxis()]);
      image = use.kind() == Kind.CONV;
      rank = image ? w.dims().length : 0;
      fits = true;
      add(n.getOutput(0));
    }

    /** Notes a value that has the channels. */
    private void add(String value) {
      if (values.add(value)) {
        open.add(value);
      }
    }

    private void visit(String value) {
      NodeProto producer = producers.get(value);
      if (producer == null || outputs.contains(value) || !OnnxModel.isOwn(producer)) {
        fits = false;
        return;
      }
      Use use = uses.get(producer.getOutput(0));
      if (use != null && use.groups() == 1) {
        made(producer, use);
      } else {
        operator(producer);
      }
      for (NodeProto reader : consumers.getOrDefault(value, List.of())) {
        if (fits) {
          read(reader, value);
        }
      }
    }

    /** A product that makes the channels. */
    private void made(NodeProto n, Use use) {
      OnnxWeight weight = weights.get(n.getOutput(0));
      long[] dims = model.constant(weight.value()).dims();
      fits &= image == (use.kind() == Kind.CONV) && dims[use.outputAxis()] == size;
      fits &= !image || dims.length == rank;
      made.add(weight.name());
      makers.add(n.getOutput(0));
      slices.add(new Slice(n.getOutput(0), 1, weight.value(), use.outputAxis(), 1));
      if (use.kind() != Kind.MATMUL && n.getInputCount() > 2 && !n.getInput(2).isEmpty()) {
        operand(n, 2, use.kind() == Kind.CONV ? 0 : -1);
      }
    }

    /** A product or operator that reads the channels. */
    private void read(NodeProto n, String value) {
      if (n.getOutputCount() == 0 || !OnnxModel.isOwn(n)) {
        fits = false;
        return;
      }
      Use use = uses.get(n.getOutput(0));
      if (use != null && use.groups() == 1) {
        readBy(n, use, value, value);
      } else if (image && isFlat(n)) {
        String flat = n.getOutput(0);
        List<NodeProto> products = consumers.getOrDefault(flat, List.of());
        fits &= !products.isEmpty() && !outputs.contains(flat);
        values.add(flat); // whoever else walks over it sees that it is done
        for (NodeProto product : products) {
          Use weight = product.getOutputCount() == 0 ? null : uses.get(product.getOutput(0));
          fits &= weight != null && weight.kind() != Kind.CONV;
          if (fits) {
            readBy(product, weight, flat, value);
          }
        }
      } else {
        // Whether it is an operator that may do so is seen where its output is visited.
        n.getOutputList().stream().filter(o -> !o.isEmpty()).forEach(this::add);
      }
    }

    /** Whether it makes rows of images, the pixels of a channel one after the other. */
    private boolean isFlat(NodeProto n) {
      OnnxInitializer shape =
          n.getOpType().equals("Reshape") && n.getInputCount() > 1
              ? model.constant(n.getInput(1))
              : null;
      return n.getOpType().equals("Flatten") && Nodes.integer(n, "axis", 1) == 1
          || shape != null
              && shape.type() == DataType.INT64
              && shape.elements() == 2
              && Nodes.integer(n, "allowzero", 0) == 0
              && shape.data().getLong(0) == 0
              && shape.data().getLong(8) == -1;
    }

    /**
     * A product that sums over the channels.
     *
     * @param read what it reads: {@code activation}, or that made flat
     */
    private void readBy(NodeProto n, Use use, String read, String activation) {
      OnnxWeight weight = weights.get(n.getOutput(0));
      long[] dims = model.constant(weight.value()).dims();
      long entries = dims[use.reductionAxis()];
      boolean flat = !read.equals(activation);
      fits &=
          n.getInput(0).equals(read)
              && n.getInputList().stream().filter(read::equals).count() == 1
              && (flat ? entries % size == 0 : entries == size)
              && (image && !flat) == (use.kind() == Kind.CONV)
              && (!image || flat || dims.length == rank);
      if (fits) {
        Slice slice =
            new Slice(
                n.getOutput(0),
                1,
                weight.value(),
                use.reductionAxis(),
                Math.toIntExact(entries / size));
        slices.add(slice);
        readers.add(
            new Reader(
                activation,
                n.getOutput(0),
                weight.name(),
                slice,
                bias(n, use, dims[use.outputAxis()]),
                image));
      }
    }

    /** Where a constant can be added to a product. */
    private String bias(NodeProto n, Use use, long columns) {
      boolean own = n.getInputCount() > 2 && !n.getInput(2).isEmpty();
      switch (use.kind()) {
        case GEMM -> {
          boolean vector = own && ConstantVector.isVector(model, n.getInput(2), (int) columns);
          return vector ? n.getOutput(0) : null;
        }
        case CONV -> {
          // At the border the sum is of fewer pixels, and a constant is not what they lack.
          OnnxInitializer c = own ? model.constant(n.getInput(2)) : null;
          boolean padded =
              Nodes.find(n, "auto_pad") != null
                  || Nodes.find(n, "pads") != null
                      && Nodes.find(n, "pads").getIntsList().stream().anyMatch(p -> p != 0);
          return c != null && c.type() == DataType.FLOAT && !padded ? n.getOutput(0) : null;
        }
        default -> {
          return ProductSite.biasAdd(model, n.getOutput(0), (int) columns, consumers);
        }
      }
    }

    /** An operator whose output has the channels: so have its inputs, or they are constants. */
    private void operator(NodeProto n) {
      String type = n.getOpType();
      if (n.getOutputList().stream().filter(o -> !o.isEmpty()).count() != 1) {
        fits = false;
      } else if (UNARY.contains(type) || image && SPATIAL.contains(type)) {
        add(n.getInput(0));
        for (int i = 1; i < n.getInputCount(); i++) {
          fits &= isNumber(n.getInput(i)); // a Dropout's ratio
        }
      } else if (JOINING.contains(type)) {
        for (int i = 0; i < n.getInputCount(); i++) {
          operand(n, i, -1);
        }
      } else if (image && type.equals("BatchNormalization")) {
        add(n.getInput(0));
        for (int i = 1; i < 5; i++) {
          operand(n, i, 0);
        }
        fits &= Nodes.integer(n, "training_mode", 0) == 0;
      } else if (image && isDepthwise(n)) {
        String weight = weights.get(n.getOutput(0)).value();
        fits &= model.constant(weight).dims()[0] == size;
        depthwise.add(n.getOutput(0));
        slices.add(new Slice(n.getOutput(0), 1, weight, 0, 1));
        add(n.getInput(0));
        if (n.getInputCount() > 2 && !n.getInput(2).isEmpty()) {
          operand(n, 2, 0);
        }
      } else {
        fits = false;
      }
    }

    private boolean isNumber(String value) {
      OnnxInitializer c = model.constant(value);
      return value.isEmpty() || c != null && c.elements() == 1;
    }

    /**
     * An input that is a number, a constant of one entry a channel, or has the channels.
     *
     * @param axis of a constant's entries; −1 for the axis that lies above the channels
     */
    private void operand(NodeProto n, int input, int axis) {
      String value = n.getInput(input);
      OnnxInitializer c = model.constant(value);
      if (isNumber(value)) {
        fits &= axis < 0 || size == 1;
        return;
      }
      if (c == null) {
        fits &= axis < 0;
        add(value);
        return;
      }
      long[] dims = c.dims();
      int at = axis >= 0 ? axis : dims.length - (image ? rank - 1 : 1);
      fits &= c.type() == DataType.FLOAT && at >= 0 && c.elements() == size && dims[at] == size;
      slices.add(new Slice(n.getOutput(0), input, value, at, 1));
    }
  }
}

package org.espalier.compress.onnx;

import ai.onnx.proto.OnnxMl.NodeProto;
import ai.onnx.proto.OnnxMl.TensorProto.DataType;
import java.util.ArrayDeque;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.Deque;
import java.util.HashMap;
import java.util.HashSet;
import java.util.LinkedHashMap;
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
 * channel for itself: the inner width of a feed-forward block, the channels of images between convolutions, the heads
 * of an attention, of which each has several numbers. Nothing else of the graph, and nobody outside, knows how many
 * there are, so their number can change.
 *
 * @param name of the first weight that makes them
 * @param size how many there are
 * @param weights the weights that make them, as people call them
 * @param makers the outputs of the products that make them
 * @param slices the constants with entries of their own for each channel, weights that make and read them included
 * @param counts where the graph says how many there are
 * @param readers the products that sum over them
 * @param depthwise the outputs of the depthwise convolutions among the operators
 * @param inner the outputs of the products of two values that have them, such as queries and keys
 * @param values the values of the graph that have them
 */
record HiddenChannels(
    String name,
    int size,
    List<String> weights,
    Set<String> makers,
    List<Slice> slices,
    List<Count> counts,
    List<Reader> readers,
    Set<String> depthwise,
    Set<String> inner,
    Set<String> values) {

  /**
   * A constant with an axis of the channels.
   *
   * @param node the output of the node that reads it
   * @param input which input of the node it is, or leads to
   * @param constant its name
   * @param block how many entries of the axis a channel has, one after the other: 1, the pixels of an image that
   *     was made flat, or the numbers of a head
   */
  record Slice(String node, int input, String constant, int axis, int block) {
    private Slice renamed(Map<String, Map<Integer, String>> inputs) {
      String now = inputs.getOrDefault(node, Map.of()).getOrDefault(input, constant);
      return new Slice(node, input, now, axis, block);
    }
  }

  /**
   * A number in the shape that a Reshape makes.
   *
   * @param node the output of the Reshape
   * @param part which input of the Concat that makes the shape holds the number; −1 where the shape is a constant
   * @param numbers all of that input, or of the shape
   * @param index which of them it is
   * @param each how many numbers a channel counts for
   */
  record Count(String node, int part, List<Long> numbers, int index, int each) {}

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
      String activation, String node, String weight, Slice slice, String bias, boolean image) {
    /** How many numbers of a channel lie one after the other in the activation: of an image each pixel is a row. */
    int group() {
      return image ? 1 : slice.block();
    }

    /** Of the weight what each of these numbers is multiplied with. */
    Slice numbers() {
      return new Slice(
          node, slice.input(), slice.constant(), slice.axis(), slice.block() / group());
    }
  }

  /** How many numbers a channel is: 1, of a head several. */
  int numbers() {
    return readers.stream().mapToInt(Reader::group).max().orElse(1);
  }

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
        counts,
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
        inner,
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
          "IsNaN",
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
      Set.of(
          "Add", "Clip", "Div", "Max", "Mean", "Min", "Mul", "PRelu", "Pow", "Sub", "Sum", "Where");

  /** Operators that work along axes of one input and keep them. */
  private static final Set<String> ALONG =
      Set.of(
          "LogSoftmax", "ReduceL2", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceSum", "Softmax");

  /** Operators that give an input's numbers, or some of them, other axes. */
  private static final Set<String> MOVING =
      Set.of("Gather", "Reshape", "Split", "Squeeze", "Transpose", "Unsqueeze");

  /** Operators on images that treat each channel for itself. */
  private static final Set<String> SPATIAL =
      Set.of("AveragePool", "GlobalAveragePool", "GlobalMaxPool", "MaxPool");

  /** The hidden channels of a model in graph order; those of a set of weights are found once. */
  static List<HiddenChannels> find(OnnxModel model) {
    return new Search(model).all();
  }

  /**
   * Where a value has the channels: an axis holds {@code repeat} times all of them, one after the other.
   *
   * @param axis counted from the end, 1 for the last
   * @param block how many numbers of the axis a channel has each time, one after the other
   */
  private record Place(int axis, int repeat, int block) {
    Place(int axis) {
      this(axis, 1, 1);
    }

    /** How many numbers of the axis a channel has. */
    int each() {
      return repeat * block;
    }
  }

  /** Walks from the output of a product over everything that has the same channels. */
  private static final class Search {
    private final OnnxModel model;
    private final Map<String, NodeProto> producers;
    private final Map<String, List<NodeProto>> consumers;
    private final Set<String> outputs;
    private final ValueShapes shapes;

    /** The one use of a weight that is used once, by the output of the node. */
    private final Map<String, Use> uses = new HashMap<>();

    private final Map<String, OnnxWeight> weights = new HashMap<>();
    private final Set<String> seen = new HashSet<>();

    // Of one walk:
    private final Deque<String> open = new ArrayDeque<>();
    private Map<String, Place> places;
    private Set<String> flat;
    private List<String> made;
    private Set<String> makers;
    private Set<Slice> slices;
    private List<Count> counts;
    private List<Reader> readers;
    private Set<String> depthwise;
    private Set<String> inner;
    private int size;
    private boolean fits;

    /** Where what the first product makes has them, in this walk and in those that may be tried after it. */
    private Place first;

    private final Deque<Place> others = new ArrayDeque<>();

    Search(OnnxModel model) {
      this.model = model;
      producers = model.producers();
      consumers = model.consumers();
      outputs = model.outputNames();
      shapes = new ValueShapes(model);
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
        Set<Place> tried = new HashSet<>();
        others.clear();
        others.add(
            use.kind() == Kind.CONV
                ? image(model.constant(weights.get(n.getOutput(0)).value()).dims())
                : new Place(1));
        while (!others.isEmpty()) {
          first = others.remove();
          if (tried.add(first)) {
            walk(n, use);
          }
          if (fits && !readers.isEmpty()) {
            found.add(set());
            break;
          }
        }
      }
      return found;
    }

    private HiddenChannels set() {
      Set<String> values = new LinkedHashSet<>(places.keySet());
      values.addAll(flat);
      seen.addAll(values);
      return new HiddenChannels(
          made.get(0),
          size,
          List.copyOf(made),
          Set.copyOf(makers),
          List.copyOf(slices),
          List.copyOf(counts),
          List.copyOf(readers),
          Set.copyOf(depthwise),
          Set.copyOf(inner),
          Set.copyOf(values));
    }

    private void walk(NodeProto n, Use use) {
      open.clear();
      places = new LinkedHashMap<>();
      flat = new LinkedHashSet<>();
      made = new ArrayList<>();
      makers = new HashSet<>();
      slices = new LinkedHashSet<>();
      counts = new ArrayList<>();
      readers = new ArrayList<>();
      depthwise = new HashSet<>();
      inner = new HashSet<>();
      long[] dims = model.constant(weights.get(n.getOutput(0)).value()).dims();
      size = Math.toIntExact(dims[use.outputAxis()]) / first.each();
      fits = true;
      add(n.getOutput(0), first);
      while (fits && !open.isEmpty()) {
        visit(open.remove());
      }
    }

    /** Where images have channels that a convolution of a weight reads or makes. */
    private static Place image(long[] weight) {
      return new Place(weight.length - 1);
    }

    /** Whether a value has the channels where convolutions have them. */
    private boolean isImage(String value, Place place) {
      long[] shape = shapes.of(value);
      return shape != null && shape.length > 2 && place.equals(image(shape));
    }

    /** How long the axis is that has the channels. */
    private long length(Place place) {
      return (long) size * place.each();
    }

    /**
     * Notes that channels may be fewer than was thought: of each group of so many one after the other all numbers
     * are a channel's, and all of that comes several times.
     */
    private void refine(long repeat, long block) {
      if (size % (repeat * block) == 0) {
        others.add(
            new Place(
                first.axis(), (int) (first.repeat() * repeat), (int) (first.block() * block)));
      }
    }

    /** Notes a value that has the channels. */
    private void add(String value, Place place) {
      Place known = places.putIfAbsent(value, place);
      if (known == null) {
        open.add(value);
      } else {
        fits &= known.equals(place);
      }
    }

    private void visit(String value) {
      Place place = places.get(value);
      NodeProto producer = producers.get(value);
      if (producer == null || outputs.contains(value) || !OnnxModel.isOwn(producer)) {
        fits = false;
        return;
      }
      Use use = uses.get(producer.getOutput(0));
      if (use != null && use.groups() == 1) {
        made(producer, use, place);
      } else {
        operator(producer, place);
      }
      for (NodeProto reader : consumers.getOrDefault(value, List.of())) {
        if (fits) {
          read(reader, value, place);
        }
      }
    }

    /** A product that makes the channels. */
    private void made(NodeProto n, Use use, Place place) {
      OnnxWeight weight = weights.get(n.getOutput(0));
      long[] dims = model.constant(weight.value()).dims();
      fits &= dims[use.outputAxis()] == length(place);
      fits &= use.kind() == Kind.CONV ? place.equals(image(dims)) : place.axis() == 1;
      made.add(weight.name());
      makers.add(n.getOutput(0));
      slices.add(new Slice(n.getOutput(0), 1, weight.value(), use.outputAxis(), place.block()));
      if (use.kind() != Kind.MATMUL && n.getInputCount() > 2 && !n.getInput(2).isEmpty()) {
        if (use.kind() == Kind.CONV) {
          parameter(n, 2);
        } else {
          operand(n, 2, place);
        }
      }
    }

    /** A product or operator that reads the channels. */
    private void read(NodeProto n, String value, Place place) {
      boolean joins =
          JOINING.contains(n.getOpType()) || Set.of("Concat", "MatMul").contains(n.getOpType());
      if (n.getOutputCount() == 0
          || !OnnxModel.isOwn(n)
          || !joins && n.getInputList().lastIndexOf(value) != 0) {
        fits = false;
        return;
      }
      Use use = uses.get(n.getOutput(0));
      if (use != null && use.groups() == 1) {
        readBy(n, use, value, value, place);
      } else if (isImage(value, place) && isFlat(n)) {
        String rows = n.getOutput(0);
        List<NodeProto> products = consumers.getOrDefault(rows, List.of());
        fits &= !products.isEmpty() && !outputs.contains(rows);
        flat.add(rows);
        for (NodeProto product : products) {
          Use weight = product.getOutputCount() == 0 ? null : uses.get(product.getOutput(0));
          fits &= weight != null && weight.kind() != Kind.CONV;
          if (fits) {
            readBy(product, weight, rows, value, place);
          }
        }
      } else if (n.getOpType().equals("Shape")) {
        fits &= !asksFor(n, value, place);
      } else {
        Place after =
            switch (n.getOpType()) {
              case "Gather", "Squeeze" -> without(place, removed(n), n.getInput(0));
              case "Reshape" -> reshaped(n, place);
              case "Split" -> split(n, place);
              case "Transpose" -> transposed(n, place);
              case "Unsqueeze" -> with(place, shapes.axes(n), n.getOutput(0));
              default -> place;
            };
        fits &= after != null;
        // Whether it is an operator that may do so is seen where its output is visited.
        for (String output : fits ? n.getOutputList() : List.<String>of()) {
          if (!output.isEmpty()) {
            add(output, after);
          }
        }
      }
    }

    /** Whether it makes rows of images, the pixels of a channel one after the other. */
    private boolean isFlat(NodeProto n) {
      if (n.getOpType().equals("Flatten")) {
        return Nodes.integer(n, "axis", 1) == 1;
      }
      long[] target = target(n);
      return target != null && target.length == 2 && target[0] == 0 && target[1] == -1;
    }

    /** What a Reshape is told; null where that is not known. */
    private long[] target(NodeProto n) {
      boolean told =
          n.getOpType().equals("Reshape")
              && n.getInputCount() > 1
              && Nodes.integer(n, "allowzero", 0) == 0;
      return told ? shapes.numbers(n.getInput(1)) : null;
    }

    /** Whether somebody may get the number of channels from a Shape. */
    private boolean asksFor(NodeProto n, String value, Place place) {
      if (Nodes.find(n, "start") != null || Nodes.find(n, "end") != null) {
        return true;
      }
      for (NodeProto reader : consumers.getOrDefault(n.getOutput(0), List.of())) {
        long[] axes =
            Nodes.is(reader, "Gather") && reader.getInput(0).equals(n.getOutput(0))
                ? shapes.numbers(reader.getInput(1))
                : null;
        if (axes == null) {
          return true;
        }
        for (long axis : axes) {
          int end = shapes.fromEnd(axis, value);
          if (end == 0 || end == place.axis()) {
            return true;
          }
        }
      }
      return outputs.contains(n.getOutput(0));
    }

    /** Where what a Reshape makes has the channels; null where that cannot be told. */
    private Place reshaped(NodeProto n, Place place) {
      long[] target = target(n);
      return target == null
          ? null
          : place.axis() == 1 ? divided(n, target, place) : merged(n, target, place);
    }

    /** The last axis becomes one or several, of which one has the channels. */
    private Place divided(NodeProto n, long[] target, Place place) {
      long[] parts = parts(n, target, length(place));
      if (parts == null) {
        return null;
      }
      long before = length(place);
      long after = 1;
      for (int i = parts.length - 1; i >= 0; i--) {
        before /= parts[i];
        if (place.repeat() % before == 0 && place.block() % after == 0) {
          Place part =
              new Place(
                  parts.length - i, (int) (place.repeat() / before), (int) (place.block() / after));
          if (parts[i] == length(part)) {
            return count(n, target.length - parts.length + i, part.each()) ? part : null;
          }
        }
        after *= parts[i];
      }
      // The channels may be those of any one.
      before = length(place);
      after = 1;
      for (int i = parts.length - 1; i >= 0; i--) {
        before /= parts[i];
        if (before % place.repeat() == 0 && after % place.block() == 0) {
          refine(before / place.repeat(), after / place.block());
        }
        after *= parts[i];
      }
      return null;
    }

    /** The last axes of a shape that are one of so many numbers; null where that cannot be told. */
    private long[] parts(NodeProto n, long[] target, long length) {
      long[] shape = shapes.of(n.getInput(0));
      boolean leaves = shape != null && leaves(target, shape, shape.length - 1);
      int from = target.length;
      long left = length;
      int rest = -1;
      while (from > 0 && (leaves ? from > shape.length - 1 : left > 1)) {
        long part = target[--from];
        if (part == -1 && leaves && rest < 0) {
          rest = from;
        } else if (part < 1 || left % part != 0) {
          return null;
        } else {
          left /= part;
        }
      }
      if (from == target.length || rest < 0 && left > 1) {
        return null;
      }
      long[] parts = Arrays.copyOfRange(target, from, target.length);
      if (rest >= 0) {
        parts[rest - from] = left;
      }
      return parts;
    }

    /** The last axes become one, of which the first had the channels. */
    private Place merged(NodeProto n, long[] target, Place place) {
      long[] shape = shapes.of(n.getInput(0));
      long after = behind(n.getInput(0), place.axis());
      int end = target.length - 1;
      if (after < 1 || end < 0 || place.block() * after > Integer.MAX_VALUE / size) {
        return null;
      }
      Place last = new Place(1, place.repeat(), (int) (place.block() * after));
      boolean rest =
          target[end] == -1 && end == shape.length - place.axis() && leaves(target, shape, end);
      return (rest || target[end] == length(last)) && count(n, end, last.each()) ? last : null;
    }

    /** How many numbers lie behind an axis that is counted from the end, for each of its own; 0 where that is not known. */
    private long behind(String value, int axis) {
      long numbers = 1;
      for (int end = 1; end < axis; end++) {
        long length = shapes.length(value, end);
        if (length < 1 || numbers > Integer.MAX_VALUE / length) {
          return 0;
        }
        numbers *= length;
      }
      return numbers;
    }

    /** Whether a Reshape leaves so many first axes of a shape as they are. */
    private static boolean leaves(long[] target, long[] shape, int axes) {
      boolean leaves = axes >= 0 && axes <= target.length && axes <= shape.length;
      for (int i = 0; leaves && i < axes; i++) {
        leaves = target[i] == 0 || target[i] == shape[i];
      }
      return leaves;
    }

    /**
     * Notes a number in the shape that a Reshape is told, which follows from that of the channels.
     *
     * @param index which one of the shape it is
     * @param each how many a channel counts for
     * @return whether the number is a constant, or what is left by the others
     */
    private boolean count(NodeProto n, int index, int each) {
      String shape = n.getInput(1);
      if (shapes.numbers(shape)[index] == -1) {
        return true;
      }
      if (model.constant(shape) != null) {
        counts.add(new Count(n.getOutput(0), -1, list(shapes.numbers(shape)), index, each));
        return true;
      }
      NodeProto concat = producers.get(shape);
      int from = 0;
      for (int i = 0;
          concat != null && Nodes.is(concat, "Concat") && i < concat.getInputCount();
          i++) {
        String part = concat.getInput(i);
        int length = (int) shapes.length(part, 1); // known, as the whole is
        if (index < from + length) {
          long[] numbers = shapes.numbers(part);
          counts.add(new Count(n.getOutput(0), i, list(numbers), index - from, each));
          return Arrays.stream(numbers).allMatch(ValueShapes::isKnown);
        }
        from += length;
      }
      return false;
    }

    private static List<Long> list(long[] numbers) {
      return Arrays.stream(numbers).boxed().toList();
    }

    /** Where the input of a Reshape has the channels if its output has them at a place; null if nowhere. */
    private Place beforeReshape(NodeProto n, Place place) {
      String before = n.getInput(0);
      long last = shapes.length(before, 1);
      long block = place.block() * behind(n.getOutput(0), place.axis());
      if (block > 0 && last > 0 && last % (size * block) == 0) {
        return new Place(1, (int) (last / (size * block)), (int) block);
      }
      // Else its last axes became one.
      for (int axis = 2; place.axis() == 1 && axis <= shapes.rank(before); axis++) {
        long after = behind(before, axis);
        if (after > 0 && place.block() % after == 0) {
          Place merged = new Place(axis, place.repeat(), (int) (place.block() / after));
          if (shapes.length(before, axis) == length(merged)) {
            return merged;
          }
        }
      }
      return null;
    }

    /** The parts of a Split have the channels where the whole has, or each has one of the times that it has them. */
    private Place split(NodeProto n, Place place) {
      int axis = shapes.fromEnd(Nodes.integer(n, "axis", 0), n.getInput(0));
      if (axis != place.axis()) {
        return axis == 0 ? null : place;
      }
      int parts = n.getOutputCount();
      if (!shapes.isEven(n)) {
        return null;
      }
      if (place.repeat() % parts == 0) {
        return new Place(axis, place.repeat() / parts, place.block());
      }
      if (place.repeat() == 1) {
        refine(parts, 1);
      }
      return null;
    }

    private Place beforeSplit(NodeProto n, Place place) {
      int axis = shapes.fromEnd(Nodes.integer(n, "axis", 0), n.getInput(0));
      return axis == 0
          ? null
          : axis != place.axis()
              ? place
              : new Place(axis, place.repeat() * n.getOutputCount(), place.block());
    }

    /** The axes that a Gather of one index or a Squeeze takes away; null where they are not known. */
    private long[] removed(NodeProto n) {
      if (n.getOpType().equals("Squeeze")) {
        return shapes.axes(n);
      }
      return shapes.rank(n.getInput(1)) == 0 ? new long[] {Nodes.integer(n, "axis", 0)} : null;
    }

    /** A place in a value without some axes of another. */
    private Place without(Place place, long[] axes, String whole) {
      int axis = place.axis();
      for (long a : axes == null ? new long[] {0} : axes) {
        int end = axes == null ? 0 : shapes.fromEnd(a, whole);
        if (end == 0 || end == place.axis()) {
          return null;
        }
        axis -= end < place.axis() ? 1 : 0;
      }
      return new Place(axis, place.repeat(), place.block());
    }

    /** The same the other way round: a place in the whole. */
    private Place with(Place place, long[] axes, String whole) {
      if (axes == null) {
        return null;
      }
      int[] ends = Arrays.stream(axes).mapToInt(a -> shapes.fromEnd(a, whole)).sorted().toArray();
      int axis = place.axis();
      for (int end : ends) {
        if (end == 0) {
          return null;
        }
        axis += end <= axis ? 1 : 0;
      }
      return new Place(axis, place.repeat(), place.block());
    }

    private static Place transposed(NodeProto n, Place place) {
      int[] order = Nodes.permutation(n);
      for (int i = 0; order != null && i < order.length; i++) {
        if (order[i] == order.length - place.axis()) {
          return new Place(order.length - i, place.repeat(), place.block());
        }
      }
      return null;
    }

    private static Place beforeTranspose(NodeProto n, Place place) {
      int[] order = Nodes.permutation(n);
      return order == null || order.length < place.axis()
          ? null
          : new Place(
              order.length - order[order.length - place.axis()], place.repeat(), place.block());
    }

    /**
     * A product that sums over the channels.
     *
     * @param read what it reads: {@code activation}, or that made flat
     * @param place where the activation has the channels
     */
    private void readBy(NodeProto n, Use use, String read, String activation, Place place) {
      OnnxWeight weight = weights.get(n.getOutput(0));
      long[] dims = model.constant(weight.value()).dims();
      long entries = dims[use.reductionAxis()];
      boolean isFlat = !read.equals(activation);
      boolean isConv = use.kind() == Kind.CONV;
      fits &=
          n.getInput(0).equals(read)
              && n.getInputList().stream().filter(read::equals).count() == 1
              && (isFlat ? entries % size == 0 : entries == length(place) && place.repeat() == 1)
              && (isFlat || (isConv ? place.equals(image(dims)) : place.axis() == 1));
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
                isFlat || isConv));
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
    private void operator(NodeProto n, Place place) {
      String type = n.getOpType();
      String first = n.getInputCount() == 0 ? "" : n.getInput(0);
      if (!type.equals("Split")
          && n.getOutputList().stream().filter(o -> !o.isEmpty()).count() != 1) {
        fits = false;
      } else if (UNARY.contains(type) || SPATIAL.contains(type) && isImage(n.getOutput(0), place)) {
        add(first, place);
        for (int i = 1; i < n.getInputCount(); i++) {
          fits &= isNumber(n.getInput(i)); // a Dropout's ratio
        }
      } else if (JOINING.contains(type)) {
        for (int i = 0; i < n.getInputCount(); i++) {
          operand(n, i, place);
        }
      } else if (ALONG.contains(type)) {
        fits &= isAlongOthers(n, place);
        add(first, place);
      } else if (type.equals("MatMul") && place.axis() > 2) {
        inner.add(n.getOutput(0));
        for (int i = 0; i < 2; i++) {
          fits &= model.constant(n.getInput(i)) == null;
          operand(n, i, place);
        }
      } else if (MOVING.contains(type)) {
        Place before =
            switch (type) {
              case "Gather", "Squeeze" -> with(place, removed(n), first);
              case "Reshape" -> beforeReshape(n, place);
              case "Split" -> beforeSplit(n, place);
              case "Transpose" -> beforeTranspose(n, place);
              default -> without(place, shapes.axes(n), n.getOutput(0));
            };
        fits &= before != null;
        if (fits) {
          add(first, before); // and where it has them behind that is compared
        }
      } else if (type.equals("Slice") || type.equals("Concat")) {
        fits &= leavesWhole(n, place);
        for (String input : type.equals("Slice") ? List.of(first) : n.getInputList()) {
          add(input, place);
        }
      } else if (type.equals("BatchNormalization") && isImage(n.getOutput(0), place)) {
        add(first, place);
        for (int i = 1; i < 5; i++) {
          parameter(n, i);
        }
        fits &= Nodes.integer(n, "training_mode", 0) == 0;
      } else if (isDepthwise(n) && isImage(n.getOutput(0), place)) {
        String weight = weights.get(n.getOutput(0)).value();
        fits &= model.constant(weight).dims()[0] == size;
        depthwise.add(n.getOutput(0));
        slices.add(new Slice(n.getOutput(0), 1, weight, 0, 1));
        add(first, place);
        if (n.getInputCount() > 2 && !n.getInput(2).isEmpty()) {
          parameter(n, 2);
        }
      } else {
        fits = false;
      }
    }

    private boolean isNumber(String value) {
      OnnxInitializer c = model.constant(value);
      return value.isEmpty() || c != null && c.elements() == 1;
    }

    /** Whether a Slice or Concat is of other axes than that of the channels. */
    private boolean leavesWhole(NodeProto n, Place place) {
      long[] axes =
          n.getOpType().equals("Concat") ? new long[] {Nodes.integer(n, "axis", 0)} : shapes.cut(n);
      boolean others = axes != null;
      for (int i = 0; others && i < axes.length; i++) {
        int end = shapes.fromEnd(axes[i], n.getInput(0));
        others = end > 0 && end != place.axis();
      }
      return others;
    }

    /** Whether an operator works along axes behind that of the channels alone. */
    private boolean isAlongOthers(NodeProto n, Place place) {
      long[] axes = shapes.axes(n);
      if (n.getOpType().endsWith("oftmax")) {
        // Before operator set 13 it is along all axes from the one that it names on.
        long axis = Nodes.integer(n, "axis", model.opset("") < 13 ? 1 : -1);
        axes = new long[] {axis};
      }
      boolean others = axes != null && axes.length > 0 && Nodes.integer(n, "keepdims", 1) == 1;
      for (int i = 0; others && i < axes.length; i++) {
        int end = shapes.fromEnd(axes[i], n.getInput(0));
        others = end > 0 && end < place.axis();
      }
      return others;
    }

    /** An input that is the same for all channels, a constant with entries for each, or has the channels. */
    private void operand(NodeProto n, int input, Place place) {
      String value = n.getInput(input);
      long[] shape = shapes.of(value);
      if (value.isEmpty()
          || shape != null
              && (shape.length < place.axis() || shapes.length(value, place.axis()) == 1)) {
        return;
      }
      OnnxInitializer c = model.constant(value);
      if (c == null) {
        add(value, place);
        return;
      }
      int at = c.dims().length - place.axis();
      fits &= c.type() == DataType.FLOAT && c.dims()[at] == length(place);
      slices.add(new Slice(n.getOutput(0), input, value, at, place.block()));
    }

    /** A constant with one entry a channel of images. */
    private void parameter(NodeProto n, int input) {
      OnnxInitializer c = model.constant(n.getInput(input));
      fits &=
          c != null && c.type() == DataType.FLOAT && c.dims().length == 1 && c.elements() == size;
      slices.add(new Slice(n.getOutput(0), input, n.getInput(input), 0, 1));
    }
  }
}

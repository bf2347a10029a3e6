package org.espalier.compress.onnx.channels;

import ai.onnx.proto.OnnxMl.NodeProto;
import ai.onnx.proto.OnnxMl.TensorShapeProto;
import ai.onnx.proto.OnnxMl.ValueInfoProto;
import java.util.ArrayDeque;
import java.util.ArrayList;
import java.util.Deque;
import java.util.HashMap;
import java.util.HashSet;
import java.util.LinkedHashMap;
import java.util.LinkedHashSet;
import java.util.List;
import java.util.Map;
import java.util.Set;
import org.espalier.compress.onnx.channels.HiddenChannels.Attribute;
import org.espalier.compress.onnx.channels.HiddenChannels.Cache;
import org.espalier.compress.onnx.channels.HiddenChannels.Reader;
import org.espalier.compress.onnx.channels.HiddenChannels.Slice;
import org.espalier.format.onnx.Attributes;
import org.espalier.format.onnx.ConstantVector;
import org.espalier.format.onnx.OnnxInitializer;
import org.espalier.format.onnx.OnnxModel;
import org.espalier.format.onnx.OnnxWeight;
import org.espalier.format.onnx.OnnxWeight.Kind;
import org.espalier.format.onnx.OnnxWeight.Use;
import org.espalier.format.onnx.PastInput;

/**
 * A walk from the output of a product over everything that has the same channels, if they lie there as is supposed. Of
 * one use; not safe for several threads.
 */
final class ChannelWalk {
  /** Operators that work along axes of one input and keep them. */
  private static final Set<String> ALONG =
      Set.of(
          "LayerNormalization",
          "LogSoftmax",
          "RMSNormalization",
          "ReduceL2",
          "ReduceMax",
          "ReduceMean",
          "ReduceMin",
          "ReduceSum",
          "SimplifiedLayerNormalization",
          "Softmax");

  /** Operators with which exporters make shapes of numbers. */
  private static final Set<String> COUNTING =
      Set.of("Cast", "Concat", "Equal", "Identity", "Mul", "Squeeze", "Unsqueeze", "Where");

  private static final Set<String> RESHAPING = Set.of("Expand", "Reshape");

  /** Operators on images that treat each channel for itself. */
  private static final Set<String> SPATIAL =
      Set.of("AveragePool", "GlobalAveragePool", "GlobalMaxPool", "MaxPool");

  private static final ChannelLayout ONE = new ChannelLayout(1, 1);

  private final ChannelGraph graph;
  private final OnnxModel model;
  private final ValueShapes shapes;
  private final int size;
  private final ChannelPlaces where;
  private boolean fits = true;

  private final Deque<String> open = new ArrayDeque<>();
  private final Map<String, ChannelPlace> places = new LinkedHashMap<>();
  private final Set<String> flat = new LinkedHashSet<>();
  private final List<String> made = new ArrayList<>();
  private final Set<String> makers = new HashSet<>();
  private final Set<Slice> slices = new LinkedHashSet<>();
  private final List<Reader> readers = new ArrayList<>();
  private final List<Attribute> attributes = new ArrayList<>();
  private final List<Cache> caches = new ArrayList<>();
  private final Set<String> depthwise = new HashSet<>();
  private final Set<String> inner = new HashSet<>();

  /** What is cut out of values that have the channels. */
  private final Set<String> pieces = new HashSet<>();

  /** Where attentions of one node have the channels, by their output. */
  private final Map<String, Map<String, ChannelPlace>> attended = new HashMap<>();

  /** Numbers of channels that the graph takes from shapes. */
  private final List<String> asked = new ArrayList<>();

  /**
   * @param product that makes the channels
   * @param first where its output is supposed to have them
   */
  ChannelWalk(ChannelGraph graph, NodeProto product, ChannelPlace first) {
    this.graph = graph;
    model = graph.model;
    shapes = graph.shapes;
    size = (graph.numbers(product) - first.layout().rest()) / first.each();
    where = new ChannelPlaces(model, graph.producers, graph.consumers(), shapes, size);
    add(product.getOutput(0), first);
    while (fits && !open.isEmpty()) {
      visit(open.remove());
    }
    fits = fits && asked.stream().allMatch(this::isCounted);
  }

  /** Whether all that was met treats the channels so that they are a set of their own, and something sums over them. */
  boolean found() {
    return fits && !readers.isEmpty();
  }

  /** The inputs and outputs of the model that have the channels, of those that were met. */
  List<Cache> caches() {
    return caches;
  }

  /** Where else the channels could be, of what was met. */
  List<ChannelPlace> finer() {
    return where.finer().places();
  }

  /** All values that have the channels, if they are {@link #found}. */
  Set<String> values() {
    Set<String> values = new LinkedHashSet<>(places.keySet());
    values.addAll(flat);
    return values;
  }

  /** The channels, if they are {@link #found}. */
  HiddenChannels set() {
    Set<String> values = values();
    values.removeIf(value -> !graph.producers.containsKey(value));
    return new HiddenChannels(
        made.get(0),
        size,
        List.copyOf(made),
        Set.copyOf(makers),
        List.copyOf(slices),
        List.copyOf(where.reshapes().counts()),
        List.copyOf(where.cuts().bounds()),
        List.copyOf(attributes),
        List.copyOf(caches),
        List.copyOf(readers),
        Set.copyOf(depthwise),
        Set.copyOf(inner),
        Set.copyOf(values));
  }

  /** Whether a number goes into shapes alone in which it is replaced. */
  private boolean isCounted(String number) {
    return !graph.isOutput(number)
        && graph.consumers(number).stream()
            .allMatch(
                n ->
                    COUNTING.contains(n.getOpType())
                        ? isCounted(n.getOutput(0))
                        : OnnxModel.isOwn(n, "Shape")
                            || RESHAPING.contains(n.getOpType())
                                && n.getInput(1).equals(number)
                                && where.reshapes().counts().stream()
                                    .anyMatch(count -> count.node().equals(n.getOutput(0))));
  }

  /** Notes a value that has the channels. */
  private void add(String value, ChannelPlace place) {
    ChannelPlace known = places.putIfAbsent(value, place);
    if (known == null) {
      open.add(value);
    } else {
      fits &= known.equals(place);
    }
  }

  private void visit(String value) {
    ChannelPlace place = places.get(value);
    NodeProto producer = graph.producers.get(value);
    if (producer == null || graph.isOutput(value)) {
      fits = isCache(value, place);
      caches.add(new Cache(value, place.axis(), place.each()));
    }
    if (fits && producer != null && !pieces.contains(value)) {
      producer(producer, value, place);
    }
    for (NodeProto reader : graph.consumers(value)) {
      if (fits) {
        read(reader, value, place);
      }
    }
  }

  /** What makes a value that has the channels. */
  private void producer(NodeProto producer, String value, ChannelPlace place) {
    Use use = graph.use(producer);
    if (use != null && use.groups() == 1) {
      made(producer, use, place);
    } else if (isFused(producer)) {
      fusedOperator(producer, value, place);
    } else {
      operator(producer, place);
    }
  }

  /** Whether it is an operator of ONNX Runtime's own, or one like those. */
  private static boolean isFused(NodeProto n) {
    return !OnnxModel.isOwn(n) || FusedAttention.is(n) || FusedOperators.isRotation(n);
  }

  /** Whether a value of the model's inputs or outputs is keys or values, [n, heads, steps, numbers], of so many heads. */
  private boolean isCache(String value, ChannelPlace place) {
    ValueInfoProto told = model.valueInfo(value);
    boolean named = graph.isOutput(value) ? PastInput.isNext(value) : PastInput.isOne(value);
    if (told == null || !named || place.axis() != 3 || !place.layout().isEven()) {
      return false;
    }
    TensorShapeProto shape = told.getType().getTensorType().getShape();
    return shape.getDimCount() == 4
        && (!shape.getDim(1).hasDimValue() || shape.getDim(1).getDimValue() == place.length(size));
  }

  /** An operator that does what others spell out and reads or gives a value with the channels. */
  private void fusedOperator(NodeProto n, String value, ChannelPlace place) {
    FusedAttention attention = FusedAttention.of(n, shapes);
    boolean isOutput = n.getOutput(0).equals(value);
    if (attention != null) {
      attention(n, attention, value, place);
    } else if (!isOutput && n.getInputList().lastIndexOf(value) != 0) {
      fits = false;
    } else if (FusedOperators.isActivation(n)) {
      add(n.getInput(0), place);
      add(n.getOutput(0), place);
      if (isOutput && n.getInputCount() > 1) {
        operand(n, 1, place);
      }
    } else if (FusedOperators.isRotation(n)) {
      int width = rotated(n, place);
      fits &= width > 0 && n.getOutputCount() == 1;
      if (fits) {
        add(n.getInput(0), place);
        add(n.getOutput(0), place);
        if (isOutput) {
          attributes.add(new Attribute(n.getOutput(0), "num_heads", place.each() / width));
        }
      }
    } else {
      fits = false;
    }
  }

  /** How many numbers of the axis of the channels a head is whose numbers are turned together; 0 where that divides channels. */
  private int rotated(NodeProto n, ChannelPlace place) {
    if (place.axis() != 1) {
      return place.axis() == 3 ? 1 : 0;
    }
    long heads = Attributes.integer(n, "num_heads", 0);
    long[] cosines = shapes.of(FusedOperators.cosines(n));
    boolean known = cosines != null && cosines.length == 2 && cosines[1] > 0;
    long width = heads > 0 ? place.length(size) / heads : known ? 2 * cosines[1] : 0;
    if (width == 0 || shapes.rank(n.getInput(0)) != 3 || !place.layout().isEven()) {
      return 0;
    }
    if (place.block() % width != 0) {
      where.finer().add(place, new ChannelLayout(place.repeat(), (int) width));
      return 0;
    }
    return (int) width;
  }

  private void attention(NodeProto n, FusedAttention attention, String value, ChannelPlace place) {
    Map<String, ChannelPlace> known = attended.get(n.getOutput(0));
    Map<String, ChannelPlace> all =
        known != null ? known : attention.places(value, place, size, where.finer(), shapes);
    fits &= all != null && place.equals(all.get(value));
    fits &= attention.weight() == null || graph.numbers(n) > 0;
    if (!fits || known != null) {
      return;
    }
    if (attention.weight() != null) {
      made.add(attention.weight());
      makers.add(n.getOutput(0));
    }
    attended.put(n.getOutput(0), all);
    inner.add(n.getOutput(0));
    attributes.addAll(attention.attributes(size, all));
    all.forEach(
        (v, at) -> {
          if (n.getOutputList().contains(v)) {
            add(v, at);
          } else {
            operand(n, n.getInputList().indexOf(v), at);
          }
        });
  }

  /** A product that makes the channels. */
  private void made(NodeProto n, Use use, ChannelPlace place) {
    OnnxWeight weight = graph.weight(n);
    long[] dims = model.constant(weight.value()).dims();
    fits &= dims[use.outputAxis()] == place.length(size);
    fits &= use.kind() == Kind.CONV ? place.equals(ChannelPlace.image(dims)) : place.axis() == 1;
    made.add(weight.name());
    makers.add(n.getOutput(0));
    slices.add(new Slice(n.getOutput(0), 1, weight.value(), use.outputAxis(), place.layout()));
    if (use.kind() != Kind.MATMUL && n.getInputCount() > 2 && !n.getInput(2).isEmpty()) {
      if (use.kind() == Kind.CONV) {
        parameter(n, 2);
      } else {
        operand(n, 2, place);
      }
    }
  }

  /** A product or operator that reads the channels. */
  private void read(NodeProto n, String value, ChannelPlace place) {
    boolean joins =
        Elementwise.JOINING.contains(n.getOpType())
            || Set.of("Concat", "MatMul", "TensorScatter").contains(n.getOpType());
    if (n.getOutputCount() > 0 && isFused(n)) {
      fusedOperator(n, value, place);
      return;
    }
    if (n.getOutputCount() == 0 || !joins && n.getInputList().lastIndexOf(value) != 0) {
      fits = false;
      return;
    }
    Use use = graph.use(n);
    if (use != null && use.groups() == 1) {
      readBy(n, use, value, value, place);
    } else if (where.isImage(value, place) && isFlat(n)) {
      String rows = n.getOutput(0);
      List<NodeProto> products = graph.consumers(rows);
      fits &= !products.isEmpty() && !graph.isOutput(rows);
      flat.add(rows);
      for (NodeProto product : products) {
        Use weight = graph.use(product);
        fits &= weight != null && weight.kind() != Kind.CONV;
        if (fits) {
          readBy(product, weight, rows, value, place);
        }
      }
    } else if (n.getOpType().equals("Shape")) {
      fits &= !asksFor(n, value, place);
    } else if (where.cuts().isCutting(n, place)) {
      List<ChannelPlace> cut = where.cuts().pieces(n, place);
      fits &= cut != null;
      for (int i = 0; fits && i < n.getOutputCount(); i++) {
        if (cut.get(i).each() > 0 && !n.getOutput(i).isEmpty()) {
          pieces.add(n.getOutput(i));
          add(n.getOutput(i), cut.get(i));
        }
      }
    } else {
      ChannelPlace after = where.after(n, place);
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
      return Attributes.integer(n, "axis", 1) == 1;
    }
    long[] target = shapes.target(n);
    return target != null && target.length == 2 && target[0] == 0 && target[1] == -1;
  }

  /** Whether somebody may get the number of channels from a Shape, and not as one number that is looked at later. */
  private boolean asksFor(NodeProto n, String value, ChannelPlace place) {
    if (Attributes.find(n, "start") != null || Attributes.find(n, "end") != null) {
      int rank = shapes.rank(value);
      int axis = rank - place.axis();
      return rank < 0 || axis >= ValueNumbers.start(n, rank) && axis < ValueNumbers.end(n, rank);
    }
    for (NodeProto reader : graph.consumers(n.getOutput(0))) {
      long[] axes =
          OnnxModel.isOwn(reader, "Gather") && reader.getInput(0).equals(n.getOutput(0))
              ? shapes.numbers().of(reader.getInput(1))
              : null;
      if (axes == null) {
        return true;
      }
      for (long axis : axes) {
        int end = shapes.fromEnd(axis, value);
        if (end == 0 || end == place.axis() && axes.length > 1) {
          return true;
        }
        if (end == place.axis()) {
          asked.add(reader.getOutput(0));
        }
      }
    }
    return graph.isOutput(n.getOutput(0));
  }

  /**
   * A product that sums over the channels.
   *
   * @param read what it reads: {@code activation}, or that made flat
   * @param place where the activation has the channels
   */
  private void readBy(NodeProto n, Use use, String read, String activation, ChannelPlace place) {
    OnnxWeight weight = graph.weight(n);
    long[] dims = model.constant(weight.value()).dims();
    long entries = dims[use.reductionAxis()];
    boolean isFlat = !read.equals(activation);
    boolean isConv = use.kind() == Kind.CONV;
    fits &=
        n.getInput(0).equals(read)
            && n.getInputList().stream().filter(read::equals).count() == 1
            && (isFlat
                ? entries % size == 0
                : entries == place.length(size) && place.layout().isEven())
            && (isFlat || (isConv ? place.equals(ChannelPlace.image(dims)) : place.axis() == 1));
    if (fits) {
      Slice slice =
          new Slice(
              n.getOutput(0),
              1,
              weight.value(),
              use.reductionAxis(),
              isFlat ? new ChannelLayout(1, Math.toIntExact(entries / size)) : place.layout());
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
            Attributes.find(n, "auto_pad") != null
                || Attributes.find(n, "pads") != null
                    && Attributes.find(n, "pads").getIntsList().stream().anyMatch(p -> p != 0);
        return c != null && c.isFloat() && !padded ? n.getOutput(0) : null;
      }
      default -> {
        return ConstantVector.biasAdd(model, n.getOutput(0), (int) columns, graph.consumers());
      }
    }
  }

  /** An operator whose output has the channels: so have its inputs, or they are constants. */
  private void operator(NodeProto n, ChannelPlace place) {
    String type = n.getOpType();
    String first = n.getInputCount() == 0 ? "" : n.getInput(0);
    if (!type.equals("Split")
        && n.getOutputList().stream().filter(o -> !o.isEmpty()).count() != 1) {
      fits = false;
    } else if (Elementwise.UNARY.contains(type)
        || SPATIAL.contains(type) && where.isImage(n.getOutput(0), place)) {
      add(first, place);
      for (int i = 1; i < n.getInputCount(); i++) {
        fits &= isNumber(n.getInput(i)); // a Dropout's ratio
      }
    } else if (Elementwise.JOINING.contains(type)) {
      for (int i = 0; i < n.getInputCount(); i++) {
        operand(n, i, place);
      }
    } else if (ALONG.contains(type)) {
      fits &= where.isAlongOthers(n, place);
      add(first, place);
      for (int i = 1; i < n.getInputCount(); i++) {
        // Axes, or what a norm multiplies with and adds, which all channels share.
        OnnxInitializer c = model.constant(n.getInput(i));
        fits &= n.getInput(i).isEmpty() || c != null && c.dims().length < place.axis();
      }
    } else if (type.equals("TensorScatter")) {
      int along = shapes.fromEnd(Attributes.integer(n, "axis", -2), first);
      fits &= along > 0 && along != place.axis();
      add(first, place);
      add(n.getInput(1), place);
    } else if (type.equals("Expand")) {
      fits &= where.reshapes().expands(n, place);
      operand(n, 0, place);
    } else if (type.equals("MatMul") && place.axis() > 2) {
      inner.add(n.getOutput(0));
      for (int i = 0; i < 2; i++) {
        fits &= model.constant(n.getInput(i)) == null;
        operand(n, i, place);
      }
    } else if (ChannelPlaces.isMoving(n)) {
      ChannelPlace before = where.before(n, place);
      fits &= before != null;
      if (fits) {
        add(first, before); // and where it has them behind that is compared
      }
    } else if (type.equals("Slice") || type.equals("Concat")) {
      fits &= where.leavesWhole(n, place);
      for (String input : type.equals("Slice") ? List.of(first) : n.getInputList()) {
        add(input, place);
      }
    } else if (type.equals("BatchNormalization") && where.isSecond(n.getOutput(0), place)) {
      add(first, place);
      for (int i = 1; i < 5; i++) {
        parameter(n, i);
      }
      fits &= Attributes.integer(n, "training_mode", 0) == 0;
    } else if (graph.isDepthwise(n) && where.isImage(n.getOutput(0), place)) {
      String weight = graph.weight(n).value();
      fits &= model.constant(weight).dims()[0] == size;
      depthwise.add(n.getOutput(0));
      slices.add(new Slice(n.getOutput(0), 1, weight, 0, ONE));
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

  /** An input that is the same for all channels, a constant with entries for each, or has the channels. */
  private void operand(NodeProto n, int input, ChannelPlace place) {
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
    fits &= c.isFloat() && c.dims()[at] == place.length(size);
    slices.add(new Slice(n.getOutput(0), input, value, at, place.layout()));
  }

  /** A constant with one entry a channel, whatever has them. */
  private void parameter(NodeProto n, int input) {
    OnnxInitializer c = model.constant(n.getInput(input));
    fits &= c != null && c.isFloat() && c.dims().length == 1 && c.elements() == size;
    slices.add(new Slice(n.getOutput(0), input, n.getInput(input), 0, ONE));
  }
}

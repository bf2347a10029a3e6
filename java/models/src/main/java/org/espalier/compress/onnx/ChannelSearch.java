package org.espalier.compress.onnx;

import ai.onnx.proto.OnnxMl.NodeProto;
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
import org.espalier.compress.onnx.ChannelPlaces.Place;
import org.espalier.compress.onnx.HiddenChannels.Reader;
import org.espalier.compress.onnx.HiddenChannels.Slice;
import org.espalier.format.onnx.OnnxInitializer;
import org.espalier.format.onnx.OnnxModel;
import org.espalier.format.onnx.OnnxWeight;
import org.espalier.format.onnx.OnnxWeight.Kind;
import org.espalier.format.onnx.OnnxWeight.Use;
import org.espalier.format.onnx.OnnxWeights;

/**
 * Finds {@link HiddenChannels}: walks from the output of a product over everything that has the same channels. How many
 * numbers of the product a channel is shows on the way, where a Reshape or Split divides them; then the walk begins
 * anew.
 */
final class ChannelSearch {
  /** Operators that work along axes of one input and keep them. */
  private static final Set<String> ALONG =
      Set.of(
          "LogSoftmax", "ReduceL2", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceSum", "Softmax");

  /** Operators on images that treat each channel for itself. */
  private static final Set<String> SPATIAL =
      Set.of("AveragePool", "GlobalAveragePool", "GlobalMaxPool", "MaxPool");

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
  private List<Reader> readers;
  private Set<String> depthwise;
  private Set<String> inner;
  private int size;
  private boolean fits;
  private ChannelPlaces where;

  ChannelSearch(OnnxModel model) {
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
    if (!alone || !Nodes.isFloat(w.type()) || use.input() != 1 || w.elements() == 0) {
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
      Deque<Place> tries = new ArrayDeque<>();
      tries.add(
          use.kind() == Kind.CONV
              ? Place.image(model.constant(weights.get(n.getOutput(0)).value()).dims())
              : new Place(1));
      while (!tries.isEmpty()) {
        Place first = tries.remove();
        if (!tried.add(first)) {
          continue;
        }
        walk(n, use, first);
        if (fits && !readers.isEmpty()) {
          found.add(set());
          break;
        }
        for (Place finer : first.axis() == 1 ? where.finer() : List.<Place>of()) {
          tries.add(new Place(1, first.repeat() * finer.repeat(), first.block() * finer.block()));
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
        List.copyOf(where.counts()),
        List.copyOf(readers),
        Set.copyOf(depthwise),
        Set.copyOf(inner),
        Set.copyOf(values));
  }

  /**
   * @param first where the output of the product has the channels
   */
  private void walk(NodeProto n, Use use, Place first) {
    open.clear();
    places = new LinkedHashMap<>();
    flat = new LinkedHashSet<>();
    made = new ArrayList<>();
    makers = new HashSet<>();
    slices = new LinkedHashSet<>();
    readers = new ArrayList<>();
    depthwise = new HashSet<>();
    inner = new HashSet<>();
    long[] dims = model.constant(weights.get(n.getOutput(0)).value()).dims();
    size = Math.toIntExact(dims[use.outputAxis()]) / first.each();
    where = new ChannelPlaces(model, producers, shapes, size);
    fits = true;
    add(n.getOutput(0), first);
    while (fits && !open.isEmpty()) {
      visit(open.remove());
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
    fits &= dims[use.outputAxis()] == where.length(place);
    fits &= use.kind() == Kind.CONV ? place.equals(Place.image(dims)) : place.axis() == 1;
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
        Nodes.JOINING.contains(n.getOpType()) || Set.of("Concat", "MatMul").contains(n.getOpType());
    if (n.getOutputCount() == 0
        || !OnnxModel.isOwn(n)
        || !joins && n.getInputList().lastIndexOf(value) != 0) {
      fits = false;
      return;
    }
    Use use = uses.get(n.getOutput(0));
    if (use != null && use.groups() == 1) {
      readBy(n, use, value, value, place);
    } else if (where.isImage(value, place) && isFlat(n)) {
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
      Place after = where.after(n, place);
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
    long[] target = where.target(n);
    return target != null && target.length == 2 && target[0] == 0 && target[1] == -1;
  }

  /** Whether somebody may get the number of channels from a Shape. */
  private boolean asksFor(NodeProto n, String value, Place place) {
    if (Nodes.find(n, "start") != null || Nodes.find(n, "end") != null) {
      int rank = shapes.rank(value);
      int axis = rank - place.axis();
      return rank < 0 || axis >= ValueShapes.start(n, rank) && axis < ValueShapes.end(n, rank);
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
            && (isFlat
                ? entries % size == 0
                : entries == where.length(place) && place.repeat() == 1)
            && (isFlat || (isConv ? place.equals(Place.image(dims)) : place.axis() == 1));
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
        return c != null && Nodes.isFloat(c.type()) && !padded ? n.getOutput(0) : null;
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
    } else if (Nodes.UNARY.contains(type)
        || SPATIAL.contains(type) && where.isImage(n.getOutput(0), place)) {
      add(first, place);
      for (int i = 1; i < n.getInputCount(); i++) {
        fits &= isNumber(n.getInput(i)); // a Dropout's ratio
      }
    } else if (Nodes.JOINING.contains(type)) {
      for (int i = 0; i < n.getInputCount(); i++) {
        operand(n, i, place);
      }
    } else if (ALONG.contains(type)) {
      fits &= where.isAlongOthers(n, place);
      add(first, place);
    } else if (type.equals("MatMul") && place.axis() > 2) {
      inner.add(n.getOutput(0));
      for (int i = 0; i < 2; i++) {
        fits &= model.constant(n.getInput(i)) == null;
        operand(n, i, place);
      }
    } else if (ChannelPlaces.isMoving(n)) {
      Place before = where.before(n, place);
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
      fits &= Nodes.integer(n, "training_mode", 0) == 0;
    } else if (isDepthwise(n) && where.isImage(n.getOutput(0), place)) {
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
    fits &= Nodes.isFloat(c.type()) && c.dims()[at] == where.length(place);
    slices.add(new Slice(n.getOutput(0), input, value, at, place.block()));
  }

  /** A constant with one entry a channel, whatever has them. */
  private void parameter(NodeProto n, int input) {
    OnnxInitializer c = model.constant(n.getInput(input));
    fits &= c != null && Nodes.isFloat(c.type()) && c.dims().length == 1 && c.elements() == size;
    slices.add(new Slice(n.getOutput(0), input, n.getInput(input), 0, 1));
  }
}

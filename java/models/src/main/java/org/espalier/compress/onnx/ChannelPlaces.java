package org.espalier.compress.onnx;

import ai.onnx.proto.OnnxMl.NodeProto;
import ai.onnx.proto.OnnxMl.TensorProto.DataType;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.Collections;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.function.IntPredicate;
import org.espalier.compress.onnx.HiddenChannels.Bounds;
import org.espalier.compress.onnx.HiddenChannels.Count;
import org.espalier.format.onnx.AxisOrder;
import org.espalier.format.onnx.OnnxInitializer;
import org.espalier.format.onnx.OnnxModel;

/**
 * Where channels of one number are on both sides of operators that give axes another place, divide them or make one of
 * several. Keeps what it meets on the way: the numbers in shapes that count the channels, and the ways in which they
 * may be fewer than was thought. Not safe for several threads.
 */
final class ChannelPlaces {
  /**
   * Where a value has the channels.
   *
   * @param axis counted from the end, 1 for the last
   * @param layout which numbers of the axis are theirs
   */
  record Place(int axis, ChannelLayout layout) {
    Place(int axis) {
      this(axis, 1, 1);
    }

    Place(int axis, int repeat, int block) {
      this(axis, new ChannelLayout(repeat, block));
    }

    int repeat() {
      return layout.repeat();
    }

    int block() {
      return layout.block();
    }

    /** Where images have channels that a convolution of a weight reads or makes. */
    static Place image(long[] weight) {
      return new Place(weight.length - 1);
    }

    private Place at(int other) {
      return new Place(other, layout);
    }

    /** How many numbers of the axis a channel has. */
    int each() {
      return layout.each();
    }
  }

  /** Operators that give an input's numbers, or some of them, other axes. */
  private static final Set<String> MOVING =
      Set.of("Gather", "Reshape", "Split", "Squeeze", "Transpose", "Unsqueeze");

  private final OnnxModel model;
  private final Map<String, NodeProto> producers;
  private final Map<String, List<NodeProto>> consumers;
  private final ValueShapes shapes;
  private final int size;
  private final List<Count> counts = new ArrayList<>();
  private final List<Bounds> bounds = new ArrayList<>();
  private final List<Place> finer = new ArrayList<>();

  /**
   * @param producers of the model
   * @param consumers of the model
   * @param size how many channels there are
   */
  ChannelPlaces(
      OnnxModel model,
      Map<String, NodeProto> producers,
      Map<String, List<NodeProto>> consumers,
      ValueShapes shapes,
      int size) {
    this.model = model;
    this.producers = producers;
    this.consumers = consumers;
    this.shapes = shapes;
    this.size = size;
  }

  /** Whether a value has the channels where convolutions have them. */
  boolean isImage(String value, Place place) {
    return shapes.rank(value) > 2 && isSecond(value, place);
  }

  /** Whether a value has the channels where batch norms have them, which images may be or rows. */
  boolean isSecond(String value, Place place) {
    long[] shape = shapes.of(value);
    return shape != null && shape.length > 1 && place.equals(Place.image(shape));
  }

  /** How long the axis is that has the channels. */
  long length(Place place) {
    return place.layout().length(size);
  }

  /** The numbers that count the channels, of all shapes that were met. */
  List<Count> counts() {
    return counts;
  }

  /** The numbers that tell how long pieces of the channels' axes are, of all that were met. */
  List<Bounds> bounds() {
    return bounds;
  }

  /**
   * Where the channels would be in place of the last axis, as a whole, if they were those of an axis that was met: of
   * each group of so many numbers one after the other all are a channel's, and all of that comes several times.
   */
  List<Place> finer() {
    return finer;
  }

  /**
   * Notes that the channels of a value may be finer.
   *
   * @param now where the value has those that were looked for
   * @param layout of the finer ones on the same axis
   */
  void refine(Place now, ChannelLayout layout) {
    if (layout.isEven()) {
      if (layout.repeat() % now.repeat() == 0 && layout.block() % now.block() == 0) {
        refine(layout.repeat() / now.repeat(), layout.block() / now.block());
      }
    } else if (now.equals(new Place(1))) {
      finer.add(new Place(1, layout));
    }
  }

  private void refine(long repeat, long block) {
    if (size % (repeat * block) == 0 && size > repeat * block) {
      finer.add(new Place(1, (int) repeat, (int) block));
    }
  }

  /**
   * Where what an operator makes of its first input has the channels; null where that cannot be told. Operators that move
   * nothing leave them where they are.
   */
  Place after(NodeProto n, Place place) {
    if (isMoving(n) && !place.layout().isEven()) {
      return null;
    }
    return switch (n.getOpType()) {
      case "Gather", "Squeeze" -> without(place, removed(n), n.getInput(0));
      case "Reshape" -> reshaped(n, place);
      case "Split" -> split(n, place);
      case "Transpose" -> transposed(n, place);
      case "Unsqueeze" -> with(place, shapes.axes(n), n.getOutput(0));
      default -> place;
    };
  }

  /** Whether an operator gives what it reads other axes, so that {@link #before} can be asked. */
  static boolean isMoving(NodeProto n) {
    return MOVING.contains(n.getOpType());
  }

  /**
   * Where the first input of an operator that moves axes has the channels if its output has them at a place; null where
   * that cannot be told. What is told is so if {@link #after} says the same.
   */
  Place before(NodeProto n, Place place) {
    if (!place.layout().isEven()) {
      return null;
    }
    return switch (n.getOpType()) {
      case "Gather", "Squeeze" -> with(place, removed(n), n.getInput(0));
      case "Reshape" -> beforeReshape(n, place);
      case "Split" -> beforeSplit(n, place);
      case "Transpose" -> beforeTranspose(n, place);
      case "Unsqueeze" -> without(place, shapes.axes(n), n.getOutput(0));
      default -> place;
    };
  }

  /** What a Reshape is told; null where that is not known. */
  long[] target(NodeProto n) {
    boolean told =
        n.getOpType().equals("Reshape")
            && n.getInputCount() > 1
            && Nodes.integer(n, "allowzero", 0) == 0;
    return told ? shapes.numbers(n.getInput(1)) : null;
  }

  /** Where what a Reshape makes has the channels; null where that cannot be told. */
  private Place reshaped(NodeProto n, Place place) {
    long[] target = target(n);
    if (target == null) {
      return null;
    }
    if (place.axis() == 1) {
      return divided(n, target, place);
    }
    Place last = merged(n, target, place);
    return last != null ? last : joined(n, target, place);
  }

  /** Some axes before the last become one, such as key heads and what each is repeated for. */
  private Place joined(NodeProto n, long[] target, Place place) {
    long[] shape = shapes.of(n.getInput(0));
    int end = joint(shape, target);
    if (end == 0) {
      return null;
    }
    int axes = shape.length - target.length + 1;
    if (place.axis() < end || place.axis() >= end + axes) {
      return place.at(place.axis() < end ? place.axis() : place.axis() - axes + 1);
    }
    Place whole =
        new Place(
            end,
            (int) (place.repeat() * product(shape, place.axis() + 1, end + axes)),
            (int) (place.block() * product(shape, end, place.axis())));
    boolean fits =
        target[target.length - end] == -1 || target[target.length - end] == length(whole);
    return fits && count(n, target.length - end, whole.each()) ? whole : null;
  }

  /** The same the other way round. */
  private Place beforeJoined(NodeProto n, Place place) {
    long[] shape = shapes.of(n.getInput(0));
    long[] target = target(n);
    int end = joint(shape, target);
    if (end < 2) {
      return null;
    }
    int axes = shape.length - target.length + 1;
    if (place.axis() != end) {
      return place.at(place.axis() < end ? place.axis() : place.axis() + axes - 1);
    }
    for (int axis = end + axes - 1; axis >= end; axis--) {
      long before = product(shape, axis + 1, end + axes);
      long after = product(shape, end, axis);
      if (place.repeat() % before == 0 && place.block() % after == 0) {
        Place part =
            new Place(axis, (int) (place.repeat() / before), (int) (place.block() / after));
        if (shape[shape.length - axis] == length(part)) {
          return part;
        }
      }
    }
    // The channels may be those of any one.
    for (int axis = end + axes - 1; axis >= end; axis--) {
      long before = product(shape, axis + 1, end + axes);
      long after = product(shape, end, axis);
      if (before % place.repeat() == 0 && after % place.block() == 0) {
        refine(before / place.repeat(), after / place.block());
      }
    }
    return null;
  }

  /**
   * Which axis of what a Reshape makes is several of what it reads, whose lengths are known, the others being as they
   * were; counted from the end, 0 if that cannot be told.
   */
  private static int joint(long[] shape, long[] target) {
    int axes = shape == null || target == null ? 0 : shape.length - target.length + 1;
    for (int end = 1; axes > 1 && end <= target.length; end++) {
      int at = target.length - end;
      long whole = 1;
      for (int i = at; i < at + axes && whole > 0; i++) {
        boolean known = shape[i] > 0 && whole <= Integer.MAX_VALUE / shape[i];
        whole = known ? whole * shape[i] : 0;
      }
      // The numbers are as many as before, so one length that is not known follows from the others.
      int open = target[at] == whole ? 0 : 1;
      boolean fits = whole > 0 && (open == 0 || target[at] == -1);
      for (int i = 0; fits && i < target.length; i++) {
        if (i != at) {
          long before = shape[i < at ? i : i + axes - 1];
          boolean same = target[i] == before || i < at && target[i] == 0;
          boolean follows = target[i] == -1 || !ValueShapes.isKnown(target[i]);
          open += same ? 0 : 1;
          fits = same || follows;
        }
      }
      if (fits && open <= 1) {
        return end;
      }
    }
    return 0;
  }

  /** How many numbers the axes of a shape hold from one on to before another, both counted from the end. */
  private static long product(long[] shape, int from, int to) {
    long product = 1;
    for (int axis = from; axis < to; axis++) {
      product *= shape[shape.length - axis];
    }
    return product;
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
    if (after < 1 || end < 0 || place.each() * after > Integer.MAX_VALUE / size) {
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
    NodeProto concat = concat(producers, shape);
    int from = 0;
    for (int i = 0; concat != null && i < concat.getInputCount(); i++) {
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

  /**
   * Notes the number in the shape that an Expand is told if it is more than a one.
   *
   * @return whether the number can be another
   */
  boolean expands(NodeProto n, Place place) {
    long[] target = shapes.numbers(n.getInput(1));
    int index = target == null ? -1 : target.length - place.axis();
    return target != null
        && (index < 0
            || target[index] == 1
            || target[index] == length(place) && count(n, index, place.each()));
  }

  /** The Concat that makes a shape, as it is or with ones in place of what is open; null if none does. */
  static NodeProto concat(Map<String, NodeProto> producers, String shape) {
    NodeProto n = producers.get(shape);
    if (n != null && ValueShapes.isOnesForOpen(producers, n)) {
      n = producers.get(n.getInput(2));
    }
    return n != null && Nodes.is(n, "Concat") ? n : null;
  }

  private static List<Long> list(long[] numbers) {
    return Arrays.stream(numbers).boxed().toList();
  }

  /** Where the input of a Reshape has the channels if its output has them at a place; null if nowhere. */
  private Place beforeReshape(NodeProto n, Place place) {
    String before = n.getInput(0);
    long last = shapes.length(before, 1);
    long block = place.block() * behind(n.getOutput(0), place.axis());
    boolean whole = block > 0 && last <= Integer.MAX_VALUE && block <= last / size;
    if (whole && last % (size * block) == 0) {
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
    return beforeJoined(n, place);
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
      Place part = new Place(axis, place.repeat() / parts, place.block());
      if (shapes.lengths(n) != null) {
        tell(n, Collections.nCopies(parts, part.each()), Collections.nCopies(parts, 0));
      }
      return part;
    }
    if (place.repeat() == 1) {
      refine(parts, 1);
    }
    return null;
  }

  /** Notes the lengths that a Split is told. */
  private void tell(NodeProto split, List<Integer> each, List<Integer> rest) {
    int input = split.getInputCount() > 1 && !split.getInput(1).isEmpty() ? 1 : -1;
    bounds.add(new Bounds(split.getOutput(0), input, each, rest));
  }

  /** Whether an operator takes pieces of the axis of the channels that need not be as long as each other. */
  boolean isCutting(NodeProto n, Place place) {
    return switch (n.getOpType()) {
      case "Slice" -> shapes.range(n, place.axis()) != null;
      case "Split" ->
          !shapes.isEven(n)
              && shapes.fromEnd(Nodes.integer(n, "axis", 0), n.getInput(0)) == place.axis();
      default -> false;
    };
  }

  /**
   * Where the outputs of a Split or Slice have the channels that cuts their axis; null where that cannot be told. A
   * place without numbers is one where there are none.
   */
  List<Place> pieces(NodeProto n, Place place) {
    boolean isSlice = n.getOpType().equals("Slice");
    long[] ends = isSlice ? shapes.range(n, place.axis()) : ends(shapes.lengths(n));
    if (ends == null || ends[ends.length - 1] > length(place) || !isTold(n, isSlice)) {
      return null;
    }
    List<Place> pieces = new ArrayList<>();
    for (int i = 1; i < ends.length; i++) {
      ChannelLayout piece = place.layout().piece(size, ends[i - 1], ends[i]);
      if (piece == null) {
        refine(n, place, ends);
        return null;
      }
      pieces.add(new Place(place.axis(), piece));
    }
    if (!isSlice) {
      tell(
          n,
          pieces.stream().map(Place::each).toList(),
          pieces.stream().map(piece -> piece.layout().rest()).toList());
      return pieces;
    }
    for (int i = 0; i < 2; i++) {
      int each = place.layout().eachBefore(size, ends[i]);
      int rest = (int) (ends[i] - (long) size * each);
      bounds.add(new Bounds(n.getOutput(0), i + 1, List.of(each), List.of(rest)));
    }
    return pieces;
  }

  /** Whether an operator is told where it cuts by numbers of 64 bits, in inputs where it is a Slice. */
  private boolean isTold(NodeProto n, boolean isSlice) {
    for (int i = 1; i < (isSlice ? 3 : 2); i++) {
      OnnxInitializer c = i < n.getInputCount() ? model.constant(n.getInput(i)) : null;
      if (isSlice && i >= n.getInputCount() || c != null && c.type() != DataType.INT64) {
        return false;
      }
    }
    return true;
  }

  private static long[] ends(long[] lengths) {
    long[] ends = new long[lengths == null ? 0 : lengths.length + 1];
    for (int i = 1; i < ends.length; i++) {
      if (lengths[i - 1] < 0) {
        return null;
      }
      ends[i] = ends[i - 1] + lengths[i - 1];
    }
    return ends.length == 0 ? null : ends;
  }

  /** Pieces may be all channels over again, or heads of queries and behind them fewer ones of keys and values. */
  private void refine(NodeProto n, Place place, long[] ends) {
    long length = length(place);
    for (int i = 1; i < ends.length && place.equals(new Place(1)); i++) {
      long piece = ends[i] - ends[i - 1];
      long others = (length - piece) / 2;
      if (piece > 0 && length % piece == 0 && ends[i - 1] % piece == 0) {
        refine(length / piece, 1);
      }
      if (ends[i - 1] == 0 && others > 0 && piece + 2 * others == length) {
        int width = width(n.getOutput(i - 1));
        if (width > 0 && piece % others == 0 && others % width == 0) {
          int queries = (int) (piece / others);
          int groups = (int) (others / width);
          finer.add(new Place(1, new ChannelLayout(1, queries * width, 2, width, 0)));
          finer.add(new Place(1, new ChannelLayout(groups, width, 0, 0, 2 * groups * width)));
        }
      }
    }
  }

  /** How many numbers a head has if a value becomes several; 0 where that does not show. */
  private int width(String value) {
    return consumers.getOrDefault(value, List.of()).stream()
        .map(this::target)
        .filter(target -> target != null && target.length > 2)
        .mapToInt(target -> (int) Math.max(0, target[target.length - 1]))
        .findFirst()
        .orElse(0);
  }

  private Place beforeSplit(NodeProto n, Place place) {
    int axis = shapes.fromEnd(Nodes.integer(n, "axis", 0), n.getInput(0));
    int parts = n.getOutputCount();
    return axis == 0 || parts > Integer.MAX_VALUE / length(place)
        ? null
        : axis != place.axis() ? place : new Place(axis, place.repeat() * parts, place.block());
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
    if (axes == null) {
      return null;
    }
    int axis = place.axis();
    for (long a : axes) {
      int end = shapes.fromEnd(a, whole);
      if (end == 0 || end == place.axis()) {
        return null;
      }
      axis -= end < place.axis() ? 1 : 0;
    }
    return place.at(axis);
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
    return place.at(axis);
  }

  private static Place transposed(NodeProto n, Place place) {
    int[] order = AxisOrder.of(n);
    for (int i = 0; order != null && i < order.length; i++) {
      if (order[i] == order.length - place.axis()) {
        return place.at(order.length - i);
      }
    }
    return null;
  }

  private static Place beforeTranspose(NodeProto n, Place place) {
    int[] order = AxisOrder.of(n);
    return order == null || order.length < place.axis()
        ? null
        : place.at(order.length - order[order.length - place.axis()]);
  }

  /** Whether a Slice or Concat is of other axes than that of the channels. */
  boolean leavesWhole(NodeProto n, Place place) {
    long[] axes =
        n.getOpType().equals("Concat") ? new long[] {Nodes.integer(n, "axis", 0)} : shapes.cut(n);
    return axes != null && all(axes, n.getInput(0), end -> end != place.axis());
  }

  /** Whether an operator works along axes behind that of the channels alone. */
  boolean isAlongOthers(NodeProto n, Place place) {
    boolean isSoftmax = n.getOpType().endsWith("oftmax");
    long[] axes =
        isSoftmax || n.getOpType().endsWith("Normalization")
            // Norms, and before operator set 13 a Softmax, are along all axes from the one that
            // they name on.
            ? new long[] {Nodes.integer(n, "axis", isSoftmax && model.opset("") < 13 ? 1 : -1)}
            : shapes.axes(n);
    return axes != null
        && axes.length > 0
        && Nodes.integer(n, "keepdims", 1) == 1
        && all(axes, n.getInput(0), end -> end < place.axis());
  }

  /** Whether all of some axes, counted from the end, are known and as they are wanted. */
  private boolean all(long[] axes, String value, IntPredicate wanted) {
    return Arrays.stream(axes)
        .mapToInt(axis -> shapes.fromEnd(axis, value))
        .allMatch(end -> end > 0 && wanted.test(end));
  }
}

package org.espalier.compress.onnx.channels;

import ai.onnx.proto.OnnxMl.NodeProto;
import java.util.Arrays;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.function.IntPredicate;
import org.espalier.format.onnx.Attributes;
import org.espalier.format.onnx.AxisOrder;
import org.espalier.format.onnx.OnnxModel;

/**
 * Where channels of one number are on both sides of operators that give axes another place, divide them or make one of
 * several. Keeps what it meets on the way: the numbers in shapes that count the channels, and the ways in which they
 * may be fewer than was thought. Not safe for several threads.
 */
final class ChannelPlaces {
  /** Operators that give an input's numbers, or some of them, other axes. */
  private static final Set<String> MOVING =
      Set.of("Gather", "Reshape", "Split", "Squeeze", "Transpose", "Unsqueeze");

  private final OnnxModel model;
  private final ValueShapes shapes;
  private final FinerChannels finer;
  private final ChannelReshapes reshapes;
  private final ChannelCuts cuts;

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
    this.shapes = shapes;
    finer = new FinerChannels(size);
    reshapes = new ChannelReshapes(model, producers, shapes, size, finer);
    cuts = new ChannelCuts(model, consumers, shapes, size, finer);
  }

  /** Whether a value has the channels where convolutions have them. */
  boolean isImage(String value, ChannelPlace place) {
    return shapes.rank(value) > 2 && isSecond(value, place);
  }

  /** Whether a value has the channels where batch norms have them, which images may be or rows. */
  boolean isSecond(String value, ChannelPlace place) {
    long[] shape = shapes.of(value);
    return shape != null && shape.length > 1 && place.equals(ChannelPlace.image(shape));
  }

  /** Where else the channels could be. */
  FinerChannels finer() {
    return finer;
  }

  /** What is told of them by and to Reshapes and Expands. */
  ChannelReshapes reshapes() {
    return reshapes;
  }

  /** What is told of them by and to Splits and Slices. */
  ChannelCuts cuts() {
    return cuts;
  }

  /**
   * Where what an operator makes of its first input has the channels; null where that cannot be told. Operators that move
   * nothing leave them where they are.
   */
  ChannelPlace after(NodeProto n, ChannelPlace place) {
    if (isMoving(n) && !place.layout().isEven()) {
      return null;
    }
    return switch (n.getOpType()) {
      case "Gather", "Squeeze" -> without(place, removed(n), n.getInput(0));
      case "Reshape" -> reshapes.after(n, place);
      case "Split" -> cuts.after(n, place);
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
  ChannelPlace before(NodeProto n, ChannelPlace place) {
    if (!place.layout().isEven()) {
      return null;
    }
    return switch (n.getOpType()) {
      case "Gather", "Squeeze" -> with(place, removed(n), n.getInput(0));
      case "Reshape" -> reshapes.before(n, place);
      case "Split" -> cuts.before(n, place);
      case "Transpose" -> beforeTranspose(n, place);
      case "Unsqueeze" -> without(place, shapes.axes(n), n.getOutput(0));
      default -> place;
    };
  }

  /** The axes that a Gather of one index or a Squeeze takes away; null where they are not known. */
  private long[] removed(NodeProto n) {
    if (n.getOpType().equals("Squeeze")) {
      return shapes.axes(n);
    }
    return shapes.rank(n.getInput(1)) == 0 ? new long[] {Attributes.integer(n, "axis", 0)} : null;
  }

  /** A place in a value without some axes of another. */
  private ChannelPlace without(ChannelPlace place, long[] axes, String whole) {
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
  private ChannelPlace with(ChannelPlace place, long[] axes, String whole) {
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

  private static ChannelPlace transposed(NodeProto n, ChannelPlace place) {
    int[] order = AxisOrder.of(n);
    for (int i = 0; order != null && i < order.length; i++) {
      if (order[i] == order.length - place.axis()) {
        return place.at(order.length - i);
      }
    }
    return null;
  }

  private static ChannelPlace beforeTranspose(NodeProto n, ChannelPlace place) {
    int[] order = AxisOrder.of(n);
    return order == null || order.length < place.axis()
        ? null
        : place.at(order.length - order[order.length - place.axis()]);
  }

  /** Whether a Slice or Concat is of other axes than that of the channels. */
  boolean leavesWhole(NodeProto n, ChannelPlace place) {
    long[] axes =
        n.getOpType().equals("Concat")
            ? new long[] {Attributes.integer(n, "axis", 0)}
            : shapes.cut(n);
    return axes != null && all(axes, n.getInput(0), end -> end != place.axis());
  }

  /** Whether an operator works along axes behind that of the channels alone. */
  boolean isAlongOthers(NodeProto n, ChannelPlace place) {
    boolean isSoftmax = n.getOpType().endsWith("oftmax");
    long[] axes =
        isSoftmax || n.getOpType().endsWith("Normalization")
            // Norms, and before operator set 13 a Softmax, are along all axes from the one that
            // they name on.
            ? new long[] {Attributes.integer(n, "axis", isSoftmax && model.opset("") < 13 ? 1 : -1)}
            : shapes.axes(n);
    return axes != null
        && axes.length > 0
        && Attributes.integer(n, "keepdims", 1) == 1
        && all(axes, n.getInput(0), end -> end < place.axis());
  }

  /** Whether all of some axes, counted from the end, are known and as they are wanted. */
  private boolean all(long[] axes, String value, IntPredicate wanted) {
    return Arrays.stream(axes)
        .mapToInt(axis -> shapes.fromEnd(axis, value))
        .allMatch(end -> end > 0 && wanted.test(end));
  }
}

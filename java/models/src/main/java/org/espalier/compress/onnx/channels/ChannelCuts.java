package org.espalier.compress.onnx.channels;

import ai.onnx.proto.OnnxMl.NodeProto;
import ai.onnx.proto.OnnxMl.TensorProto.DataType;
import java.util.ArrayList;
import java.util.Collections;
import java.util.List;
import java.util.Map;
import org.espalier.compress.onnx.channels.HiddenChannels.Bounds;
import org.espalier.format.onnx.Attributes;
import org.espalier.format.onnx.OnnxInitializer;
import org.espalier.format.onnx.OnnxModel;

/**
 * Where channels are on both sides of a Split or Slice, and the numbers that tell these how long pieces of the channels'
 * axes are. Not safe for several threads.
 */
final class ChannelCuts {
  private final OnnxModel model;
  private final Map<String, List<NodeProto>> consumers;
  private final ValueShapes shapes;
  private final int size;
  private final FinerChannels finer;
  private final List<Bounds> bounds = new ArrayList<>();

  /**
   * @param consumers of the model
   * @param size how many channels there are
   * @param finer hears where else channels could be
   */
  ChannelCuts(
      OnnxModel model,
      Map<String, List<NodeProto>> consumers,
      ValueShapes shapes,
      int size,
      FinerChannels finer) {
    this.model = model;
    this.consumers = consumers;
    this.shapes = shapes;
    this.size = size;
    this.finer = finer;
  }

  /** The numbers that tell how long pieces of the channels' axes are, of all that were met. */
  List<Bounds> bounds() {
    return bounds;
  }

  /**
   * Where the parts of a Split have the channels: where the whole has, or each has one of the times that it has them;
   * null where that cannot be told.
   */
  ChannelPlace after(NodeProto n, ChannelPlace place) {
    int axis = axis(n);
    if (axis != place.axis()) {
      return axis == 0 ? null : place;
    }
    int parts = n.getOutputCount();
    if (!shapes.isEven(n)) {
      return null;
    }
    if (place.repeat() % parts == 0) {
      ChannelPlace part = new ChannelPlace(axis, place.repeat() / parts, place.block());
      if (shapes.lengths(n) != null) {
        tell(n, Collections.nCopies(parts, part.each()), Collections.nCopies(parts, 0));
      }
      return part;
    }
    if (place.repeat() == 1) {
      finer.add(parts, 1);
    }
    return null;
  }

  /** Where an even Split's whole has the channels if its parts have them at a place; null where that cannot be told. */
  ChannelPlace before(NodeProto n, ChannelPlace place) {
    int axis = axis(n);
    int parts = n.getOutputCount();
    return axis == 0 || parts > Integer.MAX_VALUE / place.length(size)
        ? null
        : axis != place.axis()
            ? place
            : new ChannelPlace(axis, place.repeat() * parts, place.block());
  }

  /** The axis that a Split divides, counted from the end; 0 where that is not known. */
  private int axis(NodeProto split) {
    return shapes.fromEnd(Attributes.integer(split, "axis", 0), split.getInput(0));
  }

  /** Notes the lengths that a Split is told. */
  private void tell(NodeProto split, List<Integer> each, List<Integer> rest) {
    int input = split.getInputCount() > 1 && !split.getInput(1).isEmpty() ? 1 : -1;
    bounds.add(new Bounds(split.getOutput(0), input, each, rest));
  }

  /** Whether an operator takes pieces of the axis of the channels that need not be as long as each other. */
  boolean isCutting(NodeProto n, ChannelPlace place) {
    return switch (n.getOpType()) {
      case "Slice" -> shapes.range(n, place.axis()) != null;
      case "Split" -> !shapes.isEven(n) && axis(n) == place.axis();
      default -> false;
    };
  }

  /**
   * Where the outputs of a Split or Slice have the channels that cuts their axis; null where that cannot be told. A
   * place without numbers is one where there are none.
   */
  List<ChannelPlace> pieces(NodeProto n, ChannelPlace place) {
    boolean isSlice = n.getOpType().equals("Slice");
    long[] ends = isSlice ? shapes.range(n, place.axis()) : ends(shapes.lengths(n));
    if (ends == null || ends[ends.length - 1] > place.length(size) || !isTold(n, isSlice)) {
      return null;
    }
    List<ChannelPlace> pieces = new ArrayList<>();
    for (int i = 1; i < ends.length; i++) {
      ChannelLayout piece = place.layout().piece(size, ends[i - 1], ends[i]);
      if (piece == null) {
        addFiner(n, place, ends);
        return null;
      }
      pieces.add(new ChannelPlace(place.axis(), piece));
    }
    if (!isSlice) {
      tell(
          n,
          pieces.stream().map(ChannelPlace::each).toList(),
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
  private void addFiner(NodeProto n, ChannelPlace place, long[] ends) {
    long length = place.length(size);
    for (int i = 1; i < ends.length && place.equals(new ChannelPlace(1)); i++) {
      long piece = ends[i] - ends[i - 1];
      long others = (length - piece) / 2;
      if (piece > 0 && length % piece == 0 && ends[i - 1] % piece == 0) {
        finer.add(length / piece, 1);
      }
      if (ends[i - 1] == 0 && others > 0 && piece + 2 * others == length) {
        int width = width(n.getOutput(i - 1));
        if (width > 0 && piece % others == 0 && others % width == 0) {
          int queries = (int) (piece / others);
          int groups = (int) (others / width);
          finer.add(place, new ChannelLayout(1, queries * width, 2, width, 0));
          finer.add(place, new ChannelLayout(groups, width, 0, 0, 2 * groups * width));
        }
      }
    }
  }

  /** How many numbers a head has if a value becomes several; 0 where that does not show. */
  private int width(String value) {
    return consumers.getOrDefault(value, List.of()).stream()
        .map(shapes::target)
        .filter(target -> target != null && target.length > 2)
        .mapToInt(target -> (int) Math.max(0, target[target.length - 1]))
        .findFirst()
        .orElse(0);
  }
}

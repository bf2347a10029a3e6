package org.espalier.compress.onnx.channels;

import ai.onnx.proto.OnnxMl.NodeProto;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.Map;
import org.espalier.compress.onnx.channels.HiddenChannels.Count;
import org.espalier.format.onnx.OnnxModel;

/**
 * Where channels are on both sides of a Reshape, and the numbers in shapes that count them. Not safe for several
 * threads.
 */
final class ChannelReshapes {
  private final OnnxModel model;
  private final Map<String, NodeProto> producers;
  private final ValueShapes shapes;
  private final int size;
  private final FinerChannels finer;
  private final List<Count> counts = new ArrayList<>();

  /**
   * @param producers of the model
   * @param size how many channels there are
   * @param finer hears where else channels could be
   */
  ChannelReshapes(
      OnnxModel model,
      Map<String, NodeProto> producers,
      ValueShapes shapes,
      int size,
      FinerChannels finer) {
    this.model = model;
    this.producers = producers;
    this.shapes = shapes;
    this.size = size;
    this.finer = finer;
  }

  /** The numbers that count the channels, of all shapes that were met. */
  List<Count> counts() {
    return counts;
  }

  /** Where what it makes has the channels; null where that cannot be told. */
  ChannelPlace after(NodeProto n, ChannelPlace place) {
    long[] target = shapes.target(n);
    if (target == null) {
      return null;
    }
    if (place.axis() == 1) {
      return divided(n, target, place);
    }
    ChannelPlace last = merged(n, target, place);
    return last != null ? last : joined(n, target, place);
  }

  /** Where its input has the channels if its output has them at a place; null if nowhere. */
  ChannelPlace before(NodeProto n, ChannelPlace place) {
    String before = n.getInput(0);
    long last = shapes.length(before, 1);
    long block = place.block() * behind(n.getOutput(0), place.axis());
    boolean whole = block > 0 && last <= Integer.MAX_VALUE && block <= last / size;
    if (whole && last % (size * block) == 0) {
      return new ChannelPlace(1, (int) (last / (size * block)), (int) block);
    }
    // Else its last axes became one.
    for (int axis = 2; place.axis() == 1 && axis <= shapes.rank(before); axis++) {
      long after = behind(before, axis);
      if (after > 0 && place.block() % after == 0) {
        ChannelPlace merged = new ChannelPlace(axis, place.repeat(), (int) (place.block() / after));
        if (shapes.length(before, axis) == merged.length(size)) {
          return merged;
        }
      }
    }
    return beforeJoined(n, place);
  }

  /** Some axes before the last become one, such as key heads and what each is repeated for. */
  private ChannelPlace joined(NodeProto n, long[] target, ChannelPlace place) {
    long[] shape = shapes.of(n.getInput(0));
    int end = joint(shape, target);
    if (end == 0) {
      return null;
    }
    int axes = shape.length - target.length + 1;
    if (place.axis() < end || place.axis() >= end + axes) {
      return place.at(place.axis() < end ? place.axis() : place.axis() - axes + 1);
    }
    ChannelPlace whole =
        new ChannelPlace(
            end,
            (int) (place.repeat() * product(shape, place.axis() + 1, end + axes)),
            (int) (place.block() * product(shape, end, place.axis())));
    boolean fits =
        target[target.length - end] == -1 || target[target.length - end] == whole.length(size);
    return fits && count(n, target.length - end, whole.each()) ? whole : null;
  }

  /** The same the other way round. */
  private ChannelPlace beforeJoined(NodeProto n, ChannelPlace place) {
    long[] shape = shapes.of(n.getInput(0));
    long[] target = shapes.target(n);
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
        ChannelPlace part =
            new ChannelPlace(axis, (int) (place.repeat() / before), (int) (place.block() / after));
        if (shape[shape.length - axis] == part.length(size)) {
          return part;
        }
      }
    }
    // The channels may be those of any one.
    for (int axis = end + axes - 1; axis >= end; axis--) {
      long before = product(shape, axis + 1, end + axes);
      long after = product(shape, end, axis);
      if (before % place.repeat() == 0 && after % place.block() == 0) {
        finer.add(before / place.repeat(), after / place.block());
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
  private ChannelPlace divided(NodeProto n, long[] target, ChannelPlace place) {
    long[] parts = parts(n, target, place.length(size));
    if (parts == null) {
      return null;
    }
    long before = place.length(size);
    long after = 1;
    for (int i = parts.length - 1; i >= 0; i--) {
      before /= parts[i];
      if (place.repeat() % before == 0 && place.block() % after == 0) {
        ChannelPlace part =
            new ChannelPlace(
                parts.length - i, (int) (place.repeat() / before), (int) (place.block() / after));
        if (parts[i] == part.length(size)) {
          return count(n, target.length - parts.length + i, part.each()) ? part : null;
        }
      }
      after *= parts[i];
    }
    // The channels may be those of any one.
    before = place.length(size);
    after = 1;
    for (int i = parts.length - 1; i >= 0; i--) {
      before /= parts[i];
      if (before % place.repeat() == 0 && after % place.block() == 0) {
        finer.add(before / place.repeat(), after / place.block());
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
  private ChannelPlace merged(NodeProto n, long[] target, ChannelPlace place) {
    long[] shape = shapes.of(n.getInput(0));
    long after = behind(n.getInput(0), place.axis());
    int end = target.length - 1;
    if (after < 1 || end < 0 || place.each() * after > Integer.MAX_VALUE / size) {
      return null;
    }
    ChannelPlace last = new ChannelPlace(1, place.repeat(), (int) (place.block() * after));
    boolean rest =
        target[end] == -1 && end == shape.length - place.axis() && leaves(target, shape, end);
    return (rest || target[end] == last.length(size)) && count(n, end, last.each()) ? last : null;
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
    if (shapes.numbers().of(shape)[index] == -1) {
      return true;
    }
    if (model.constant(shape) != null) {
      counts.add(new Count(n.getOutput(0), -1, list(shapes.numbers().of(shape)), index, each));
      return true;
    }
    NodeProto concat = concat(producers, shape);
    int from = 0;
    for (int i = 0; concat != null && i < concat.getInputCount(); i++) {
      String part = concat.getInput(i);
      int length = (int) shapes.length(part, 1); // known, as the whole is
      if (index < from + length) {
        long[] numbers = shapes.numbers().of(part);
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
  boolean expands(NodeProto n, ChannelPlace place) {
    long[] target = shapes.numbers().of(n.getInput(1));
    int index = target == null ? -1 : target.length - place.axis();
    return target != null
        && (index < 0
            || target[index] == 1
            || target[index] == place.length(size) && count(n, index, place.each()));
  }

  /** The Concat that makes a shape, as it is or with ones in place of what is open; null if none does. */
  static NodeProto concat(Map<String, NodeProto> producers, String shape) {
    NodeProto n = producers.get(shape);
    if (n != null && ValueNumbers.isOnesForOpen(producers, n)) {
      n = producers.get(n.getInput(2));
    }
    return n != null && OnnxModel.isOwn(n, "Concat") ? n : null;
  }

  private static List<Long> list(long[] numbers) {
    return Arrays.stream(numbers).boxed().toList();
  }
}

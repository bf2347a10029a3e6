package org.espalier.compress.onnx.channels;

import ai.onnx.proto.OnnxMl.AttributeProto;
import ai.onnx.proto.OnnxMl.NodeProto;
import ai.onnx.proto.OnnxMl.TensorProto.DataType;
import java.nio.ByteBuffer;
import java.util.Arrays;
import java.util.HashMap;
import java.util.Map;
import org.espalier.format.onnx.Attributes;
import org.espalier.format.onnx.OnnxInitializer;
import org.espalier.format.onnx.OnnxModel;

/**
 * Small whole numbers that a model computes from constants and shapes, mostly to tell operators what shape to make. Of
 * {@link ValueShapes}, which says what numbers that are not known are.
 */
final class ValueNumbers {
  /** Vectors of more numbers are no shapes. */
  static final int MOST = 16;

  private final OnnxModel model;
  private final ValueShapes shapes;
  private final Map<String, long[]> all = new HashMap<>();

  /** The nodes that were seen, by what they give. */
  private final Map<String, NodeProto> seen = new HashMap<>();

  /**
   * @param shapes of the values that were seen so far
   */
  ValueNumbers(OnnxModel model, ValueShapes shapes) {
    this.model = model;
    this.shapes = shapes;
  }

  /** Adds a node. */
  void see(NodeProto n) {
    seen.put(n.getOutput(0), n);
  }

  /** Says what a value's numbers are. */
  void put(String value, long[] numbers) {
    all.put(value, numbers);
  }

  /** The numbers of a value of one whole number or a vector of few; null where it is not known how many, or it is no such. */
  long[] of(String value) {
    long[] known = all.get(value);
    OnnxInitializer c = known == null ? model.constant(value) : null;
    boolean wide = c != null && c.type() == DataType.INT64;
    boolean whole = wide || c != null && c.type() == DataType.INT32;
    if (!whole || c.dims().length > 1 || c.elements() > MOST) {
      return known;
    }
    ByteBuffer data = c.data();
    long[] values = new long[(int) c.elements()];
    for (int i = 0; i < values.length; i++) {
      values[i] =
          wide ? data.getLong(data.position() + 8 * i) : data.getInt(data.position() + 4 * i);
      if (!ValueShapes.isKnown(values[i])) {
        return null;
      }
    }
    return values;
  }

  /**
   * The numbers that a node makes; null where that is not known, or it makes others.
   *
   * @param first the shape of its first input, null where that is not known
   */
  long[] made(NodeProto n, long[] first) {
    return switch (n.getOpType()) {
      case "Cast", "Identity", "Squeeze", "Unsqueeze" -> of(n.getInput(0));
      case "Concat" -> joined(n);
      case "ConstantOfShape" -> filled(n);
      case "Mul" -> multiplied(n);
      case "Where" -> chosen(n);
      case "Shape" -> first == null ? null : picked(n, first);
      case "Gather" -> gathered(n);
      case "Slice" -> sliced(n);
      default -> null;
    };
  }

  /** Numbers that a node is told by an input or, in early operator sets, by an attribute; null where they are not known. */
  long[] told(NodeProto n, int input, String attribute) {
    if (n.getInputCount() > input && !n.getInput(input).isEmpty()) {
      return of(n.getInput(input));
    }
    return Attributes.integers(n, attribute);
  }

  /**
   * From which number on, and to before which, a Slice takes all of an axis; null where it takes others, or that is not
   * known.
   *
   * @param length of the axis
   */
  long[] range(NodeProto slice, int length) {
    long[] start = told(slice, 1, "starts");
    long[] end = told(slice, 2, "ends");
    long[] step = told(slice, 4, "steps");
    boolean plain =
        start != null
            && end != null
            && start.length == 1
            && end.length == 1
            && ValueShapes.isKnown(start[0])
            && ValueShapes.isKnown(end[0])
            && (step == null ? slice.getInputCount() < 5 : step.length == 1 && step[0] == 1);
    return plain ? new long[] {index(start[0], length), index(end[0], length)} : null;
  }

  private static int index(long index, int length) {
    return (int) Math.max(0, Math.min(length, index < 0 ? index + length : index));
  }

  private long[] joined(NodeProto n) {
    long[] joined = {};
    for (String input : n.getInputList()) {
      long[] part = of(input);
      long[] shape = shapes.of(input);
      if (part == null && isShort(shape)) {
        part = shapes.any((int) shape[0]);
      }
      if (part == null || joined.length + part.length > MOST) {
        return null;
      }
      int from = joined.length;
      joined = Arrays.copyOf(joined, from + part.length);
      System.arraycopy(part, 0, joined, from, part.length);
    }
    return joined;
  }

  /** Whether a shape is that of so few numbers that they may tell one. */
  static boolean isShort(long[] vector) {
    return vector != null && vector.length == 1 && vector[0] >= 0 && vector[0] <= MOST;
  }

  /** As many of one whole number as a shape tells; null if it is of another type. */
  private long[] filled(NodeProto n) {
    long[] length = of(n.getInput(0));
    AttributeProto value = Attributes.find(n, "value");
    if (!isShort(length) || value == null || value.getT().getDataType() != DataType.INT64_VALUE) {
      return null;
    }
    long[] all = new long[(int) length[0]];
    Arrays.fill(all, OnnxInitializer.ofMessage(value.getT()).data().getLong());
    return all;
  }

  private long[] multiplied(NodeProto n) {
    long[] a = of(n.getInput(0));
    long[] b = of(n.getInput(1));
    if (a == null || b == null || a.length != b.length && b.length != 1) {
      return null;
    }
    long[] products = new long[a.length];
    for (int i = 0; i < products.length; i++) {
      long other = b[b.length == 1 ? 0 : i];
      boolean small = Math.abs(a[i]) <= Integer.MAX_VALUE && Math.abs(other) <= Integer.MAX_VALUE;
      products[i] =
          ValueShapes.isKnown(a[i]) && ValueShapes.isKnown(other) && small
              ? a[i] * other
              : shapes.any();
    }
    return products;
  }

  /** Whether a node makes a shape of another one, with ones in place of what is open there. */
  static boolean isOnesForOpen(Map<String, NodeProto> producers, NodeProto n) {
    NodeProto open = OnnxModel.isOwn(n, "Where") ? producers.get(n.getInput(0)) : null;
    return open != null
        && OnnxModel.isOwn(open, "Equal")
        && open.getInputList().contains(n.getInput(2));
  }

  /** The numbers of a shape with ones in place of what is open; null if a node makes something else. */
  private long[] chosen(NodeProto n) {
    long[] ones = isOnesForOpen(seen, n) ? of(n.getInput(1)) : null;
    long[] told = ones == null ? null : of(n.getInput(2));
    if (told == null || ones.length != told.length) {
      return null;
    }
    long[] shape = told.clone();
    NodeProto equal = seen.get(n.getInput(0));
    boolean second = equal.getInput(0).equals(n.getInput(2));
    long[] open = of(equal.getInput(second ? 1 : 0));
    for (int i = 0; i < shape.length; i++) {
      if (open == null || open.length != shape.length || open[i] != -1) {
        return null;
      }
      shape[i] = shape[i] == -1 ? ones[i] : shape[i]; // lengths that are not known are not negative
    }
    return shape;
  }

  /** Of a shape the lengths that a Shape picks. */
  static long[] picked(NodeProto n, long[] shape) {
    int start = start(n, shape.length);
    return Arrays.copyOfRange(shape, start, Math.max(start, end(n, shape.length)));
  }

  /** The first axis of so many whose length a Shape gives. */
  static int start(NodeProto shape, int rank) {
    return index(Attributes.integer(shape, "start", 0), rank);
  }

  /** The axis before which it ends. */
  static int end(NodeProto shape, int rank) {
    return index(Attributes.integer(shape, "end", rank), rank);
  }

  private long[] gathered(NodeProto n) {
    long[] data = of(n.getInput(0));
    long[] indices = of(n.getInput(1));
    if (data == null || indices == null) {
      return null;
    }
    long[] values = new long[indices.length];
    for (int i = 0; i < values.length; i++) {
      long at = indices[i] < 0 ? indices[i] + data.length : indices[i];
      values[i] = at < 0 || at >= data.length ? shapes.any() : data[(int) at];
    }
    return values;
  }

  /** A vector of numbers from one index to before another. */
  private long[] sliced(NodeProto n) {
    long[] data = of(n.getInput(0));
    long[] range = data == null ? null : range(n, data.length);
    return range == null
        ? null
        : Arrays.copyOfRange(data, (int) range[0], (int) Math.max(range[0], range[1]));
  }
}

package org.espalier.compress.onnx.channels;

import ai.onnx.proto.OnnxMl.AttributeProto;
import ai.onnx.proto.OnnxMl.NodeProto;
import ai.onnx.proto.OnnxMl.TensorShapeProto;
import ai.onnx.proto.OnnxMl.ValueInfoProto;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.HashMap;
import java.util.HashSet;
import java.util.List;
import java.util.Map;
import java.util.Set;
import org.espalier.format.onnx.Attributes;
import org.espalier.format.onnx.AxisOrder;
import org.espalier.format.onnx.OnnxInitializer;
import org.espalier.format.onnx.OnnxModel;

/**
 * What can be told of the shapes of a model's values before it runs, from its inputs and constants: how many axes they
 * have, how long some are, and which are as long as each other. What the model itself says of values between is not
 * believed. Immutable once made.
 *
 * <p>A length or number that is not known is one that {@link #isKnown} denies; where two of them are equal, so are the
 * lengths.
 */
public final class ValueShapes {
  /** Whole numbers of models are above this one; below are those that are not known. */
  private static final long UNKNOWN = Long.MIN_VALUE / 2;

  /** Operators but unary ones whose output has the shape of their first input. */
  private static final Set<String> SAME =
      Set.of(
          "Cast",
          "CumProd",
          "CumSum",
          "LayerNormalization",
          "LogSoftmax",
          "Not",
          "RMSNormalization",
          "RotaryEmbedding",
          "SimplifiedLayerNormalization",
          "Softmax",
          "TensorScatter",
          "Trilu");

  /** Operators but those that join numbers whose output has the shape to which those of their inputs are stretched. */
  private static final Set<String> BROADCAST =
      Set.of("And", "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Or");

  private final OnnxModel model;
  private long unknown = Long.MIN_VALUE;
  private final Map<String, long[]> shapes = new HashMap<>();

  private final ValueNumbers numbers;

  /** Of a model whose inputs may be of other lengths than their names say. */
  public ValueShapes(OnnxModel model) {
    this(model, false);
  }

  /**
   * @param named whether lengths of inputs that have one name are one length, as the model says
   */
  public ValueShapes(OnnxModel model, boolean named) {
    this.model = model;
    Map<String, Long> lengths = new HashMap<>();
    numbers = new ValueNumbers(model, this);
    for (ValueInfoProto input : model.inputs()) {
      if (input.getType().getTensorType().hasShape()) {
        TensorShapeProto shape = input.getType().getTensorType().getShape();
        shapes.put(
            input.getName(),
            shape.getDimList().stream()
                .mapToLong(
                    d ->
                        d.hasDimValue() && d.getDimValue() > 0
                            ? d.getDimValue()
                            : named && !d.getDimParam().isEmpty()
                                ? lengths.computeIfAbsent(d.getDimParam(), name -> any())
                                : any())
                .toArray());
      }
    }
    for (NodeProto n : model.nodes()) {
      if (n.getOutputCount() == 0 || n.getInputCount() == 0) {
        continue;
      }
      if (OnnxModel.isOwn(n)) {
        follow(n);
      } else if (of(n.getInput(0)) != null) {
        followOther(n, of(n.getInput(0)));
      }
      numbers.see(n);
    }
  }

  private void followOther(NodeProto n, long[] first) {
    if (FusedOperators.keepsShape(n)) {
      shapes.put(n.getOutput(0), first);
      // A skip's sum is its fourth output.
      if (n.getOutputCount() > 3 && !n.getOutput(3).isEmpty()) {
        shapes.put(n.getOutput(3), first);
      }
    } else if (FusedAttention.is(n) && first.length == 3) {
      shapes.put(n.getOutput(0), new long[] {first[0], first[1], any()});
    }
  }

  /** Whether a length or number is a known one. */
  public static boolean isKnown(long number) {
    return number > UNKNOWN;
  }

  /** A length or number that is not known, and is no other. */
  long any() {
    return ++unknown;
  }

  /** The lengths of a value's axes; null where their number is not known. */
  public long[] of(String value) {
    long[] shape = shapes.get(value);
    OnnxInitializer c = shape == null ? model.constant(value) : null;
    return c == null ? shape : c.dims();
  }

  /** The numbers of values. */
  ValueNumbers numbers() {
    return numbers;
  }

  /** How many axes a value has; −1 where that is not known. */
  int rank(String value) {
    long[] shape = of(value);
    return shape == null ? -1 : shape.length;
  }

  /**
   * An axis counted from the end, 1 for the last, of one that is counted as ONNX counts; 0 where that takes a number of
   * axes that is not known, or there is no such axis.
   */
  int fromEnd(long axis, String value) {
    long[] shape = of(value);
    if (shape == null) {
      return axis < 0 && axis > -ValueNumbers.MOST ? (int) -axis : 0;
    }
    long end = axis < 0 ? -axis : shape.length - axis;
    return end >= 1 && end <= shape.length ? (int) end : 0;
  }

  /** The length of an axis that is counted from the end; −1 where it is not known. */
  long length(String value, int fromEnd) {
    long[] shape = of(value);
    boolean exists = shape != null && fromEnd >= 1 && fromEnd <= shape.length;
    return exists && isKnown(shape[shape.length - fromEnd]) ? shape[shape.length - fromEnd] : -1;
  }

  private void follow(NodeProto n) {
    String type = n.getOpType();
    String output = n.getOutput(0);
    long[] first = of(n.getInput(0));
    long[] shape = null;
    if (Elementwise.UNARY.contains(type) || SAME.contains(type)) {
      shape = first;
    } else if (Elementwise.JOINING.contains(type) || BROADCAST.contains(type)) {
      shape = new long[0];
      for (String input : n.getInputList()) {
        shape = shape == null || input.isEmpty() ? shape : broadcast(shape, of(input));
      }
    } else {
      shape =
          switch (type) {
            case "Attention" -> attended(n, first);
            case "Concat" -> joined(n);
            case "ConstantOfShape" -> numbers.of(n.getInput(0));
            case "Expand" -> expanded(n, first);
            case "Gather" -> gathered(n, first, of(n.getInput(1)));
            case "Gemm" -> gemm(n, first, of(n.getInput(1)));
            case "MatMul" -> product(first, of(n.getInput(1)));
            case "AveragePool",
                    "BatchNormalization",
                    "GlobalAveragePool",
                    "GlobalMaxPool",
                    "MaxPool" ->
                image(first, first == null || first.length < 2 ? 0 : first[1]);
            case "Conv" -> convolved(n);
            case "ReduceL2", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceSum" ->
                reduced(n, first);
            case "Range" -> any(1);
            case "Reshape" -> reshaped(n, first);
            case "Shape" ->
                new long[] {first == null ? any() : ValueNumbers.picked(n, first).length};
            case "Slice" -> sliced(n, first);
            case "Split" -> parts(n, first);
            case "Squeeze" -> squeezed(first, axes(n));
            case "Transpose" -> transposed(n, first);
            case "Unsqueeze" -> unsqueezed(first, axes(n));
            default -> null;
          };
    }
    if (shape != null && type.equals("Split")) {
      putParts(n, shape);
    } else if (shape != null) {
      shapes.put(output, shape);
    }
    long[] values = numbers.made(n, first);
    if (values != null
        && shape != null
        && shape.length <= 1
        && values.length <= ValueNumbers.MOST) {
      numbers.put(output, values);
      if (shape.length == 1) {
        shapes.put(output, new long[] {values.length});
      }
    }
  }

  /** The shape of what an Attention of ONNX gives, and that of the keys and values that it hands on. */
  private long[] attended(NodeProto n, long[] queries) {
    if (queries == null || queries.length != 4) {
      return queries == null ? null : new long[] {queries[0], queries[1], any()};
    }
    for (int i = 1; i < Math.min(3, n.getOutputCount()); i++) {
      long[] now = of(n.getInput(i));
      if (now != null && now.length == 4 && !n.getOutput(i).isEmpty()) {
        shapes.put(n.getOutput(i), new long[] {now[0], now[1], any(), now[3]});
      }
    }
    long[] values = of(n.getInput(2));
    boolean told = values != null && values.length == 4;
    return new long[] {queries[0], queries[1], queries[2], told ? values[3] : any()};
  }

  /** So many of them. */
  long[] any(int axes) {
    long[] shape = new long[axes];
    Arrays.setAll(shape, i -> any());
    return shape;
  }

  /** The shape of images [n, channels, …]. */
  private long[] image(long[] first, long channels) {
    if (first == null || first.length < 2) {
      return null;
    }
    long[] shape = any(first.length);
    shape[0] = first[0];
    shape[1] = channels;
    return shape;
  }

  private long[] convolved(NodeProto n) {
    long[] weight = of(n.getInput(1));
    if (weight == null || weight.length < 3) {
      return null;
    }
    long[] first = of(n.getInput(0));
    return image(first == null ? any(weight.length) : first, weight[0]);
  }

  private long[] reduced(NodeProto n, long[] first) {
    boolean kept = Attributes.integer(n, "keepdims", 1) == 1;
    long[] axes = axes(n);
    boolean[] gone = first == null || axes == null || !kept ? null : marked(axes, first.length);
    if (gone == null) {
      return null;
    }
    long[] shape = first.clone();
    for (int i = 0; i < shape.length; i++) {
      shape[i] = gone[i] ? 1 : first[i];
    }
    return shape;
  }

  private long[] broadcast(long[] a, long[] b) {
    if (b == null) {
      return null;
    }
    long[] shape = new long[Math.max(a.length, b.length)];
    for (int end = 1; end <= shape.length; end++) {
      long x = end > a.length ? 1 : a[a.length - end];
      long y = end > b.length ? 1 : b[b.length - end];
      // Each may be 1 where it is not known; and where one is known, and is not 1, that is it.
      shape[shape.length - end] =
          x == y || y == 1 ? x : x == 1 ? y : isKnown(x) ? x : isKnown(y) ? y : any();
    }
    return shape;
  }

  private long[] joined(NodeProto n) {
    long[] first = of(n.getInput(0));
    long axis = Attributes.integer(n, "axis", 0);
    int at = first == null ? -1 : (int) (axis < 0 ? axis + first.length : axis);
    if (first == null || at < 0 || at >= first.length) {
      return null;
    }
    long[] shape = first.clone();
    shape[at] = 0;
    for (String input : n.getInputList()) {
      long[] part = of(input);
      boolean counted = part != null && part.length == first.length && isKnown(part[at]);
      shape[at] = counted && isKnown(shape[at]) ? shape[at] + part[at] : any();
    }
    return shape;
  }

  private long[] expanded(NodeProto n, long[] first) {
    long[] target = numbers.of(n.getInput(1));
    return first == null || target == null ? null : broadcast(first, target);
  }

  private long[] sliced(NodeProto n, long[] first) {
    long[] axes = cut(n);
    boolean[] cut = first == null || axes == null ? null : marked(axes, first.length);
    if (first == null) {
      return null;
    }
    long[] shape = any(first.length);
    for (int i = 0; cut != null && i < shape.length; i++) {
      long[] range = cut[i] ? range(n, shape.length - i) : null;
      shape[i] = range != null ? Math.max(0, range[1] - range[0]) : cut[i] ? shape[i] : first[i];
    }
    return shape;
  }

  private long[] parts(NodeProto n, long[] first) {
    int end = fromEnd(Attributes.integer(n, "axis", 0), n.getInput(0));
    if (first == null || end == 0) {
      return null;
    }
    long[] shape = first.clone();
    int at = shape.length - end;
    boolean even = isEven(n) && isKnown(first[at]) && first[at] % n.getOutputCount() == 0;
    shape[at] = even ? first[at] / n.getOutputCount() : any();
    return shape;
  }

  /** What a Reshape is told, if zeros in it stand for lengths as they were; null where that is not so, or not known. */
  long[] target(NodeProto n) {
    boolean told =
        n.getOpType().equals("Reshape")
            && n.getInputCount() > 1
            && Attributes.integer(n, "allowzero", 0) == 0;
    return told ? numbers.of(n.getInput(1)) : null;
  }

  /** The lengths that a Split is told; null where it is told none, or they are not known. */
  long[] lengths(NodeProto split) {
    return numbers.told(split, 1, "split");
  }

  /**
   * The first number of an axis that a Slice takes, and the first behind them that it leaves; null where it leaves some in
   * between, or that is not known.
   */
  long[] range(NodeProto slice, int fromEnd) {
    long[] axes = cut(slice);
    long length = length(slice.getInput(0), fromEnd);
    boolean alone =
        length >= 0
            && axes != null
            && axes.length == 1
            && fromEnd(axes[0], slice.getInput(0)) == fromEnd;
    return alone ? numbers.range(slice, (int) length) : null;
  }

  /** Whether all parts of a Split are known to be as long as each other, if their number divides the whole. */
  boolean isEven(NodeProto n) {
    AttributeProto lengths = Attributes.find(n, "split");
    if (lengths != null) {
      return new HashSet<>(lengths.getIntsList()).size() == 1;
    }
    if (n.getInputCount() < 2 || n.getInput(1).isEmpty()) {
      return true;
    }
    long[] told = numbers.of(n.getInput(1));
    return told != null && Arrays.stream(told).distinct().count() == 1;
  }

  /**
   * Tells the shapes of a Split's outputs.
   *
   * @param even what they are where they are as long as each other
   */
  private void putParts(NodeProto n, long[] even) {
    long[] lengths = lengths(n);
    int at = even.length - fromEnd(Attributes.integer(n, "axis", 0), n.getInput(0));
    for (int i = 0; i < n.getOutputCount(); i++) {
      long[] part = even.clone();
      if (!isEven(n)) {
        part[at] = lengths != null && i < lengths.length ? lengths[i] : any();
      }
      shapes.put(n.getOutput(i), part);
    }
  }

  private static long[] gathered(NodeProto n, long[] data, long[] indices) {
    long axis = Attributes.integer(n, "axis", 0);
    int at = data == null ? -1 : (int) (axis < 0 ? axis + data.length : axis);
    if (data == null || indices == null || at < 0 || at >= data.length) {
      return null;
    }
    long[] shape = new long[data.length + indices.length - 1];
    System.arraycopy(data, 0, shape, 0, at);
    System.arraycopy(indices, 0, shape, at, indices.length);
    System.arraycopy(data, at + 1, shape, at + indices.length, data.length - at - 1);
    return shape;
  }

  private long[] gemm(NodeProto n, long[] a, long[] b) {
    int rows = (int) Attributes.integer(n, "transA", 0) & 1;
    int columns = 1 - (int) Attributes.integer(n, "transB", 0) & 1;
    return new long[] {
      a == null || a.length != 2 ? any() : a[rows], b == null || b.length != 2 ? any() : b[columns]
    };
  }

  private long[] product(long[] a, long[] b) {
    if (a == null || b == null || a.length < 2 || b.length < 2) {
      return null;
    }
    long[] batch = broadcast(Arrays.copyOf(a, a.length - 2), Arrays.copyOf(b, b.length - 2));
    long[] shape = Arrays.copyOf(batch, batch.length + 2);
    shape[shape.length - 2] = a[a.length - 2];
    shape[shape.length - 1] = b[b.length - 1];
    return shape;
  }

  private long[] reshaped(NodeProto n, long[] first) {
    long[] target = n.getInputCount() > 1 ? numbers.of(n.getInput(1)) : null;
    if (target == null) {
      long[] length = n.getInputCount() > 1 ? of(n.getInput(1)) : null;
      return ValueNumbers.isShort(length) ? any((int) length[0]) : null;
    }
    long[] shape = new long[target.length];
    int rest = -1;
    for (int i = 0; i < shape.length; i++) {
      boolean copied = target[i] == 0 && Attributes.integer(n, "allowzero", 0) == 0;
      boolean told = copied ? first != null && i < first.length : target[i] != -1;
      shape[i] = !told ? any() : copied ? first[i] : target[i];
      rest = target[i] == -1 ? i : rest;
    }
    if (rest >= 0 && first != null) {
      shape[rest] = rest(first, shape, rest);
    }
    return shape;
  }

  /** How long an axis is if a shape has as many numbers as another. */
  private long rest(long[] whole, long[] shape, int axis) {
    List<Long> unknown = new ArrayList<>();
    long left = 1;
    for (long length : whole) {
      if (length > 0 && Math.max(left, length) <= Integer.MAX_VALUE) {
        left *= length;
      } else {
        unknown.add(length);
      }
    }
    for (int i = 0; i < shape.length; i++) {
      boolean divides = isKnown(shape[i]) && shape[i] > 0 && left % shape[i] == 0;
      if (i != axis && divides) {
        left /= shape[i];
      } else if (i != axis && !unknown.remove((Long) shape[i])) {
        return shape[axis];
      }
    }
    // Where one length alone is not known and nothing else is left, it is that one.
    return unknown.isEmpty() ? left : unknown.size() == 1 && left == 1 ? unknown.get(0) : any();
  }

  private long[] transposed(NodeProto n, long[] first) {
    int[] perm = AxisOrder.of(n);
    if (perm == null || first != null && first.length != perm.length) {
      return null;
    }
    long[] shape = new long[perm.length];
    for (int i = 0; i < shape.length; i++) {
      shape[i] = first == null ? any() : first[perm[i]];
    }
    return shape;
  }

  /** The axes that a node is told, by an attribute or by a constant; null where they are not known. */
  long[] axes(NodeProto n) {
    return numbers.told(n, 1, "axes");
  }

  /** The axes that a Slice cuts; null where they are not known. */
  long[] cut(NodeProto n) {
    return numbers.told(n, 3, "axes");
  }

  private static boolean[] marked(long[] axes, int rank) {
    boolean[] marked = new boolean[rank];
    for (long axis : axes) {
      long at = axis < 0 ? axis + rank : axis;
      if (at < 0 || at >= rank || marked[(int) at]) {
        return null;
      }
      marked[(int) at] = true;
    }
    return marked;
  }

  private static long[] squeezed(long[] first, long[] axes) {
    boolean[] gone = first == null || axes == null ? null : marked(axes, first.length);
    if (gone == null) {
      return null;
    }
    long[] shape = new long[first.length - axes.length];
    int at = 0;
    for (int i = 0; i < first.length; i++) {
      if (!gone[i]) {
        shape[at++] = first[i];
      }
    }
    return shape;
  }

  private static long[] unsqueezed(long[] first, long[] axes) {
    boolean[] made =
        first == null || axes == null || axes.length > ValueNumbers.MOST
            ? null
            : marked(axes, first.length + axes.length);
    if (made == null) {
      return null;
    }
    long[] shape = new long[made.length];
    int at = 0;
    for (int i = 0; i < shape.length; i++) {
      shape[i] = made[i] ? 1 : first[at++];
    }
    return shape;
  }
}

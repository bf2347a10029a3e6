package org.espalier.torch.onnx;

import java.util.Arrays;
import java.util.function.Function;
import org.bytedeco.pytorch.LongOptional;
import org.bytedeco.pytorch.Scalar;
import org.bytedeco.pytorch.Tensor;
import org.bytedeco.pytorch.TensorVector;
import org.bytedeco.pytorch.global.torch;
import org.espalier.InputException;
import org.espalier.torch.onnx.OperatorTable.Sink;

/** Operators that rearrange, cut, join and describe shapes. */
final class ShapeOperators {
  private ShapeOperators() {}

  static void add(Sink table) {
    table.add(OperatorTable.single("Reshape", 5, ShapeOperators::reshape).reading(1));
    table.one("Flatten", 1, ShapeOperators::flatten);
    table.add(OperatorTable.single("Squeeze", 1, ShapeOperators::squeeze).reading(1));
    table.add(OperatorTable.single("Unsqueeze", 1, ShapeOperators::unsqueeze).reading(1));
    table.one("Transpose", 1, ShapeOperators::transpose);
    table.one("Concat", 4, ShapeOperators::concat);
    table.add(OperatorTable.several("Split", 2, ShapeOperators::split).reading(1));
    table.add(OperatorTable.single("Slice", 10, n -> ShapeOperators::slice).reading(1, 2, 3, 4));
    table.add(OperatorTable.single("Expand", 8, n -> ShapeOperators::expand).reading(1));
    table.add(OperatorTable.single("Tile", 6, n -> ShapeOperators::tile).reading(1));
    table.one("Shape", 1, ShapeOperators::shape);
    table.one("Size", 1, n -> in -> in.tensor(new long[] {in.get(0).numel()}, new long[0]));
    table.add(OperatorTable.single("Pad", 11, ShapeOperators::pad).reading(1, 2, 3));
    table.one("DepthToSpace", 1, ShapeOperators::depthToSpace);
    table.one("SpaceToDepth", 1, ShapeOperators::spaceToDepth);
    table.add(OperatorTable.single("Trilu", 14, ShapeOperators::trilu).reading(1));
    table.add(
        OperatorTable.single("ReverseSequence", 10, ShapeOperators::reverseSequence).reading(1));
  }

  private static Function<Inputs, Tensor> reshape(Node n) {
    boolean zeroIsZero = n.opset() >= 14 && n.flag("allowzero", false);
    return in -> {
      Tensor x = in.get(0);
      long[] target = in.longs(1).clone();
      for (int i = 0; i < target.length; i++) {
        if (target[i] == 0 && !zeroIsZero) {
          if (i >= x.dim()) {
            throw new InputException(
                "the target "
                    + Arrays.toString(target)
                    + " copies a dimension that the data lacks");
          }
          target[i] = x.size(i);
        }
      }
      return x.reshape(target);
    };
  }

  private static Function<Inputs, Tensor> flatten(Node n) {
    long axis = n.integer("axis", 1);
    return in -> {
      long[] shape = in.get(0).shape();
      long rows = 1;
      long columns = 1;
      int from = (int) (axis < 0 ? axis + shape.length : axis);
      for (int i = 0; i < shape.length; i++) {
        if (i < from) {
          rows *= shape[i];
        } else {
          columns *= shape[i];
        }
      }
      return in.get(0).reshape(rows, columns);
    };
  }

  private static Function<Inputs, Tensor> squeeze(Node n) {
    long[] attribute = n.opset() < 13 ? n.integers("axes", null) : null;
    return in -> {
      Tensor x = in.get(0);
      long[] axes = attribute != null ? attribute : in.longsOrNull(1);
      if (axes == null) {
        return x.squeeze();
      }
      for (long axis : axes) {
        if (x.size(axis) != 1) {
          throw new InputException(
              "axis " + axis + " of " + Arrays.toString(x.shape()) + " is not of size 1");
        }
      }
      return axes.length == 0 ? new Tensor(x) : x.squeeze(axes);
    };
  }

  private static Function<Inputs, Tensor> unsqueeze(Node n) {
    long[] attribute = n.opset() < 13 ? n.integers("axes", null) : null;
    return in -> {
      Tensor x = in.get(0);
      long[] axes = (attribute != null ? attribute : in.longs(1)).clone();
      long rank = x.dim() + axes.length;
      for (int i = 0; i < axes.length; i++) {
        axes[i] = axes[i] < 0 ? axes[i] + rank : axes[i];
      }
      Arrays.sort(axes);
      Tensor result = new Tensor(x);
      for (long axis : axes) {
        result = result.unsqueeze(axis);
      }
      return result;
    };
  }

  private static Function<Inputs, Tensor> transpose(Node n) {
    long[] perm = n.integers("perm", null);
    return in -> {
      Tensor x = in.get(0);
      if (perm != null) {
        return x.permute(perm);
      }
      long[] reversed = new long[(int) x.dim()];
      Arrays.setAll(reversed, i -> reversed.length - 1 - i);
      return x.permute(reversed);
    };
  }

  private static Function<Inputs, Tensor> concat(Node n) {
    if (!n.hasAttribute("axis")) {
      throw n.wrong("the attribute axis is missing");
    }
    long axis = n.integer("axis", 0);
    return in -> torch.cat(new TensorVector(in.all()), axis);
  }

  private static Kernel split(Node n) {
    long axis = n.integer("axis", 0);
    long[] attribute = n.opset() < 13 ? n.integers("split", null) : null;
    long parts = n.opset() >= 18 ? n.integer("num_outputs", n.outputs()) : n.outputs();
    return in -> {
      Tensor x = in.get(0);
      long[] sizes = attribute != null ? attribute : in.longsOrNull(1);
      if (sizes == null) {
        long size = x.size(axis);
        long part = (size + parts - 1) / parts;
        sizes = new long[(int) parts];
        for (int i = 0; i < parts; i++) {
          sizes[i] = Math.max(0, Math.min(part, size - i * part));
        }
      }
      Tensor[] result = new Tensor[sizes.length];
      long start = 0;
      for (int i = 0; i < sizes.length; i++) {
        result[i] = x.narrow(axis, start, sizes[i]);
        start += sizes[i];
      }
      if (start != x.size(axis)) {
        throw new InputException(
            "the parts " + Arrays.toString(sizes) + " do not make up " + x.size(axis));
      }
      return result;
    };
  }

  private static Tensor slice(Inputs in) {
    Tensor x = in.get(0);
    long[] starts = in.longs(1);
    long[] ends = in.longs(2);
    long[] axes = in.longsOrNull(3);
    long[] steps = in.longsOrNull(4);
    Tensor result = new Tensor(x);
    for (int i = 0; i < starts.length; i++) {
      long axis = axes == null ? i : axes[i];
      long step = steps == null ? 1 : steps[i];
      long size = x.size(axis);
      long start = starts[i] < 0 ? starts[i] + size : starts[i];
      long end = ends[i] < 0 ? ends[i] + size : ends[i];
      if (step > 0) {
        start = Math.max(0, Math.min(start, size));
        end = Math.max(start, Math.min(end, size));
        if (start > 0 || end < size || step > 1) {
          result = result.slice(axis, new LongOptional(start), new LongOptional(end), step);
        }
      } else if (step < 0) {
        start = Math.max(-1, Math.min(start, size - 1));
        end = Math.max(-1, Math.min(end, start));
        // Views have positive strides only: turn the piece around and take every step-th.
        result =
            result
                .slice(axis, new LongOptional(end + 1), new LongOptional(start + 1), 1)
                .flip(axis)
                .slice(axis, new LongOptional(), new LongOptional(), -step);
      } else {
        throw new InputException("the step of axis " + axis + " is 0");
      }
    }
    return result;
  }

  /** Broadcasting in both directions: a 1 in the target keeps the data's size. */
  private static Tensor expand(Inputs in) {
    Tensor x = in.get(0);
    long[] target = in.longs(1);
    long[] shape = x.shape();
    long[] result = new long[Math.max(target.length, shape.length)];
    for (int i = 1; i <= result.length; i++) {
      long size = i <= shape.length ? shape[shape.length - i] : 1;
      long wanted = i <= target.length ? target[target.length - i] : 1;
      result[result.length - i] = wanted == 1 ? size : wanted;
    }
    return x.expand(result);
  }

  private static Tensor tile(Inputs in) {
    return in.get(0).repeat(in.longs(1));
  }

  private static Function<Inputs, Tensor> shape(Node n) {
    long start = n.opset() >= 15 ? n.integer("start", 0) : 0;
    long end = n.opset() >= 15 ? n.integer("end", Long.MAX_VALUE) : Long.MAX_VALUE;
    return in -> {
      long[] shape = in.get(0).shape();
      long from = clamp(start < 0 ? start + shape.length : start, shape.length);
      long to = clamp(end < 0 ? end + shape.length : end, shape.length);
      long[] part = Arrays.copyOfRange(shape, (int) from, (int) Math.max(from, to));
      return in.tensor(part, part.length);
    };
  }

  private static long clamp(long value, long high) {
    return Math.max(0, Math.min(value, high));
  }

  private static Function<Inputs, Tensor> pad(Node n) {
    String mode = n.choice("mode", "constant", "constant", "reflect", "edge", "wrap");
    return in -> {
      Tensor x = in.get(0);
      int rank = (int) x.dim();
      long[] given = in.longs(1);
      long[] axes = in.longsOrNull(3);
      long[] before = new long[rank];
      long[] after = new long[rank];
      int count = axes == null ? rank : axes.length;
      if (given.length != 2 * count) {
        throw new InputException(
            given.length + " pads for " + count + " axes; there must be two for each");
      }
      for (int i = 0; i < count; i++) {
        int axis = axes == null ? i : (int) Math.floorMod(axes[i], rank);
        before[axis] = given[i];
        after[axis] = given[count + i];
      }
      return mode.equals("constant")
          ? constantPad(x, before, after, in.has(2) ? in.doubles(2)[0] : 0)
          : indexPad(in, x, before, after, mode);
    };
  }

  static Tensor constantPad(Tensor x, long[] before, long[] after, double value) {
    int rank = before.length;
    long[] pads = new long[2 * rank];
    for (int i = 0; i < rank; i++) {
      pads[2 * (rank - 1 - i)] = before[i];
      pads[2 * (rank - 1 - i) + 1] = after[i];
    }
    boolean integer = ElementTypes.isInteger(ElementTypes.of(x));
    return torch.constant_pad_nd(x, pads, integer ? new Scalar((long) value) : new Scalar(value));
  }

  private static Tensor indexPad(Inputs in, Tensor x, long[] before, long[] after, String mode) {
    Tensor result = new Tensor(x);
    for (int axis = 0; axis < before.length; axis++) {
      if (before[axis] == 0 && after[axis] == 0) {
        continue;
      }
      long size = x.size(axis);
      if (size == 0) {
        throw new InputException("axis " + axis + " is empty and cannot be padded by " + mode);
      }
      long[] index = new long[Math.toIntExact(size + before[axis] + after[axis])];
      for (int i = 0; i < index.length; i++) {
        index[i] = source(i - before[axis], size, mode);
      }
      result = result.index_select(axis, in.tensor(index, index.length));
    }
    return result;
  }

  /** Which element stands at position {@code i} of an axis that is continued on both sides. */
  private static long source(long i, long size, String mode) {
    switch (mode) {
      case "edge":
        return Math.max(0, Math.min(i, size - 1));
      case "wrap":
        return Math.floorMod(i, size);
      default:
        if (size == 1) {
          return 0;
        }
        long k = Math.floorMod(i, 2 * (size - 1));
        return k < size ? k : 2 * (size - 1) - k;
    }
  }

  private static Function<Inputs, Tensor> depthToSpace(Node n) {
    long b = n.integer("blocksize", 1);
    boolean columnFirst = n.opset() >= 11 && n.choice("mode", "DCR", "DCR", "CRD").equals("CRD");
    return in -> {
      long[] s = in.get(0).shape();
      long c = s[1] / (b * b);
      Tensor x =
          columnFirst
              ? in.get(0).reshape(s[0], c, b, b, s[2], s[3]).permute(0, 1, 4, 2, 5, 3)
              : in.get(0).reshape(s[0], b, b, c, s[2], s[3]).permute(0, 3, 4, 1, 5, 2);
      return x.reshape(s[0], c, s[2] * b, s[3] * b);
    };
  }

  private static Function<Inputs, Tensor> spaceToDepth(Node n) {
    long b = n.integer("blocksize", 1);
    return in -> {
      long[] s = in.get(0).shape();
      return in.get(0)
          .reshape(s[0], s[1], s[2] / b, b, s[3] / b, b)
          .permute(0, 3, 5, 1, 2, 4)
          .reshape(s[0], s[1] * b * b, s[2] / b, s[3] / b);
    };
  }

  private static Function<Inputs, Tensor> trilu(Node n) {
    boolean upper = n.flag("upper", true);
    return in -> {
      long k = in.has(1) ? in.longs(1)[0] : 0;
      return upper ? in.get(0).triu(k) : in.get(0).tril(k);
    };
  }

  /** The first elements of each sequence in reverse order, the others as they are. */
  private static Function<Inputs, Tensor> reverseSequence(Node n) {
    long batchAxis = n.integer("batch_axis", 1);
    long timeAxis = n.integer("time_axis", 0);
    return in -> {
      Tensor x = in.get(0);
      long[] lengths = in.longs(1);
      int times = Math.toIntExact(x.size(timeAxis));
      long[] index = new long[times * lengths.length];
      for (int b = 0; b < lengths.length; b++) {
        for (int t = 0; t < times; t++) {
          index[t * lengths.length + b] = t < lengths[b] ? lengths[b] - 1 - t : t;
        }
      }
      long[] shape = new long[(int) x.dim()];
      Arrays.fill(shape, 1);
      shape[(int) timeAxis] = times;
      shape[(int) batchAxis] = lengths.length;
      Tensor order = in.tensor(index, times, lengths.length);
      if (batchAxis < timeAxis) {
        order = order.t();
      }
      return x.gather(timeAxis, order.reshape(shape).expand(x.shape()));
    };
  }
}

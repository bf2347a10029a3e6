package org.espalier.torch.onnx;

import java.util.Arrays;
import java.util.function.Function;
import java.util.function.Supplier;
import org.bytedeco.pytorch.BoolOptional;
import org.bytedeco.pytorch.LongOptional;
import org.bytedeco.pytorch.Scalar;
import org.bytedeco.pytorch.T_TensorTensor_T;
import org.bytedeco.pytorch.Tensor;
import org.bytedeco.pytorch.TensorOptional;
import org.bytedeco.pytorch.TensorOptionalList;
import org.bytedeco.pytorch.TensorOptionalVector;
import org.bytedeco.pytorch.TensorOptions;
import org.bytedeco.pytorch.global.torch;
import org.bytedeco.pytorch.global.torch.ScalarType;
import org.espalier.InputException;
import org.espalier.torch.onnx.OperatorTable.Sink;

/** Operators that look elements up, put them in, or find them. Indices may be negative. */
final class IndexOperators {
  private IndexOperators() {}

  static void add(Sink table) {
    table.one("Gather", 1, IndexOperators::gather);
    table.one("GatherElements", 11, IndexOperators::gatherElements);
    table.one("GatherND", 11, IndexOperators::gatherNd);
    table.one("Scatter", 9, IndexOperators::scatterElements);
    table.one("ScatterElements", 11, IndexOperators::scatterElements);
    table.one("ScatterND", 11, IndexOperators::scatterNd);
    table.one("TensorScatter", 24, IndexOperators::tensorScatter);
    table.add(OperatorTable.single("OneHot", 9, IndexOperators::oneHot).reading(1));
    table.one("ArgMax", 1, n -> extremum(n, true));
    table.one("ArgMin", 1, n -> extremum(n, false));
    table.add(OperatorTable.several("TopK", 10, IndexOperators::topK).reading(1));
    table.add(
        OperatorTable.single("NonZero", 9, n -> in -> torch.nonzero(in.get(0)).t()).asOpaque());
    table.add(OperatorTable.single("Compress", 9, IndexOperators::compress).asOpaque());
  }

  /** Indices of int64 in [0, size). */
  private static Tensor wrap(Tensor index, long size) {
    Tensor i = ElementTypes.of(index) == ScalarType.Long ? index : index.to(ScalarType.Long);
    return i.add(i.lt(new Scalar(0)).mul(new Scalar(size)));
  }

  /** Puts an update into a cache along an axis, of each row of the batch from an index of its own on. */
  private static Function<Inputs, Tensor> tensorScatter(Node n) {
    long axis = n.integer("axis", -2);
    boolean circular = n.choice("mode", "linear", "linear", "circular").equals("circular");
    return in -> {
      Tensor cache = in.get(0);
      Tensor update = in.get(1);
      long[] along = new long[(int) update.dim()];
      Arrays.fill(along, 1);
      long length = update.size(axis);
      along[(int) (axis < 0 ? axis + along.length : axis)] = length;
      Tensor place = in.place(torch.arange(new Scalar(length), new TensorOptions(ScalarType.Long)));
      place = place.reshape(along);
      if (in.has(2)) {
        along[(int) (axis < 0 ? axis + along.length : axis)] = 1;
        along[0] = update.size(0);
        place = place.add(in.get(2).reshape(along));
      }
      if (circular) {
        place = place.remainder(new Scalar(cache.size(axis)));
      }
      return cache.scatter(axis, place.expand(update.shape()), update);
    };
  }

  private static Function<Inputs, Tensor> gather(Node n) {
    long axis = n.integer("axis", 0);
    long[] fixed = n.constant(1);
    return in -> {
      Tensor x = in.get(0);
      Tensor index = in.get(1);
      long size = x.size(axis);
      if (fixed != null && fixed.length == 1) {
        long i = fixed[0] < 0 ? fixed[0] + size : fixed[0];
        // A view; index_select would copy.
        return index.dim() == 0 ? x.select(axis, i) : x.narrow(axis, i, 1);
      }
      Tensor wrapped = wrap(index, size);
      if (axis == 0 && x.dim() == 2 && ElementTypes.isFloating(ElementTypes.of(x))) {
        return lookUp(() -> torch.embedding(x, wrapped), index, size);
      }
      Tensor rows = lookUp(() -> x.index_select(axis, wrapped.reshape(-1)), index, size);
      if (index.dim() == 1) {
        return rows;
      }
      long[] before = x.shape();
      long[] inner = index.shape();
      int a = (int) (axis < 0 ? axis + before.length : axis);
      long[] shape = new long[before.length - 1 + inner.length];
      System.arraycopy(before, 0, shape, 0, a);
      System.arraycopy(inner, 0, shape, a, inner.length);
      System.arraycopy(before, a + 1, shape, a + inner.length, before.length - 1 - a);
      return rows.reshape(shape);
    };
  }

  /** Says of a look-up that failed which index it was. */
  private static Tensor lookUp(Supplier<Tensor> look, Tensor index, long size) {
    try {
      return look.get();
    } catch (RuntimeException e) {
      Tensor outside =
          index.masked_select(index.lt(new Scalar(-size)).logical_or(index.ge(new Scalar(size))));
      if (outside.numel() == 0) {
        throw e;
      }
      throw new InputException(
          "the index "
              + outside.select(0, 0).item_long()
              + " is outside [-"
              + size
              + ", "
              + (size - 1)
              + "], the rows that there are",
          e);
    }
  }

  private static Function<Inputs, Tensor> gatherElements(Node n) {
    long axis = n.integer("axis", 0);
    return in -> in.get(0).gather(axis, wrap(in.get(1), in.get(0).size(axis)));
  }

  private static Function<Inputs, Tensor> gatherNd(Node n) {
    int batch = n.opset() >= 12 ? (int) n.integer("batch_dims", 0) : 0;
    return in -> {
      Tensor x = in.get(0);
      Tensor indices = in.get(1);
      long[] shape = indices.shape();
      int depth = (int) shape[shape.length - 1];
      TensorOptional[] index = new TensorOptional[batch + depth];
      for (int b = 0; b < batch; b++) {
        long[] along = new long[shape.length - 1];
        Arrays.fill(along, 1);
        along[b] = shape[b];
        long[] count = new long[(int) shape[b]];
        Arrays.setAll(count, i -> i);
        index[b] = new TensorOptional(in.tensor(count, along));
      }
      for (int d = 0; d < depth; d++) {
        index[batch + d] = new TensorOptional(wrap(indices.select(-1, d), x.size(batch + d)));
      }
      return x.index(new TensorOptionalList(new TensorOptionalVector(index)));
    };
  }

  static String reduction(Node n) {
    if (n.opset() < 16) {
      return "none";
    }
    return n.opset() < 18
        ? n.choice("reduction", "none", "none", "add", "mul")
        : n.choice("reduction", "none", "none", "add", "mul", "max", "min");
  }

  /** The names of libtorch. */
  static String torchReduction(String onnx) {
    return switch (onnx) {
      case "mul" -> "prod";
      case "max" -> "amax";
      case "min" -> "amin";
      default -> throw new IllegalArgumentException(onnx);
    };
  }

  private static Function<Inputs, Tensor> scatterElements(Node n) {
    long axis = n.integer("axis", 0);
    String reduction = reduction(n);
    return in -> {
      Tensor x = in.get(0);
      Tensor index = wrap(in.get(1), x.size(axis));
      Tensor updates = in.get(2);
      return switch (reduction) {
        case "none" -> x.scatter(axis, index, updates);
        case "add" -> x.scatter_add(axis, index, updates);
        default -> x.scatter_reduce(axis, index, updates, torchReduction(reduction), true);
      };
    };
  }

  private static Function<Inputs, Tensor> scatterNd(Node n) {
    String reduction = reduction(n);
    return in -> {
      Tensor x = in.get(0);
      Tensor indices = in.get(1);
      Tensor updates = in.get(2);
      long[] shape = x.shape();
      int depth = (int) indices.size(-1);
      // The first axes become one, indexed by one number.
      Tensor flat = null;
      long rows = 1;
      for (int d = 0; d < depth; d++) {
        Tensor i = wrap(indices.select(-1, d), shape[d]);
        flat = flat == null ? i : flat.mul(new Scalar(shape[d])).add(i);
        rows *= shape[d];
      }
      if (flat == null) {
        throw new InputException("the indices " + Arrays.toString(indices.shape()) + " are empty");
      }
      long width = 1;
      for (int d = depth; d < shape.length; d++) {
        width *= shape[d];
      }
      Tensor data = x.reshape(rows, width);
      Tensor values = updates.reshape(-1, width);
      Tensor row = flat.reshape(-1);
      Tensor result;
      if (reduction.equals("none") || reduction.equals("add")) {
        TensorOptionalList list =
            new TensorOptionalList(new TensorOptionalVector(new TensorOptional(row)));
        result = torch.index_put(data, list, values, reduction.equals("add"));
      } else {
        Tensor index = row.unsqueeze(1).expand(values.shape());
        result = data.scatter_reduce(0, index, values, torchReduction(reduction), true);
      }
      return result.reshape(shape);
    };
  }

  private static Function<Inputs, Tensor> oneHot(Node n) {
    long axis = n.integer("axis", -1);
    return in -> {
      long depth = in.longs(1)[0];
      Tensor index = wrap(in.get(0), depth);
      long[] count = new long[Math.toIntExact(depth)];
      Arrays.setAll(count, i -> i);
      int rank = (int) index.dim() + 1;
      int at = (int) (axis < 0 ? axis + rank : axis);
      long[] along = new long[rank];
      Arrays.fill(along, 1);
      along[at] = depth;
      Tensor hit = index.unsqueeze(at).eq(in.tensor(count, along));
      Tensor values = in.get(2);
      return torch.where(hit, values.select(0, 1), values.select(0, 0));
    };
  }

  private static Function<Inputs, Tensor> extremum(Node n, boolean largest) {
    long axis = n.integer("axis", 0);
    boolean keep = n.flag("keepdims", true);
    boolean last = n.opset() >= 12 && n.flag("select_last_index", false);
    return in -> {
      Tensor x = last ? in.get(0).flip(axis) : in.get(0);
      LongOptional along = new LongOptional(axis);
      Tensor first = largest ? x.argmax(along, keep) : torch.argmin(x, along, keep);
      return last ? first.neg().add(new Scalar(x.size(axis) - 1)) : first;
    };
  }

  /** Of equal elements the one with the lower index comes first. */
  private static Kernel topK(Node n) {
    long axis = n.integer("axis", -1);
    boolean largest = n.opset() < 11 || n.flag("largest", true);
    if (n.opset() >= 11) {
      // Sorted output is a valid unsorted one too.
      n.flag("sorted", true);
    }
    return in -> {
      Tensor x = in.get(0);
      long k = in.longs(1)[0];
      if (k < 0 || k > x.size(axis)) {
        throw new InputException("k is " + k + " for an axis of size " + x.size(axis));
      }
      T_TensorTensor_T sorted = x.sort(new BoolOptional(true), axis, largest);
      return new Tensor[] {sorted.get0().narrow(axis, 0, k), sorted.get1().narrow(axis, 0, k)};
    };
  }

  private static Function<Inputs, Tensor> compress(Node n) {
    boolean flat = !n.hasAttribute("axis");
    long axis = n.integer("axis", 0);
    return in -> {
      Tensor x = flat ? in.get(0).reshape(-1) : in.get(0);
      return x.index_select(axis, torch.nonzero(in.get(1)).reshape(-1));
    };
  }
}

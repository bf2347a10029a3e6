package org.espalier.torch.onnx;

import java.util.Arrays;
import java.util.function.Function;
import org.bytedeco.pytorch.LongOptional;
import org.bytedeco.pytorch.Scalar;
import org.bytedeco.pytorch.ScalarTypeOptional;
import org.bytedeco.pytorch.T_TensorTensor_T;
import org.bytedeco.pytorch.Tensor;
import org.bytedeco.pytorch.global.torch;
import org.bytedeco.pytorch.global.torch.ScalarType;
import org.espalier.InputException;
import org.espalier.torch.onnx.OperatorTable.Sink;

/** Pools over 1 to 3 spatial axes. */
final class PoolingOperators {
  private PoolingOperators() {}

  static void add(Sink table) {
    table.add(OperatorTable.several("MaxPool", 1, PoolingOperators::maxPool));
    table.one("AveragePool", 1, PoolingOperators::averagePool);
    table.one("LpPool", 2, PoolingOperators::lpPool);
    table.unary("GlobalAveragePool", 1, x -> x.mean(spatial(x), true, new ScalarTypeOptional()));
    table.unary("GlobalMaxPool", 1, x -> x.amax(spatial(x), true));
    table.one("GlobalLpPool", 2, PoolingOperators::globalLpPool);
  }

  private static long[] spatial(Tensor x) {
    long[] axes = new long[(int) x.dim() - 2];
    Arrays.setAll(axes, i -> i + 2);
    return axes;
  }

  private static Kernel maxPool(Node n) {
    Windows windows = new Windows(n, true, true);
    boolean columnMajor = n.flag("storage_order", false);
    boolean indices = n.uses(1);
    return in -> {
      Tensor x = in.get(0);
      ScalarType type = ElementTypes.of(x);
      Windows.Geometry g = windows.of(x.shape(), null);
      Tensor wide = ElementTypes.isFloating(type) ? x : x.to(ScalarType.Float);
      double lowest =
          ElementTypes.isFloating(type) ? Double.NEGATIVE_INFINITY : ElementTypes.lowest(type);
      boolean inside = g.isSymmetric() && g.isNarrow();
      Tensor padded = inside ? wide : g.padExtra(g.pad(wide, lowest), lowest);
      long[] pads = inside ? g.before() : new long[g.axes()];
      T_TensorTensor_T pooled = maxPool(padded, g, pads);
      Tensor values = new Tensor(pooled.get0());
      Tensor y = ElementTypes.isFloating(type) ? values : values.to(type);
      return new Tensor[] {
        y,
        indices
            ? flatIndices(
                pooled.get1(), x.shape(), padded.shape(), inside ? null : g, columnMajor, in)
            : null
      };
    };
  }

  private static T_TensorTensor_T maxPool(Tensor x, Windows.Geometry g, long[] pads) {
    return switch (g.axes()) {
      case 1 ->
          torch.max_pool1d_with_indices(x, g.kernel(), g.strides(), pads, g.dilations(), false);
      case 2 ->
          torch.max_pool2d_with_indices(x, g.kernel(), g.strides(), pads, g.dilations(), false);
      default ->
          torch.max_pool3d_with_indices(x, g.kernel(), g.strides(), pads, g.dilations(), false);
    };
  }

  /**
   * The positions of the maxima in the whole flattened input, as ONNX counts; libtorch counts in
   * one channel of what it was given.
   */
  private static Tensor flatIndices(
      Tensor index,
      long[] shape,
      long[] padded,
      Windows.Geometry padding,
      boolean columnMajor,
      Inputs in) {
    int axes = shape.length - 2;
    Tensor rest = index;
    Tensor[] position = new Tensor[axes];
    for (int i = axes - 1; i >= 0; i--) {
      long size = padding == null ? shape[i + 2] : padded[i + 2];
      position[i] = rest.remainder(new Scalar(size));
      rest = rest.sub(position[i]).div(new Scalar(size)).to(ScalarType.Long);
      if (padding != null) {
        position[i] = position[i].sub(new Scalar(padding.before()[i]));
      }
    }
    Tensor flat = null;
    long stride = 1;
    for (int k = 0; k < axes; k++) {
      int i = columnMajor ? k : axes - 1 - k;
      Tensor part = position[i].mul(new Scalar(stride));
      flat = flat == null ? part : flat.add(part);
      stride *= shape[i + 2];
    }
    long planes = shape[0] * shape[1];
    long[] starts = new long[Math.toIntExact(planes)];
    for (int i = 0; i < planes; i++) {
      starts[i] = i * stride;
    }
    long[] along = new long[shape.length];
    Arrays.fill(along, 1);
    along[0] = shape[0];
    along[1] = shape[1];
    return flat.add(in.tensor(starts, along));
  }

  private static Function<Inputs, Tensor> averagePool(Node n) {
    Windows windows = new Windows(n, true, n.opset() >= 19);
    boolean countPads = n.flag("count_include_pad", false);
    return in -> {
      Tensor x = in.get(0);
      Windows.Geometry g = windows.of(x.shape(), null);
      refuseDilations(g);
      if (g.isSymmetric() && g.isNarrow()) {
        return average(x, g, g.before(), countPads);
      }
      // The mean of padded values over the share of each window that counts.
      Tensor ones = torch.ones_like(x.narrow(0, 0, 1).narrow(1, 0, 1));
      long[] none = new long[g.axes()];
      Tensor sums = average(g.padExtra(g.pad(x, 0), 0), g, none, true);
      Tensor shares = average(g.padExtra(g.pad(ones, countPads ? 1 : 0), 0), g, none, true);
      return sums.div(shares);
    };
  }

  private static void refuseDilations(Windows.Geometry g) {
    for (long d : g.dilations()) {
      if (d != 1) {
        throw new InputException(
            "dilations " + Arrays.toString(g.dilations()) + " are not supported for averages");
      }
    }
  }

  private static Tensor average(Tensor x, Windows.Geometry g, long[] pads, boolean countPads) {
    return switch (g.axes()) {
      case 1 -> torch.avg_pool1d(x, g.kernel(), g.strides(), pads, false, countPads);
      case 2 ->
          torch.avg_pool2d(x, g.kernel(), g.strides(), pads, false, countPads, new LongOptional());
      default ->
          torch.avg_pool3d(x, g.kernel(), g.strides(), pads, false, countPads, new LongOptional());
    };
  }

  private static Function<Inputs, Tensor> lpPool(Node n) {
    Windows windows = new Windows(n, n.opset() >= 18, n.opset() >= 18);
    double p = n.integer("p", 2);
    return in -> {
      Tensor x = in.get(0);
      Windows.Geometry g = windows.of(x.shape(), null);
      refuseDilations(g);
      Tensor powers = g.padExtra(g.pad(x.abs().pow(new Scalar(p)), 0), 0);
      long count = Arrays.stream(g.kernel()).reduce(1, (a, b) -> a * b);
      return average(powers, g, new long[g.axes()], true)
          .mul(new Scalar(count))
          .pow(new Scalar(1 / p));
    };
  }

  private static Function<Inputs, Tensor> globalLpPool(Node n) {
    double p = n.integer("p", 2);
    return in -> {
      Tensor x = in.get(0);
      return x.abs()
          .pow(new Scalar(p))
          .sum(spatial(x), true, new ScalarTypeOptional())
          .pow(new Scalar(1 / p));
    };
  }
}

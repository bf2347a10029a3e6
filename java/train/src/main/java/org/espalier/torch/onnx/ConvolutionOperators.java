package org.espalier.torch.onnx;

import java.util.Arrays;
import java.util.function.Function;
import org.bytedeco.pytorch.Tensor;
import org.bytedeco.pytorch.TensorOptional;
import org.bytedeco.pytorch.global.torch;
import org.bytedeco.pytorch.global.torch.ScalarType;
import org.espalier.torch.onnx.OperatorTable.Sink;

/** Convolutions over 1 to 3 spatial axes. */
final class ConvolutionOperators {
  private ConvolutionOperators() {}

  static void add(Sink table) {
    table.add(OperatorTable.single("Conv", 1, ConvolutionOperators::conv).asProduct());
    table.add(
        OperatorTable.single("ConvTranspose", 1, ConvolutionOperators::convTranspose).asProduct());
    table.one("ConvInteger", 10, ConvolutionOperators::convInteger);
  }

  private static Function<Inputs, Tensor> conv(Node n) {
    Windows windows = new Windows(n, false, true);
    long group = n.integer("group", 1);
    return in -> convolve(windows, group, in.get(0), in.get(1), in.optional(2));
  }

  static Tensor convolve(Windows windows, long group, Tensor x, Tensor w, TensorOptional bias) {
    Windows.Geometry g = windows.of(x.shape(), w.shape());
    boolean symmetric = g.isSymmetric();
    return torch.convolution(
        symmetric ? x : g.pad(x, 0),
        w,
        bias,
        g.strides(),
        symmetric ? g.before() : new long[g.axes()],
        g.dilations(),
        false,
        new long[g.axes()],
        group);
  }

  private static Function<Inputs, Tensor> convInteger(Node n) {
    Windows windows = new Windows(n, false, true);
    long group = n.integer("group", 1);
    return in -> {
      Tensor x = MatrixOperators.exact(in.get(0), in.orNull(2), 0);
      Tensor zero = in.orNull(3);
      Tensor w =
          MatrixOperators.exact(in.get(1), zero == null ? null : channels(zero, in.get(1)), 0);
      return convolve(windows, group, x, w, new TensorOptional()).to(ScalarType.Int);
    };
  }

  /** A vector with an element for each output channel, ready to broadcast against weights. */
  static Tensor channels(Tensor vector, Tensor weights) {
    if (vector.numel() == 1) {
      return vector.reshape(new long[0]);
    }
    long[] shape = new long[(int) weights.dim()];
    Arrays.fill(shape, 1);
    shape[0] = vector.numel();
    return vector.reshape(shape);
  }

  private static Function<Inputs, Tensor> convTranspose(Node n) {
    Windows windows = new Windows(n, false, true);
    long group = n.integer("group", 1);
    long[] outputPadding = n.integers("output_padding", null);
    long[] outputShape = n.integers("output_shape", null);
    return in -> {
      Tensor x = in.get(0);
      long[] shape = x.shape();
      Windows.Geometry g = windows.of(shape, in.get(1).shape());
      int axes = g.axes();
      long[] before = g.before().clone();
      long[] after = g.after().clone();
      long[] beyond = outputPadding == null ? new long[axes] : outputPadding.clone();
      for (int i = 0; i < axes; i++) {
        if (outputShape != null) {
          long wanted = outputShape[outputShape.length - axes + i];
          fit(wanted, i, shape, g, windows, before, after, beyond);
        } else if (windows.autoPad().startsWith("SAME")) {
          fit(shape[i + 2] * g.strides()[i], i, shape, g, windows, before, after, beyond);
        }
      }
      // libtorch pads both sides alike and pads outputs by less than a stride; cut or fill the
      // rest.
      long[] both = new long[axes];
      long[] high = new long[axes];
      long[] low = new long[axes];
      boolean exact = true;
      for (int i = 0; i < axes; i++) {
        both[i] = Math.min(before[i], after[i]);
        low[i] = both[i] - before[i];
        high[i] = both[i] - after[i] + beyond[i];
        exact &= low[i] == 0 && high[i] == 0;
      }
      boolean direct = exactlyBeyond(before, after, beyond, g.strides(), g.dilations());
      Tensor y =
          torch.convolution(
              x,
              in.get(1),
              exact || direct ? in.optional(2) : new TensorOptional(),
              g.strides(),
              both,
              g.dilations(),
              true,
              direct ? beyond : new long[axes],
              group);
      if (exact || direct) {
        return y;
      }
      y = ShapeOperators.constantPad(y, ofImage(low), ofImage(high), 0);
      if (!in.has(2)) {
        return y;
      }
      long[] channel = new long[axes + 1];
      Arrays.fill(channel, 1);
      channel[0] = in.get(2).numel();
      return y.add(in.get(2).reshape(channel));
    };
  }

  /**
   * Sets the pads of an axis by the size that its output shall have.
   *
   * @param shape of the input
   * @param beyond what the output is padded with, beside the pads of its windows
   */
  private static void fit(
      long wanted,
      int axis,
      long[] shape,
      Windows.Geometry g,
      Windows windows,
      long[] before,
      long[] after,
      long[] beyond) {
    long full =
        g.strides()[axis] * (shape[axis + 2] - 1)
            + beyond[axis]
            + (g.kernel()[axis] - 1) * g.dilations()[axis]
            + 1;
    long total = Math.max(0, full - wanted);
    beyond[axis] += Math.max(0, wanted - full);
    before[axis] = windows.autoPad().equals("SAME_UPPER") ? total / 2 : total - total / 2;
    after[axis] = total - before[axis];
  }

  /** Numbers for the axes of an image, with 0 for examples and channels in front. */
  private static long[] ofImage(long[] axes) {
    long[] all = new long[axes.length + 2];
    System.arraycopy(axes, 0, all, 2, axes.length);
    return all;
  }

  private static boolean exactlyBeyond(
      long[] before, long[] after, long[] beyond, long[] strides, long[] dilations) {
    for (int i = 0; i < before.length; i++) {
      if (before[i] != after[i] || beyond[i] >= Math.max(strides[i], dilations[i])) {
        return false;
      }
    }
    return true;
  }
}

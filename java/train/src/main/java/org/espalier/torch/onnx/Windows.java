package org.espalier.torch.onnx;

import java.util.Arrays;
import org.bytedeco.pytorch.Tensor;
import org.espalier.InputException;

/**
 * The geometry of convolutions and pools: kernel, strides, dilations and pads of the spatial axes,
 * by the rules of the ONNX operator specification.
 */
final class Windows {
  private final String autoPad;
  private final boolean ceiling;

  /** Null where the weights tell. */
  private final long[] kernel;

  private final long[] strides;
  private final long[] dilations;
  private final long[] pads;

  Windows(Node n, boolean withCeiling, boolean withDilations) {
    autoPad = n.choice("auto_pad", "NOTSET", "NOTSET", "SAME_UPPER", "SAME_LOWER", "VALID");
    ceiling = withCeiling && n.flag("ceil_mode", false);
    kernel = n.integers("kernel_shape", null);
    strides = n.integers("strides", null);
    dilations = withDilations ? n.integers("dilations", null) : null;
    pads = n.integers("pads", null);
  }

  /** The geometry for one input shape. */
  record Geometry(
      long[] kernel, long[] strides, long[] dilations, long[] before, long[] after, long[] extra) {
    int axes() {
      return kernel.length;
    }

    /** Whether libtorch can pad by itself: alike on both sides, nothing beyond. */
    boolean isSymmetric() {
      return Arrays.equals(before, after) && Arrays.stream(extra).allMatch(e -> e == 0);
    }

    /** Whether the pads are at most half the kernel, as pools of libtorch demand. */
    boolean isNarrow() {
      for (int i = 0; i < kernel.length; i++) {
        if (2 * before[i] > kernel[i]) {
          return false;
        }
      }
      return true;
    }

    /** The input with its pads, whose value is given. */
    Tensor pad(Tensor x, double value) {
      return pad(x, before, after, value);
    }

    /** The padded input with what the last windows need beyond it. */
    Tensor padExtra(Tensor x, double value) {
      return pad(x, new long[before.length], extra, value);
    }

    private static Tensor pad(Tensor x, long[] low, long[] high, double value) {
      int first = (int) x.dim() - low.length;
      long[] b = new long[(int) x.dim()];
      long[] a = new long[b.length];
      System.arraycopy(low, 0, b, first, low.length);
      System.arraycopy(high, 0, a, first, low.length);
      return Arrays.equals(b, a) && Arrays.stream(b).allMatch(p -> p == 0)
          ? x
          : ShapeOperators.constantPad(x, b, a, value);
    }
  }

  /**
   * @param shape the shape of the input [N, C, spatial axes]
   * @param weights the shape of the weights, whose last axes are the kernel; null for pools
   */
  Geometry of(long[] shape, long[] weights) {
    int axes = shape.length - 2;
    if (axes < 1 || axes > 3) {
      throw new InputException(
          "an input of shape " + Arrays.toString(shape) + "; 1 to 3 spatial axes can be used");
    }
    long[] k =
        kernel != null
            ? kernel
            : weights == null
                ? null
                : Arrays.copyOfRange(weights, weights.length - axes, weights.length);
    if (k == null) {
      throw new InputException("the attribute kernel_shape is missing");
    }
    long[] s = strides != null ? strides : ones(axes);
    long[] d = dilations != null ? dilations : ones(axes);
    if (k.length != axes || s.length != axes || d.length != axes) {
      throw new InputException(
          "kernel, strides or dilations have not as many axes as the input "
              + Arrays.toString(shape));
    }
    long[] before = new long[axes];
    long[] after = new long[axes];
    long[] extra = new long[axes];
    for (int i = 0; i < axes; i++) {
      long size = shape[i + 2];
      long window = (k[i] - 1) * d[i] + 1;
      switch (autoPad) {
        case "NOTSET" -> {
          before[i] = pads == null ? 0 : pads[i];
          after[i] = pads == null ? 0 : pads[i + axes];
        }
        case "VALID" -> {}
        default -> {
          long out = (size + s[i] - 1) / s[i];
          long total = Math.max(0, (out - 1) * s[i] + window - size);
          before[i] = autoPad.equals("SAME_LOWER") ? total - total / 2 : total / 2;
          after[i] = total - before[i];
        }
      }
      if (ceiling) {
        long room = size + before[i] + after[i] - window;
        long steps = (room + s[i] - 1) / s[i];
        // A last window that begins behind the input is left out.
        if (steps * s[i] >= size + before[i]) {
          steps--;
        }
        extra[i] = Math.max(0, steps * s[i] - room);
      }
    }
    return new Geometry(k, s, d, before, after, extra);
  }

  private static long[] ones(int count) {
    long[] ones = new long[count];
    Arrays.fill(ones, 1);
    return ones;
  }

  String autoPad() {
    return autoPad;
  }
}

package org.espalier.torch.onnx;

import java.util.Arrays;
import java.util.function.Function;
import org.bytedeco.pytorch.Tensor;
import org.bytedeco.pytorch.global.torch;
import org.espalier.InputException;
import org.espalier.torch.onnx.OperatorTable.Sink;

/**
 * Resampling. Each axis that changes its size is resampled by itself: by a selection of elements
 * (nearest) or a product with the matrix of the weights (linear and cubic), which the rules of the
 * ONNX operator Resize give.
 */
final class ResizeOperators {
  /** The most weights that the matrix of an axis has, or elements that are selected. */
  private static final int MOST_WEIGHTS = 1 << 28;

  private ResizeOperators() {}

  static void add(Sink table) {
    table.add(OperatorTable.single("Resize", 11, ResizeOperators::resize).reading(1, 2, 3));
    table.add(OperatorTable.single("Upsample", 9, ResizeOperators::upsample).reading(1));
    table.one("GridSample", 16, ResizeOperators::gridSample);
  }

  /**
   * What becomes of one axis.
   *
   * @param target its new size
   * @param begin where what is resized begins and ends, as shares of the axis
   */
  private record Line(long size, long target, double scale, double begin, double end) {
    /** Where output element {@code i} lies in the input. */
    double position(int i, String rule) {
      return switch (rule) {
        case "align_corners" -> target == 1 ? 0 : i * (size - 1.0) / (target - 1);
        case "asymmetric" -> i / scale;
        case "pytorch_half_pixel" -> target > 1 ? (i + 0.5) / scale - 0.5 : 0;
        case "tf_half_pixel_for_nn" -> (i + 0.5) / scale;
        case "half_pixel_symmetric" -> {
          double adjustment = target / (scale * size);
          double offset = size / 2.0 * (1 - adjustment);
          yield offset + (i + 0.5) / scale - 0.5;
        }
        case "tf_crop_and_resize" ->
            target > 1
                ? begin * (size - 1) + i * (end - begin) * (size - 1) / (target - 1)
                : 0.5 * (begin + end) * (size - 1);
        default -> (i + 0.5) / scale - 0.5;
      };
    }
  }

  private static Function<Inputs, Tensor> resize(Node n) {
    ResizeAttributes rule = ResizeAttributes.of(n);
    long[] axes = rule.axes();
    return in -> {
      Tensor x = in.get(0);
      int rank = (int) x.dim();
      int count = axes == null ? rank : axes.length;
      double[] scales = in.has(2) ? in.doubles(2) : new double[0];
      long[] sizes = in.has(3) ? in.longs(3) : new long[0];
      double[] roi = rule.crops() && in.has(1) ? in.doubles(1) : new double[0];
      if (scales.length == 0 && sizes.length == 0
          || scales.length > 0 && scales.length != count
          || sizes.length > 0 && sizes.length != count) {
        throw new InputException(
            scales.length + " scales and " + sizes.length + " sizes for " + count + " axes");
      }
      double common = 0;
      for (int k = 0; k < sizes.length; k++) {
        double ratio = sizes[k] / (double) x.size(axis(axes, k, rank));
        common =
            k == 0
                ? ratio
                : rule.policy().equals("not_larger")
                    ? Math.min(common, ratio)
                    : Math.max(common, ratio);
      }
      Tensor y = new Tensor(x);
      for (int k = 0; k < count; k++) {
        int axis = axis(axes, k, rank);
        long size = x.size(axis);
        double scale;
        long target;
        if (sizes.length > 0 && !rule.stretches()) {
          scale = common;
          target = (long) Math.floor(common * size + 0.5);
        } else if (sizes.length > 0) {
          target = sizes[k];
          scale = target / (double) size;
        } else {
          scale = scales[k];
          target = (long) Math.floor(size * scale);
        }
        double begin = roi.length > 0 ? roi[k] : 0;
        double end = roi.length > 0 ? roi[count + k] : 1;
        if (target != size || scale != 1 || rule.crops()) {
          y = along(in, y, axis, new Line(size, target, scale, begin, end), rule);
        }
      }
      return y;
    };
  }

  private static int axis(long[] axes, int k, int rank) {
    return axes == null ? k : (int) Math.floorMod(axes[k], rank);
  }

  private static Function<Inputs, Tensor> upsample(Node n) {
    ResizeAttributes rule = ResizeAttributes.ofUpsample(n);
    return in -> {
      Tensor y = new Tensor(in.get(0));
      double[] scales = in.doubles(1);
      for (int axis = 0; axis < scales.length; axis++) {
        long size = y.size(axis);
        long target = (long) Math.floor(size * scales[axis]);
        if (target != size) {
          y = along(in, y, axis, new Line(size, target, scales[axis], 0, 1), rule);
        }
      }
      return y;
    };
  }

  private static Tensor along(Inputs in, Tensor x, int axis, Line line, ResizeAttributes rule) {
    long size = line.size;
    boolean selects = rule.mode().equals("nearest") && !rule.crops();
    if (line.target > MOST_WEIGHTS / (selects ? 1 : Math.max(1, size))) {
      throw new InputException(
          "axis "
              + axis
              + " of "
              + size
              + " elements cannot become one of "
              + line.target
              + (selects ? "; at most " : "; old times new size may be at most ")
              + MOST_WEIGHTS);
    }
    int n = (int) line.target;
    double[] position = new double[n];
    for (int i = 0; i < n; i++) {
      position[i] = line.position(i, rule.coordinates());
    }
    if (selects) {
      long[] index = new long[n];
      for (int i = 0; i < n; i++) {
        index[i] = clamp(nearest(position[i], rule.nearest()), size);
      }
      return x.index_select(axis, in.tensor(index, n));
    }
    int columns = (int) size;
    double[] matrix = new double[n * columns];
    double[] constant = new double[n];
    for (int i = 0; i < n; i++) {
      if (rule.crops() && (position[i] < 0 || position[i] > size - 1)) {
        constant[i] = rule.outside();
        continue;
      }
      switch (rule.mode()) {
        case "nearest" ->
            matrix[i * columns + (int) clamp(nearest(position[i], rule.nearest()), size)] = 1;
        case "linear" -> {
          long low = (long) Math.floor(position[i]);
          double high = position[i] - low;
          matrix[i * columns + (int) clamp(low, size)] += 1 - high;
          matrix[i * columns + (int) clamp(low + 1, size)] += high;
        }
        default -> cubic(matrix, i * columns, position[i], size, rule);
      }
    }
    Tensor weights = in.tensor(matrix, n, columns).to(ElementTypes.of(x));
    Tensor y = x.transpose(axis, -1).matmul(weights.t());
    if (Arrays.stream(constant).anyMatch(c -> c != 0)) {
      y = y.add(in.tensor(constant, n).to(ElementTypes.of(x)));
    }
    return y.transpose(axis, -1);
  }

  private static void cubic(
      double[] matrix, int row, double position, long size, ResizeAttributes rule) {
    long low = (long) Math.floor(position);
    double t = position - low;
    double a = rule.cubic();
    double[] weights = {
      ((a * (t + 1) - 5 * a) * (t + 1) + 8 * a) * (t + 1) - 4 * a,
      ((a + 2) * t - (a + 3)) * t * t + 1,
      ((a + 2) * (1 - t) - (a + 3)) * (1 - t) * (1 - t) + 1,
      ((a * (2 - t) - 5 * a) * (2 - t) + 8 * a) * (2 - t) - 4 * a
    };
    double sum = 0;
    for (int k = 0; k < 4; k++) {
      long i = low - 1 + k;
      if (rule.excludeOutside() && (i < 0 || i >= size)) {
        weights[k] = 0;
      }
      sum += weights[k];
    }
    for (int k = 0; k < 4; k++) {
      double w = rule.excludeOutside() ? weights[k] / sum : weights[k];
      matrix[row + (int) clamp(low - 1 + k, size)] += w;
    }
  }

  private static long nearest(double position, String rule) {
    return (long)
        switch (rule) {
          case "floor" -> Math.floor(position);
          case "ceil" -> Math.ceil(position);
          case "round_prefer_ceil" -> Math.floor(position + 0.5);
          default -> Math.ceil(position - 0.5);
        };
  }

  private static long clamp(long i, long size) {
    return Math.max(0, Math.min(i, size - 1));
  }

  private static Function<Inputs, Tensor> gridSample(Node n) {
    String mode = n.choice("mode", "bilinear", "bilinear", "linear", "nearest", "bicubic", "cubic");
    String padding = n.choice("padding_mode", "zeros", "zeros", "border", "reflection");
    boolean align = n.flag("align_corners", false);
    long method =
        switch (mode) {
          case "nearest" -> 1;
          case "bicubic", "cubic" -> 2;
          default -> 0;
        };
    long edge =
        switch (padding) {
          case "border" -> 1;
          case "reflection" -> 2;
          default -> 0;
        };
    return in -> torch.grid_sampler(in.get(0), in.get(1), method, edge, align);
  }
}

package org.espalier.torch.onnx;

import ai.onnx.proto.OnnxMl.TensorProto.DataType;
import java.util.Arrays;
import java.util.function.Function;
import org.bytedeco.javacpp.FloatPointer;
import org.bytedeco.javacpp.IntPointer;
import org.bytedeco.pytorch.Scalar;
import org.bytedeco.pytorch.ScalarOptional;
import org.bytedeco.pytorch.Tensor;
import org.bytedeco.pytorch.TensorOptional;
import org.bytedeco.pytorch.TensorOptions;
import org.bytedeco.pytorch.global.torch;
import org.bytedeco.pytorch.global.torch.ScalarType;
import org.espalier.InputException;
import org.espalier.op.FakeQuantize;
import org.espalier.torch.StraightThrough;
import org.espalier.torch.TensorView;
import org.espalier.torch.onnx.OperatorTable.Sink;

/** Quantized arithmetic as ONNX Runtime does it; a gradient passes through {@link #ROUNDING} and {@link #OWN_ROUNDING} alone. */
final class QuantizationOperators {
  /**
   * QuantizeLinear with one scale and DequantizeLinear of the same, which the compiler makes one. The gradient passes where
   * nothing is clipped: «straight through».
   */
  static final Operator ROUNDING =
      OperatorTable.single("Rounding", 10, QuantizationOperators::round);

  /** The same of DynamicQuantizeLinear. */
  static final Operator OWN_ROUNDING =
      OperatorTable.single("OwnRounding", 11, n -> QuantizationOperators::roundToOwnRange);

  private QuantizationOperators() {}

  static void add(Sink table) {
    table.one("QuantizeLinear", 10, QuantizationOperators::quantize);
    table.one("DequantizeLinear", 10, QuantizationOperators::dequantize);
    table.add(
        OperatorTable.several(
            "DynamicQuantizeLinear", 11, n -> QuantizationOperators::dynamicQuantize));
    table.one("QLinearMatMul", 10, n -> QuantizationOperators::matMul);
    table.one("QLinearConv", 10, QuantizationOperators::conv);
  }

  private static void refuseBlocks(Node n) {
    if (n.opset() >= 21 && n.integer("block_size", 0) != 0) {
      throw n.unsupported("block_size = " + n.integer("block_size", 0));
    }
  }

  private static Function<Inputs, Tensor> quantize(Node n) {
    long axis = n.opset() >= 13 ? n.integer("axis", 1) : 1;
    refuseBlocks(n);
    if (n.opset() >= 19) {
      n.flag("saturate", true);
    }
    ScalarType wanted = wanted(n);
    ScalarType precision = asked(n, "precision", 23);
    return in -> {
      Tensor x = in.get(0);
      ScalarType type = in.has(2) ? in.type(2) : wanted == null ? ScalarType.Byte : wanted;
      Tensor scale = along(in.get(1), x, axis);
      Tensor zero = along(in.orNull(2), x, axis);
      return precision == null
          ? quantize(x, scale, zero, type)
          : quantize(x.to(precision), scale.to(precision), zero, type);
    };
  }

  /** The type that is asked for of what QuantizeLinear makes; null where none is. */
  static ScalarType wanted(Node n) {
    return asked(n, "output_dtype", 21);
  }

  /**
   * The type that an attribute asks for; null where none does.
   *
   * @param since the operator set that added the attribute
   */
  static ScalarType asked(Node n, String attribute, int since) {
    long code = n.opset() >= since ? n.integer(attribute, 0) : 0;
    DataType type = DataType.forNumber((int) code);
    if (type == DataType.INT4 || type == DataType.UINT4) {
      throw n.unsupported(attribute + " = " + type);
    }
    return code == 0 ? null : ElementTypes.torch(type, n.where());
  }

  private static Function<Inputs, Tensor> dequantize(Node n) {
    long axis = n.opset() >= 13 ? n.integer("axis", 1) : 1;
    refuseBlocks(n);
    ScalarType wanted = asked(n, "output_dtype", 23);
    return in -> {
      Tensor x = in.get(0);
      Tensor given = along(in.get(1), x, axis);
      Tensor scale = wanted == null ? given : given.to(wanted);
      return dequantize(x, scale, along(in.orNull(2), x, axis));
    };
  }

  private static Tensor dequantize(Tensor q, Tensor scale, Tensor zero) {
    Tensor wide = q.to(ScalarType.Int);
    Tensor centred = zero == null ? wide : wide.sub(zero.to(ScalarType.Int));
    return centred.to(ElementTypes.of(scale)).mul(scale);
  }

  private static Function<Inputs, Tensor> round(Node n) {
    Function<Inputs, Tensor> quantize = quantize(n);
    ScalarType wanted = wanted(n);
    // What a Clip keeps, where there is one.
    double least = n.integer("least", Long.MIN_VALUE);
    double most = n.integer("most", Long.MAX_VALUE);
    return in -> {
      Tensor x = in.get(0).contiguous();
      ScalarType type = in.has(2) ? in.type(2) : wanted == null ? ScalarType.Byte : wanted;
      float scale = in.get(1).item_float();
      int zero = in.has(2) ? in.get(2).item_int() : 0;
      double[] limits = limits(type);
      double low = Math.max(least, limits[0]);
      double high = Math.min(most, limits[1]);
      Rounding grid = Rounding.fixed((int) low, (int) high, scale, zero);
      Tensor y;
      if (grid != null && isForKernels(x)) {
        y = torch.empty_like(x);
        fake(
            grid.grid(),
            x,
            y,
            new FloatPointer(new float[] {scale}),
            new IntPointer(new int[] {zero}));
      } else {
        Tensor q = clamp(quantize.apply(in), low, high);
        y = dequantize(q, along(in.get(1), x, 0), along(in.orNull(2), x, 0));
      }
      return StraightThrough.of(x, y, scale, zero, low, high);
    };
  }

  private static Tensor roundToOwnRange(Inputs in) {
    Tensor x = in.get(0).contiguous();
    double[] limits = limits(ScalarType.Byte);
    if (isForKernels(x)) {
      FloatPointer scale = new FloatPointer(1);
      IntPointer zero = new IntPointer(1);
      Tensor y = torch.empty_like(x);
      try {
        if (fake(Rounding.TO_RANGE, x, y, scale, zero).total() == 0) {
          return StraightThrough.of(x, y, scale.get(), zero.get(), limits[0], limits[1]);
        }
      } catch (InputException e) {
        // There is no scale for this range: libtorch computes it, as where not all is finite.
      }
    }
    Tensor[] found = dynamicQuantize(in);
    Tensor y = dequantize(found[0], found[1], found[2]);
    return StraightThrough.of(
        x, y, found[1].item_float(), found[2].item_int(), limits[0], limits[1]);
  }

  private static boolean isForKernels(Tensor x) {
    return x.is_cpu() && ElementTypes.of(x) == ScalarType.Float;
  }

  /**
   * Rounds in one pass.
   *
   * @param x contiguous
   * @param y written
   */
  private static FakeQuantize.NonFinite fake(
      FakeQuantize grid, Tensor x, Tensor y, FloatPointer scale, IntPointer zero) {
    return grid.run(FakeQuantize.Job.fake(TensorView.of(x), TensorView.of(y), null, scale, zero));
  }

  /** A vector of scales ready to broadcast along an axis of x; others as they are. */
  private static Tensor along(Tensor vector, Tensor x, long axis) {
    if (vector == null) {
      return null;
    }
    if (vector.numel() == 1) {
      return vector.reshape(new long[0]);
    }
    long[] shape = new long[(int) x.dim()];
    Arrays.fill(shape, 1);
    shape[(int) (axis < 0 ? axis + shape.length : axis)] = vector.numel();
    return vector.reshape(shape);
  }

  /** saturate(rint(x / scale) + zero), halves to even. */
  private static Tensor quantize(Tensor x, Tensor scale, Tensor zero, ScalarType type) {
    Tensor rounded = x.div(scale).round();
    Tensor q = zero == null ? rounded : rounded.add(zero.to(ElementTypes.of(rounded)));
    return saturate(q, type);
  }

  /** The least and the largest integer of a type. */
  private static double[] limits(ScalarType type) {
    return switch (type) {
      case Byte -> new double[] {0, 255};
      case Char -> new double[] {-128, 127};
      case UInt16 -> new double[] {0, 65535};
      case Short -> new double[] {-32768, 32767};
      default -> throw new IllegalArgumentException(type.toString());
    };
  }

  private static Tensor saturate(Tensor q, ScalarType type) {
    double[] limits = limits(type);
    return clamp(q, limits[0], limits[1]).to(type);
  }

  private static Tensor clamp(Tensor q, double least, double most) {
    return q.clamp(new ScalarOptional(new Scalar(least)), new ScalarOptional(new Scalar(most)));
  }

  /** scale = (max(0, max) − min(0, min)) / 255, zero = rint(clamp(−min / scale)). */
  private static Tensor[] dynamicQuantize(Inputs in) {
    Tensor x = in.get(0);
    Tensor none = in.place(torch.zeros(new long[0], new TensorOptions(ScalarType.Float)));
    Tensor low = torch.minimum(x.amin(new long[0], false), none);
    Tensor high = torch.maximum(x.amax(new long[0], false), none);
    Tensor range = high.sub(low);
    Tensor scale = range.div(new Scalar(255));
    // All zeros: ONNX Runtime then has a scale of 1.
    scale = torch.where(scale.eq(new Scalar(0)), torch.ones_like(scale), scale);
    Tensor zero =
        saturate(
            low.neg()
                .div(scale)
                .clamp(new ScalarOptional(new Scalar(0)), new ScalarOptional(new Scalar(255)))
                .round(),
            ScalarType.Byte);
    return new Tensor[] {quantize(x, scale, zero, ScalarType.Byte), scale, zero};
  }

  private static Tensor matMul(Inputs in) {
    Tensor a = MatrixOperators.exact(in.get(0), in.get(2), -1);
    Tensor b = MatrixOperators.exact(in.get(3), in.get(5), -2);
    Tensor scale =
        rows(in.get(1)).to(ScalarType.Double).mul(columns(in.get(4)).to(ScalarType.Double));
    Tensor y = a.matmul(b).mul(scale).div(in.get(6).to(ScalarType.Double)).round();
    return saturate(y.add(in.get(7).to(ScalarType.Double)), in.type(7));
  }

  private static Tensor rows(Tensor t) {
    return t.dim() == 1 && t.numel() > 1 ? t.unsqueeze(-1) : t;
  }

  private static Tensor columns(Tensor t) {
    return t.dim() == 1 && t.numel() > 1 ? t.unsqueeze(-2) : t;
  }

  private static Function<Inputs, Tensor> conv(Node n) {
    Windows windows = new Windows(n, false, true);
    long group = n.integer("group", 1);
    return in -> {
      Tensor x = MatrixOperators.exact(in.get(0), in.get(2), 0);
      Tensor weights = in.get(3);
      Tensor w =
          MatrixOperators.exact(weights, ConvolutionOperators.channels(in.get(5), weights), 0);
      TensorOptional bias =
          in.has(8) ? new TensorOptional(in.get(8).to(ScalarType.Double)) : new TensorOptional();
      Tensor y = ConvolutionOperators.convolve(windows, group, x, w, bias);
      Tensor scale = in.get(1).to(ScalarType.Double).mul(in.get(4).to(ScalarType.Double));
      if (scale.numel() > 1) {
        long[] along = new long[(int) y.dim() - 1];
        Arrays.fill(along, 1);
        along[0] = scale.numel();
        scale = scale.reshape(along);
      }
      Tensor q = y.mul(scale).div(in.get(6).to(ScalarType.Double)).round();
      return saturate(q.add(in.get(7).to(ScalarType.Double)), in.type(7));
    };
  }
}

package org.espalier.torch.onnx;

import ai.onnx.proto.OnnxMl.TensorProto.DataType;
import java.util.function.BinaryOperator;
import java.util.function.Function;
import org.bytedeco.pytorch.Scalar;
import org.bytedeco.pytorch.Tensor;
import org.bytedeco.pytorch.TensorOptional;
import org.bytedeco.pytorch.global.torch;
import org.bytedeco.pytorch.global.torch.ScalarType;
import org.espalier.InputException;
import org.espalier.torch.onnx.OperatorTable.Sink;

/** Arithmetic, comparisons, logic and casts, element by element with broadcasting. */
final class ElementwiseOperators {
  private ElementwiseOperators() {}

  static void add(Sink table) {
    table.unary("Abs", 6, Tensor::abs);
    table.unary("Acos", 7, Tensor::acos);
    table.unary("Acosh", 9, Tensor::acosh);
    table.unary("Asin", 7, Tensor::asin);
    table.unary("Asinh", 9, Tensor::asinh);
    table.unary("Atan", 7, Tensor::atan);
    table.unary("Atanh", 9, Tensor::atanh);
    table.unary("BitwiseNot", 18, Tensor::bitwise_not);
    table.unary("Ceil", 6, Tensor::ceil);
    table.unary("Cos", 7, Tensor::cos);
    table.unary("Cosh", 9, Tensor::cosh);
    table.unary("Erf", 9, Tensor::erf);
    table.unary("Exp", 6, Tensor::exp);
    table.unary("Floor", 6, Tensor::floor);
    table.unary("Identity", 1, Tensor::new);
    table.unary("IsNaN", 9, Tensor::isnan);
    table.unary("Log", 6, Tensor::log);
    table.unary("Neg", 6, Tensor::neg);
    table.unary("Not", 1, Tensor::logical_not);
    table.unary("Reciprocal", 6, Tensor::reciprocal);
    // Both round halves to even.
    table.unary("Round", 11, Tensor::round);
    table.unary("Sign", 9, Tensor::sign);
    table.unary("Sin", 7, Tensor::sin);
    table.unary("Sinh", 9, Tensor::sinh);
    table.unary("Sqrt", 6, Tensor::sqrt);
    table.unary("Tan", 7, Tensor::tan);
    table.unary("Tanh", 6, Tensor::tanh);
    table.one("IsInf", 10, ElementwiseOperators::isInf);

    table.binary("Add", 7, (a, b) -> widened(a, b, Tensor::add));
    table.binary("Sub", 7, (a, b) -> widened(a, b, Tensor::sub));
    table.binary("Mul", 7, (a, b) -> widened(a, b, Tensor::mul));
    table.binary("Div", 7, ElementwiseOperators::divide);
    table.binary("Pow", 7, ElementwiseOperators::power);
    table.one("Mod", 10, ElementwiseOperators::modulo);
    table.binary("And", 7, Tensor::logical_and);
    table.binary("Or", 7, Tensor::logical_or);
    table.binary("Xor", 7, Tensor::logical_xor);
    table.binary("BitwiseAnd", 18, Tensor::bitwise_and);
    table.binary("BitwiseOr", 18, Tensor::bitwise_or);
    table.binary("BitwiseXor", 18, Tensor::bitwise_xor);
    table.one("BitShift", 11, ElementwiseOperators::shift);
    table.binary("Equal", 7, Tensor::eq);
    table.binary("Greater", 7, (a, b) -> compared(a, b, Tensor::gt));
    table.binary("GreaterOrEqual", 12, (a, b) -> compared(a, b, Tensor::ge));
    table.binary("Less", 7, (a, b) -> compared(a, b, Tensor::lt));
    table.binary("LessOrEqual", 12, (a, b) -> compared(a, b, Tensor::le));

    table.one("Max", 8, n -> in -> fold(in, (a, b) -> widened(a, b, Tensor::maximum)));
    table.one("Min", 8, n -> in -> fold(in, (a, b) -> widened(a, b, Tensor::minimum)));
    table.one("Sum", 8, n -> in -> fold(in, Tensor::add));
    table.one("Mean", 8, n -> in -> fold(in, Tensor::add).div(new Scalar(in.size())));

    table.one("Clip", 11, n -> ElementwiseOperators::clip);
    table.one("Where", 9, n -> in -> torch.where(in.get(0), in.get(1), in.get(2)));
    table.one("Cast", 6, ElementwiseOperators::cast);
    table.one("CastLike", 15, n -> castLike(n));
    table.one("BitCast", 26, ElementwiseOperators::bitCast);
  }

  private static Function<Inputs, Tensor> isInf(Node n) {
    boolean negative = n.flag("detect_negative", true);
    boolean positive = n.flag("detect_positive", true);
    if (negative && positive) {
      return in -> in.get(0).isinf();
    }
    if (!negative && !positive) {
      return in -> torch.zeros_like(in.get(0)).to(ScalarType.Bool);
    }
    return in -> negative ? in.get(0).isneginf() : in.get(0).isposinf();
  }

  /** Integers are divided towards zero; after the remainder is gone the quotient is exact. */
  private static Tensor divide(Tensor a, Tensor b) {
    return ElementTypes.isInteger(ElementTypes.of(a))
        ? widened(a, b, (x, y) -> x.sub(x.fmod(y)).floor_divide(y))
        : a.div(b);
  }

  private static Tensor widened(Tensor a, Tensor b, BinaryOperator<Tensor> f) {
    Tensor result = compared(a, b, f);
    return isWide(a) ? result.to(ElementTypes.of(a)) : result;
  }

  private static Tensor compared(Tensor a, Tensor b, BinaryOperator<Tensor> f) {
    return isWide(a) ? f.apply(a.to(ScalarType.Long), b.to(ScalarType.Long)) : f.apply(a, b);
  }

  /** Whether it is of integers that libtorch stores and does not compute with. */
  private static boolean isWide(Tensor t) {
    return ElementTypes.of(t) == ScalarType.UInt16 || ElementTypes.of(t) == ScalarType.UInt32;
  }

  /** The result has the type of the base, whatever the exponent's. */
  private static Tensor power(Tensor base, Tensor exponent) {
    ScalarType type = ElementTypes.of(base);
    Tensor result = base.pow(exponent);
    return ElementTypes.of(result) == type ? result : result.to(type);
  }

  private static Function<Inputs, Tensor> modulo(Node n) {
    boolean signOfDividend = n.flag("fmod", false);
    BinaryOperator<Tensor> f = signOfDividend ? Tensor::fmod : Tensor::remainder;
    return in -> widened(in.get(0), in.get(1), f);
  }

  private static Function<Inputs, Tensor> shift(Node n) {
    BinaryOperator<Tensor> f =
        n.choice("direction", "", "LEFT", "RIGHT").equals("LEFT")
            ? Tensor::bitwise_left_shift
            : Tensor::bitwise_right_shift;
    return in -> widened(in.get(0), in.get(1), f);
  }

  private static Tensor fold(Inputs in, BinaryOperator<Tensor> f) {
    Tensor result = in.get(0);
    for (int i = 1; i < in.size(); i++) {
      result = f.apply(result, in.get(i));
    }
    return in.size() == 1 ? new Tensor(result) : result;
  }

  private static Tensor clip(Inputs in) {
    Tensor x = in.get(0);
    if (!in.has(1) && !in.has(2)) {
      return new Tensor(x);
    }
    TensorOptional low = in.optional(1);
    TensorOptional high = in.optional(2);
    return x.clamp(low, high);
  }

  private static Function<Inputs, Tensor> cast(Node n) {
    ScalarType to = castTarget(n);
    return in -> cast(in.get(0), to);
  }

  private static Function<Inputs, Tensor> castLike(Node n) {
    passRounding(n);
    return in -> cast(in.get(0), in.type(1));
  }

  private static Function<Inputs, Tensor> bitCast(Node n) {
    ScalarType to = target(n);
    return in -> {
      Tensor x = in.get(0);
      Tensor y = x.contiguous().view(to);
      if (x.element_size() != y.element_size()) {
        throw new InputException(
            "bits of " + ElementTypes.of(x) + " cannot be those of " + to + ", which has others");
      }
      return y;
    };
  }

  /** Reads attributes that speak of 8-bit floating-point types only, which are refused. */
  static void passRounding(Node n) {
    if (n.opset() >= 19) {
      n.integer("saturate", 1);
    }
    if (n.opset() >= 24) {
      n.text("round_mode", "up");
    }
  }

  /** The type that a Cast makes. */
  static ScalarType castTarget(Node n) {
    passRounding(n);
    return target(n);
  }

  private static ScalarType target(Node n) {
    long number = n.integer("to", 0);
    DataType type = DataType.forNumber((int) number);
    ScalarType to = ElementTypes.torch(type);
    if (to == null || type == DataType.INT4 || type == DataType.UINT4) {
      throw n.unsupported("a cast to " + (type == null ? "type " + number : type));
    }
    return to;
  }

  static Tensor cast(Tensor x, ScalarType to) {
    return ElementTypes.of(x) == to ? new Tensor(x) : x.to(to);
  }
}

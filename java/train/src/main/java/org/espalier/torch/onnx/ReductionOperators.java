package org.espalier.torch.onnx;

import java.util.Arrays;
import java.util.function.Function;
import java.util.function.UnaryOperator;
import org.bytedeco.pytorch.ScalarTypeOptional;
import org.bytedeco.pytorch.Tensor;
import org.bytedeco.pytorch.TensorVector;
import org.bytedeco.pytorch.global.torch;
import org.bytedeco.pytorch.global.torch.ScalarType;
import org.espalier.torch.onnx.OperatorTable.Sink;

/** Sums and their like over axes. */
final class ReductionOperators {
  private ReductionOperators() {}

  static void add(Sink table) {
    reduction(table, "ReduceSum", 13, ReductionOperators::sum);
    reduction(table, "ReduceMean", 18, ReductionOperators::mean);
    reduction(table, "ReduceMax", 18, ReductionOperators::max);
    reduction(table, "ReduceMin", 18, ReductionOperators::min);
    reduction(table, "ReduceProd", 18, ReductionOperators::product);
    reduction(table, "ReduceL1", 18, (x, axes, keep) -> sum(x.abs(), axes, keep));
    reduction(table, "ReduceL2", 18, (x, axes, keep) -> sum(x.mul(x), axes, keep).sqrt());
    reduction(table, "ReduceSumSquare", 18, (x, axes, keep) -> sum(x.mul(x), axes, keep));
    reduction(table, "ReduceLogSum", 18, (x, axes, keep) -> sum(x, axes, keep).log());
    reduction(table, "ReduceLogSumExp", 18, Tensor::logsumexp);
    table.add(cumulative("CumSum", 11, Tensor::cumsum, torch::zeros_like));
    table.add(cumulative("CumProd", 26, Tensor::cumprod, torch::ones_like));
  }

  private interface Reduction {
    /** {@code axes} has at least one element unless the tensor has no axis. */
    Tensor apply(Tensor x, long[] axes, boolean keep);
  }

  /**
   * @param axesInput the operator set from which on the axes are an input
   */
  private static void reduction(Sink table, String name, int axesInput, Reduction f) {
    table.add(OperatorTable.single(name, 1, n -> reduction(n, axesInput, f)).reading(1));
  }

  private static Function<Inputs, Tensor> reduction(Node n, int axesInput, Reduction f) {
    boolean keep = n.flag("keepdims", true);
    long[] attribute = n.opset() < axesInput ? n.integers("axes", new long[0]) : null;
    boolean nothing = n.opset() >= axesInput && n.flag("noop_with_empty_axes", false);
    return in -> {
      Tensor x = in.get(0);
      long[] axes = attribute != null ? attribute : in.longsOrNull(1);
      if (axes == null || axes.length == 0) {
        if (nothing) { // what is done beside reducing is done still: SumSquare squares
          return f.apply(x.unsqueeze(-1), new long[] {-1}, false);
        }
        axes = new long[(int) x.dim()];
        Arrays.setAll(axes, i -> i);
      }
      return f.apply(x, axes, keep);
    };
  }

  private static Tensor sum(Tensor x, long[] axes, boolean keep) {
    // libtorch widens integers.
    return x.sum(axes, keep, new ScalarTypeOptional(ElementTypes.of(x)));
  }

  private static Tensor mean(Tensor x, long[] axes, boolean keep) {
    ScalarType type = ElementTypes.of(x);
    return ElementTypes.isFloating(type)
        ? x.mean(axes, keep, new ScalarTypeOptional())
        : x.to(ScalarType.Double).mean(axes, keep, new ScalarTypeOptional()).to(type);
  }

  private static Tensor max(Tensor x, long[] axes, boolean keep) {
    return x.amax(axes, keep);
  }

  private static Tensor min(Tensor x, long[] axes, boolean keep) {
    return x.amin(axes, keep);
  }

  private static Tensor product(Tensor x, long[] axes, boolean keep) {
    long[] order = axes.clone();
    for (int i = 0; i < order.length; i++) {
      order[i] = order[i] < 0 ? order[i] + x.dim() : order[i];
    }
    Arrays.sort(order);
    ScalarTypeOptional type = new ScalarTypeOptional(ElementTypes.of(x));
    Tensor result = new Tensor(x);
    for (int i = order.length - 1; i >= 0; i--) {
      result = result.prod(order[i], keep, type);
    }
    return result;
  }

  private interface Cumulation {
    Tensor apply(Tensor x, long axis, ScalarTypeOptional type);
  }

  /**
   * @param first makes what an exclusive one begins with
   */
  private static Operator cumulative(
      String name, int since, Cumulation f, UnaryOperator<Tensor> first) {
    return OperatorTable.single(name, since, n -> cumulative(n, f, first)).reading(1);
  }

  private static Function<Inputs, Tensor> cumulative(
      Node n, Cumulation f, UnaryOperator<Tensor> first) {
    boolean exclusive = n.flag("exclusive", false);
    boolean reverse = n.flag("reverse", false);
    return in -> {
      long axis = in.longs(1)[0];
      Tensor x = reverse ? in.get(0).flip(axis) : in.get(0);
      Tensor all = f.apply(x, axis, new ScalarTypeOptional(ElementTypes.of(x)));
      if (exclusive) {
        long size = x.size(axis);
        Tensor none = first.apply(x.narrow(axis, 0, Math.min(1, size)));
        all = torch.cat(new TensorVector(none, all.narrow(axis, 0, Math.max(0, size - 1))), axis);
      }
      return reverse ? all.flip(axis) : all;
    };
  }
}

package org.espalier.torch.onnx;

import java.util.function.Function;
import org.bytedeco.pytorch.Scalar;
import org.bytedeco.pytorch.Tensor;
import org.bytedeco.pytorch.TensorVector;
import org.bytedeco.pytorch.global.torch;
import org.bytedeco.pytorch.global.torch.ScalarType;
import org.espalier.torch.onnx.OperatorTable.Sink;

/** Matrix products. */
final class MatrixOperators {
  private MatrixOperators() {}

  /** x·W + b, which the compiler makes of a MatMul and an Add: one pass over memory less. */
  static final Operator LINEAR =
      OperatorTable.single("MatMul", 1, n -> MatrixOperators::linear).asProduct();

  static void add(Sink table) {
    table.add(
        OperatorTable.single("MatMul", 1, n -> in -> in.get(0).matmul(in.get(1))).asProduct());
    table.add(OperatorTable.single("Gemm", 7, MatrixOperators::gemm).asProduct());
    table.one(OperatorTable.RUNTIME + "FusedMatMul", 1, MatrixOperators::fusedMatMul);
    table.one("Einsum", 12, MatrixOperators::einsum);
    table.one("MatMulInteger", 10, n -> MatrixOperators::matMulInteger);
    table.unary("Det", 11, Tensor::det);
  }

  private static Tensor linear(Inputs in) {
    Tensor x = in.get(0);
    Tensor w = in.get(1);
    if (x.dim() == 2) {
      return torch.addmm(in.get(2), x, w);
    }
    // The gradient of W then comes in W's own layout.
    long[] shape = x.shape();
    Tensor y = torch.addmm(in.get(2), x.reshape(-1, w.size(0)), w);
    shape[shape.length - 1] = w.size(1);
    return y.view(shape);
  }

  private static Function<Inputs, Tensor> gemm(Node n) {
    double alpha = n.real("alpha", 1);
    double beta = n.real("beta", 1);
    boolean transposeA = n.flag("transA", false);
    boolean transposeB = n.flag("transB", false);
    return in -> {
      Tensor a = transposeA ? in.get(0).t() : in.get(0);
      Tensor b = transposeB ? in.get(1).t() : in.get(1);
      if (in.has(2)) {
        return torch.addmm(in.get(2), a, b, new Scalar(beta), new Scalar(alpha));
      }
      Tensor product = a.mm(b);
      return alpha == 1 ? product : product.mul(new Scalar(alpha));
    };
  }

  private static Function<Inputs, Tensor> fusedMatMul(Node n) {
    double alpha = n.real("alpha", 1);
    boolean transposeA = n.flag("transA", false);
    boolean transposeB = n.flag("transB", false);
    boolean batchA = n.flag("transBatchA", false);
    boolean batchB = n.flag("transBatchB", false);
    return in -> {
      Tensor a = turned(in.get(0), transposeA, batchA);
      Tensor product = a.matmul(turned(in.get(1), transposeB, batchB));
      return alpha == 1 ? product : product.mul(new Scalar(alpha));
    };
  }

  /**
   * A factor as it is multiplied.
   *
   * @param last whether its last two axes are turned
   * @param batch whether the first axis comes behind those of the batch, before the axes are turned
   */
  private static Tensor turned(Tensor x, boolean last, boolean batch) {
    Tensor y = batch ? x.movedim(0, -2) : x;
    return last && y.dim() > 1 ? y.transpose(-2, -1) : y;
  }

  private static Function<Inputs, Tensor> einsum(Node n) {
    String equation = n.text("equation", "");
    return in -> torch.einsum(equation, new TensorVector(in.all()));
  }

  private static Tensor matMulInteger(Inputs in) {
    Tensor a = exact(in.get(0), in.orNull(2), -1);
    // A zero point for each row of A, for each column of B.
    Tensor b = exact(in.get(1), in.orNull(3), -2);
    return a.matmul(b).to(ScalarType.Int);
  }

  /**
   * Integers less their zero point, in float64, which holds all sums of int32 products exactly.
   *
   * @param axis where a zero point of rank 1 has its axis of size 1
   */
  static Tensor exact(Tensor x, Tensor zeroPoint, int axis) {
    Tensor wide = x.to(ScalarType.Double);
    if (zeroPoint == null) {
      return wide;
    }
    Tensor z = zeroPoint.to(ScalarType.Double);
    return wide.sub(z.dim() == 1 && z.numel() > 1 ? z.unsqueeze(axis) : z);
  }
}

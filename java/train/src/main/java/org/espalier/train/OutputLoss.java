package org.espalier.train;

import java.util.Map;
import org.bytedeco.pytorch.Scalar;
import org.bytedeco.pytorch.ScalarTypeOptional;
import org.bytedeco.pytorch.Tensor;
import org.bytedeco.pytorch.global.torch;

/**
 * How far a student's output of any shape [N, …] is from its teacher's:
 *
 * <pre>  output = Σ |y_s − y_t|² / Σ |y_t|²</pre>
 *
 * <p>over the batch. A batch whose teacher is all 0 is divided by 1.
 */
final class OutputLoss {
  private final Objective objective;

  OutputLoss(Objective objective) {
    this.objective = objective;
  }

  /**
   * @param student [N, …]
   * @param teacher the same values as [N, width]
   * @param backward whether the root of a backward pass is wanted
   */
  Loss of(Tensor student, Tensor teacher, boolean backward) {
    Tensor y = student.reshape(teacher.shape());
    Tensor difference = y.sub(teacher);
    double energy = teacher.mul(teacher).sum().item_double();
    Tensor share = difference.mul(difference).sum().div(new Scalar(energy > 0 ? energy : 1));
    double value = share.item_double();
    Tensor root = backward ? share.mul(new Scalar(objective.output())) : null;
    return new Loss(
        root, objective.output() * value, Map.of("output", value), cosine(y.detach(), teacher));
  }

  /** The mean over examples. */
  private static double cosine(Tensor a, Tensor b) {
    Tensor product = sum(a, b).div(sum(a, a).mul(sum(b, b)).sqrt().add(new Scalar(1e-30)));
    return product.mean(new ScalarTypeOptional(torch.ScalarType.Double)).item_double();
  }

  private static Tensor sum(Tensor a, Tensor b) {
    return a.mul(b).sum(new long[] {1}, false, new ScalarTypeOptional(torch.ScalarType.Double));
  }
}

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
 * <p>A batch whose teacher is all 0 is divided by 1.
 */
final class OutputLoss {
  private final Objective objective;

  OutputLoss(Objective objective) {
    this.objective = objective;
  }

  /**
   * @param student [N, …]; the teacher's are the same values as [N, width]
   * @param whole of what the N examples are a share
   * @param backward whether the root of a backward pass is wanted
   */
  Loss of(Tensor student, Whole.Share share, Whole whole, boolean backward) {
    Tensor teacher = share.teacher();
    Tensor y = student.reshape(teacher.shape());
    Tensor difference = y.sub(teacher);
    double energy = whole.energy() > 0 ? whole.energy() : 1;
    Tensor error = difference.mul(difference).sum().div(new Scalar(energy));
    double value = error.item_double();
    Tensor root = backward ? error.mul(new Scalar(objective.output())) : null;
    double quality = cosines(y.detach(), teacher) / whole.examples();
    return new Loss(root, objective.output() * value, Map.of("output", value), quality);
  }

  /** The sum over examples. */
  private static double cosines(Tensor a, Tensor b) {
    Tensor norms = sum(a, a).mul(sum(b, b)).sqrt().add(new Scalar(1e-30));
    return sum(a, b).div(norms).sum().item_double();
  }

  private static Tensor sum(Tensor a, Tensor b) {
    return a.mul(b).sum(new long[] {1}, false, new ScalarTypeOptional(torch.ScalarType.Double));
  }
}

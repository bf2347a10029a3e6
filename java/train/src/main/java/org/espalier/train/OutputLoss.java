package org.espalier.train;

import java.util.LinkedHashMap;
import java.util.Map;
import org.bytedeco.pytorch.AbstractTensor;
import org.bytedeco.pytorch.Scalar;
import org.bytedeco.pytorch.ScalarTypeOptional;
import org.bytedeco.pytorch.Tensor;
import org.bytedeco.pytorch.global.torch;
import org.espalier.torch.TorchDevice;

/**
 * How far a student's output f of any shape [N, …] is from its teacher's t and, in regression, from labels y.
 * Alone the teacher's part is
 *
 * <pre>  output = Σ |f − t|² / Σ |t|²</pre>
 *
 * <p>(a batch whose teacher is all 0 is divided by 1). Beside labels both parts are mean squared errors in one
 * unit, the variance s of the training examples' labels, so that neither the weights nor the learning rate
 * depend on the unit of the labels:
 *
 * <pre>
 *   labels = MSE(y, f) / s    over the values of y that are known
 *   output = MSE(t, f) / s    over all values
 * </pre>
 */
final class OutputLoss {
  private final Objective objective;
  private final TorchDevice device;
  private final double variance;

  /**
   * @param variance s, above 0; not used without labels
   */
  OutputLoss(Objective objective, TorchDevice device, double variance) {
    this.objective = objective;
    this.device = device;
    this.variance = variance;
  }

  /**
   * @param student [N, …], 0 where tokens are padding; the teacher's are the same values
   * @param totals of the batch that the N examples are a share of
   * @param backward whether the root of a backward pass is wanted
   */
  Loss of(Tensor student, BatchTotals.Share share, BatchTotals totals, boolean backward) {
    int n = share.batch().size();
    Tensor f = student.reshape(n, student.numel() / n);
    Tensor teacher = share.teacher() == null ? null : share.teacher().reshape(n, f.size(1));
    double part = (double) n / totals.examples();
    Map<String, Double> parts = new LinkedHashMap<>();
    double value = 0;
    Tensor root = null;
    double quality;
    if (objective.labels() > 0) {
      Labels.Numbers labels = (Labels.Numbers) share.labels();
      double unit = Math.max(1, totals.known()) * variance;
      Tensor error = squares(f, labels).div(new Scalar(unit));
      double distance = error.item_double();
      parts.put("labels", distance);
      value += objective.labels() * distance;
      root = error.mul(new Scalar(objective.labels()));
      quality = part - distance;
    } else {
      quality = cosines(f.detach(), teacher) / totals.examples();
    }
    if (objective.output() > 0) {
      double unit =
          objective.labels() > 0
              ? variance * totals.examples() * f.size(1)
              : totals.energy() > 0 ? totals.energy() : 1;
      Tensor difference = f.sub(teacher);
      Tensor error = difference.mul(difference).sum().div(new Scalar(unit));
      double distance = error.item_double();
      parts.put("output", distance);
      value += objective.output() * distance;
      Tensor weighted = error.mul(new Scalar(objective.output()));
      root = root == null ? weighted : root.add(weighted);
    }
    return new Loss(backward ? root : null, value, parts, quality);
  }

  /** Σ (f − y)² over the labels that are known. */
  private Tensor squares(Tensor f, Labels.Numbers labels) {
    float[] targets = labels.values().clone();
    float[] known = new float[targets.length];
    for (int i = 0; i < known.length; i++) {
      known[i] = Float.isNaN(targets[i]) ? 0 : 1;
      targets[i] = Float.isNaN(targets[i]) ? 0 : targets[i];
    }
    Tensor y = device.place(AbstractTensor.create(targets, labels.size(), labels.width()));
    Tensor mask = device.place(AbstractTensor.create(known, labels.size(), labels.width()));
    Tensor difference = f.sub(y).mul(mask);
    return difference.mul(difference).sum();
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

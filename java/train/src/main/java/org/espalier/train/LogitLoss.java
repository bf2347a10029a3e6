package org.espalier.train;

import java.lang.ref.Reference;
import java.util.LinkedHashMap;
import java.util.Map;
import org.bytedeco.javacpp.LongPointer;
import org.bytedeco.pytorch.AbstractTensor;
import org.bytedeco.pytorch.Scalar;
import org.bytedeco.pytorch.Tensor;
import org.bytedeco.pytorch.TensorVector;
import org.bytedeco.pytorch.global.torch;
import org.espalier.op.KdSoftmaxLoss;
import org.espalier.op.KdSoftmaxLoss.Logits;
import org.espalier.torch.TorchDevice;

/**
 * Cross entropy, distillation and bound of a classifier's logits [N, C], see {@link KdSoftmaxLoss}. One logit z an
 * example goes through it as [0, z]: softmax([0, z])_1 is sigmoid(z), and z, not 0, is what bound compares.
 */
final class LogitLoss {
  private final Objective objective;
  private final TorchDevice device;

  LogitLoss(Objective objective, TorchDevice device) {
    this.objective = objective;
    this.device = device;
  }

  /**
   * @param student [N, C], or one value an example; the teacher's are the same
   * @param whole of what the N examples are a share
   * @param backward whether the root of a backward pass is wanted
   */
  Loss of(Tensor student, Whole.Share share, Whole whole, boolean backward) {
    int n = share.batch().size();
    Tensor teacher = share.teacher() == null ? null : classes(share.teacher(), n);
    long[] labels = share.labels() == null ? null : ((Labels.Classes) share.labels()).values();
    double part = (double) n / whole.examples();
    Tensor logits = classes(student, n);
    Tensor gradient = torch.empty_like(logits);
    double sum = objective.labels() + objective.logits();
    double unit = sum > 0 ? sum : 1;
    double alpha = sum > 0 ? objective.labels() / sum : 1;
    Logits t = teacher == null ? null : Logits.of(device.view(teacher));
    Map<String, Double> parts = new LinkedHashMap<>();
    Tensor y = objective.labels() > 0 ? device.place(AbstractTensor.create(labels)) : null;
    try (KdSoftmaxLoss loss =
        new KdSoftmaxLoss(
            new KdSoftmaxLoss.Settings(
                alpha, objective.temperature(), objective.bound() / unit, Labels.Classes.NO_LABEL),
            new KdSoftmaxLoss.Batch(
                Logits.of(device.view(logits)),
                objective.logits() > 0 ? t : null,
                y == null ? null : new LongPointer(y.data_ptr()).capacity(y.numel()),
                objective.bound() > 0 ? t : null,
                null,
                Logits.of(device.view(gradient))))) {
      KdSoftmaxLoss.Result result = device.compute(loss);
      Reference.reachabilityFence(y); // the batch knows its address alone
      if (objective.labels() > 0) {
        parts.put("labels", part * result.ce());
      }
      if (objective.logits() > 0) {
        parts.put("logits", part * result.kl());
      }
      if (objective.bound() > 0) {
        parts.put("bound", part * result.bound());
      }
      Tensor root = backward ? logits.mul(gradient).sum().mul(new Scalar(part * unit)) : null;
      double quality = part * quality(logits, teacher, labels);
      return new Loss(root, part * unit * result.loss(), parts, quality);
    }
  }

  /** Logits [N, C] with two classes or more. */
  private static Tensor classes(Tensor logits, long n) {
    if (logits.numel() > n) {
      return logits.contiguous();
    }
    Tensor z = logits.reshape(n, 1);
    return torch.cat(new TensorVector(torch.zeros_like(z), z), 1);
  }

  private static double quality(Tensor logits, Tensor teacher, long[] labels) {
    long[] found = argmax(logits);
    long[] right = labels != null ? labels : teacher == null ? found : argmax(teacher);
    int same = 0;
    int known = 0;
    for (int i = 0; i < found.length; i++) {
      same += found[i] == right[i] ? 1 : 0;
      known += right[i] == Labels.Classes.NO_LABEL ? 0 : 1;
    }
    return (double) same / Math.max(1, known);
  }

  private static long[] argmax(Tensor logits) {
    Tensor best =
        TorchDevice.CPU
            .place(logits.argmax(new org.bytedeco.pytorch.LongOptional(1), false))
            .contiguous();
    long[] result = new long[(int) best.numel()];
    best.data_ptr_long().get(result);
    return result;
  }
}

package org.espalier.train;

import java.lang.ref.Reference;
import java.util.LinkedHashMap;
import java.util.Map;
import org.bytedeco.javacpp.BytePointer;
import org.bytedeco.javacpp.LongPointer;
import org.bytedeco.pytorch.AbstractTensor;
import org.bytedeco.pytorch.Scalar;
import org.bytedeco.pytorch.Tensor;
import org.bytedeco.pytorch.TensorVector;
import org.bytedeco.pytorch.global.torch;
import org.espalier.format.onnx.LogitRows;
import org.espalier.op.Bits;
import org.espalier.op.KdSoftmaxLoss;
import org.espalier.op.KdSoftmaxLoss.Logits;
import org.espalier.torch.TorchDevice;

/**
 * Cross entropy, distillation and bound of a classifier's logits, see {@link KdSoftmaxLoss}; its rows are those of
 * {@link LogitRows}. A row of one logit z goes through it as [0, z]: softmax([0, z])_1 is sigmoid(z), and z, not 0,
 * is what bound compares.
 */
final class LogitLoss {
  private final Objective objective;
  private final TorchDevice device;
  private final LogitRows rows;

  LogitLoss(Objective objective, TorchDevice device, LogitRows rows) {
    this.objective = objective;
    this.device = device;
    this.rows = rows;
  }

  /**
   * @param student [N, …]; the teacher's are the same values
   * @param totals of the batch that the N examples are a share of
   * @param backward whether the root of a backward pass is wanted
   */
  Loss of(Tensor student, BatchTotals.Share share, BatchTotals totals, boolean backward) {
    int n = share.batch().size();
    Tensor teacher = share.teacher() == null ? null : rows(share.teacher(), n);
    long[] labels = share.labels() == null ? null : ((Labels.Classes) share.labels()).values();
    // The kernel's means are over this share's rows and labels: weights make them parts of the
    // batch's.
    double ofLabels = (double) share.known() / Math.max(1, totals.known());
    double ofRows = (double) share.rows() / Math.max(1, totals.rows());
    double labelled = objective.labels() * ofLabels;
    double taught = objective.logits() * ofRows;
    double unit = labelled + taught > 0 ? labelled + taught : 1;
    double alpha = labelled + taught > 0 ? labelled / unit : 1;
    Tensor logits = rows(student, n);
    Tensor gradient = backward ? torch.empty_like(logits) : null;
    Logits t = teacher == null ? null : Logits.of(device.view(teacher));
    Map<String, Double> parts = new LinkedHashMap<>();
    Tensor y = objective.labels() > 0 ? device.place(AbstractTensor.create(labels)) : null;
    Tensor mask = share.attended() == null ? null : device.place(bits(share.attended()));
    try (KdSoftmaxLoss loss =
        new KdSoftmaxLoss(
            new KdSoftmaxLoss.Settings(
                alpha,
                objective.temperature(),
                objective.bound() * ofRows / unit,
                Labels.Classes.NO_LABEL),
            new KdSoftmaxLoss.Batch(
                Logits.of(device.view(logits)),
                objective.logits() > 0 ? t : null,
                y == null ? null : new LongPointer(y.data_ptr()).capacity(y.numel()),
                objective.bound() > 0 ? t : null,
                mask == null ? null : new BytePointer(mask.data_ptr()).capacity(mask.numel()),
                gradient == null ? null : Logits.of(device.view(gradient))))) {
      KdSoftmaxLoss.Result result = device.compute(loss);
      Reference.reachabilityFence(y); // the batch knows its address alone
      Reference.reachabilityFence(mask);
      if (objective.labels() > 0) {
        parts.put("labels", ofLabels * result.ce());
      }
      if (objective.logits() > 0) {
        parts.put("logits", ofRows * result.kl());
      }
      if (objective.bound() > 0) {
        parts.put("bound", ofRows * result.bound());
      }
      if (backward) {
        Tensor scaled = unit == 1 ? gradient : gradient.mul_(new Scalar(unit));
        return new Loss(logits, scaled, unit * result.loss(), parts, Double.NaN);
      }
      double quality = quality(logits, teacher, labels, share.attended());
      quality *= labels == null ? ofRows : ofLabels;
      return new Loss(null, unit * result.loss(), parts, quality);
    }
  }

  /** The rows of n examples' logits, [n · rows, classes], with two classes or more. */
  private Tensor rows(Tensor logits, long n) {
    if (rows.classes() == 1) {
      Tensor z = logits.reshape(n * rows.perExample(), 1);
      return torch.cat(new TensorVector(torch.zeros_like(z), z), 1);
    }
    Tensor ofEach =
        rows.lastAxis()
            ? logits
            : logits.reshape(n, rows.classes(), rows.perExample()).transpose(1, 2);
    return ofEach.reshape(n * rows.perExample(), rows.classes()).contiguous();
  }

  private static Tensor bits(boolean[] attended) {
    byte[] bits = new byte[(int) Bits.bytes(attended.length)];
    for (int i = 0; i < attended.length; i++) {
      bits[i >> 3] |= (byte) (attended[i] ? 1 << (i & 7) : 0);
    }
    return AbstractTensor.create(bits);
  }

  /** The share of rows that count whose class is the labels', or the teacher's where there are no labels. */
  private static double quality(Tensor logits, Tensor teacher, long[] labels, boolean[] attended) {
    long[] found = argmax(logits);
    long[] right = labels != null ? labels : teacher == null ? found : argmax(teacher);
    int same = 0;
    int known = 0;
    for (int i = 0; i < found.length; i++) {
      if (right[i] != Labels.Classes.NO_LABEL && (attended == null || attended[i])) {
        same += found[i] == right[i] ? 1 : 0;
        known++;
      }
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

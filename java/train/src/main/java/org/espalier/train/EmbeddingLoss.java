package org.espalier.train;

import java.util.LinkedHashMap;
import java.util.Map;
import org.bytedeco.pytorch.AbstractTensor;
import org.bytedeco.pytorch.LongOptional;
import org.bytedeco.pytorch.Scalar;
import org.bytedeco.pytorch.ScalarTypeOptional;
import org.bytedeco.pytorch.Tensor;
import org.bytedeco.pytorch.global.torch;
import org.espalier.op.KdSoftmaxLoss;
import org.espalier.torch.TorchDevice;

/**
 * How far a student's hidden states are from its teacher's. With states h [N, tokens, width] pooled to e, or h [N, width] that
 * the model pools itself, and e scaled to length 1:
 *
 * <pre>
 *   embedding  = mean over texts of 1 − e_s · e_t
 *   similarity = mean over texts i of KL(softmax_j(e_t,i · e_t,j / τ) ‖ softmax_j(e_s,i · e_s,j / τ)), j ≠ i
 *   hidden     = Σ |h_s − h_t|² / Σ |h_t|² over the tokens that are no padding
 * </pre>
 */
final class EmbeddingLoss {
  private final Objective objective;
  private final Pooling pooling;
  private final TorchDevice device;

  EmbeddingLoss(Objective objective, Pooling pooling, TorchDevice device) {
    this.objective = objective;
    this.pooling = pooling;
    this.device = device;
  }

  /**
   * @param student [N, tokens, width] or [N, width], as the teacher's
   * @param totals of the batch that the N texts are a share of; similarities are among the N alone
   * @param backward whether the root of a backward pass is wanted
   */
  Loss of(Tensor student, BatchTotals.Share share, BatchTotals totals, boolean backward) {
    Batch batch = share.batch();
    Tensor teacher = share.teacher();
    Tensor es = unit(pool(student, batch));
    Tensor et = unit(pool(teacher, batch));
    Map<String, Double> parts = new LinkedHashMap<>();
    Tensor cosine = es.mul(et).sum().div(new Scalar((double) totals.examples()));
    double quality = cosine.item_double();
    Tensor root = null;
    double value = 0;
    if (objective.embedding() > 0) {
      double distance = (double) batch.size() / totals.examples() - quality;
      parts.put("embedding", distance);
      value += objective.embedding() * distance;
      root = plus(root, cosine.neg(), objective.embedding());
    }
    if (objective.similarity() > 0 && batch.size() <= 2) {
      // With one other text or none there is nothing to compare: the divergence is 0.
      parts.put("similarity", 0.0);
      root = plus(root, cosine, 0);
    } else if (objective.similarity() > 0) {
      Tensor s = similarities(es);
      Tensor gradient = torch.empty_like(s);
      double kl = similarity(s, similarities(et), gradient);
      parts.put("similarity", kl);
      value += objective.similarity() * kl;
      root = plus(root, s.mul(gradient).sum(), objective.similarity());
    }
    if (objective.hidden() > 0) {
      Tensor difference = student.sub(teacher);
      if (batch.mask() != null) {
        difference = difference.mul(batch.mask());
      }
      // The teacher's states are zero where there is padding.
      Tensor error = difference.mul(difference).sum().div(new Scalar(totals.energy()));
      double hidden = error.item_double();
      parts.put("hidden", hidden);
      value += objective.hidden() * hidden;
      root = plus(root, error, objective.hidden());
    }
    return new Loss(backward ? root : null, value, parts, quality);
  }

  private static Tensor plus(Tensor sum, Tensor part, double weight) {
    Tensor weighted = part.mul(new Scalar(weight));
    return sum == null ? weighted : sum.add(weighted);
  }

  private Tensor pool(Tensor states, Batch batch) {
    if (states.dim() == 2) {
      return states;
    }
    if (pooling == Pooling.CLS) {
      return states.select(1, 0);
    }
    if (pooling == Pooling.LAST) {
      return batch.mask() == null ? states.select(1, -1) : last(states, batch.lengths());
    }
    if (batch.mask() == null) {
      return states.mean(new long[] {1}, false, new ScalarTypeOptional());
    }
    float[] lengths = new float[batch.size()];
    for (int i = 0; i < lengths.length; i++) {
      lengths[i] = batch.lengths()[i];
    }
    Tensor sum = states.mul(batch.mask()).sum(new long[] {1}, false, new ScalarTypeOptional());
    return sum.div(device.place(AbstractTensor.create(lengths, lengths.length, 1)));
  }

  private Tensor last(Tensor states, int[] lengths) {
    long longest = states.size(1);
    long[] rows = new long[lengths.length];
    for (int i = 0; i < rows.length; i++) {
      rows[i] = i * longest + Math.max(0, lengths[i] - 1);
    }
    Tensor all = states.reshape(states.size(0) * longest, states.size(2));
    return all.index_select(0, device.place(AbstractTensor.create(rows)));
  }

  private static Tensor unit(Tensor e) {
    Tensor squares = e.mul(e).sum(new long[] {1}, true, new ScalarTypeOptional());
    return e.div(squares.add(new Scalar(1e-24)).sqrt());
  }

  /** Similarities [N, N − 1] of each text to the others, by the temperature. */
  private Tensor similarities(Tensor e) {
    long n = e.size(0);
    Tensor all = e.mm(e.t()).div(new Scalar(objective.similarityTemperature()));
    // Without its first entry the matrix in rows of N + 1 has the diagonal in its last column.
    return all.reshape(n * n)
        .slice(0, new LongOptional(1), new LongOptional(n * n), 1)
        .reshape(n - 1, n + 1)
        .slice(1, new LongOptional(0), new LongOptional(n), 1)
        .reshape(n, n - 1)
        .contiguous();
  }

  private double similarity(Tensor student, Tensor teacher, Tensor gradient) {
    try (KdSoftmaxLoss loss =
        new KdSoftmaxLoss(
            KdSoftmaxLoss.Settings.of(0, 1),
            new KdSoftmaxLoss.Batch(
                KdSoftmaxLoss.Logits.of(device.view(student)),
                KdSoftmaxLoss.Logits.of(device.view(teacher)),
                null,
                null,
                null,
                KdSoftmaxLoss.Logits.of(device.view(gradient))))) {
      return device.compute(loss).kl();
    }
  }
}

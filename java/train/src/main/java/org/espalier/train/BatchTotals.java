package org.espalier.train;

import java.util.Collection;
import java.util.List;
import org.bytedeco.pytorch.Tensor;

/**
 * The counts of a whole batch by which means are divided where only a share of the batch is computed, so that the
 * losses of the shares add up to the batch's.
 *
 * @param examples of the batch
 * @param rows of a classifier's logits that count; as many as examples for other models
 * @param known labels that count
 * @param energy Σ |y_t|² over all that the teacher gives for the batch; 0 without a teacher
 */
record BatchTotals(int examples, int rows, int known, double energy) {
  /** Of all shares of a batch. */
  static BatchTotals of(Collection<Share> shares) {
    int examples = 0;
    int rows = 0;
    int known = 0;
    double energy = 0;
    for (Share share : shares) {
      examples += share.batch().size();
      rows += share.rows();
      known += share.known();
      energy += share.teacher() == null ? 0 : energy(share.teacher());
    }
    return new BatchTotals(examples, rows, known, energy);
  }

  /** Of a batch that is not shared out. */
  static BatchTotals of(Share share) {
    return of(List.of(share));
  }

  private static double energy(Tensor teacher) {
    return teacher.mul(teacher).sum().item_double();
  }

  /**
   * Some examples of a batch.
   *
   * @param teacher what the teacher says of them; null where the objective needs none
   * @param labels of them; null where there are none
   * @param attended for each row of a classifier's logits whether it counts; null: all count
   */
  record Share(Batch batch, Tensor teacher, Labels labels, boolean[] attended) {
    /** The share of a batch in which every row counts. */
    Share(Batch batch, Tensor teacher, Labels labels) {
      this(batch, teacher, labels, null);
    }

    /** The same with a teacher. */
    Share with(Tensor teacher) {
      return new Share(batch, teacher, labels, attended);
    }

    /** The number of rows that count; the number of examples where all count. */
    int rows() {
      if (attended == null) {
        return batch.size();
      }
      int count = 0;
      for (boolean one : attended) {
        count += one ? 1 : 0;
      }
      return count;
    }

    /** Labels that are known and count. */
    int known() {
      return labels == null ? 0 : labels.known(attended);
    }
  }
}

package org.espalier.train;

import java.util.Collection;
import java.util.List;
import org.bytedeco.pytorch.Tensor;

/**
 * What the means of a batch divide by, where only a share of it is at hand: the shares' losses then add up
 * to the batch's.
 *
 * @param examples of the batch
 * @param energy Σ |y_t|² over all that the teacher gives for the batch; 0 without a teacher
 */
record Whole(int examples, double energy) {
  /** Of all shares of a batch. */
  static Whole of(Collection<Share> shares) {
    int examples = 0;
    double energy = 0;
    for (Share share : shares) {
      examples += share.batch().size();
      energy += share.teacher() == null ? 0 : energy(share.teacher());
    }
    return new Whole(examples, energy);
  }

  /** Of a batch that is not shared out. */
  static Whole of(Share share) {
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
   */
  record Share(Batch batch, Tensor teacher, Labels labels) {}
}

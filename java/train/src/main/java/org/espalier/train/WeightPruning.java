package org.espalier.train;

import java.util.ArrayList;
import java.util.List;
import org.espalier.op.MagnitudePrune;
import org.espalier.torch.TorchDevice;

/** What a stage prunes of the weights in training, by their magnitudes. */
final class WeightPruning {
  private final Pruning pruning;
  private final List<TrainedWeight> weights;
  private final TorchDevice device;

  /**
   * @param weights all of the model
   * @param device where they are
   */
  WeightPruning(Pruning pruning, List<TrainedWeight> weights, TorchDevice device) {
    this.pruning = pruning;
    this.weights = weights;
    this.device = device;
  }

  /** The weights that may be pruned. */
  List<TrainedWeight> candidates() {
    return weights.stream()
        .filter(w -> w.parameter.isWeight() || w.isTable() && pruning.embeddings())
        .filter(w -> pruning.include().test(w.name()))
        .toList();
  }

  /** The share of them that is pruned by now. */
  double sparsity() {
    long zeros = 0;
    long all = 0;
    for (TrainedWeight w : candidates()) {
      if (w.mask() != null) {
        zeros += w.zeros();
      }
      all += w.elements;
    }
    return (double) zeros / all;
  }

  /**
   * Prunes more of them; what was pruned before stays so.
   *
   * @param sparsity the share that is wanted; of no account where a pattern is
   */
  void prune(double sparsity) {
    List<MagnitudePrune.Weights> list = new ArrayList<>();
    for (TrainedWeight w : candidates()) {
      list.add(
          MagnitudePrune.Weights.of(w.name(), w.latent().tensor())
              .inPlace()
              .maskIn(w.maskBits())
              .maskOut(w.maskBits())
              .axis(w.parameter.reductionAxis()));
    }
    device.prune(list, pruning.rule(sparsity));
    candidates().forEach(TrainedWeight::renew);
  }
}

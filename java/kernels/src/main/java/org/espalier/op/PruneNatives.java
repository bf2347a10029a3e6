package org.espalier.op;

import java.util.ArrayList;
import java.util.List;
import org.bytedeco.javacpp.LongPointer;
import org.espalier.InputException;
import org.espalier.binding.Status;
import org.espalier.binding.esp_prune_rule;
import org.espalier.binding.esp_prune_tensor;
import org.espalier.binding.global.espalier;
import org.espalier.device.Device;
import org.espalier.device.Tensor;
import org.espalier.op.MagnitudePrune.Amount;
import org.espalier.op.MagnitudePrune.Count;
import org.espalier.op.MagnitudePrune.Pattern;
import org.espalier.op.MagnitudePrune.Rule;
import org.espalier.op.MagnitudePrune.Scope;
import org.espalier.op.MagnitudePrune.Sparsity;
import org.espalier.op.MagnitudePrune.TensorResult;
import org.espalier.op.MagnitudePrune.Threshold;
import org.espalier.op.MagnitudePrune.Weights;

/** Lists, rules and results of {@link MagnitudePrune} as the native side sees them. */
final class PruneNatives {
  private PruneNatives() {}

  /** A count that the weights do not hold is the one thing that only the native side can see. */
  static void check(int status, List<Weights> list, Rule rule) {
    if (status == espalier.ESP_INVALID_ARGUMENT && rule instanceof Count count) {
      throw new InputException(message(list, count, espalier.esp_last_error().getString()));
    }
    Status.check(status);
  }

  /**
   * Why a count is refused.
   *
   * @param otherwise what is said where no tensor is the reason
   */
  static String message(List<Weights> list, Count count, String otherwise) {
    if (count.scope() == Scope.TENSOR) {
      for (Weights w : list) {
        long kept = w.kept();
        if (kept < count.count()) {
          return w.name()
              + ": "
              + count.count()
              + " weights to prune of each tensor, "
              + kept
              + " remain";
        }
      }
    }
    return otherwise;
  }

  static esp_prune_tensor tensors(List<Weights> list, Device device) {
    esp_prune_tensor tensors = new esp_prune_tensor(Math.max(1, list.size()));
    for (int i = 0; i < list.size(); i++) {
      Weights w = list.get(i);
      Tensor tensor = w.weights();
      long size = 1;
      long inner = 1;
      int axis = w.axis() < 0 ? w.axis() + tensor.rank() : w.axis();
      for (int a = axis; a >= 0 && a < tensor.rank(); a++) {
        if (a == axis) {
          size = tensor.dimension(a);
        } else {
          inner *= tensor.dimension(a);
        }
      }
      tensors
          .getPointer(i)
          .weights(tensor.pointerOn(device))
          .out(w.out() == null ? null : w.out().pointerOn(device))
          .mask_in(w.maskIn())
          .mask_out(w.maskOut())
          .n(tensor.elements())
          .axis(size)
          .inner(inner)
          .dtype(tensor.dtype().code());
    }
    return tensors;
  }

  static esp_prune_rule rule(Rule rule) {
    esp_prune_rule r = new esp_prune_rule();
    Scope scope = scope(rule);
    if (scope != null) {
      r.scope(scope.ordinal());
    }
    if (rule instanceof Threshold threshold) {
      return r.kind(espalier.ESP_PRUNE_THRESHOLD).threshold(threshold.threshold());
    } else if (rule instanceof Amount amount) {
      return r.kind(espalier.ESP_PRUNE_AMOUNT).amount(amount.fraction());
    } else if (rule instanceof Count count) {
      return r.kind(espalier.ESP_PRUNE_COUNT).count(count.count());
    } else if (rule instanceof Sparsity sparsity) {
      return r.kind(espalier.ESP_PRUNE_SPARSITY).amount(sparsity.fraction());
    }
    Pattern pattern = (Pattern) rule;
    return r.kind(espalier.ESP_PRUNE_PATTERN).keep(pattern.keep()).group(pattern.group());
  }

  /** Null where a rule looks at each weight or group alone. */
  static Scope scope(Rule rule) {
    return rule instanceof Amount amount
        ? amount.scope()
        : rule instanceof Count count
            ? count.scope()
            : rule instanceof Sparsity sparsity ? sparsity.scope() : null;
  }

  static List<TensorResult> tensorResults(List<Weights> list, LongPointer pruned) {
    List<TensorResult> results = new ArrayList<>(list.size());
    for (int i = 0; i < list.size(); i++) {
      Weights w = list.get(i);
      results.add(new TensorResult(w.name(), w.weights().elements(), pruned.get(i)));
    }
    return results;
  }
}

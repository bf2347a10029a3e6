package org.espalier.op;

import java.util.ArrayList;
import java.util.Arrays;
import java.util.Comparator;
import java.util.List;

/** magnitude_prune by sorting every weight of the list. */
final class MagnitudePruneReference {
  private MagnitudePruneReference() {}

  /** One weight and where it lies. */
  private record Place(int index, double magnitude) {}

  /**
   * The new masks.
   *
   * @param weights already rounded to their storage type
   * @param earlier an entry may be null: all kept
   */
  static boolean[][] masks(float[][] weights, boolean[][] earlier, MagnitudePrune.Rule rule) {
    boolean[][] keep = new boolean[weights.length][];
    for (int t = 0; t < weights.length; t++) {
      keep[t] = new boolean[weights[t].length];
      for (int i = 0; i < keep[t].length; i++) {
        keep[t][i] = earlier[t] == null || earlier[t][i];
      }
    }
    if (rule instanceof MagnitudePrune.Threshold threshold) {
      for (int t = 0; t < weights.length; t++) {
        for (int i = 0; i < keep[t].length; i++) {
          keep[t][i] &= !(Math.abs((double) weights[t][i]) < (double) threshold.threshold());
        }
      }
    } else if (scope(rule) == MagnitudePrune.Scope.GLOBAL) {
      prune(weights, keep, 0, weights.length, rule);
    } else {
      for (int t = 0; t < weights.length; t++) {
        prune(weights, keep, t, t + 1, rule);
      }
    }
    return keep;
  }

  /** The mask for a pattern along an axis with {@code inner} elements between neighbours. */
  static boolean[] pattern(float[] weights, boolean[] earlier, int inner, int keep, int group) {
    boolean[] mask = new boolean[weights.length];
    for (int block = 0; block < weights.length; block += group * inner) {
      for (int column = 0; column < inner; column++) {
        List<Place> places = new ArrayList<>();
        for (int j = 0; j < group; j++) {
          int i = block + j * inner + column;
          if (earlier == null || earlier[i]) {
            places.add(new Place(i, Math.abs((double) weights[i])));
          }
        }
        places.sort(Comparator.comparingDouble(Place::magnitude)); // stable: ties in order
        places.stream()
            .skip(Math.max(0, places.size() - keep))
            .forEach(place -> mask[place.index()] = true);
      }
    }
    return mask;
  }

  /** The k-th smallest magnitude of what an earlier mask keeps; k from 1. */
  static double kthSmallest(float[][] weights, boolean[][] earlier, long k) {
    return sorted(weights, earlier)[(int) k - 1];
  }

  private static void prune(
      float[][] weights, boolean[][] keep, int from, int to, MagnitudePrune.Rule rule) {
    float[][] scope = Arrays.copyOfRange(weights, from, to);
    boolean[][] kept = Arrays.copyOfRange(keep, from, to); // the same rows
    double[] sorted = sorted(scope, kept);
    long all = Arrays.stream(scope).mapToLong(w -> w.length).sum();
    long k;
    if (rule instanceof MagnitudePrune.Amount amount) {
      k = (long) Math.rint(amount.fraction() * sorted.length);
    } else if (rule instanceof MagnitudePrune.Sparsity sparsity) {
      k = Math.max(0, (long) Math.rint(sparsity.fraction() * all) - (all - sorted.length));
    } else {
      k = ((MagnitudePrune.Count) rule).count();
    }
    if (k == 0) {
      return;
    }
    // All below the k-th go and, of those that are as large, the first in list order.
    double last = sorted[(int) k - 1];
    long ties = k;
    for (int i = 0; i < k && Double.compare(sorted[i], last) < 0; i++) {
      ties--;
    }
    for (int t = 0; t < scope.length; t++) {
      for (int i = 0; i < scope[t].length; i++) {
        int order = Double.compare(Math.abs((double) scope[t][i]), last);
        if (kept[t][i] && (order < 0 || order == 0 && ties-- > 0)) {
          kept[t][i] = false;
        }
      }
    }
  }

  /** The magnitudes of what is kept, smallest first; a NaN is beyond infinity. */
  private static double[] sorted(float[][] weights, boolean[][] keep) {
    double[] magnitudes = new double[Arrays.stream(weights).mapToInt(w -> w.length).sum()];
    int n = 0;
    for (int t = 0; t < weights.length; t++) {
      for (int i = 0; i < weights[t].length; i++) {
        if (keep[t] == null || keep[t][i]) {
          magnitudes[n++] = Math.abs((double) weights[t][i]);
        }
      }
    }
    Arrays.sort(magnitudes, 0, n);
    return Arrays.copyOf(magnitudes, n);
  }

  private static MagnitudePrune.Scope scope(MagnitudePrune.Rule rule) {
    if (rule instanceof MagnitudePrune.Amount amount) {
      return amount.scope();
    } else if (rule instanceof MagnitudePrune.Sparsity sparsity) {
      return sparsity.scope();
    }
    return ((MagnitudePrune.Count) rule).scope();
  }
}

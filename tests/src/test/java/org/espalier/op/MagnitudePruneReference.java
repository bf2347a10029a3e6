package org.espalier.op;

import java.util.ArrayList;
import java.util.Comparator;
import java.util.List;

/** magnitude_prune by sorting every weight of the list. */
final class MagnitudePruneReference {
  private MagnitudePruneReference() {}

  /** One weight and where it lies. */
  private record Place(int tensor, int index, double magnitude) {
    static Place of(int tensor, int index, float weight) {
      double magnitude = Math.abs((double) weight);
      // A NaN is beyond infinity, and compare() orders it so.
      return new Place(tensor, index, magnitude);
    }
  }

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
            places.add(Place.of(0, i, weights[i]));
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
    List<Double> magnitudes = new ArrayList<>();
    for (int t = 0; t < weights.length; t++) {
      for (int i = 0; i < weights[t].length; i++) {
        if (earlier[t] == null || earlier[t][i]) {
          magnitudes.add(Math.abs((double) weights[t][i]));
        }
      }
    }
    magnitudes.sort(null);
    return magnitudes.get((int) k - 1);
  }

  private static void prune(
      float[][] weights, boolean[][] keep, int from, int to, MagnitudePrune.Rule rule) {
    List<Place> places = new ArrayList<>();
    long all = 0;
    for (int t = from; t < to; t++) {
      all += weights[t].length;
      for (int i = 0; i < weights[t].length; i++) {
        if (keep[t][i]) {
          places.add(Place.of(t, i, weights[t][i]));
        }
      }
    }
    long k;
    if (rule instanceof MagnitudePrune.Amount amount) {
      k = (long) Math.rint(amount.fraction() * places.size());
    } else if (rule instanceof MagnitudePrune.Sparsity sparsity) {
      k = Math.max(0, (long) Math.rint(sparsity.fraction() * all) - (all - places.size()));
    } else {
      k = ((MagnitudePrune.Count) rule).count();
    }
    places.sort(Comparator.comparingDouble(Place::magnitude)); // stable: ties in list order
    places.stream().limit(k).forEach(place -> keep[place.tensor()][place.index()] = false);
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

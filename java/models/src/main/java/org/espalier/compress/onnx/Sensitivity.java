package org.espalier.compress.onnx;

import java.util.Comparator;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.PriorityQueue;
import java.util.Set;
import java.util.function.ToDoubleFunction;
import org.espalier.compress.Progress;
import org.espalier.compress.Progress.Phase;

/**
 * Finds the products that alone, in int8, change a model's outputs beyond what int8 may cost: often the
 * first convolution of a network for phones, some channels of which are a hundredth of others that share
 * their step. Products are tried together; only groups that cost too much are halved, those that cost most
 * by the product first.
 */
final class Sensitivity {
  /** At most one product in this many is left float: a model that stays float is no faster. */
  private static final int MOST = 8;

  /** So many models are tried at most: each is made and loaded, and runs all examples. */
  static final int MODELS = 64;

  /** Products that cost too much together. */
  private record Group(List<String> products, double error) {
    /** What each would make alone if all were alike and errors added up in squares. */
    double each() {
      return error / Math.sqrt(products.size());
    }
  }

  private final ToDoubleFunction<Set<String>> error;
  private final Progress progress;
  private final Map<String, Double> found = new LinkedHashMap<>();

  /** How many models are tried at most, and how many were. */
  private final int limit;

  private int tried;

  private Sensitivity(int products, ToDoubleFunction<Set<String>> error, Progress progress) {
    this.error = error;
    this.progress = progress;
    this.limit = Math.min(MODELS, 2 * products - 1);
  }

  /**
   * Searches.
   *
   * @param products to search among
   * @param error that some of them make in int8, against the model in float32
   * @param progress hears how many models were tried
   * @return the error that each of the worst makes alone, the largest first
   */
  static Map<String, Double> search(
      List<String> products, ToDoubleFunction<Set<String>> error, Progress progress) {
    if (products.size() < MOST) {
      return Map.of();
    }
    Sensitivity search = new Sensitivity(products.size(), error, progress);
    if (search.descend(products) && search.found.isEmpty()) {
      search.descendToWorst(products);
    }
    Map<String, Double> worst = new LinkedHashMap<>();
    search.found.entrySet().stream()
        .sorted(Map.Entry.<String, Double>comparingByValue().reversed())
        .forEach(e -> worst.put(e.getKey(), e.getValue()));
    return worst;
  }

  private double error(List<String> products) {
    progress.at(Phase.SEARCH, tried++, limit);
    return error.applyAsDouble(Set.copyOf(products));
  }

  /** Returns whether the products together cost too much. */
  private boolean descend(List<String> products) {
    PriorityQueue<Group> open =
        new PriorityQueue<>(
            Comparator.comparingDouble(Group::each)
                .reversed()
                .thenComparing(group -> group.products().size()));
    open(products, open);
    boolean tooMuch = !open.isEmpty();
    int most = products.size() / MOST;
    while (!open.isEmpty() && found.size() < most) {
      Group worst = open.poll();
      List<String> members = worst.products();
      if (members.size() == 1) {
        found.put(members.get(0), worst.error());
      } else if (tried + 2 <= limit) {
        int half = members.size() / 2;
        open(members.subList(0, half), open);
        open(members.subList(half, members.size()), open);
      }
    }
    return tooMuch;
  }

  /** Notes a group that costs too much. */
  private void open(List<String> products, PriorityQueue<Group> open) {
    double made = error(products);
    if (made > OutputError.LARGE) {
      open.add(new Group(products, made));
    }
  }

  /** Where all cost too much together and none alone, the one is found that costs most. */
  private void descendToWorst(List<String> products) {
    List<String> worst = products;
    double made = 0;
    while (worst.size() > 1) {
      List<String> first = worst.subList(0, worst.size() / 2);
      List<String> second = worst.subList(worst.size() / 2, worst.size());
      double one = error(first);
      double other = error(second);
      worst = one >= other ? first : second;
      made = Math.max(one, other);
    }
    found.put(worst.get(0), made);
  }
}

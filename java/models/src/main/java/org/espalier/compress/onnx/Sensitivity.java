package org.espalier.compress.onnx;

import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.function.Function;
import org.espalier.format.onnx.OnnxModel;

/**
 * Finds the products that alone, in int8, change a model's outputs beyond what int8 may cost: often the
 * first convolution of a network for phones, some channels of which are a hundredth of others that share
 * their step. Products are tried together; only groups that cost too much are halved.
 */
final class Sensitivity {
  /** At most one product in so many is left: a model that stays float is no faster. */
  private static final int MOST = 8;

  private final Function<Set<String>, OnnxModel> quantized;
  private final OutputError error;
  private final Map<String, Double> found = new LinkedHashMap<>();

  private Sensitivity(Function<Set<String>, OnnxModel> quantized, OutputError error) {
    this.quantized = quantized;
    this.error = error;
  }

  /**
   * Searches.
   *
   * @param products to search among
   * @param quantized gives the model with some of them in int8
   * @param error to the model in float32
   * @return the error that each of the worst makes alone
   */
  static Map<String, Double> search(
      List<String> products, Function<Set<String>, OnnxModel> quantized, OutputError error) {
    if (products.size() < MOST) {
      return Map.of();
    }
    Sensitivity search = new Sensitivity(quantized, error);
    if (search.descend(products) && search.found.isEmpty()) {
      search.descendToWorst(products);
    }
    Map<String, Double> worst = new LinkedHashMap<>();
    search.found.entrySet().stream()
        .sorted(Map.Entry.<String, Double>comparingByValue().reversed())
        .limit(products.size() / MOST)
        .forEach(e -> worst.put(e.getKey(), e.getValue()));
    return worst;
  }

  private double error(List<String> products) {
    return error.of(quantized.apply(Set.copyOf(products)));
  }

  /** Returns whether the products together cost too much. */
  private boolean descend(List<String> products) {
    double made = error(products);
    if (!(made > OutputError.LARGE)) {
      return false;
    }
    if (products.size() == 1) {
      found.put(products.get(0), made);
      return true;
    }
    int half = products.size() / 2;
    descend(products.subList(0, half));
    descend(products.subList(half, products.size()));
    return true;
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

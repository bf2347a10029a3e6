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
    search.descend(products);
    Map<String, Double> worst = new LinkedHashMap<>();
    search.found.entrySet().stream()
        .sorted(Map.Entry.<String, Double>comparingByValue().reversed())
        .limit(products.size() / MOST)
        .forEach(e -> worst.put(e.getKey(), e.getValue()));
    return worst;
  }

  private void descend(List<String> products) {
    double made = error.of(quantized.apply(Set.copyOf(products)));
    if (!(made > OutputError.LARGE)) {
      return;
    }
    if (products.size() == 1) {
      found.put(products.get(0), made);
      return;
    }
    int half = products.size() / 2;
    descend(products.subList(0, half));
    descend(products.subList(half, products.size()));
  }
}

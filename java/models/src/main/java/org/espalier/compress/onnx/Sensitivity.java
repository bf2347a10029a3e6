package org.espalier.compress.onnx;

import ai.onnx.proto.OnnxMl.TensorProto.DataType;
import ai.onnx.proto.OnnxMl.ValueInfoProto;
import java.util.ArrayList;
import java.util.HashMap;
import java.util.LinkedHashMap;
import java.util.LinkedHashSet;
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
  /** The error of an output, as a share of its norm, at which its cosine falls to 0.99. */
  private static final double LIMIT = 0.14;

  /** At most one product in so many is left: a model that stays float is no faster. */
  private static final int MOST = 8;

  private final Set<String> outputs = new LinkedHashSet<>();
  private final Function<Set<String>, OnnxModel> quantized;
  private final ActivationSource source;
  private final Map<String, List<float[]>> reference;
  private final Map<String, Double> found = new LinkedHashMap<>();

  private Sensitivity(
      OnnxModel model, Function<Set<String>, OnnxModel> quantized, ActivationSource source) {
    this.quantized = quantized;
    this.source = source;
    for (ValueInfoProto output : model.outputs()) {
      if (output.getType().getTensorType().getElemType() == DataType.FLOAT_VALUE) {
        outputs.add(output.getName());
      }
    }
    reference = values(model);
  }

  /**
   * Searches.
   *
   * @param model in float32
   * @param products to search among
   * @param quantized gives the model with some of them in int8
   * @param source runs the examples once for each model that is tried
   * @return the worst: what each of them does to the output that it changes most, as a share of its
   *     norm
   */
  static Map<String, Double> search(
      OnnxModel model,
      List<String> products,
      Function<Set<String>, OnnxModel> quantized,
      ActivationSource source) {
    if (products.size() < MOST) {
      return Map.of();
    }
    Sensitivity search = new Sensitivity(model, quantized, source);
    search.descend(products);
    Map<String, Double> worst = new LinkedHashMap<>();
    search.found.entrySet().stream()
        .sorted(Map.Entry.<String, Double>comparingByValue().reversed())
        .limit(products.size() / MOST)
        .forEach(e -> worst.put(e.getKey(), e.getValue()));
    return worst;
  }

  private void descend(List<String> products) {
    double error = error(values(quantized.apply(Set.copyOf(products))));
    if (!(error > LIMIT)) {
      return;
    }
    if (products.size() == 1) {
      found.put(products.get(0), error);
      return;
    }
    int half = products.size() / 2;
    descend(products.subList(0, half));
    descend(products.subList(half, products.size()));
  }

  private Map<String, List<float[]>> values(OnnxModel tried) {
    Map<String, List<float[]>> values = new HashMap<>();
    source.run(
        tried,
        outputs,
        (output, buffer) -> {
          float[] copy = new float[buffer.remaining()];
          buffer.get(copy);
          values.computeIfAbsent(output, o -> new ArrayList<>()).add(copy);
        });
    return values;
  }

  /** Of the output that differs most, over all examples. */
  private double error(Map<String, List<float[]>> tried) {
    double largest = 0;
    for (Map.Entry<String, List<float[]>> output : reference.entrySet()) {
      double difference = 0;
      double square = 0;
      List<float[]> others = tried.get(output.getKey());
      for (int e = 0; e < others.size(); e++) {
        float[] a = output.getValue().get(e);
        float[] b = others.get(e);
        for (int i = 0; i < a.length; i++) {
          // What depends on values may have another size.
          double d = i < b.length ? (double) a[i] - b[i] : a[i];
          difference += d * d;
          square += (double) a[i] * a[i];
        }
      }
      largest = Math.max(largest, square == 0 ? 0 : Math.sqrt(difference / square));
    }
    return largest;
  }
}

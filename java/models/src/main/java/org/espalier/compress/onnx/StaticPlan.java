package org.espalier.compress.onnx;

import ai.onnx.proto.OnnxMl.NodeProto;
import java.util.LinkedHashMap;
import java.util.LinkedHashSet;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.stream.Collectors;
import org.espalier.format.onnx.OnnxModel;
import org.espalier.format.onnx.OnnxWeight;
import org.espalier.format.onnx.OnnxWeight.Kind;
import org.espalier.format.onnx.OnnxWeight.Use;
import org.espalier.format.onnx.OnnxWeights;

/**
 * What becomes int8 in a model with fixed ranges: products, embedding tables and the operators between products that run on integers.
 * With that it knows the activations that need a range. It follows the model as calibration and training change it.
 */
final class StaticPlan {
  private final OnnxModel model;
  private final StaticQuantizer.Options options;
  private final Set<String> routers;

  /** Products by their outputs. */
  private final Map<String, QuantizedUse> products = new LinkedHashMap<>();

  /** Look-ups by their outputs. */
  private final Map<String, QuantizedUse> lookUps = new LinkedHashMap<>();

  /** Look-ups in the weights of products. Products are known by their outputs. */
  private TiedLookUps<String> tied = new TiedLookUps<>();

  private final Set<String> activations = new LinkedHashSet<>();
  private IntegerOperators operators;

  /** Those of {@link IntegerOperators#BINARY} that read two images as floats. */
  private Set<String> floatOperators = Set.of();

  /**
   * Finds what can be quantized.
   *
   * @param skipped receives the name of each wanted weight that cannot be, with the reason
   * @throws org.espalier.InputException if no product can be quantized
   */
  StaticPlan(OnnxModel model, StaticQuantizer.Options options, Map<String, String> skipped) {
    this.model = model;
    this.options = options;
    routers = Routers.of(model);
    Map<String, NodeProto> producers = model.producers();
    for (OnnxWeight weight : OnnxWeights.of(model)) {
      if (ConvEqualization.isChannelwise(weight.value())) {
        addChannelwise(weight);
      } else if (options.include().test(weight)) {
        if (options.embeddings()) {
          findTied(weight, producers);
        }
        add(weight, producers, skipped);
      }
    }
    if (products.isEmpty()) {
      throw FloatWeights.none(
          model, "MatMul, Gemm or Conv multiplies with a float32 constant", skipped);
    }
    findActivations();
  }

  /** Factors of channels that equalization found are no weights of the model: all of them are quantized. */
  private void addChannelwise(OnnxWeight weight) {
    for (Use use : weight.uses()) {
      products.put(use.node(), new QuantizedUse(weight.name(), weight.value(), use));
    }
  }

  /** Notes the look-ups in a weight that read what its product reads. */
  private void findTied(OnnxWeight weight, Map<String, NodeProto> producers) {
    for (Use use : weight.uses()) {
      if (use.kind() == Kind.MATMUL && obstacle(weight, use, producers) == null) {
        for (String lookUp : ProductSite.lookUps(weight, use, producers)) {
          tied.add(producers.get(lookUp), use.node());
        }
      }
    }
  }

  private void add(
      OnnxWeight weight, Map<String, NodeProto> producers, Map<String, String> skipped) {
    for (Use use : weight.uses()) {
      if (tied.contains(use.node())) {
        continue;
      }
      String reason = obstacle(weight, use, producers);
      if (reason != null) {
        skipped.put(weight.name(), reason);
      } else {
        (use.kind() == Kind.EMBEDDING ? lookUps : products)
            .put(use.node(), new QuantizedUse(weight.name(), weight.value(), use));
      }
    }
  }

  /** Why a use of a weight stays as it is; null if it can be quantized. */
  private String obstacle(OnnxWeight weight, Use use, Map<String, NodeProto> producers) {
    return routers.contains(use.node())
        ? Routers.REASON
        : QuantizedUse.obstacle(
            model, weight, use, producers.get(use.node()), options.embeddings());
  }

  /** Finds the operators and activations anew, after {@link #products} changed. */
  void findActivations() {
    Map<String, NodeProto> producers = model.producers();
    Set<String> read = new LinkedHashSet<>();
    products.keySet().forEach(output -> read.add(producers.get(output).getInput(0)));
    operators = new IntegerOperators(model, floatOperators);
    operators.find(convolutions(), read);
    activations.clear();
    read.forEach(value -> activations.add(operators.root(value)));
    activations.addAll(operators.results());
  }

  /** Follows products to the constants that hold their weights now, after calibration scaled weights. */
  void followWeights() {
    for (OnnxWeight weight : OnnxWeights.of(model)) {
      if (ConvEqualization.isChannelwise(weight.value())) {
        addChannelwise(weight);
        continue;
      }
      for (Use use : weight.uses()) {
        products.computeIfPresent(
            use.node(), (output, old) -> new QuantizedUse(old.name(), weight.value(), use));
      }
    }
    findActivations();
  }

  /** Follows look-ups after products got weights of their own: a table that a product read too is read by look-ups alone. */
  void followTables(TiedLookUps<String> nowTied) {
    tied = nowTied;
    Map<String, NodeProto> producers = model.producers();
    for (OnnxWeight weight : OnnxWeights.of(model)) {
      if (weight.isEmbedding() && options.include().test(weight)) {
        for (Use use : weight.uses()) {
          if (obstacle(weight, use, producers) == null) {
            lookUps.put(use.node(), new QuantizedUse(weight.name(), weight.value(), use));
          }
        }
      }
    }
  }

  /** Leaves operators of two images float, in place of those that were left so far. */
  void leaveFloat(Set<String> binary) {
    floatOperators = binary;
    findActivations();
  }

  /** The weights that are quantized, each name once. */
  List<String> names() {
    Set<String> names = new LinkedHashSet<>();
    lookUps.values().forEach(t -> names.add(t.name()));
    products.values().stream().filter(t -> !t.isChannelwise()).forEach(t -> names.add(t.name()));
    return List.copyOf(names);
  }

  /** The products by their outputs. After a change of the map call {@link #findActivations}. */
  Map<String, QuantizedUse> products() {
    return products;
  }

  /** The look-ups by their outputs. */
  Map<String, QuantizedUse> lookUps() {
    return lookUps;
  }

  TiedLookUps<String> tied() {
    return tied;
  }

  IntegerOperators operators() {
    return operators;
  }

  /** The values that need a range. */
  Set<String> activations() {
    return activations;
  }

  /** The outputs of the Convs among the products. */
  Set<String> convolutions() {
    return products.keySet().stream()
        .filter(output -> products.get(output).use().kind() == Kind.CONV)
        .collect(Collectors.toCollection(LinkedHashSet::new));
  }
}

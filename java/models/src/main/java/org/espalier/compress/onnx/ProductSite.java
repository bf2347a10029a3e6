package org.espalier.compress.onnx;

import ai.onnx.proto.OnnxMl.NodeProto;
import ai.onnx.proto.OnnxMl.TensorProto.DataType;
import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.function.Predicate;
import java.util.stream.Stream;
import org.espalier.InputException;
import org.espalier.format.onnx.ConstantVector;
import org.espalier.format.onnx.OnnxInitializer;
import org.espalier.format.onnx.OnnxModel;
import org.espalier.format.onnx.OnnxWeight;
import org.espalier.format.onnx.OnnxWeight.Kind;
import org.espalier.format.onnx.OnnxWeight.Use;
import org.espalier.format.onnx.OnnxWeights;

/** An activation x [rows, channels] and the products x·W with constant matrices that read it. */
final class ProductSite {
  /** One MatMul. What is not final changes when the weights are replaced. */
  static final class Product {
    final String name;

    /** The output of the node, which identifies it. */
    final String output;

    final int rows;
    final int columns;

    /** The output of the node that alone reads the product and adds a constant vector; or null. */
    final String biasAdd;

    /**
     * The outputs of the Gathers that look up in the same constant, whose rows are the columns of W: a language
     * model's embedding may be its last product too.
     */
    final List<String> lookUps;

    /** The constant that holds the weights, and for each axis of W the axis of that constant. */
    String value;

    List<Integer> axes;

    /** What the rows of W were multiplied by; null where they are as they were. */
    float[] factors;

    Product(
        OnnxWeight weight, Use use, int rows, int columns, String biasAdd, List<String> lookUps) {
      this.name = weight.name();
      this.output = use.node();
      this.rows = rows;
      this.columns = columns;
      this.biasAdd = biasAdd;
      this.lookUps = lookUps;
      this.value = weight.value();
      this.axes = use.axes();
    }

    /**
     * W [rows, columns], row-major.
     *
     * @throws InputException if a weight is NaN or infinite
     */
    float[] matrix(OnnxModel model) {
      return ProductSite.matrix(model, name, value, axes);
    }

    /**
     * Gives it an initializer of its own with W [rows, columns], for training to change.
     *
     * @throws InputException if a weight is NaN or infinite
     */
    void makeLatent(OnnxModel model, OnnxModel.Names names) {
      float[] w = matrix(model);
      value = names.unique(name + TrainableQuantizer.LATENT);
      axes = List.of(0, 1);
      model.addInitializer(OnnxInitializer.floats(value, new long[] {rows, columns}, w));
    }
  }

  /**
   * A constant with its axes in another order, of which the last is that of output channels.
   *
   * @param name what an error calls it
   * @throws InputException if a weight is NaN or infinite
   */
  static float[] matrix(OnnxModel model, String name, String value, List<Integer> axes) {
    OnnxInitializer w = model.constant(value);
    float[] values = new float[(int) w.elements()];
    Permutation.apply(w.floats(), w.dims(), axes).get(values);
    long columns = w.dims()[axes.get(axes.size() - 1)];
    for (int i = 0; i < values.length; i++) {
      if (!(Math.abs(values[i]) <= Float.MAX_VALUE)) {
        throw new InputException(
            "the weights "
                + name
                + " hold "
                + values[i]
                + " for input channel "
                + i / columns
                + " and output channel "
                + i % columns
                + ": no scale can be found; repair or exclude them");
      }
    }
    return values;
  }

  /** What is quantized, each name once: tables that are looked up in, then the weights of products. */
  static List<String> names(Stream<String> tables, List<ProductSite> sites) {
    Stream<String> weights = sites.stream().flatMap(s -> s.products.stream()).map(p -> p.name);
    return Stream.concat(tables, weights).distinct().toList();
  }

  /**
   * The product that a node defines.
   *
   * @throws IllegalArgumentException if there is none
   */
  static Product product(List<ProductSite> sites, String output) {
    return sites.stream()
        .flatMap(s -> s.products.stream())
        .filter(p -> p.output.equals(output))
        .findFirst()
        .orElseThrow(() -> new IllegalArgumentException("no product defines " + output));
  }

  final int channels;

  /** Whether it lies in a branch or a body, where calibration sees no values. */
  final boolean inner;

  final List<Product> products = new ArrayList<>();
  String activation;

  private ProductSite(String activation, int channels, boolean inner) {
    this.activation = activation;
    this.channels = channels;
    this.inner = inner;
  }

  /**
   * Finds the sites of a model in graph order: one for each activation of the main graph, and for each product in
   * a branch or body one of its own.
   *
   * @param include which weights are wanted
   * @param skipped receives the name of each wanted weight that no product can use, with the reason
   */
  static List<ProductSite> find(
      OnnxModel model, Predicate<OnnxWeight> include, Map<String, String> skipped) {
    Map<String, NodeProto> outer = model.producers();
    Map<String, NodeProto> producers = model.allProducers();
    Map<String, List<NodeProto>> consumers = model.consumers();
    Map<String, ProductSite> sites = new LinkedHashMap<>();
    for (OnnxWeight weight : OnnxWeights.of(model)) {
      if (weight.isEmbedding() || !include.test(weight)) {
        continue;
      }
      long[] dims = model.constant(weight.value()).dims();
      for (Use use : weight.uses()) {
        if (use.kind() == Kind.EMBEDDING) {
          continue;
        }
        String reason = obstacle(model, weight, use, producers);
        if (reason != null) {
          skipped.put(weight.name(), reason);
          continue;
        }
        int rows = Math.toIntExact(dims[use.reductionAxis()]);
        int columns = Math.toIntExact(dims[use.outputAxis()]);
        String activation = producers.get(use.node()).getInput(0);
        boolean inner = !outer.containsKey(use.node());
        String bias = inner ? null : ConstantVector.biasAdd(model, use.node(), columns, consumers);
        sites
            .computeIfAbsent(
                inner ? use.node() : activation, a -> new ProductSite(activation, rows, inner))
            .products
            .add(new Product(weight, use, rows, columns, bias, lookUps(weight, use, outer)));
      }
    }
    return List.copyOf(sites.values());
  }

  /** The look-ups in a weight that can read what its product holds; none where something else reads it. */
  static List<String> lookUps(OnnxWeight weight, Use product, Map<String, NodeProto> main) {
    List<String> found = new ArrayList<>();
    if (product.axes().size() != 2 || !main.containsKey(product.node())) {
      return found;
    }
    // The rows that are looked up are the columns of the product's matrix.
    List<Integer> rows = List.of(product.axes().get(1), product.axes().get(0));
    for (Use use : weight.uses()) {
      boolean fits =
          use.kind() == Kind.EMBEDDING
              && use.axes().equals(rows)
              && main.containsKey(use.node())
              && use.path().stream().skip(1).noneMatch(v -> OnnxModel.isOwn(main.get(v), "Cast"));
      if (fits) {
        found.add(use.node());
      } else if (use != product) {
        return List.of();
      }
    }
    return weight.otherUses() == 0 ? List.copyOf(found) : List.of();
  }

  private static String obstacle(
      OnnxModel model, OnnxWeight weight, Use use, Map<String, NodeProto> producers) {
    OnnxInitializer w = model.constant(weight.value());
    if (w.elements() == 0) {
      return "it has no elements";
    }
    if (w.elements() > Integer.MAX_VALUE) {
      return "it has more than 2147483647 elements";
    }
    switch (use.kind()) {
      case MATMUL -> {
        if (use.input() != 1) {
          return "it is the left factor";
        }
        if (w.dims().length != 2) {
          return "it is no matrix";
        }
        boolean plain = w.type() == DataType.FLOAT;
        for (String value : use.path().subList(1, use.path().size())) {
          plain &= !producers.get(value).getOpType().equals("Cast");
        }
        return plain ? null : "its arithmetic is not float32";
      }
      case GEMM -> {
        return "its Gemm transposes A, has factors or a bias that is no constant";
      }
      case CONV -> {
        return "Conv is quantized by the static form (onnx-qdq) alone";
      }
      default -> {
        return Nodes.onlyFloat(producers.get(use.node()));
      }
    }
  }

  static boolean isOutput(OnnxModel model, String value) {
    return model.outputNames().contains(value);
  }
}

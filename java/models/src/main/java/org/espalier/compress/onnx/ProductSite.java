package org.espalier.compress.onnx;

import ai.onnx.proto.OnnxMl.NodeProto;
import ai.onnx.proto.OnnxMl.TensorProto.DataType;
import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.LinkedHashSet;
import java.util.List;
import java.util.Map;
import java.util.Set;
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

/** Activations x [rows, channels] that are looked at together, and the products x·W with constant matrices that read them. */
final class ProductSite {
  /**
   * One MatMul of the main graph, or all in branches and bodies that multiply with equal matrices: they share integers. What
   * is not final changes when the weights are replaced.
   */
  static final class Product {
    final String name;

    /** The names of all its weights, of which {@link #name} is the first. */
    final Set<String> names = new LinkedHashSet<>();

    /** The output of the first node, which identifies the product. */
    final String output;

    /** The outputs of all nodes. */
    final List<String> outputs = new ArrayList<>();

    /** The outputs of the nodes that alone read one of these and add a constant vector. */
    final List<String> biasAdds = new ArrayList<>();

    final int rows;
    final int columns;

    /**
     * The outputs of the Gathers that look up in the same constant, whose rows are the columns of W: a language
     * model's embedding may be its last product too.
     */
    final Set<String> lookUps = new LinkedHashSet<>();

    /** The constant that holds the weights, and for each axis of W the axis of that constant. */
    String value;

    List<Integer> axes;

    /** What the rows of W were multiplied by; null where they are as they were. */
    float[] factors;

    Product(OnnxWeight weight, Use use, int rows, int columns) {
      this.name = weight.name();
      this.output = use.node();
      this.rows = rows;
      this.columns = columns;
      this.value = weight.value();
      this.axes = use.axes();
    }

    /**
     * Adds a node.
     *
     * @param lookUps in its weight
     * @param readers of values, those in branches and bodies apart where it lies there
     */
    void add(
        OnnxModel model,
        OnnxWeight weight,
        Use use,
        List<String> lookUps,
        Map<String, List<NodeProto>> readers) {
      names.add(weight.name());
      outputs.add(use.node());
      this.lookUps.addAll(lookUps);
      String biasAdd = ConstantVector.biasAdd(model, use.node(), columns, readers);
      if (biasAdd != null) {
        biasAdds.add(biasAdd);
      }
    }

    /** Whether all nodes have a vector that takes up the mean of an error. */
    boolean isBiased() {
      return biasAdds.size() == outputs.size();
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
    Stream<String> weights =
        sites.stream().flatMap(s -> s.products.stream()).flatMap(p -> p.names.stream());
    return Stream.concat(tables, weights).distinct().toList();
  }

  /**
   * The weights that were not fitted, because no example reaches what they multiply, with the reason.
   *
   * @param fitted whether a product was
   */
  static Map<String, String> unseen(List<ProductSite> sites, Predicate<Product> fitted) {
    Map<String, String> unseen = new LinkedHashMap<>();
    for (ProductSite s : sites) {
      String reason =
          !s.inner
              ? "of an expert that no example chooses"
              : s.isSeen()
                  ? "in a branch that no example takes"
                  : "in the body of a loop, or in a branch within another";
      s.products.stream()
          .filter(fitted.negate())
          .flatMap(p -> p.names.stream())
          .forEach(name -> unseen.put(name, reason));
    }
    return unseen;
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

  /** Whether it lies in branches and bodies. */
  final boolean inner;

  final List<Product> products = new ArrayList<>();

  /**
   * What the products read: one value of the main graph, or those that nodes in its branches of If read. None where
   * calibration sees no values, as in the bodies of loops.
   */
  List<String> activations;

  ProductSite(List<String> activations, int channels, boolean inner) {
    this.activations = activations;
    this.channels = channels;
    this.inner = inner;
  }

  /** Whether calibration sees what the products read. */
  boolean isSeen() {
    return !activations.isEmpty();
  }

  /** What names one that is {@linkplain #isSeen seen}. */
  String activation() {
    return activations.get(0);
  }

  /**
   * Finds the sites of a model: one for each activation of the main graph, in graph order, then those in branches and
   * bodies ({@link InnerProducts}).
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
    InnerProducts inside = new InnerProducts(model);
    Set<String> routers = Routers.of(model);
    for (OnnxWeight weight : OnnxWeights.of(model)) {
      if (weight.isEmbedding() || !include.test(weight)) {
        continue;
      }
      long[] dims = model.constant(weight.value()).dims();
      for (Use use : weight.uses()) {
        if (use.kind() == Kind.EMBEDDING) {
          continue;
        }
        String reason =
            routers.contains(use.node()) ? Routers.REASON : obstacle(model, weight, use, producers);
        if (reason != null) {
          skipped.put(weight.name(), reason);
          continue;
        }
        int rows = Math.toIntExact(dims[use.reductionAxis()]);
        int columns = Math.toIntExact(dims[use.outputAxis()]);
        if (!outer.containsKey(use.node())) {
          inside.add(weight, use, rows, columns);
          continue;
        }
        Product product = new Product(weight, use, rows, columns);
        product.add(model, weight, use, lookUps(weight, use, outer), consumers);
        sites
            .computeIfAbsent(
                outer.get(use.node()).getInput(0), a -> new ProductSite(List.of(a), rows, false))
            .products
            .add(product);
      }
    }
    List<ProductSite> all = new ArrayList<>(sites.values());
    all.addAll(inside.sites());
    return List.copyOf(all);
  }

  /** The look-ups in a weight that can read what its product in the main graph holds; none where something else reads it. */
  static List<String> lookUps(OnnxWeight weight, Use product, Map<String, NodeProto> main) {
    return main.containsKey(product.node())
        ? lookUps(weight, product, main, main::containsKey, use -> use == product)
        : List.of();
  }

  /**
   * The same of nodes in any graph.
   *
   * @param producers of all values between the weight and these nodes
   * @param here which nodes may look up
   * @param same which uses are the product
   */
  static List<String> lookUps(
      OnnxWeight weight,
      Use product,
      Map<String, NodeProto> producers,
      Predicate<String> here,
      Predicate<Use> same) {
    List<String> found = new ArrayList<>();
    if (product.axes().size() != 2) {
      return found;
    }
    // The rows that are looked up are the columns of the product's matrix.
    List<Integer> rows = List.of(product.axes().get(1), product.axes().get(0));
    for (Use use : weight.uses()) {
      boolean fits =
          use.kind() == Kind.EMBEDDING
              && use.axes().equals(rows)
              && here.test(use.node())
              && use.path().stream()
                  .skip(1)
                  .noneMatch(v -> OnnxModel.isOwn(producers.get(v), "Cast"));
      if (fits) {
        found.add(use.node());
      } else if (!same.test(use)) {
        return List.of();
      }
    }
    return weight.otherUses() == 0 ? List.copyOf(found) : List.of();
  }

  /** Why a use of a weight is no product that is quantized here; null if it is one. */
  static String obstacle(
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

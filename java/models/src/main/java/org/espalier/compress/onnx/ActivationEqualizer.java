package org.espalier.compress.onnx;

import ai.onnx.proto.OnnxMl.NodeProto;
import java.util.ArrayList;
import java.util.HashMap;
import java.util.HashSet;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Set;
import org.espalier.compress.onnx.ProductSite.Product;
import org.espalier.compress.onnx.fitting.ActivationStatistics;
import org.espalier.compress.onnx.fitting.Equalization;
import org.espalier.format.onnx.ConstantVector;
import org.espalier.format.onnx.InnerGraphs;
import org.espalier.format.onnx.OnnxInitializer;
import org.espalier.format.onnx.OnnxModel;
import org.slf4j.Logger;
import org.slf4j.LoggerFactory;

/**
 * Rewrites a float32 model so that its activations suit one step a tensor ({@link Equalization}); the result
 * computes the same up to float32 rounding.
 *
 * <ul>
 *   <li>Shift: an activation that ends in the addition of a constant vector is shifted there. All that read
 *       it take the shift back: products in their biases, a residual addition in the bias of its other
 *       operand. This costs nothing at run time, and is left out where some reader cannot.
 *   <li>Scale: one Mul by 1/s before the products, s in the rows of their weights. Only readers of that Mul see
 *       it, so it is always possible; it is done where it removes a worthwhile share of the noise, and not to
 *       what a Softmax gives.
 * </ul>
 */
final class ActivationEqualizer {
  private static final Logger LOG = LoggerFactory.getLogger(ActivationEqualizer.class);

  /** A Mul is worth its time where it takes away at least this share of all noise that Muls could. */
  private static final double WORTH_SCALING = 0.003;

  private final OnnxModel model;
  private final Map<String, NodeProto> producers;
  private final Map<String, List<NodeProto>> consumers;

  ActivationEqualizer(OnnxModel model) {
    this.model = model;
    this.producers = model.allProducers();
    this.consumers = model.consumers();
  }

  /**
   * Finds the equalization of each site.
   *
   * @param statistics of what the products of each read
   * @param qmax largest integer of the weights
   * @param done hears of each site, from several threads
   */
  Map<ProductSite, Equalization> search(
      Map<ProductSite, ActivationStatistics> statistics, int qmax, Runnable done) {
    List<ProductSite> sites = List.copyOf(statistics.keySet());
    List<Equalization> found =
        sites.parallelStream()
            .map(
                s -> {
                  Equalization equalization =
                      Equalization.search(
                          statistics.get(s),
                          s.products.stream().map(p -> p.matrix(model)).toList(),
                          isShiftable(s),
                          qmax);
                  done.run();
                  return equalization;
                })
            .toList();
    List<Boolean> scalable = sites.stream().map(this::isScalable).toList();
    double total = 0;
    for (int i = 0; i < found.size(); i++) {
      total += scalable.get(i) ? found.get(i).gain() : 0;
    }
    Map<ProductSite, Equalization> result = new LinkedHashMap<>();
    for (int i = 0; i < found.size(); i++) {
      Equalization e = found.get(i);
      boolean scaled = scalable.get(i) && e.gain() > 0 && e.gain() >= WORTH_SCALING * total;
      LOG.debug(
          "{}: relative noise {} to {}, {}",
          sites.get(i).activation(),
          e.noiseBefore() / e.signal(),
          e.noiseAfter() / e.signal(),
          scaled ? "scaled" : "not scaled");
      result.put(sites.get(i), scaled ? e : e.withoutScale());
    }
    return result;
  }

  /**
   * Whether the largest value that calibration saw of a channel says what it can be. Each share of a Softmax over many
   * channels can become 1, and few do so in calibration: scaled up, the others would be clipped where they do.
   */
  private boolean isScalable(ProductSite s) {
    return s.activations.stream()
        .map(producers::get)
        .noneMatch(producer -> producer != null && OnnxModel.isOwn(producer, "Softmax"));
  }

  /** Whether every reader of a site's activation can take back a shift. */
  private boolean isShiftable(ProductSite s) {
    if (s.inner
        || ConstantVector.input(model, producers.get(s.activation()), s.channels) < 0
        || ProductSite.isOutput(model, s.activation())) {
      return false;
    }
    Set<String> products = new HashSet<>();
    for (Product p : s.products) {
      if (!p.isBiased()) {
        return false;
      }
      products.addAll(p.outputs);
    }
    for (NodeProto reader : consumers.get(s.activation())) {
      if (!products.contains(reader.getOutput(0)) && otherOperand(reader, s) == null) {
        return false;
      }
    }
    return true;
  }

  /** The node behind the other operand of a residual addition, if its vector can take back a shift. */
  private NodeProto otherOperand(NodeProto reader, ProductSite s) {
    if (!reader.getOpType().equals("Add")) {
      return null;
    }
    String value = reader.getInput(reader.getInput(0).equals(s.activation()) ? 1 : 0);
    boolean alone =
        !value.equals(s.activation())
            && consumers.getOrDefault(value, List.of()).size() == 1
            && !ProductSite.isOutput(model, value);
    NodeProto n = producers.get(value);
    return alone && ConstantVector.input(model, n, s.channels) >= 0 ? n : null;
  }

  /** Rewrites the model, and tells the sites and products what they read now. */
  void apply(Map<ProductSite, Equalization> equalizations) {
    new Rewriting(equalizations).run();
    RuntimeForm.removeUnused(model);
  }

  /** One pass over the nodes that emits the new ones. */
  private final class Rewriting {
    private final OnnxModel.Names names = model.names();

    /** What is added to the vectors of nodes, by the outputs of the nodes. */
    private final Map<String, double[]> changes = new HashMap<>();

    /** The sites that are scaled, and their products, by the outputs of the products' nodes. */
    private final Map<String, ProductSite> sites = new HashMap<>();

    private final Map<String, Product> products = new HashMap<>();

    /** The vectors of 1/s. */
    private final Map<ProductSite, String> factors = new HashMap<>();

    /** What the products of a site read now. */
    private final Map<ProductSite, List<String>> activations = new HashMap<>();

    private final Map<ProductSite, Equalization> equalizations;

    Rewriting(Map<ProductSite, Equalization> equalizations) {
      this.equalizations = equalizations;
    }

    void run() {
      equalizations.forEach(
          (site, e) -> {
            if (e.isShifted()) {
              shift(site, e.shift(), changes);
            }
            if (e.isScaled()) {
              for (Product p : site.products) {
                for (String output : p.outputs) {
                  sites.put(output, site);
                  products.put(output, p);
                }
              }
            }
          });
      model.setNodes(rewritten(model.nodes()));
      activations.forEach((site, values) -> site.activations = values);
    }

    /** The nodes of a graph, which scales what its products read. */
    private List<NodeProto> rewritten(List<NodeProto> given) {
      List<NodeProto> nodes = new ArrayList<>();
      Map<List<Object>, String> scaled = new HashMap<>();
      for (NodeProto n : given) {
        String output = n.getOutputCount() == 0 ? "" : n.getOutput(0);
        ProductSite site = sites.get(output);
        if (site != null) {
          String activation = n.getInput(0);
          String x =
              scaled.computeIfAbsent(
                  List.of(site, activation), key -> multiply(site, activation, nodes));
          String w = scale(products.get(output), equalizations.get(site).scale(), names);
          nodes.add(n.toBuilder().setInput(0, x).setInput(1, w).build());
        } else if (changes.containsKey(output)) {
          nodes.add(ConstantVector.changed(model, names, n, changes.get(output)));
        } else {
          nodes.add(InnerGraphs.withNodes(n, this::rewritten));
        }
      }
      return nodes;
    }

    private String multiply(ProductSite s, String activation, List<NodeProto> nodes) {
      String factor =
          factors.computeIfAbsent(
              s,
              key ->
                  EmbeddingTables.reciprocals(
                      model, names, activation, equalizations.get(s).scale()));
      String x = names.unique(activation + "_scaled");
      nodes.add(Nodes.node("Mul", x, activation, factor).build());
      activations.computeIfAbsent(s, key -> new ArrayList<>()).add(x);
      return x;
    }
  }

  /** The constant of a product whose rows are multiplied, which all its nodes read. */
  private String scale(Product p, float[] scale, OnnxModel.Names names) {
    if (p.factors == scale) {
      return p.value;
    }
    float[] w = p.matrix(model);
    for (int k = 0; k < p.rows; k++) {
      for (int j = 0; j < p.columns; j++) {
        w[k * p.columns + j] *= scale[k];
      }
    }
    p.factors = scale;
    p.value = names.unique(p.value + "_scaled");
    p.axes = List.of(0, 1);
    model.addInitializer(OnnxInitializer.floats(p.value, new long[] {p.rows, p.columns}, w));
    return p.value;
  }

  private void shift(ProductSite s, float[] z, Map<String, double[]> changes) {
    double[] away = new double[z.length];
    double[] back = new double[z.length];
    for (int c = 0; c < z.length; c++) {
      away[c] = -z[c];
      back[c] = z[c];
    }
    add(changes, s.activation(), away);
    Set<String> products = new HashSet<>();
    for (Product p : s.products) {
      products.addAll(p.outputs);
      float[] w = p.matrix(model);
      double[] change = new double[p.columns];
      for (int k = 0; k < p.rows; k++) {
        for (int j = 0; j < p.columns; j++) {
          change[j] += (double) z[k] * w[k * p.columns + j];
        }
      }
      p.biasAdds.forEach(add -> add(changes, add, change));
    }
    for (NodeProto reader : consumers.get(s.activation())) {
      if (!products.contains(reader.getOutput(0))) {
        add(changes, otherOperand(reader, s).getOutput(0), back);
      }
    }
  }

  private static void add(Map<String, double[]> changes, String node, double[] change) {
    double[] sum = changes.computeIfAbsent(node, k -> new double[change.length]);
    for (int i = 0; i < change.length; i++) {
      sum[i] += change[i];
    }
  }
}

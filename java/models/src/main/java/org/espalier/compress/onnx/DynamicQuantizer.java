package org.espalier.compress.onnx;

import ai.onnx.proto.OnnxMl.GraphProto;
import ai.onnx.proto.OnnxMl.NodeProto;
import ai.onnx.proto.OnnxMl.TensorProto.DataType;
import java.nio.ByteBuffer;
import java.nio.FloatBuffer;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.HashMap;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.function.Predicate;
import org.espalier.InputException;
import org.espalier.compress.onnx.ProductFitting.Rounded;
import org.espalier.compress.onnx.ProductSite.Product;
import org.espalier.compress.onnx.fitting.CompensatedRounding;
import org.espalier.compress.onnx.fitting.Equalization;
import org.espalier.format.onnx.Attributes;
import org.espalier.format.onnx.HalfPrecision;
import org.espalier.format.onnx.InnerGraphs;
import org.espalier.format.onnx.OnnxInitializer;
import org.espalier.format.onnx.OnnxModel;
import org.espalier.format.onnx.OnnxWeight;

/**
 * Dynamic int8 quantization: weights of MatMul and Gemm are int8 with one scale an output channel, the
 * activation before them is quantized at run time with one step for the whole tensor. The nodes are
 *
 * <pre>
 *   DynamicQuantizeLinear(x) → MatMulInteger(·, W int8) → Cast → Mul(·, step of x · scales of W) → Add(·, bias)
 * </pre>
 *
 * which ONNX Runtime fuses into one DynamicQuantizeMatMul, or one MatMulIntegerToFloat for each of several
 * products of one activation. Embedding tables become int8 with one scale a row. Conv and everything else stay
 * float32. A model of float16 or bfloat16 computes in float32 afterwards ({@link HalfPrecision}).
 *
 * <p>Use: construct, {@link #calibrate} where accuracy matters, {@link #apply}. Calibration
 *
 * <ol>
 *   <li>shifts and scales the channels of activations and takes both back in weights and biases, so that one
 *       step suits all channels ({@link Equalization}); float results do not change;
 *   <li>rounds weights so that later rows compensate for earlier ones ({@link CompensatedRounding}), and
 *       puts the mean of the error that is left into the bias (Nagel et al. 2019, arXiv 1906.04721).
 * </ol>
 *
 * <p>In branches of If it scales and rounds alike, by what is seen in the branches that examples take, for all branches with the same
 * weights; what is {@linkplain #unseen} is rounded to the nearest.
 */
public final class DynamicQuantizer extends OnnxQuantizer implements WeightQuantizer {
  /** DynamicQuantizeLinear exists since this version. */
  private static final long OPSET = 11;

  /**
   * What to quantize.
   *
   * @param weights what weights become
   * @param embeddings whether embedding tables are quantized
   * @param include which weights are quantized; embeddings are asked for too
   */
  public record Options(WeightIntegers weights, boolean embeddings, Predicate<OnnxWeight> include) {
    /** All weights, in 8 bits. */
    public static Options defaults() {
      return new Options(WeightIntegers.INT8, true, w -> true);
    }
  }

  private final Options options;
  private final int qmax;
  private final List<ProductSite> sites;
  private final Map<String, OnnxWeight> tables = new LinkedHashMap<>();

  private TiedLookUps<Product> tied = new TiedLookUps<>();
  private final Map<Product, Rounded> rounded = new HashMap<>();

  /**
   * Plans the quantization of {@code model} and gives it the form that the runtime fuses.
   *
   * @throws InputException if its operators are too old, or there is nothing to quantize
   */
  public DynamicQuantizer(OnnxModel model, Options options) {
    super(model, OPSET);
    this.options = options;
    this.qmax = options.weights().largest();
    RuntimeForm.apply(model, true);
    sites = ProductSite.find(model, options.include(), skipped);
    Map<String, NodeProto> producers = model.allProducers();
    for (ProductSite s : sites) {
      for (Product p : s.products) {
        for (String lookUp : options.embeddings() ? p.lookUps : Set.<String>of()) {
          tied.add(producers.get(lookUp), p);
        }
      }
    }
    findTables();
    if (sites.isEmpty()) {
      throw FloatWeights.none(
          model, "MatMul or Gemm multiplies a value with a float32 constant matrix", skipped);
    }
  }

  private void findTables() {
    tables.putAll(
        EmbeddingTables.find(
            model, options.include(), options.embeddings(), tied::contains, skipped));
  }

  @Override
  public List<String> quantized() {
    return ProductSite.names(tables.values().stream().map(OnnxWeight::name), sites);
  }

  @Override
  public void calibrate(ActivationSource source) {
    use.check();
    FiniteConstants.requireWeights(model);
    try {
      rounded.putAll(ProductFitting.fit(model, sites, qmax, source, progress));
    } catch (InputException e) {
      throw FiniteConstants.explained(model, e);
    }
  }

  @Override
  public Map<String, String> unseen() {
    use.check();
    return ProductSite.unseen(sites, rounded::containsKey);
  }

  @Override
  public void prepareTraining() {
    use.check();
    OnnxModel.Names names = model.names();
    Map<String, double[]> biasChanges = new HashMap<>();
    Map<String, TrainingForm.Latent> latents = new HashMap<>();
    for (ProductSite s : trainedSites()) {
      for (Product p : s.products) {
        p.makeLatent(model, names);
        latents.put(p.output, new TrainingForm.Latent(1, p.value));
        Rounded r = rounded.get(p);
        if (r != null) {
          p.biasAdds.forEach(add -> biasChanges.put(add, r.meanError()));
          rounded.put(p, new Rounded(r.integers(), r.scales(), new double[p.columns]));
        }
      }
    }
    tied =
        TrainingForm.apply(model, names, latents, biasChanges, tied, p -> p.value, p -> p.factors);
    // Nodes of the graph divide by them now.
    tied.forEachProduct(p -> p.factors = null);
    // What a product read too is a table alone now.
    findTables();
    EmbeddingTables.round(model, tableNames());
    RuntimeForm.removeUnused(model);
  }

  @Override
  Map<String, String> tableNames() {
    Map<String, String> names = new LinkedHashMap<>();
    tables.values().forEach(table -> names.put(table.value(), table.name()));
    return names;
  }

  @Override
  public List<QuantizedProduct> products() {
    use.check();
    List<QuantizedProduct> result = new ArrayList<>();
    for (ProductSite s : trainedSites()) {
      for (Product p : s.products) {
        Rounded r = rounded.computeIfAbsent(p, this::nearest);
        result.add(
            new QuantizedProduct(
                p.name,
                p.output,
                s.activation(),
                p.value,
                WeightGrid.channels(qmax, 1),
                r.integers(),
                r.scales()));
      }
    }
    return result;
  }

  /** Those of the main graph; what lies in a branch or body is rounded as it is. */
  private List<ProductSite> trainedSites() {
    return sites.stream().filter(s -> !s.inner).toList();
  }

  private Rounded nearest(Product p) {
    long[] dims = {p.rows, p.columns};
    FloatBuffer w = FloatBuffer.wrap(p.matrix(model));
    Int8Weights q = Int8Weights.of(p.name, w, dims, 1, qmax, null);
    return new Rounded(q.integers(), q.scales(), new double[p.columns]);
  }

  @Override
  public void setWeights(String output, byte[] integers, float[] scales) {
    Product p = ProductSite.product(sites, output);
    if (integers.length != p.rows * p.columns || scales.length != p.columns) {
      throw new IllegalArgumentException(
          p.name
              + " has "
              + p.rows
              + " x "
              + p.columns
              + " weights; given are "
              + integers.length
              + " integers and "
              + scales.length
              + " scales");
    }
    rounded.put(p, new Rounded(integers.clone(), scales.clone(), new double[p.columns]));
  }

  @Override
  public void apply() {
    quantizeModel();
  }

  @Override
  void writeNodes(OnnxModel target) {
    new Rewriting(target).run();
  }

  /** The outputs of a DynamicQuantizeLinear. */
  private record Quantized(String integers, String step, String zeroPoint) {}

  /** One pass over the nodes that emits the new ones. */
  private final class Rewriting {
    private final OnnxModel model;
    private final OnnxModel.Names names;

    /** The nodes of the graph that is at hand. */
    private List<NodeProto> out = new ArrayList<>();

    private final Map<String, Product> products = new HashMap<>();
    private final BiasChanges biases;

    /** Activations that were quantized, as far as the graph at hand sees them. */
    private Map<String, Quantized> quantized = new HashMap<>();

    /** The integers and scales of products that are not looked up in. */
    private final Map<Product, StoredWeights> stored = new HashMap<>();

    /** Those of weights that were rounded as they are, by weight and axes. */
    private final Map<List<Object>, StoredWeights> plain = new HashMap<>();

    /** The same of those that are looked up in too. */
    private final Map<Product, StoredWeights> shared = new HashMap<>();

    private final EmbeddingTables embeddings;
    private String zeroPoint;

    Rewriting(OnnxModel model) {
      this.model = model;
      this.names = model.names();
      this.biases = new BiasChanges(model, names);
      this.embeddings = new EmbeddingTables(model, names, trainedTables);
    }

    void run() {
      for (ProductSite s : sites) {
        for (Product p : s.products) {
          p.outputs.forEach(output -> products.put(output, p));
          Rounded r = rounded.get(p);
          if (r != null && any(r.meanError())) {
            biases.add(p, r.meanError());
          }
        }
      }
      rewrite(model.nodes());
      model.setNodes(out);
    }

    private void rewrite(List<NodeProto> nodes) {
      for (NodeProto n : nodes) {
        String output = n.getOutputCount() == 0 ? "" : n.getOutput(0);
        if (tied.contains(output)) {
          Product p = tied.product(output);
          share(p);
          out.addAll(embeddings.lookUpShared(tied.gather(output), p.value));
        } else if (tables.containsKey(output)) {
          out.addAll(embeddings.lookUp(n, tables.get(output).name()));
        } else if (products.containsKey(output)) {
          multiply(n, products.get(output));
        } else if (biases.contains(output)) {
          out.add(biases.changed(n));
        } else {
          out.add(InnerGraphs.changed(n, this::rewritten));
        }
      }
    }

    /** A branch or body. Its integers lie in the main graph, so that branches share what they shared. */
    private GraphProto rewritten(GraphProto g) {
      List<NodeProto> around = out;
      Map<String, Quantized> seen = quantized;
      out = new ArrayList<>();
      quantized = new HashMap<>(seen);
      rewrite(g.getNodeList());
      GraphProto result = g.toBuilder().clearNode().addAllNode(out).build();
      out = around;
      quantized = seen;
      return result;
    }

    private static boolean any(double[] values) {
      return Arrays.stream(values).anyMatch(v -> v != 0);
    }

    // Short names of values, and no names of nodes, keep a model of twelve layers 60 KB smaller.
    private void multiply(NodeProto n, Product p) {
      Quantized x = quantized.computeIfAbsent(n.getInput(0), this::quantize);
      StoredWeights w = weights(p);
      String sum = names.unique("sum");
      String real = names.unique("real");
      String scale = names.unique("scale");
      NodeProto.Builder product =
          Nodes.node("MatMulInteger", sum, x.integers(), w.integers(), x.zeroPoint());
      emit(options.weights().zeroPoint() == 0 ? product : product.addInput(zeroPoint()));
      emit(
          Nodes.node("Cast", real, sum)
              .addAttribute(Attributes.attribute("to", DataType.FLOAT_VALUE)));
      emit(Nodes.node("Mul", scale, x.step(), w.scales()));
      emit(Nodes.node("Mul", n.getOutput(0), real, scale));
    }

    /** The zero point of all weights, which is not 0. */
    private String zeroPoint() {
      if (zeroPoint == null) {
        zeroPoint = names.unique("weight_zero_point");
        model.addInitializer(
            OnnxInitializer.bytes(
                zeroPoint, options.weights().type(), new long[0], options.weights().zeroPoint()));
      }
      return zeroPoint;
    }

    private void emit(NodeProto.Builder n) {
      out.add(n.clearName().build());
    }

    private Quantized quantize(String activation) {
      Quantized q =
          new Quantized(
              names.unique("quantized"), names.unique("step"), names.unique("zero_point"));
      emit(
          Nodes.node("DynamicQuantizeLinear", q.integers(), activation)
              .addOutput(q.step())
              .addOutput(q.zeroPoint()));
      return q;
    }

    /** Stores the weights of a product that are looked up in too, once: the integers are the rows of the table. */
    private StoredWeights share(Product p) {
      return shared.computeIfAbsent(
          p,
          key -> {
            Rounded r = rounded.computeIfAbsent(p, DynamicQuantizer.this::nearest);
            String scales = names.unique(p.value + "_scale");
            model.addInitializer(
                OnnxInitializer.floats(scales, new long[] {p.columns}, r.scales()));
            return new StoredWeights(
                embeddings.share(p.value, options.weights(), r.integers(), r.scales(), p.factors),
                scales);
          });
    }

    private StoredWeights weights(Product p) {
      if (tied.reads(p)) {
        StoredWeights rows = share(p);
        String turned = names.unique(p.value + "_turned");
        emit(Nodes.node("Transpose", turned, rows.integers()).addAttribute(Nodes.swap()));
        return new StoredWeights(turned, rows.scales());
      }
      return stored.computeIfAbsent(p, this::store);
    }

    private StoredWeights store(Product p) {
      Rounded r = rounded.get(p);
      long[] dims = {p.rows, p.columns};
      if (r != null) {
        ByteBuffer integers = ByteBuffer.allocateDirect(r.integers().length).put(r.integers());
        return store(p.value, dims, integers.flip(), r.scales());
      }
      return plain.computeIfAbsent(
          List.of(p.value, p.axes),
          key -> {
            OnnxInitializer w = model.constant(p.value);
            FloatBuffer values = Permutation.apply(w.floats(), w.dims(), p.axes);
            Int8Weights q = Int8Weights.of(p.name, values, dims, 1, qmax, null);
            return store(p.value, dims, q.values(), q.scales());
          });
    }

    /** Adds integers and the scale of each column. */
    private StoredWeights store(String value, long[] dims, ByteBuffer integers, float[] scales) {
      StoredWeights made = StoredWeights.named(value, names);
      WeightIntegers kind = options.weights();
      model.addInitializer(
          OnnxInitializer.of(made.integers(), kind.type(), dims, kind.stored(integers)));
      model.addInitializer(
          OnnxInitializer.floats(made.scales(), new long[] {scales.length}, scales));
      return made;
    }
  }
}

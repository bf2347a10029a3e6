package org.espalier.compress.onnx;

import ai.onnx.proto.OnnxMl.NodeProto;
import ai.onnx.proto.OnnxMl.TensorProto.DataType;
import ai.onnx.proto.OnnxMl.ValueInfoProto;
import java.nio.ByteBuffer;
import java.nio.FloatBuffer;
import java.util.ArrayList;
import java.util.Collections;
import java.util.HashMap;
import java.util.HashSet;
import java.util.LinkedHashMap;
import java.util.LinkedHashSet;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.function.Predicate;
import org.espalier.InputException;
import org.espalier.format.onnx.OnnxInitializer;
import org.espalier.format.onnx.OnnxModel;
import org.espalier.format.onnx.OnnxWeight;
import org.espalier.format.onnx.OnnxWeight.Kind;
import org.espalier.format.onnx.OnnxWeight.Use;
import org.espalier.format.onnx.OnnxWeights;
import org.slf4j.Logger;
import org.slf4j.LoggerFactory;

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
 * float32.
 *
 * <p>Use: construct, {@link #calibrate} where accuracy matters, {@link #apply}. Calibration
 *
 * <ol>
 *   <li>shifts each activation that ends in the addition of a constant vector (as LayerNorm does) so that its
 *       channels are centred, and puts the shift back in the biases of all that read it: free at run time;
 *   <li>moves scale from activations into weights ({@link Equalization}) by one Mul before those products
 *       where rounding the activation costs most;
 *   <li>rounds weights so that later rows compensate for earlier ones ({@link CompensatedRounding}), and
 *       puts the mean of what error is left into the bias (Nagel et al. 2019, arXiv 1906.04721).
 * </ol>
 *
 * <p>The first two change nothing in float arithmetic but its rounding. Not safe for several threads.
 */
public final class DynamicQuantizer {
  private static final Logger LOG = LoggerFactory.getLogger(DynamicQuantizer.class);

  /** DynamicQuantizeLinear exists since this version. */
  private static final long OPSET = 11;

  /** Smaller tables are no saving worth three nodes. */
  private static final long SMALLEST_TABLE = 1 << 16;

  /** A Mul is worth its time where it takes away at least this share of all noise that Muls could. */
  private static final double WORTH_SCALING = 0.01;

  /**
   * What to quantize.
   *
   * @param reduceRange weights of 7 bits, for processors whose 8-bit products saturate, see {@link
   *     Int8Saturation}
   * @param embeddings whether embedding tables are quantized
   * @param include which weights are quantized; embeddings are asked for too
   */
  public record Options(boolean reduceRange, boolean embeddings, Predicate<OnnxWeight> include) {
    /** All weights, in 8 bits. */
    public static Options defaults() {
      return new Options(false, true, w -> true);
    }
  }

  /** One product x·W. */
  private static final class Product {
    final OnnxWeight weight;
    final Use use;
    final String output;
    final int rows;
    final int columns;

    /** The Add of the bias; null where the product has none. */
    final String biasAdd;

    /** Set by calibration; otherwise the weights are rounded as they are. */
    byte[] integers;

    float[] scales;

    Product(OnnxWeight weight, Use use, int rows, int columns, String biasAdd) {
      this.weight = weight;
      this.use = use;
      this.output = use.node();
      this.rows = rows;
      this.columns = columns;
      this.biasAdd = biasAdd;
    }
  }

  /** All products of one activation. */
  private static final class Site {
    final String activation;
    final int channels;
    final List<Product> products = new ArrayList<>();

    /** 1/s for the Mul before the products; null for none. */
    float[] inverseScale;

    Site(String activation, int channels) {
      this.activation = activation;
      this.channels = channels;
    }
  }

  private final OnnxModel model;
  private final Options options;
  private final int qmax;
  private final Map<String, Site> sites = new LinkedHashMap<>();
  private final Map<String, OnnxWeight> tables = new LinkedHashMap<>();
  private final Map<String, String> skipped = new LinkedHashMap<>();

  /** What is added to the constant vector of an Add or LayerNormalization node, by its output. */
  private final Map<String, double[]> vectorChanges = new LinkedHashMap<>();

  /**
   * Plans the quantization of {@code model} and gives it the form that the runtime fuses.
   *
   * @throws InputException if its operators are too old, or there is nothing to quantize
   */
  public DynamicQuantizer(OnnxModel model, Options options) {
    this.model = model;
    this.options = options;
    this.qmax = options.reduceRange() ? Int8Weights.MAX_7_BIT : Int8Weights.MAX_8_BIT;
    OpsetUpgrade.raise(model, OPSET);
    RuntimeForm.apply(model);
    Map<String, NodeProto> producers = model.producers();
    Map<String, List<NodeProto>> consumers = model.consumers();
    for (OnnxWeight weight : OnnxWeights.of(model)) {
      if (!options.include().test(weight)) {
        continue;
      }
      for (Use use : weight.uses()) {
        NodeProto n = producers.get(use.node());
        String reason = obstacle(weight, use, n);
        if (reason != null) {
          skipped.put(weight.name(), reason);
        } else if (use.kind() == Kind.EMBEDDING) {
          tables.put(use.node(), weight);
        } else {
          long[] dims = model.constant(weight.value()).dims();
          int rows = Math.toIntExact(dims[use.reductionAxis()]);
          int columns = Math.toIntExact(dims[use.outputAxis()]);
          String bias = biasAdd(use.node(), columns, consumers);
          sites
              .computeIfAbsent(n.getInput(0), a -> new Site(a, rows))
              .products
              .add(new Product(weight, use, rows, columns, bias));
        }
      }
    }
    if (sites.isEmpty()) {
      throw new InputException(
          model.name()
              + " has no weights to quantize: no MatMul or Gemm multiplies a value with a float32"
              + " constant matrix"
              + (skipped.isEmpty() ? "" : "; left as they are: " + skipped));
    }
  }

  /** Why a use of a weight stays as it is; null if it can be quantized. */
  private String obstacle(OnnxWeight weight, Use use, NodeProto n) {
    OnnxInitializer w = model.constant(weight.value());
    if (w.elements() == 0) {
      return "it has no elements";
    }
    switch (use.kind()) {
      case EMBEDDING -> {
        if (!options.embeddings()) {
          return "embeddings are left as they are";
        }
        if (w.elements() < SMALLEST_TABLE) {
          return "the table is small";
        }
        return weight.isEmbedding()
                && weight.otherUses() == 0
                && use.isDirect()
                && w.type() == DataType.FLOAT
                && w.dims().length == 2
            ? null
            : "it is no table of float32 rows that is only looked up in";
      }
      case MATMUL -> {
        if (use.input() != 1) {
          return "it is the left factor";
        }
        if (w.dims().length != 2) {
          return "it is no matrix";
        }
        boolean plain = w.type() == DataType.FLOAT;
        for (String value : use.path().subList(1, use.path().size())) {
          plain &= !model.producers().get(value).getOpType().equals("Cast");
        }
        return plain ? null : "its arithmetic is not float32";
      }
      case GEMM -> {
        return "its Gemm transposes A, has factors or a bias that is no constant";
      }
      default -> {
        return "Conv stays float32 in dynamic quantization";
      }
    }
  }

  /** The Add of a constant vector that alone reads {@code product}; null if there is none. */
  private String biasAdd(String product, int columns, Map<String, List<NodeProto>> consumers) {
    List<NodeProto> readers = consumers.getOrDefault(product, List.of());
    boolean output = model.outputs().stream().anyMatch(v -> v.getName().equals(product));
    if (readers.size() != 1 || output) {
      return null;
    }
    NodeProto add = readers.get(0);
    return vectorInput(add, columns) >= 0 ? add.getOutput(0) : null;
  }

  /** Which input of an Add or LayerNormalization is the constant vector it adds; -1 for none. */
  private int vectorInput(NodeProto n, int width) {
    if (n == null) {
      return -1;
    }
    if (n.getOpType().equals("Add")) {
      for (int i = 1; i >= 0; i--) {
        if (isVector(n.getInput(i), width) && model.constant(n.getInput(1 - i)) == null) {
          return i;
        }
      }
      return -1;
    }
    boolean norm = n.getOpType().equals("LayerNormalization") && n.getInputCount() == 3;
    return norm && isVector(n.getInput(2), width) ? 2 : -1;
  }

  private boolean isVector(String value, int width) {
    OnnxInitializer c = model.constant(value);
    return c != null
        && c.type() == DataType.FLOAT
        && c.dims().length == 1
        && c.elements() == width;
  }

  /** The weights that are quantized, by the names of {@link OnnxWeight}. */
  public List<String> quantized() {
    Set<String> names = new LinkedHashSet<>();
    tables.values().forEach(w -> names.add(w.name()));
    sites.values().forEach(s -> s.products.forEach(p -> names.add(p.weight.name())));
    return List.copyOf(names);
  }

  /** The weights that were asked for and stay as they are, with the reason. */
  public Map<String, String> skipped() {
    return Collections.unmodifiableMap(skipped);
  }

  /**
   * Fits shifts, scales and the rounding of the weights to examples. The model must be as the
   * constructor left it.
   *
   * @param source runs the examples; called once or, where the statistics of all activations would take
   *     more than a quarter of this JVM's heap, several times
   * @throws InputException if a weight or an activation is not finite, naming it, or there are no
   *     examples
   */
  public void calibrate(ActivationSource source) {
    long limit = Math.max(64L << 20, Runtime.getRuntime().maxMemory() / 4);
    List<Site> group = new ArrayList<>();
    List<List<Site>> groups = new ArrayList<>();
    long bytes = 0;
    for (Site site : sites.values()) {
      long more = ActivationStatistics.bytes(site.channels);
      if (!group.isEmpty() && bytes + more > limit) {
        groups.add(group);
        group = new ArrayList<>();
        bytes = 0;
      }
      group.add(site);
      bytes += more;
    }
    groups.add(group);
    for (List<Site> g : groups) {
      calibrate(g, source);
    }
  }

  private void calibrate(List<Site> group, ActivationSource source) {
    Map<String, ActivationStatistics> statistics = new LinkedHashMap<>();
    for (Site s : group) {
      statistics.put(s.activation, new ActivationStatistics(s.activation, s.channels));
    }
    long start = System.nanoTime();
    source.run(model, statistics.keySet(), (name, values) -> statistics.get(name).add(values));
    LOG.debug("activations collected in {} ms", (System.nanoTime() - start) / 1_000_000);
    for (ActivationStatistics s : statistics.values()) {
      if (s.examples() == 0) {
        throw new InputException("calibration of " + s.name() + " needs at least one example");
      }
    }
    Map<Product, float[]> weights = new HashMap<>();
    Map<Site, Boolean> shiftable = new HashMap<>();
    for (Site s : group) {
      for (Product p : s.products) {
        weights.put(p, matrix(p));
      }
      shiftable.put(s, isShiftable(s));
    }
    List<Equalization> equalizations =
        group.parallelStream()
            .map(
                s ->
                    Equalization.search(
                        statistics.get(s.activation),
                        s.products.stream().map(weights::get).toList(),
                        shiftable.get(s),
                        qmax))
            .toList();
    double gain = equalizations.stream().mapToDouble(DynamicQuantizer::gain).sum();
    LOG.debug("equalized after {} ms", (System.nanoTime() - start) / 1_000_000);
    for (int i = 0; i < group.size(); i++) {
      Site s = group.get(i);
      Equalization e = equalizations.get(i);
      if (gain(e) < WORTH_SCALING * gain || gain(e) <= 0) {
        e = e.withoutScale();
      } else {
        s.inverseScale = new float[s.channels];
        for (int c = 0; c < s.channels; c++) {
          s.inverseScale[c] = 1 / e.scale()[c];
        }
      }
      LOG.debug(
          "{}: relative noise {} to {}{}{}",
          s.activation,
          e.noiseBefore() / e.signal(),
          e.noiseAfter() / e.signal(),
          shiftable.get(s) ? ", shifted" : "",
          s.inverseScale != null ? ", scaled" : "");
      if (shiftable.get(s)) {
        shift(s, e.shift(), weights);
      }
      round(s, e, statistics.get(s.activation), weights);
    }
    LOG.debug("rounded after {} ms", (System.nanoTime() - start) / 1_000_000);
  }

  private static double gain(Equalization e) {
    return e.signal() > 0 ? (e.noiseBefore() - e.noiseAfter()) / e.signal() : 0;
  }

  /** The weights of a product as its node sees them, [rows, columns]. */
  private float[] matrix(Product p) {
    OnnxInitializer w = model.constant(p.weight.value());
    float[] values = new float[(int) w.elements()];
    Permutation.apply(w.floats(), w.dims(), p.use.axes()).get(values);
    for (int i = 0; i < values.length; i++) {
      if (!(Math.abs(values[i]) <= Float.MAX_VALUE)) {
        throw new InputException(
            "the weights "
                + p.weight.name()
                + " hold "
                + values[i]
                + " in row "
                + i / p.columns
                + ", column "
                + i % p.columns
                + " of their product: no scale can be found; repair or exclude them");
      }
    }
    return values;
  }

  /**
   * Whether every reader of an activation can take up a shift: products through their biases, a
   * residual addition through the bias of its other operand.
   */
  private boolean isShiftable(Site s) {
    Map<String, NodeProto> producers = model.producers();
    Map<String, List<NodeProto>> consumers = model.consumers();
    if (vectorInput(producers.get(s.activation), s.channels) < 0 || isOutput(s.activation)) {
      return false;
    }
    Set<String> products = new HashSet<>();
    for (Product p : s.products) {
      if (p.biasAdd == null) {
        return false;
      }
      products.add(p.output);
    }
    for (NodeProto reader : consumers.get(s.activation)) {
      if (!products.contains(reader.getOutput(0))
          && residualVector(reader, s, producers, consumers) == null) {
        return false;
      }
    }
    return true;
  }

  /** The node whose vector takes up a shift that a residual addition reads; null if there is none. */
  private NodeProto residualVector(
      NodeProto reader,
      Site s,
      Map<String, NodeProto> producers,
      Map<String, List<NodeProto>> consumers) {
    if (!reader.getOpType().equals("Add")) {
      return null;
    }
    int other = reader.getInput(0).equals(s.activation) ? 1 : 0;
    String value = reader.getInput(other);
    boolean alone =
        !value.equals(s.activation)
            && consumers.getOrDefault(value, List.of()).size() == 1
            && !isOutput(value);
    NodeProto n = producers.get(value);
    return alone && vectorInput(n, s.channels) >= 0 ? n : null;
  }

  private boolean isOutput(String value) {
    return model.outputs().stream().map(ValueInfoProto::getName).anyMatch(value::equals);
  }

  private void shift(Site s, float[] z, Map<Product, float[]> weights) {
    Map<String, NodeProto> producers = model.producers();
    Map<String, List<NodeProto>> consumers = model.consumers();
    double[] away = new double[z.length];
    double[] back = new double[z.length];
    for (int c = 0; c < z.length; c++) {
      away[c] = -z[c];
      back[c] = z[c];
    }
    changeVector(s.activation, away);
    Set<String> products = new HashSet<>();
    for (Product p : s.products) {
      products.add(p.output);
      float[] w = weights.get(p);
      double[] change = new double[p.columns];
      for (int k = 0; k < p.rows; k++) {
        for (int j = 0; j < p.columns; j++) {
          change[j] += (double) z[k] * w[k * p.columns + j];
        }
      }
      changeVector(p.biasAdd, change);
    }
    for (NodeProto reader : consumers.get(s.activation)) {
      if (!products.contains(reader.getOutput(0))) {
        changeVector(residualVector(reader, s, producers, consumers).getOutput(0), back);
      }
    }
  }

  private void changeVector(String node, double[] change) {
    double[] sum = vectorChanges.computeIfAbsent(node, k -> new double[change.length]);
    for (int i = 0; i < change.length; i++) {
      sum[i] += change[i];
    }
  }

  /** Rounds the products of a site; the mean of the error goes into their biases. */
  private void round(
      Site s, Equalization e, ActivationStatistics x, Map<Product, float[]> weights) {
    boolean biased = s.products.stream().allMatch(p -> p.biasAdd != null);
    CompensatedRounding rounding =
        new CompensatedRounding(x.moments(e.shift(), e.scale(), biased));
    for (Product p : s.products) {
      float[] w = weights.get(p);
      float[] scaled = new float[w.length];
      p.scales = new float[p.columns];
      for (int k = 0; k < p.rows; k++) {
        for (int j = 0; j < p.columns; j++) {
          int at = k * p.columns + j;
          scaled[at] = w[at] * e.scale()[k];
          p.scales[j] = Math.max(p.scales[j], Math.abs(scaled[at]));
        }
      }
      for (int j = 0; j < p.columns; j++) {
        p.scales[j] = p.scales[j] == 0 ? 1 : p.scales[j] / qmax;
        if (!(p.scales[j] >= Float.MIN_NORMAL)) {
          throw new InputException(
              "the weights "
                  + p.weight.name()
                  + " are at most "
                  + p.scales[j] * qmax
                  + " in channel "
                  + j
                  + ", too small for a float32 scale; set them to zero or exclude them");
        }
      }
      p.integers = rounding.round(scaled, p.scales, qmax);
      if (p.biasAdd != null) {
        double[] change = new double[p.columns];
        for (int k = 0; k < p.rows; k++) {
          double mean = (x.mean(k) - e.shift()[k]) / e.scale()[k];
          for (int j = 0; j < p.columns; j++) {
            int at = k * p.columns + j;
            change[j] += mean * ((double) scaled[at] - (double) p.integers[at] * p.scales[j]);
          }
        }
        changeVector(p.biasAdd, change);
      }
    }
  }

  /**
   * Quantizes the model in place.
   *
   * @throws InputException if weights are not finite, naming them; the model is then unusable
   */
  public void apply() {
    new Rewriting().run();
  }

  /** One pass over the nodes that emits the new ones. */
  private final class Rewriting {
    private final OnnxModel.Names names = model.names();
    private final List<NodeProto> out = new ArrayList<>();
    private final Map<String, Product> products = new HashMap<>();
    private final Map<Product, Site> siteOf = new HashMap<>();

    /** The three outputs of the DynamicQuantizeLinear of a site. */
    private final Map<Site, List<String>> quantized = new HashMap<>();

    /** Integers and scales of weights that were rounded as they are, by weight and axes. */
    private final Map<List<Object>, List<String>> plain = new HashMap<>();

    private final Map<String, List<String>> tableParts = new HashMap<>();

    void run() {
      for (Site s : sites.values()) {
        for (Product p : s.products) {
          products.put(p.output, p);
          siteOf.put(p, s);
        }
      }
      for (NodeProto n : model.nodes()) {
        String output = n.getOutputCount() == 0 ? "" : n.getOutput(0);
        if (tables.containsKey(output)) {
          lookUp(n, tables.get(output));
        } else if (products.containsKey(output)) {
          multiply(products.get(output));
        } else if (vectorChanges.containsKey(output)) {
          out.add(withVector(n, vectorChanges.get(output)));
        } else {
          out.add(n);
        }
      }
      model.setNodes(out);
      RuntimeForm.removeUnused(model);
      model.check();
    }

    private NodeProto withVector(NodeProto n, double[] change) {
      int input = vectorInput(n, change.length);
      String old = n.getInput(input);
      FloatBuffer values = model.constant(old).floats();
      float[] changed = new float[change.length];
      for (int c = 0; c < changed.length; c++) {
        changed[c] = (float) (values.get(c) + change[c]);
      }
      String vector = names.unique(old + "_fitted");
      model.addInitializer(
          OnnxInitializer.floats(vector, new long[] {changed.length}, changed));
      return n.toBuilder().setInput(input, vector).build();
    }

    private void multiply(Product p) {
      Site s = siteOf.get(p);
      List<String> x = quantized.computeIfAbsent(s, this::quantize);
      List<String> w = weights(p);
      String integers = names.unique(p.output + "_int32");
      String reals = names.unique(p.output + "_float");
      String scales = names.unique(p.output + "_scales");
      out.add(Nodes.node("MatMulInteger", integers, x.get(0), w.get(0), x.get(2)).build());
      out.add(
          Nodes.node("Cast", reals, integers)
              .addAttribute(Nodes.attribute("to", DataType.FLOAT_VALUE))
              .build());
      out.add(Nodes.node("Mul", scales, x.get(1), w.get(1)).build());
      out.add(Nodes.node("Mul", p.output, reals, scales).build());
    }

    private List<String> quantize(Site s) {
      String x = s.activation;
      if (s.inverseScale != null) {
        String factor = names.unique(s.activation + "_factor");
        model.addInitializer(
            OnnxInitializer.floats(factor, new long[] {s.channels}, s.inverseScale));
        x = names.unique(s.activation + "_scaled");
        out.add(Nodes.node("Mul", x, s.activation, factor).build());
      }
      List<String> parts =
          List.of(
              names.unique(s.activation + "_quantized"),
              names.unique(s.activation + "_step"),
              names.unique(s.activation + "_zero_point"));
      out.add(
          Nodes.node("DynamicQuantizeLinear", parts.get(0), x)
              .clearOutput()
              .addAllOutput(parts)
              .build());
      return parts;
    }

    private List<String> weights(Product p) {
      List<Object> key = List.of(p.weight.value(), p.use.axes());
      List<String> known = p.integers == null ? plain.get(key) : null;
      if (known != null) {
        return known;
      }
      long[] dims = {p.rows, p.columns};
      ByteBuffer integers;
      float[] scales;
      if (p.integers == null) {
        OnnxInitializer w = model.constant(p.weight.value());
        FloatBuffer values = Permutation.apply(w.floats(), w.dims(), p.use.axes());
        Int8Weights q = Int8Weights.of(p.weight.name(), values, dims, 1, qmax, null);
        integers = q.values();
        scales = q.scales();
      } else {
        integers = ByteBuffer.allocateDirect(p.integers.length).put(p.integers).flip();
        scales = p.scales;
      }
      List<String> made =
          List.of(
              names.unique(p.weight.value() + "_quantized"),
              names.unique(p.weight.value() + "_scale"));
      model.addInitializer(OnnxInitializer.of(made.get(0), DataType.INT8, dims, integers));
      model.addInitializer(OnnxInitializer.floats(made.get(1), new long[] {p.columns}, scales));
      if (p.integers == null) {
        plain.put(key, made);
      }
      return made;
    }

    /** Rows are looked up as integers, their scales beside them, and multiplied. */
    private void lookUp(NodeProto n, OnnxWeight weight) {
      List<String> parts =
          tableParts.computeIfAbsent(
              weight.value(),
              v -> {
                OnnxInitializer table = model.constant(v);
                long[] dims = table.dims();
                Int8Weights q =
                    Int8Weights.of(
                        weight.name(), table.floats(), dims, 0, Int8Weights.MAX_8_BIT, null);
                List<String> made =
                    List.of(names.unique(v + "_quantized"), names.unique(v + "_scale"));
                model.addInitializer(
                    OnnxInitializer.of(made.get(0), DataType.INT8, dims, q.values()));
                model.addInitializer(
                    OnnxInitializer.floats(made.get(1), new long[] {dims[0], 1}, q.scales()));
                return made;
              });
      String output = n.getOutput(0);
      String rows = names.unique(output + "_quantized");
      String scales = names.unique(output + "_scale");
      String reals = names.unique(output + "_rows");
      out.add(n.toBuilder().setInput(0, parts.get(0)).setOutput(0, rows).build());
      out.add(
          n.toBuilder()
              .setName(scales)
              .setInput(0, parts.get(1))
              .setOutput(0, scales)
              .build());
      out.add(
          Nodes.node("Cast", reals, rows)
              .addAttribute(Nodes.attribute("to", DataType.FLOAT_VALUE))
              .build());
      out.add(Nodes.node("Mul", output, reals, scales).build());
    }
  }
}

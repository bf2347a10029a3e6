package org.espalier.compress.onnx;

import ai.onnx.proto.OnnxMl.NodeProto;
import ai.onnx.proto.OnnxMl.TensorProto.DataType;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.Collection;
import java.util.Comparator;
import java.util.HashMap;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Locale;
import java.util.Map;
import java.util.Set;
import java.util.TreeSet;
import java.util.function.Function;
import java.util.function.Predicate;
import java.util.stream.Collectors;
import org.espalier.InputException;
import org.espalier.compress.Progress.Phase;
import org.espalier.compress.onnx.ProductSite.Product;
import org.espalier.compress.onnx.fitting.ActivationStatistics;
import org.espalier.compress.onnx.fitting.CompensatedRounding;
import org.espalier.format.Quantity;
import org.espalier.format.onnx.Attributes;
import org.espalier.format.onnx.HalfPrecision;
import org.espalier.format.onnx.InnerGraphs;
import org.espalier.format.onnx.OnnxInitializer;
import org.espalier.format.onnx.OnnxModel;
import org.espalier.format.onnx.OnnxWeight;

/**
 * Quantization of weights alone, to 4 or 8 bits. A MatMul or Gemm with a constant matrix becomes ONNX Runtime's {@code
 * MatMulNBits}, with one scale for each block of input channels of an output channel. When it runs it rounds
 * activations to 8 bits, a block of a row at a time, so that no row depends on others. One row at a time, as in a
 * language model that writes, takes the time in which its weights are read, an eighth or a quarter of what they were;
 * many rows at once take longer than with {@linkplain DynamicQuantizer one scale a column}. Embedding tables whose rows
 * are whole blocks become {@code GatherBlockQuantized}, others int8 with one scale a row. Everything else stays
 * float32. A model of float16 or bfloat16 computes in float32 afterwards ({@link HalfPrecision}).
 *
 * <p>Use: construct, {@link #calibrate} where accuracy matters, {@link #apply}. Calibration chooses the scales with
 * which the channels of largest activations lose least, rounds weights so that later rows compensate for earlier ones
 * ({@link CompensatedRounding}), and puts the mean of the error that is left into the bias. So it does in branches of If, by what is
 * seen in those that examples take, for all branches with the same weights; what is {@linkplain #unseen} is rounded to the nearest.
 */
public final class BlockQuantizer extends OnnxQuantizer implements WeightQuantizer {
  /** Casts of the integers of tables exist since this version. */
  private static final long OPSET = 11;

  private static final String DOMAIN = "com.microsoft";

  /** What 4 bits cost is measured on so many examples. */
  private static final int MEASURED = 16;

  /** ONNX Runtime's number for activations of 8 bits. */
  private static final int INT8_ACTIVATIONS = 4;

  /** Blocks that ONNX Runtime has kernels for, in input channels. */
  public static final List<Integer> BLOCKS = List.of(16, 32, 64, 128, 256);

  /**
   * What to quantize.
   *
   * @param bits of a weight: 4 or 8
   * @param block input channels that share a scale: 16, 32, 64, 128 or 256
   * @param embeddings whether embedding tables are quantized
   * @param include which weights are quantized; embeddings are asked for too
   */
  public record Options(int bits, int block, boolean embeddings, Predicate<OnnxWeight> include) {
    /**
     * @throws InputException if there are no such blocks
     * @throws IllegalArgumentException if bits are not 4 or 8
     */
    public Options {
      if (bits != 4 && bits != 8) {
        throw new IllegalArgumentException(bits + " bits; 4 or 8 is right");
      }
      requireBlock(block);
    }

    /** All weights in so many bits, with the default {@link #block(int)}. */
    public static Options of(int bits) {
      return new Options(bits, block(bits), true, w -> true);
    }

    /** The block of weights of so many bits by default. */
    public static int block(int bits) {
      return bits == 4 ? 32 : 64;
    }
  }

  /**
   * Checks that ONNX Runtime has kernels for blocks of so many input channels.
   *
   * @throws InputException if not
   */
  public static void requireBlock(int block) {
    if (!BLOCKS.contains(block)) {
      throw new InputException("blocks of " + block + "; 16, 32, 64, 128 or 256 is right");
    }
  }

  /** What was found for a product, and the mean error of x·W; null where biases need not take it up. */
  private record Fitted(BlockWeights weights, double[] meanError) {}

  private final Options options;
  private final long segment;
  private final List<ProductSite> sites;

  /** The look-ups in the weights of products. */
  private TiedLookUps<Product> tied = new TiedLookUps<>();

  /** The names of other tables, by the outputs of the Gathers that look up in them. */
  private final Map<String, String> tables = new LinkedHashMap<>();

  private final Map<Product, Fitted> fitted = new HashMap<>();

  /** What has 8 bits where all else has 4: the outputs of products, and the constants of tables. */
  private final Set<String> wide = new TreeSet<>();

  /** Tables of blocks whose scales were trained, by their constants. */
  private final Map<String, BlockWeights> trainedBlocks = new HashMap<>();

  /**
   * Plans the quantization of {@code model} and gives it the form that the runtime fuses.
   *
   * @throws InputException if its operators are too old, or there is nothing to quantize
   */
  public BlockQuantizer(OnnxModel model, Options options) {
    this(model, options, ModelSegments.BYTES);
  }

  /**
   * The same.
   *
   * @param segment bytes of the weights that calibration has in the runtime at once
   */
  BlockQuantizer(OnnxModel model, Options options, long segment) {
    super(model, OPSET);
    this.options = options;
    this.segment = segment;
    RuntimeForm.apply(model, true);
    sites = ProductSite.find(model, options.include(), skipped);
    for (ProductSite s : sites) {
      s.products.removeIf(this::isShort);
    }
    if (sites.stream().allMatch(s -> s.products.isEmpty())) {
      throw FloatWeights.none(
          model,
          "MatMul or Gemm multiplies a value with a float32 constant matrix of "
              + options.block()
              + " input channels or more",
          skipped);
    }
    if (options.embeddings()) {
      findTiedTables();
    }
    findTables();
  }

  private boolean isShort(Product p) {
    if (p.rows < options.block()) {
      p.names.forEach(name -> skipped.put(name, "it has fewer input channels than a block"));
      return true;
    }
    return false;
  }

  private void findTiedTables() {
    Map<String, NodeProto> producers = model.allProducers();
    for (ProductSite s : sites) {
      for (Product p : s.products) {
        for (String lookUp : p.lookUps) {
          if (p.rows % options.block() == 0) {
            tied.add(producers.get(lookUp), p);
          } else if (producers.get(lookUp).getInput(0).equals(p.value)) {
            tables.put(lookUp, p.name);
          }
        }
      }
    }
  }

  private void findTables() {
    EmbeddingTables.find(
            model,
            options.include(),
            options.embeddings(),
            lookUp -> tied.contains(lookUp) || tables.containsKey(lookUp),
            skipped)
        .forEach((lookUp, weight) -> tables.put(lookUp, weight.name()));
  }

  private int bits(Product p) {
    return bits(p.output);
  }

  private int bits(String productOrTable) {
    return wide.contains(productOrTable) ? 8 : options.bits();
  }

  @Override
  public List<String> quantized() {
    return ProductSite.names(tables.values().stream(), sites);
  }

  @Override
  public void calibrate(ActivationSource source) {
    use.check();
    FiniteConstants.requireWeights(model);
    calibrate(source, sites);
  }

  @Override
  public Map<String, String> unseen() {
    use.check();
    return ProductSite.unseen(sites, fitted::containsKey);
  }

  private void calibrate(ActivationSource source, List<ProductSite> some) {
    List<ProductSite> seen =
        some.stream().filter(s -> s.isSeen() && !s.products.isEmpty()).toList();
    // What is in branches is seen where these are, so such a model runs as a whole.
    List<ModelSegments.Segment> segments =
        seen.stream().anyMatch(s -> s.inner)
            ? ModelSegments.whole(model)
            : ModelSegments.of(
                model,
                seen.stream()
                    .flatMap(s -> s.products.stream())
                    .map(p -> p.value)
                    .collect(Collectors.toSet()),
                segment);
    int[] done = {0};
    try {
      new SegmentedStatistics(model, segments, options.bits())
          .see(
              source,
              progress,
              part -> madeBy(part, seen),
              (part, sites, statistics) -> {
                for (ProductSite s : sites) {
                  progress.at(Phase.FIT, done[0]++, seen.size());
                  ActivationStatistics x = statistics.remove(s);
                  if (x != null) {
                    fit(s, x);
                  }
                }
              });
    } catch (InputException e) {
      throw FiniteConstants.explained(model, e);
    }
  }

  /** The sites whose first product is in a part of the model. */
  private static List<ProductSite> madeBy(OnnxModel part, List<ProductSite> sites) {
    Set<String> made = part.allProducers().keySet();
    return sites.stream().filter(s -> made.contains(s.products.get(0).output)).toList();
  }

  private void fit(ProductSite s, ActivationStatistics x) {
    // A bias takes up the mean of the error, so that only what varies is left to rounding.
    boolean biased = s.products.stream().allMatch(Product::isBiased);
    double[][] moments = x.moments(biased);
    double[] importance = new double[s.channels];
    Arrays.setAll(importance, k -> moments[k][moments[k].length - 1]);
    double[] means = new double[s.channels];
    Arrays.setAll(means, x::mean);
    CompensatedRounding rounding = new CompensatedRounding(moments);
    int block = options.block();
    for (Product p : s.products) {
      int bits = bits(p);
      WeightGrid grid = WeightGrid.blocks(bits, block, 0);
      float[] w = p.matrix(model);
      float[] scales = BlockWeights.scales(bits, w, p.columns, block, importance);
      byte[] integers =
          rounding.round(
              w,
              new CompensatedRounding.Grid(
                  p.columns, scales, null, block, grid.least(), grid.largest(), false));
      BlockWeights weights = new BlockWeights(bits, p.rows, p.columns, block, scales, integers);
      double[] meanError = ProductFitting.meanError(w, p.columns, scales, block, integers, means);
      fitted.put(p, new Fitted(weights, meanError));
    }
  }

  /**
   * Weights that have 8 bits or 4 together: products of one activation, or a table.
   *
   * @param members the outputs of products, or the constant of a table
   * @param bytes that 8 bits take more
   * @param site of the products; null for a table
   */
  private record Group(Set<String> members, List<String> names, long bytes, ProductSite site) {}

  /**
   * Gives weights 8 bits in place of 4 whose 4 bits change the outputs most for the bytes, as many as fit. What each
   * group of weights that multiply one activation, and each table, costs alone is measured on some of the examples;
   * the squares of errors count as if they added up. Those of 8 bits are fitted anew.
   *
   * @param source what it was calibrated with
   * @param outputs that count, of the model's {@linkplain Answers#comparable comparable} ones
   * @param most bytes that the model may take
   * @return the names of the weights that have 8 bits
   * @throws InputException where 4 bits take more bytes already
   * @throws IllegalStateException after {@link #apply}
   */
  public List<String> widen(ActivationSource source, Collection<String> outputs, long most) {
    use.check();
    long left = most - requireRoom(most);
    List<Group> groups = groups();
    OutputError error = new OutputError(model, outputs, source.some(MEASURED));
    Map<Group, Double> gains = new HashMap<>();
    for (Group group : groups) {
      progress.at(Phase.MEASURE, gains.size(), groups.size());
      gains.put(group, Math.pow(error.of(rounded(group)), 2) / group.bytes());
    }
    List<String> names = new ArrayList<>();
    List<ProductSite> again = new ArrayList<>();
    groups.sort(Comparator.comparingDouble((Group group) -> -gains.get(group)));
    for (Group group : groups) {
      if (group.bytes() <= left && gains.get(group) > 0) {
        left -= group.bytes();
        wide.addAll(group.members());
        names.addAll(group.names());
        if (group.site() != null) {
          again.add(group.site());
        }
      }
    }
    calibrate(source, again);
    return names;
  }

  /**
   * Checks that a model of 4 bits takes no more than so many bytes.
   *
   * @return what it takes
   * @throws InputException if it takes more
   */
  public long requireRoom(long most) {
    long bytes = quantizedCopy(same -> {}).inlineSize();
    if (bytes > most) {
      throw new InputException(
          String.format(
              Locale.ROOT,
              "weights of 4 bits make a model of %s, more than the %s that it may take; a size %.2f"
                  + " times as large is the least",
              Quantity.bytes(bytes),
              Quantity.bytes(most),
              Math.ceil(100.0 * bytes / Math.max(1, most)) / 100));
    }
    return bytes;
  }

  private List<Group> groups() {
    List<Group> groups = new ArrayList<>();
    int block = options.block();
    for (ProductSite s : sites) {
      if (!s.products.isEmpty()) {
        long bytes =
            s.products.stream()
                .mapToLong(p -> (long) p.columns * ((p.rows + block - 1) / block) * block / 2)
                .sum();
        Set<String> outputs = s.products.stream().map(p -> p.output).collect(Collectors.toSet());
        List<String> names = s.products.stream().flatMap(p -> p.names.stream()).toList();
        groups.add(new Group(outputs, names, bytes, s));
      }
    }
    tableNames()
        .forEach(
            (value, name) -> {
              if (hasBlocks(value)) {
                long[] dims = model.constant(value).dims();
                groups.add(new Group(Set.of(value), List.of(name), dims[0] * dims[1] / 2, null));
              }
            });
    return groups;
  }

  /** The model with the weights of a group alone quantized. */
  private OnnxModel rounded(Group group) {
    OnnxModel copy = model.copy();
    new Rewriting(copy, fitted::get, group.members()::contains).run();
    RuntimeForm.removeUnused(copy);
    return copy;
  }

  /** What {@link #widen} gave 8 bits, for {@link #setWide} of another quantizer of the model. */
  public Set<String> wide() {
    return Set.copyOf(wide);
  }

  /** Gives 8 bits to what {@link #widen} gave them in a model that was prepared before. */
  public void setWide(Set<String> productsAndTables) {
    wide.addAll(productsAndTables);
  }

  @Override
  public void prepareTraining() {
    use.check();
    OnnxModel.Names names = model.names();
    Map<String, TrainingForm.Latent> latents = new HashMap<>();
    Map<String, double[]> biasChanges = new HashMap<>();
    for (Product p : trainedProducts()) {
      p.makeLatent(model, names);
      latents.put(p.output, new TrainingForm.Latent(1, p.value));
      Fitted f = fitted.get(p);
      if (f != null) {
        p.biasAdds.forEach(add -> biasChanges.put(add, f.meanError()));
        fitted.put(p, new Fitted(f.weights(), null));
      }
    }
    tied =
        TrainingForm.apply(
            model,
            names,
            latents,
            biasChanges,
            tied,
            p -> p.value,
            p -> null); // they are not equalized
    // What a product read too is a table alone now.
    findTables();
    roundTables();
    RuntimeForm.removeUnused(model);
  }

  /** Those of the main graph; what lies in a branch or body is rounded as it is. */
  private List<Product> trainedProducts() {
    return sites.stream().filter(s -> !s.inner).flatMap(s -> s.products.stream()).toList();
  }

  /** Replaces tables by the values that their integers stand for. */
  private void roundTables() {
    Map<String, String> rows = new LinkedHashMap<>();
    tableNames()
        .forEach(
            (value, name) -> {
              if (hasBlocks(value)) {
                long[] dims = model.constant(value).dims();
                float[] rounded = nearestTable(model, name, value).columnValues();
                model.replaceConstant(OnnxInitializer.floats(value, dims, rounded));
              } else {
                rows.put(value, name);
              }
            });
    EmbeddingTables.round(model, rows);
  }

  @Override
  Map<String, String> tableNames() {
    Map<String, NodeProto> producers = model.allProducers();
    Map<String, String> distinct = new LinkedHashMap<>();
    tables.forEach((lookUp, name) -> distinct.put(producers.get(lookUp).getInput(0), name));
    return distinct;
  }

  /** Whether the rows of a table are whole blocks; else they become int8. */
  private boolean hasBlocks(String table) {
    return model.constant(table).dims()[1] % options.block() == 0;
  }

  /** A table [rows, width] as W [width, rows]. */
  private BlockWeights nearestTable(OnnxModel from, String name, String value) {
    int rows = Math.toIntExact(from.constant(value).dims()[0]);
    float[] w = ProductSite.matrix(from, name, value, List.of(1, 0));
    return BlockWeights.nearest(bits(value), w, rows, options.block());
  }

  @Override
  public List<QuantizedProduct> products() {
    use.check();
    Map<String, NodeProto> producers = model.producers();
    List<QuantizedProduct> result = new ArrayList<>();
    for (Product p : trainedProducts()) {
      Fitted f = fitted.computeIfAbsent(p, key -> new Fitted(nearest(model, p), null));
      result.add(
          new QuantizedProduct(
              p.name,
              p.output,
              producers.get(p.output).getInput(0),
              p.value,
              WeightGrid.blocks(bits(p), options.block(), 0),
              f.weights().integers(),
              f.weights().scales()));
    }
    return result;
  }

  private BlockWeights nearest(OnnxModel from, Product p) {
    return BlockWeights.nearest(bits(p), p.matrix(from), p.columns, options.block());
  }

  @Override
  public List<QuantizedTable> tables() {
    use.check();
    List<QuantizedTable> result = new ArrayList<>();
    tableNames()
        .forEach(
            (value, name) -> {
              if (!hasBlocks(value)) {
                result.addAll(EmbeddingTables.nearest(model, Map.of(value, name)));
                return;
              }
              BlockWeights w = nearestTable(model, name, value);
              WeightGrid grid = WeightGrid.blocks(bits(value), options.block(), 1);
              result.add(
                  new QuantizedTable(name, value, grid, w.columnIntegers(), w.columnScales()));
            });
    return result;
  }

  @Override
  public void setWeights(String output, byte[] integers, float[] scales) {
    Product p = ProductSite.product(sites, output);
    BlockWeights w =
        new BlockWeights(
            bits(p), p.rows, p.columns, options.block(), scales.clone(), integers.clone());
    fitted.put(p, new Fitted(w, null));
  }

  @Override
  public void setTable(String table, byte[] integers, float[] scales) {
    if (tableNames().containsKey(table) && hasBlocks(table)) {
      int width = Math.toIntExact(model.constant(table).dims()[1]);
      trainedBlocks.put(
          table, BlockWeights.ofColumns(bits(table), width, options.block(), scales, integers));
    } else {
      super.setTable(table, integers, scales);
    }
  }

  @Override
  public void apply() {
    quantizeModel();
  }

  @Override
  void writeNodes(OnnxModel target) {
    // In the model itself each is stored once; those of a large one take memory.
    Function<Product, Fitted> found = target == model ? fitted::remove : fitted::get;
    new Rewriting(target, found, all -> true).run();
  }

  /** One pass over the nodes that emits the new ones. */
  private final class Rewriting {
    private final OnnxModel model;
    private final OnnxModel.Names names;
    private final EmbeddingTables embeddings;

    /** Gives what was found for a product, or null. */
    private final Function<Product, Fitted> found;

    /** Which are quantized, by the outputs of products and the constants of tables. */
    private final Predicate<String> chosen;

    private final Map<String, Product> products = new HashMap<>();
    private final BiasChanges biases;

    /** Integers and scales of products that are not looked up in. */
    private final Map<Product, StoredWeights> multiplied = new HashMap<>();

    /** Those of weights that were rounded as they are, by weight and axes. */
    private final Map<List<Object>, StoredWeights> plain = new HashMap<>();

    /** Integers [rows, bytes] and scales [rows, blocks] of tables, by the constants that they were. */
    private final Map<String, StoredWeights> stored = new HashMap<>();

    Rewriting(OnnxModel model, Function<Product, Fitted> found, Predicate<String> chosen) {
      this.model = model;
      this.names = model.names();
      this.biases = new BiasChanges(model, names);
      this.embeddings = new EmbeddingTables(model, names, trainedTables);
      this.found = found;
      this.chosen = chosen;
    }

    void run() {
      for (ProductSite s : sites) {
        for (Product p : s.products.stream().filter(p -> chosen.test(p.output)).toList()) {
          p.outputs.forEach(output -> products.put(output, p));
          Fitted f = fitted.get(p);
          if (f != null && f.meanError() != null) {
            biases.add(p, f.meanError());
          }
        }
      }
      if (model.opset(DOMAIN) == 0) {
        model.setOpset(DOMAIN, 1);
      }
      model.setNodes(rewritten(model.nodes()));
    }

    private List<NodeProto> rewritten(List<NodeProto> nodes) {
      List<NodeProto> out = new ArrayList<>();
      for (NodeProto n : nodes) {
        String output = n.getOutputCount() == 0 ? "" : n.getOutput(0);
        if (tied.contains(output) && chosen.test(tied.product(output).output)) {
          Product p = tied.product(output);
          out.add(lookUp(n, shared(p), bits(p)));
        } else if (tables.containsKey(output) && chosen.test(n.getInput(0))) {
          String name = tables.get(output);
          String value = n.getInput(0);
          if (hasBlocks(value)) {
            out.add(lookUp(n, table(name, value), bits(value)));
          } else {
            out.addAll(embeddings.lookUp(n, name));
          }
        } else if (products.containsKey(output)) {
          multiply(n, products.get(output), out);
        } else if (biases.contains(output)) {
          out.add(biases.changed(n));
        } else {
          out.add(InnerGraphs.withNodes(n, this::rewritten));
        }
      }
      return out;
    }

    /** The integers of a table that no product reads. */
    private StoredWeights table(String name, String value) {
      return stored.computeIfAbsent(
          value,
          key -> {
            BlockWeights trained = trainedBlocks.get(value);
            return store(value, trained != null ? trained : nearestTable(model, name, value), true);
          });
    }

    private NodeProto lookUp(NodeProto n, StoredWeights table, int bits) {
      NodeProto.Builder lookUp =
          n.toBuilder()
              .setOpType("GatherBlockQuantized")
              .setDomain(DOMAIN)
              .setInput(0, table.integers())
              .addInput(table.scales())
              .clearAttribute()
              .addAttribute(Attributes.attribute("gather_axis", 0))
              .addAttribute(Attributes.attribute("quantize_axis", 1))
              .addAttribute(Attributes.attribute("block_size", options.block()));
      // Its default is 4, and older runtimes know nothing else.
      return bits == 4
          ? lookUp.build()
          : lookUp.addAttribute(Attributes.attribute("bits", bits)).build();
    }

    /** The integers of a product that are looked up in too, as the rows of a table. */
    private StoredWeights shared(Product p) {
      return stored.computeIfAbsent(p.value, key -> store(p.value, weights(p), true));
    }

    private void multiply(NodeProto n, Product p, List<NodeProto> out) {
      StoredWeights weights;
      if (tied.reads(p)) {
        StoredWeights table = shared(p);
        long blocks = p.rows / options.block();
        weights =
            new StoredWeights(
                reshaped(table.integers(), out, p.columns, blocks, options.block() * bits(p) / 8),
                reshaped(table.scales(), out, p.columns * blocks));
      } else {
        weights = multiplied.computeIfAbsent(p, this::store);
      }
      out.add(
          n.toBuilder()
              .setOpType("MatMulNBits")
              .setDomain(DOMAIN)
              .clearInput()
              .addInput(n.getInput(0))
              .addInput(weights.integers())
              .addInput(weights.scales())
              .clearAttribute()
              .addAttribute(Attributes.attribute("K", p.rows))
              .addAttribute(Attributes.attribute("N", p.columns))
              .addAttribute(Attributes.attribute("bits", bits(p)))
              .addAttribute(Attributes.attribute("block_size", options.block()))
              .addAttribute(Attributes.attribute("accuracy_level", INT8_ACTIVATIONS))
              .build());
    }

    private StoredWeights store(Product p) {
      return fitted.containsKey(p)
          ? store(p.value, weights(p), false)
          : plain.computeIfAbsent(
              List.of(p.value, p.axes, bits(p)), key -> store(p.value, weights(p), false));
    }

    private BlockWeights weights(Product p) {
      Fitted f = found.apply(p);
      return f != null ? f.weights() : nearest(model, p);
    }

    /** A constant in another shape, which the runtime gives it when it loads. */
    private String reshaped(String constant, List<NodeProto> out, long... dims) {
      String shape = names.unique(constant + "_shape");
      String turned = names.unique(constant + "_blocks");
      model.addInitializer(OnnxInitializer.int64s(shape, new long[] {dims.length}, dims));
      out.add(Nodes.node("Reshape", turned, constant, shape).clearName().build());
      return turned;
    }

    /**
     * Adds integers and their scales.
     *
     * @param asRows whether both lie as the rows of a table, and not in the operator's form
     */
    private StoredWeights store(String value, BlockWeights weights, boolean asRows) {
      StoredWeights made = StoredWeights.named(value, names);
      long columns = weights.columns();
      long blocks = (weights.rows() + weights.block() - 1) / weights.block();
      long bytes = weights.blockBytes();
      long[] dims =
          asRows ? new long[] {columns, blocks * bytes} : new long[] {columns, blocks, bytes};
      long[] scaleDims = asRows ? new long[] {columns, blocks} : new long[] {columns * blocks};
      model.addInitializer(
          OnnxInitializer.of(made.integers(), DataType.UINT8, dims, weights.packed()));
      model.addInitializer(
          OnnxInitializer.of(made.scales(), DataType.FLOAT, scaleDims, weights.packedScales()));
      return made;
    }
  }
}

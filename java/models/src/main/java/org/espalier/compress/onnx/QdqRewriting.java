package org.espalier.compress.onnx;

import ai.onnx.proto.OnnxMl.NodeProto;
import ai.onnx.proto.OnnxMl.TensorProto.DataType;
import java.nio.ByteBuffer;
import java.nio.FloatBuffer;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.HashMap;
import java.util.HashSet;
import java.util.List;
import java.util.Map;
import java.util.Set;
import org.espalier.InputException;
import org.espalier.compress.onnx.ProductFitting.Rounded;
import org.espalier.compress.onnx.channels.ValueShapes;
import org.espalier.format.onnx.Attributes;
import org.espalier.format.onnx.ConstantVector;
import org.espalier.format.onnx.OnnxInitializer;
import org.espalier.format.onnx.OnnxModel;
import org.espalier.format.onnx.OnnxWeight.Kind;
import org.espalier.format.onnx.OnnxWeight.Use;
import org.slf4j.Logger;
import org.slf4j.LoggerFactory;

/**
 * Writes a model with QuantizeLinear and DequantizeLinear around what a {@link StaticQuantizer} has planned: one pass over
 * the nodes that emits the new ones.
 */
final class QdqRewriting {
  private static final Logger LOG = LoggerFactory.getLogger(QdqRewriting.class);

  /**
   * What calibration and training found.
   *
   * @param rounded integers by the products' outputs; products that are not among them get the nearest ones
   * @param factors what the rows of weights were multiplied with, by the products' outputs
   * @param biasChanges what is added to biases, by the outputs of their additions
   * @param tables integers of trained tables, by the constants that hold the tables
   * @param ranges of all activations that have a grid of their own
   * @param weights what weights become
   */
  record Fit(
      Map<String, Rounded> rounded,
      Map<String, float[]> factors,
      Map<String, double[]> biasChanges,
      Map<String, EmbeddingTables.Integers> tables,
      Map<String, ActivationRange> ranges,
      WeightIntegers weights) {}

  private final OnnxModel model;
  private final StaticPlan plan;
  private final Fit fit;
  private final IntegerOperators operators;
  private final OnnxModel.Names names;
  private final EmbeddingTables tables;
  private final ChannelWidths widths;
  private final List<NodeProto> out = new ArrayList<>();

  /** The quantized form of an activation: the output of its QuantizeLinear. */
  private final Map<String, Quantized> quantized = new HashMap<>();

  private final Map<List<Object>, Weights> weights = new HashMap<>();
  private final Map<String, Weights> tiedWeights = new HashMap<>();
  private final Map<List<Object>, String> zeros = new HashMap<>();
  private final Set<String> bypassed = new HashSet<>();

  /** The MatMuls that are written as Gemms, by the outputs of the additions of their biases. */
  private final Map<String, NodeProto> gemms = new HashMap<>();

  /** Their own outputs, which nothing gives any more. */
  private final Set<String> joined = new HashSet<>();

  /** The outputs of additions whose biases are written as matrices of one row. */
  private final Set<String> rows = new HashSet<>();

  QdqRewriting(OnnxModel model, StaticPlan plan, Fit fit) {
    this.plan = plan;
    this.fit = fit;
    this.operators = plan.operators();
    this.model = model;
    this.names = model.names();
    this.tables = new EmbeddingTables(model, names, fit.tables());
    this.widths = new ChannelWidths(model, plan.products().keySet());
  }

  private record Quantized(String value, String scale, String zeroPoint) {}

  private record Weights(Quantized names, float[] scales, int axis) {}

  void run() {
    findBiases();
    for (NodeProto n : model.nodes()) {
      String output = n.getOutputCount() == 0 ? "" : n.getOutput(0);
      if (plan.tied().contains(output)) {
        String product = plan.tied().product(output);
        tiedWeights(product);
        out.addAll(
            tables.lookUpShared(plan.tied().gather(output), plan.products().get(product).value()));
      } else if (plan.lookUps().containsKey(output)) {
        QuantizedUse table = plan.lookUps().get(output);
        bypassed.add(table.value());
        out.addAll(tables.lookUp(n, table.name()));
      } else if (!joined.contains(output)) {
        write(n, output);
      }
    }
    removeBypassed();
    model.setNodes(out);
  }

  /** Writes a node that is no look-up, with the integers that it reads and makes. */
  private void write(NodeProto n, String output) {
    NodeProto.Builder b = withWeights(n, output);
    if (operators.isScaled(output)) {
      Quantized source = quantized.get(operators.source(output));
      quantized.put(output, scaled(source, operators.scale(output, fit.ranges())));
      emit(dequantize(quantized.get(output), output, -1));
      return;
    }
    for (int input : operators.operands(output)) {
      b.setInput(input, fresh(operand(n.getInput(input)), -1));
    }
    widths.append(n, b, names);
    boolean passed = operators.isPassed(output);
    if (!passed && !operators.results().contains(output)) {
      out.add(b.build());
      return;
    }
    // The value keeps its name for all who read it, and is now read back from 8 bits.
    String before = names.unique("float");
    out.add(b.setOutput(0, before).build());
    quantized.put(
        output,
        passed
            ? quantize(before, quantized.get(operators.source(output)))
            : layOut(output, quantize(before, fit.ranges().get(output))));
    emit(dequantize(quantized.get(output), output, -1));
  }

  /** A node with the integers of its weights, and with its bias as fitting and the runtime want it. */
  private NodeProto.Builder withWeights(NodeProto n, String output) {
    NodeProto.Builder b = n.toBuilder();
    if (plan.products().containsKey(output)) {
      product(b, plan.products().get(output));
    } else if (gemms.containsKey(output)) {
      b = gemm(gemms.get(output), n);
    } else if (fit.biasChanges().containsKey(output)) {
      b = ConstantVector.changed(model, names, n, fit.biasChanges().get(output)).toBuilder();
    } else if (widths.changes(n)) {
      widths.widen(b, names);
    }
    if (rows.contains(output)) {
      asRow(b);
    }
    return b;
  }

  /**
   * Finds the MatMuls with one reader, which adds a constant to each column. ONNX Runtime makes a Gemm of the two before it
   * looks for integers, and leaves a Gemm float whose bias is: all weights would then be read back from integers in each
   * run. It does so with matrices, which are written as Gemms of an int32 bias, and with more axes where all lengths are
   * fixed, unless the bias is a matrix: then it has an int8 product and the addition.
   */
  private void findBiases() {
    ValueShapes shapes = new ValueShapes(model);
    Map<String, List<NodeProto>> consumers = model.consumers();
    Set<String> outputs = model.outputNames();
    for (NodeProto n : model.nodes()) {
      String product = n.getOutputCount() == 0 ? "" : n.getOutput(0);
      QuantizedUse target = plan.products().get(product);
      List<NodeProto> readers = consumers.getOrDefault(product, List.of());
      if (target == null
          || target.use().kind() != Kind.MATMUL
          || target.use().axes().size() != 2
          || readers.size() != 1
          || outputs.contains(product)) {
        continue;
      }
      long[] shape = shapes.of(n.getInput(0));
      NodeProto add = readers.get(0);
      String sum = add.getOutput(0);
      boolean integer = !operators.operands(sum).isEmpty() || operators.isScaled(sum);
      if (shape == null || integer || bias(add, target) == null) {
        continue;
      }
      if (shape.length == 2) {
        gemms.put(sum, n);
        joined.add(product);
      } else if (shape.length > 2 && Arrays.stream(shape).allMatch(ValueShapes::isKnown)) {
        rows.add(sum);
      }
    }
  }

  /** What an Add adds to each column of a product; null where it is no constant, or another node. */
  private String bias(NodeProto add, QuantizedUse target) {
    long[] dims = target.dims(model);
    for (int i = 0; i < 2 && OnnxModel.isOwn(add, "Add"); i++) {
      String value = add.getInput(i);
      if (QuantizedUse.isBias(model, value, dims[dims.length - 1])
          && model.constant(value).dims().length <= dims.length) {
        return value;
      }
    }
    return null;
  }

  /** Gives the bias of an addition a second axis. */
  private void asRow(NodeProto.Builder add) {
    for (int i = 0; i < 2; i++) {
      OnnxInitializer bias = model.constant(add.getInput(i));
      if (bias != null && bias.dims().length == 1) {
        String row = names.unique(add.getInput(i) + "_row");
        float[] values = new float[(int) bias.elements()];
        bias.floats().get(values);
        model.addInitializer(OnnxInitializer.floats(row, new long[] {1, values.length}, values));
        add.setInput(i, row);
      }
    }
  }

  private NodeProto.Builder gemm(NodeProto product, NodeProto add) {
    QuantizedUse target = plan.products().get(product.getOutput(0));
    double[] change = fit.biasChanges().get(add.getOutput(0));
    NodeProto sum = change == null ? add : ConstantVector.changed(model, names, add, change);
    NodeProto.Builder b =
        product.toBuilder()
            .setOpType("Gemm")
            .addInput(bias(sum, target))
            .setOutput(0, add.getOutput(0));
    product(b, target);
    return b;
  }

  /**
   * The same integers behind a Conv that multiplies each channel with 1, see {@link
   * IntegerOperators#entryChannels}.
   */
  private Quantized layOut(String value, Quantized image) {
    int channels = (int) widths.of(value, operators.entryChannels(value));
    if (channels == 0) {
      return image;
    }
    long[] dims = {channels, 1, 1, 1};
    byte[] ones = new byte[channels];
    Arrays.fill(ones, (byte) fit.weights().largest());
    String integers = names.unique("ones");
    String scale = names.unique("ones_scale");
    model.addInitializer(
        OnnxInitializer.bytes(integers, fit.weights().type(), dims, fit.weights().stored(ones)));
    model.addInitializer(OnnxInitializer.floats(scale, new long[0], 1f / fit.weights().largest()));
    String same = names.unique("image");
    String weight = fresh(new Quantized(integers, scale, weightZeros(-1)), -1);
    emit(
        Nodes.node("Conv", same, fresh(image, -1), weight)
            .addAttribute(Attributes.attribute("group", channels)));
    return quantize(same, image);
  }

  /** The same integers in steps of another size. */
  private Quantized scaled(Quantized q, float step) {
    String scale = names.unique("activation_scale");
    model.addInitializer(OnnxInitializer.floats(scale, new long[0], step));
    return new Quantized(q.value(), scale, q.zeroPoint());
  }

  /** The integers that an operator reads. */
  private Quantized operand(String value) {
    return quantized.computeIfAbsent(value, this::constant);
  }

  /** A number on a grid of its own: its value is that of the largest integer or of 0. */
  private Quantized constant(String value) {
    OnnxInitializer c = model.constant(value);
    float number = c.floats().get(0);
    Quantized grid = grid(new ActivationRange(Math.min(0, number), Math.max(0, number)));
    String integer = names.unique("constant");
    byte q = (byte) (number > 0 ? 255 : 0);
    model.addInitializer(OnnxInitializer.bytes(integer, DataType.UINT8, c.dims(), q));
    return new Quantized(integer, grid.scale(), grid.zeroPoint());
  }

  private void product(NodeProto.Builder n, QuantizedUse target) {
    String x = n.getInput(0);
    Quantized q = quantized.get(x);
    if (q == null) {
      q = quantize(x, fit.ranges().get(x));
      quantized.put(x, q);
    }
    String bias = QuantizedUse.bias(n.build());
    float scale = operators.scale(x, fit.ranges());
    Weights w = weights(n.build(), target, bias, scale);
    if (widths.changes(n.build())) {
      widths.widenGroups(n);
    }
    n.setInput(0, fresh(q, -1));
    n.setInput(target.use().input(), fresh(w.names(), w.axis()));
    if (bias != null) {
      n.setInput(2, bias(bias, scale, w));
    }
  }

  private Quantized quantize(String value, ActivationRange range) {
    return quantize(value, grid(range));
  }

  /** Puts a value on the grid that another has. */
  private Quantized quantize(String value, Quantized like) {
    String output = names.unique("quantized");
    emit(Nodes.node("QuantizeLinear", output, value, like.scale(), like.zeroPoint()));
    return new Quantized(output, like.scale(), like.zeroPoint());
  }

  /** Scale and zero point, without integers yet. */
  private Quantized grid(ActivationRange range) {
    String scale = names.unique("activation_scale");
    String zeroPoint = names.unique("activation_zero_point");
    model.addInitializer(OnnxInitializer.floats(scale, new long[0], range.scale()));
    model.addInitializer(
        OnnxInitializer.bytes(zeroPoint, DataType.UINT8, new long[0], (byte) range.zeroPoint()));
    return new Quantized(null, scale, zeroPoint);
  }

  /** ONNX Runtime fuses a DequantizeLinear with one reader only, so each reader gets its own. */
  private String fresh(Quantized q, int axis) {
    String output = names.unique("dequantized");
    emit(dequantize(q, output, axis));
    return output;
  }

  private NodeProto.Builder dequantize(Quantized q, String output, int axis) {
    NodeProto.Builder b =
        Nodes.node("DequantizeLinear", output, q.value(), q.scale(), q.zeroPoint());
    return axis < 0 ? b : b.addAttribute(Attributes.attribute("axis", axis));
  }

  /**
   * New nodes and the values between them are many: no names of nodes and short ones of values.
   */
  private void emit(NodeProto.Builder n) {
    out.add(n.clearName().build());
  }

  /**
   * The integers of a weight in the layout that the node sees, made once for all nodes that see
   * the same.
   *
   * @param bias the node's bias, whose integers must stay below 2^31 at the product's scale; null
   *     if it has none
   */
  private Weights weights(NodeProto n, QuantizedUse target, String bias, float activationScale) {
    Use use = target.use();
    if (plan.tied().reads(use.node())) {
      return tiedWeights(use.node());
    }
    bypassed.addAll(use.path());
    long[] dims = target.dims(model);
    long[] wide = widths.changes(n) ? widths.weights(n) : dims;
    int axis = target.scaleAxis();
    Rounded fitted = fit.rounded().get(use.node());
    if (fitted != null) {
      ByteBuffer integers = ByteBuffer.allocateDirect(fitted.integers().length);
      integers.put(fitted.integers()).flip();
      return store(target, dims, wide, axis, integers, fitted.scales());
    }
    float[] minimum = target.minimumScales(model, bias, activationScale);
    List<Object> key = List.of(target.value(), use.axes(), axis, ChannelWidths.list(wide));
    Weights known = weights.get(key);
    if (known != null && atLeast(known.scales(), minimum)) {
      return known;
    }
    Int8Weights q = target.nearest(model, fit.weights().largest(), minimum);
    Weights made = store(target, dims, wide, axis, q.values(), q.scales());
    weights.put(key, made);
    return made;
  }

  /** The weights of a product that are looked up in too: stored once, as the table's rows. */
  private Weights tiedWeights(String product) {
    return tiedWeights.computeIfAbsent(
        product,
        key -> {
          QuantizedUse target = plan.products().get(product);
          Rounded r = fit.rounded().get(product);
          if (r == null) {
            Int8Weights q =
                target.nearest(
                    model, fit.weights().largest(), target.minimumScales(model, null, 1));
            r = new Rounded(q.integers(), q.scales(), null);
          }
          bypassed.addAll(target.use().path());
          String rows =
              tables.share(
                  target.value(),
                  fit.weights(),
                  r.integers(),
                  r.scales(),
                  fit.factors().get(product));
          String turned = names.unique(target.value() + "_turned");
          emit(Nodes.node("Transpose", turned, rows).addAttribute(Nodes.swap()));
          String scale = names.unique(target.value() + "_scale");
          int channels = r.scales().length;
          model.addInitializer(OnnxInitializer.floats(scale, new long[] {channels}, r.scales()));
          String zeroPoint = weightZeros(channels);
          return new Weights(new Quantized(turned, scale, zeroPoint), r.scales(), 1);
        });
  }

  /** Zero points of biases, {@code n} of them: one tensor serves all. */
  private String biasZeros(int n) {
    return zeros.computeIfAbsent(
        List.of(DataType.INT32, n),
        key -> {
          String name = names.unique("zeros");
          model.addInitializer(OnnxInitializer.int32s(name, new long[] {n}, new int[n]));
          return name;
        });
  }

  /** Zero points of weights, {@code n} of them or, for −1, a scalar: one tensor serves all. */
  private String weightZeros(int n) {
    DataType type = fit.weights().type();
    return zeros.computeIfAbsent(
        List.of(type, n),
        key -> {
          String name = names.unique("zeros");
          long[] dims = n < 0 ? new long[0] : new long[] {n};
          byte[] zeroPoints = fit.weights().stored(new byte[Math.abs(n)]);
          model.addInitializer(OnnxInitializer.bytes(name, type, dims, zeroPoints));
          return name;
        });
  }

  /**
   * Adds integers and scales; axis −1 for one scale.
   *
   * @param wide the shape that the node gets, see {@link ChannelWidths}
   */
  private Weights store(
      QuantizedUse target,
      long[] dims,
      long[] wide,
      int axis,
      ByteBuffer integers,
      float[] scales) {
    if (!Arrays.equals(dims, wide)) {
      int channels = scales.length;
      ByteBuffer padded = ChannelWidths.pad(integers, dims, wide, Byte.BYTES);
      float[] more = Arrays.copyOf(scales, (int) wide[0]);
      Arrays.fill(more, channels, more.length, 1);
      return store(target, wide, wide, axis, padded, more);
    }
    String value = names.unique(target.value() + "_quantized");
    String scale = names.unique(target.value() + "_scale");
    long[] parameters = axis >= 0 ? new long[] {scales.length} : new long[0];
    model.addInitializer(
        OnnxInitializer.of(value, fit.weights().type(), dims, fit.weights().stored(integers)));
    model.addInitializer(OnnxInitializer.floats(scale, parameters, scales));
    String zeroPoint = weightZeros(axis >= 0 ? scales.length : -1);
    return new Weights(new Quantized(value, scale, zeroPoint), scales, axis);
  }

  /** Returns the float32 value of the int32 bias, whose scale is that of the products. */
  private String bias(String bias, float activationScale, Weights w) {
    FloatBuffer b = model.constant(bias).floats();
    int n = w.scales().length;
    float[] scales = new float[n];
    int[] q = new int[n];
    for (int c = 0; c < n; c++) {
      scales[c] = activationScale * w.scales()[c];
      if (!(scales[c] >= Float.MIN_NORMAL && scales[c] <= Float.MAX_VALUE)) {
        throw new InputException(
            "the bias "
                + bias
                + " has no int32 form in channel "
                + c
                + ": its step would be "
                + scales[c]);
      }
      double integer = c < b.limit() ? Math.rint((double) b.get(c) / scales[c]) : 0;
      if (!(Math.abs(integer) <= Integer.MAX_VALUE)) {
        // Only training can have moved it there; the answer stays right, at the speed of floats.
        LOG.warn(
            "the bias {} has no int32 form in channel {}: it stays float, and its product too",
            bias,
            c);
        return widths.widenBias(bias, n, names);
      }
      q[c] = (int) integer;
    }
    String value = names.unique(bias + "_quantized");
    String scale = names.unique(bias + "_scale");
    model.addInitializer(OnnxInitializer.int32s(value, new long[] {n}, q));
    model.addInitializer(OnnxInitializer.floats(scale, new long[] {n}, scales));
    bypassed.add(bias);
    return fresh(new Quantized(value, scale, biasZeros(n)), 0);
  }

  /** Takes away the nodes between a weight and its products that nothing reads any more. */
  private void removeBypassed() {
    Set<String> read = model.outputNames();
    for (int i = out.size() - 1; i >= 0; i--) {
      NodeProto n = out.get(i);
      if (n.getOutputCount() == 1
          && bypassed.contains(n.getOutput(0))
          && !read.contains(n.getOutput(0))) {
        out.remove(i);
      } else {
        read.addAll(OnnxModel.uses(n));
      }
    }
  }

  private boolean atLeast(float[] scales, float[] minimum) {
    for (int c = 0; c < minimum.length; c++) {
      if (scales[c] < minimum[c]) {
        return false;
      }
    }
    return true;
  }
}

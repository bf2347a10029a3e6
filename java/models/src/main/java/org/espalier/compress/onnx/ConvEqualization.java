package org.espalier.compress.onnx;

import ai.onnx.proto.OnnxMl.AttributeProto;
import ai.onnx.proto.OnnxMl.AttributeProto.AttributeType;
import ai.onnx.proto.OnnxMl.NodeProto;
import ai.onnx.proto.OnnxMl.TensorProto.DataType;
import ai.onnx.proto.OnnxMl.ValueInfoProto;
import java.nio.FloatBuffer;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.HashMap;
import java.util.HashSet;
import java.util.LinkedHashMap;
import java.util.LinkedHashSet;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.stream.IntStream;
import java.util.stream.Stream;
import org.espalier.format.onnx.OnnxInitializer;
import org.espalier.format.onnx.OnnxModel;
import org.slf4j.Logger;
import org.slf4j.LoggerFactory;

/**
 * Gives the channels of images between Convs similar ranges: the Convs that make an image divide channel c by s_c,
 * and those that read it multiply by s_c what they take of it. Between them may stand what commutes with
 * positive factors: Relu, LeakyRelu, PRelu, pools, Resize, sums of images that are all made by Convs, products with
 * one number or with a gate. The answers stay the same up to float32 rounding, and one step a tensor suits all
 * channels.
 *
 * <p>A bound above, as Relu6's, stays one number, while channels below it grow towards it: for examples like
 * those of calibration it does what it did, and a channel that was seen to reach r keeps {@link #MARGIN} · r.
 *
 * <p>A HardSwish x · Clip(α · x + β, 0, 1) does not commute, but its gate may read u = x/s with a factor α · s_c for each
 * channel: x · gate is then s_c times u · gate. Likewise a sum with a number b becomes one with b/s_c. Both are
 * written as Convs of one pixel a channel, whose int8 weights have a scale a channel and so are exact.
 *
 * <p>This is cross-layer equalization (Nagel et al. 2019, arXiv 1906.04721). There the ranges are those of weights
 * and balance two tensors of weights; here, where weights have one scale an output channel, those of images that
 * calibration saw. s_c = (range of c)^α, with the α whose rounding noise is the least expected:
 *
 * <pre>
 *   of the image:   (range of x/s / 255)² / 12 · Σ_c s_c² |W_c|²
 *   of the weights: Σ_n (max_c |s_c W_nc| / qmax)² / 12 · Σ_c mean of (x_c/s_c)²
 * </pre>
 *
 * <p>The second is for Convs whose output channels read several channels; a depthwise Conv has none.
 */
final class ConvEqualization {
  private static final Logger LOG = LoggerFactory.getLogger(ConvEqualization.class);

  /** What takes no more of the noise than this is not worth a change. */
  private static final double WORTH = 0.95;

  /** The same where factors in gates or behind sums take the place of one number, which the runtime computes faster. */
  private static final double WORTH_A_CONV = 0.5;

  /** A channel that calibration hardly saw must not be scaled up: its range counts as this · median at least. */
  private static final double SMALLEST = 0.2;

  /** No factor is below this: weights grow by no more. */
  private static final double LEAST_FACTOR = 1e-3;

  /** How far above what was seen a channel in front of a bound is clipped at the earliest. */
  private static final double MARGIN = 1.25;

  private static final int STEPS = 10;

  /** What names of weights hold that are factors here and no weights of the model. */
  private static final String CHANNELWISE = "_espalier_channelwise";

  private static final Set<String> COMMUTING =
      Set.of(
          "AveragePool",
          "GlobalAveragePool",
          "GlobalMaxPool",
          "Identity",
          "LeakyRelu",
          "MaxPool",
          "PRelu",
          "Relu");

  private static final Set<String> GATES = Set.of("Clip", "HardSigmoid", "Sigmoid");

  /** Values whose channels have the same factors. */
  private static final class Images {
    final List<NodeProto> makers = new ArrayList<>();
    final List<NodeProto> readers = new ArrayList<>();

    /** Those that gates read. */
    final Set<String> gated = new LinkedHashSet<>();

    boolean blocked;
    boolean bounded;

    /** Whether a number is added to one. */
    boolean shifted;

    int channels(OnnxModel model) {
      return (int) model.constant(makers.get(0).getInput(1)).dims()[0];
    }
  }

  /** A gate of an image. */
  private record Gate(String image, GateBounds.Hard hard) {}

  /** What calibration saw of the values of {@link Images}. */
  private static final class Seen {
    final float[] low;
    final float[] high;
    final double[] squares;
    long rows;

    Seen(int channels) {
      low = new float[channels];
      high = new float[channels];
      squares = new double[channels];
    }

    void add(FloatBuffer values) {
      int channels = low.length;
      float[] row = new float[channels];
      while (values.remaining() >= channels) {
        values.get(row);
        for (int c = 0; c < channels; c++) {
          low[c] = Math.min(low[c], row[c]);
          high[c] = Math.max(high[c], row[c]);
          squares[c] += (double) row[c] * row[c];
        }
        rows++;
      }
    }
  }

  private final OnnxModel model;
  private final int qmax;
  private final Map<String, NodeProto> producers;
  private final Map<String, List<NodeProto>> consumers;

  /** The gates of images, by the output of the Clip in them. */
  private final Map<String, Gate> gates = new HashMap<>();

  /** The values below which their gates are 0, by the images. */
  private final Map<String, Float> zeros = new LinkedHashMap<>();

  /** What gates make, and what lies between them and the image. */
  private final Set<String> gateValues = new HashSet<>();

  private final Set<String> inGates = new HashSet<>();

  private final ValueSets sets = new ValueSets();

  /** By the roots of the sets. */
  private final Map<String, Images> images = new LinkedHashMap<>();

  private ConvEqualization(OnnxModel model, int qmax) {
    this.model = model;
    this.qmax = qmax;
    producers = model.producers();
    consumers = model.consumers();
  }

  /**
   * Rewrites the weights and biases of Convs in {@code model}.
   *
   * @param convolutions the outputs of the Convs that become int8: where none of them reads an image, it stays
   * @param qmax largest integer of the weights
   * @param source runs the examples, once; not at all where no image can be changed
   */
  static void apply(OnnxModel model, Set<String> convolutions, int qmax, ActivationSource source) {
    ConvEqualization e = new ConvEqualization(model, qmax);
    e.find();
    e.images
        .values()
        .removeIf(
            i ->
                i.blocked
                    || i.makers.isEmpty()
                    || i.readers.stream().noneMatch(n -> convolutions.contains(n.getOutput(0)))
                    || !e.agree(i));
    if (!e.images.isEmpty()) {
      e.equalize(source);
    }
  }

  /** Whether a constant is none of the model's, but holds factors of channels or what is added to them. */
  static boolean isChannelwise(String constant) {
    return constant.contains(CHANNELWISE);
  }

  private Images of(String value) {
    return images.computeIfAbsent(sets.root(value), v -> new Images());
  }

  private void findGates() {
    GateBounds bounds = new GateBounds(model);
    for (NodeProto n : model.nodes()) {
      if (Nodes.is(n, "Mul") && n.getInputCount() == 2) {
        findGate(bounds, n.getInput(0), n.getInput(1));
        findGate(bounds, n.getInput(1), n.getInput(0));
      }
    }
  }

  private void findGate(GateBounds bounds, String image, String gate) {
    GateBounds.Hard hard = bounds.hard(gate, image);
    if (hard == null || !Float.isFinite(hard.factor()) || !Float.isFinite(hard.summand())) {
      return;
    }
    gates.put(hard.clip().getOutput(0), new Gate(image, hard));
    zeros.merge(image, hard.zero(), Math::min);
    gateValues.add(gate);
    for (String v = hard.clip().getInput(0); !v.equals(image); ) {
      inGates.add(v);
      NodeProto n = producers.get(v);
      v = n.getInput(1 - Nodes.number(model, n));
    }
  }

  private void find() {
    findGates();
    for (NodeProto n : model.nodes()) {
      commuting(n).forEach(input -> sets.join(n.getOutput(0), input));
    }
    List<NodeProto> clips = model.nodes().stream().filter(n -> Nodes.is(n, "Clip")).toList();
    for (NodeProto n : clips) {
      of(n.getOutput(0)).bounded |= !commuting(n).isEmpty() && bounds(n)[1] < Float.MAX_VALUE;
    }
    zeros.keySet().forEach(image -> of(image).gated.add(image));
    model.nodes().stream().filter(this::isShift).forEach(n -> of(n.getOutput(0)).shifted = true);
    for (ValueInfoProto v : model.inputs()) {
      of(v.getName()).blocked = true;
    }
    model.outputNames().forEach(output -> of(output).blocked = true);
    for (NodeProto n : model.nodes()) {
      if (isScalable(n)) {
        of(n.getInput(0)).readers.add(n);
        of(n.getOutput(0)).makers.add(n);
        continue;
      }
      String first = n.getOutputCount() == 0 ? "" : n.getOutput(0);
      if (Nodes.is(n, "Shape") || gates.containsKey(first) || inGates.contains(first)) {
        continue;
      }
      List<String> commuting = commuting(n);
      for (String input : OnnxModel.uses(n)) {
        // What no node makes cannot be divided.
        if (!commuting.contains(input) || !producers.containsKey(input)) {
          of(input).blocked = true;
        }
      }
      if (commuting.isEmpty()) {
        n.getOutputList().forEach(output -> of(output).blocked = true);
      }
    }
  }

  /** The inputs of a node whose factors, where they are the same, its only output has too. */
  private List<String> commuting(NodeProto n) {
    if (!OnnxModel.isOwn(n) || n.getOutputCount() != 1) {
      return List.of();
    }
    if (gates.containsKey(n.getOutput(0)) || inGates.contains(n.getOutput(0))) {
      return List.of();
    }
    String op = n.getOpType();
    if (COMMUTING.contains(op) || op.equals("Resize") && !extrapolates(n)) {
      return List.of(n.getInput(0));
    }
    if (op.equals("Clip")) {
      float[] bounds = bounds(n);
      boolean relu = bounds != null && bounds[0] == 0 && bounds[1] > 0;
      return relu || isBoundOfGate(n) ? List.of(n.getInput(0)) : List.of();
    }
    if (n.getInputCount() != 2) {
      return List.of();
    }
    String a = n.getInput(0);
    String b = n.getInput(1);
    return switch (op) {
      case "Add" ->
          isShift(n)
              ? List.of(isVariable(a) ? a : b)
              : isVariable(a) && isVariable(b) ? List.of(a, b) : List.of();
      case "Mul" ->
          isNumber(b) || isGate(b) && !isGate(a)
              ? List.of(a)
              : isNumber(a) || isGate(a) && !isGate(b) ? List.of(b) : List.of();
      case "Div" -> isNumber(b) ? List.of(a) : List.of();
      default -> List.of();
    };
  }

  /** Whether a Resize may give a number of its own. */
  private static boolean extrapolates(NodeProto resize) {
    AttributeProto mode = Nodes.find(resize, "coordinate_transformation_mode");
    return mode != null && mode.getS().toStringUtf8().equals("tf_crop_and_resize");
  }

  private float[] bounds(NodeProto clip) {
    return IntegerOperators.bounds(model, clip);
  }

  /** Whether a Clip cuts off nothing but what its only readers, a product and its gate, make 0. */
  private boolean isBoundOfGate(NodeProto n) {
    float[] bounds = bounds(n);
    String image = n.getOutput(0);
    return bounds != null
        && bounds[0] < 0
        && bounds[1] == Float.POSITIVE_INFINITY
        && consumers.getOrDefault(image, List.of()).size() == 2
        && zeros.containsKey(image)
        && bounds[0] <= zeros.get(image) + 1e-4f * Math.abs(zeros.get(image));
  }

  /** Whether an image and one number are added. */
  private boolean isShift(NodeProto n) {
    int number = Nodes.is(n, "Add") ? Nodes.number(model, n) : -1;
    return number >= 0
        && model.constant(n.getInput(number)).dims().length <= 1
        && isVariable(n.getInput(1 - number));
  }

  private boolean isVariable(String value) {
    return model.constant(value) == null;
  }

  private boolean isNumber(String value) {
    OnnxInitializer c = model.constant(value);
    return c != null && c.elements() == 1;
  }

  private boolean isGate(String value) {
    NodeProto n = producers.get(value);
    boolean gate = n != null && OnnxModel.isOwn(n) && GATES.contains(n.getOpType());
    return gateValues.contains(value) || gate && !isBoundOfGate(n);
  }

  /** Whether the weights and the bias of a Conv are constants that nothing else reads. */
  private boolean isScalable(NodeProto n) {
    if (!Nodes.is(n, "Conv") || n.getOutputCount() != 1) {
      return false;
    }
    for (int i = 1; i < n.getInputCount(); i++) {
      OnnxInitializer c = model.constant(n.getInput(i));
      boolean absent = i == 2 && n.getInput(i).isEmpty();
      if (!absent
          && (c == null
              || c.type() != DataType.FLOAT
              || c.elements() == 0
              || consumers.get(n.getInput(i)).size() != 1)) {
        return false;
      }
    }
    return true;
  }

  /**
   * The weights [outputs, inputs, …] of a Conv, of whose channels each group of outputs reads its own.
   *
   * @param inner elements of an input of an output
   * @param perGroup outputs of a group
   */
  private record Layout(int outputs, int inputs, int inner, int perGroup) {
    /** The channel of the image that an input of an output is. */
    int channel(int output, int input) {
      return output / perGroup * inputs + input;
    }
  }

  private Layout layout(NodeProto conv) {
    OnnxInitializer w = model.constant(conv.getInput(1));
    int outputs = (int) w.dims()[0];
    int inputs = (int) w.dims()[1];
    int inner = (int) (w.elements() / outputs / inputs);
    return new Layout(outputs, inputs, inner, (int) (outputs / groups(conv)));
  }

  private static long groups(NodeProto conv) {
    return Nodes.integer(conv, "group", 1);
  }

  /** Whether all Convs see images of the same rank and the same number of channels, several. */
  private boolean agree(Images i) {
    int channels = i.channels(model);
    int rank = dims(i.makers.get(0)).length;
    return channels > 1
        && i.makers.stream().map(this::dims).allMatch(d -> d.length == rank && d[0] == channels)
        && i.readers.stream()
            .allMatch(n -> dims(n).length == rank && dims(n)[1] * groups(n) == channels);
  }

  private long[] dims(NodeProto conv) {
    return model.constant(conv.getInput(1)).dims();
  }

  private void equalize(ActivationSource source) {
    Map<Images, float[]> chosen = new HashMap<>();
    observe(source)
        .forEach(
            (i, s) -> {
              float[] factors = factors(i, s);
              if (factors != null) {
                i.makers.forEach(n -> scale(n, factors, true));
                i.readers.forEach(n -> scale(n, factors, false));
                chosen.put(i, factors);
              }
            });
    OnnxModel.Names names = model.names();
    List<NodeProto> nodes = new ArrayList<>();
    for (NodeProto n : model.nodes()) {
      String output = n.getOutputCount() == 0 ? "" : n.getOutput(0);
      Gate gate = gates.get(output);
      float[] factors = chosen.get(images.get(sets.root(gate == null ? output : gate.image())));
      boolean bound = factors != null && Nodes.is(n, "Clip") && bounds(n)[0] < 0;
      if (factors != null && gate != null) {
        String line = names.unique(output + "_line");
        nodes.add(channelwise(gate.image(), line, names, factors, gate.hard()));
        nodes.add(n.toBuilder().setInput(0, line).build());
      } else if (factors != null && isShift(n)) {
        nodes.add(shifted(n, names, factors));
      } else if (bound) {
        float least = 1;
        for (float f : factors) {
          least = Math.min(least, f);
        }
        String name = names.unique(n.getInput(1));
        model.addInitializer(OnnxInitializer.floats(name, new long[0], bounds(n)[0] / least));
        nodes.add(n.toBuilder().setInput(1, name).build());
      } else {
        nodes.add(n);
      }
    }
    model.setNodes(nodes);
    RuntimeForm.removeUnused(model);
  }

  /** The Conv of one pixel a channel that gives α s_c · u + β for what was α · x + β of an image x = s_c · u. */
  private NodeProto channelwise(
      String image, String output, OnnxModel.Names names, float[] factors, GateBounds.Hard line) {
    float[] weights = factors.clone();
    float[] biases = new float[factors.length];
    for (int c = 0; c < weights.length; c++) {
      weights[c] *= line.factor();
    }
    Arrays.fill(biases, line.summand());
    return channelwise(image, output, names, weights, biases);
  }

  /** The Conv that adds b / s_c where b was added. */
  private NodeProto shifted(NodeProto add, OnnxModel.Names names, float[] factors) {
    int constant = Nodes.number(model, add);
    float b = model.constant(add.getInput(constant)).floats().get(0);
    float[] weights = new float[factors.length];
    float[] biases = new float[factors.length];
    Arrays.fill(weights, 1);
    for (int c = 0; c < biases.length; c++) {
      biases[c] = b / factors[c];
    }
    return channelwise(add.getInput(1 - constant), add.getOutput(0), names, weights, biases);
  }

  private NodeProto channelwise(
      String image, String output, OnnxModel.Names names, float[] weights, float[] biases) {
    int channels = weights.length;
    Images i = images.get(sets.root(image));
    long[] shape = new long[dims(i.makers.get(0)).length];
    Arrays.fill(shape, 1);
    shape[0] = channels;
    String weight = names.unique(output + CHANNELWISE);
    String bias = names.unique(output + CHANNELWISE + "_bias");
    model.addInitializer(OnnxInitializer.floats(weight, shape, weights));
    model.addInitializer(OnnxInitializer.floats(bias, new long[] {channels}, biases));
    return Nodes.node("Conv", output, image, weight, bias)
        .clearName()
        .addAttribute(Nodes.attribute("group", channels))
        .build();
  }

  /** What the readers and the gates of the images see of them. */
  private Map<Images, Seen> observe(ActivationSource source) {
    OnnxModel copy = model.copy();
    OnnxModel.Names names = copy.names();
    List<NodeProto> nodes = new ArrayList<>(copy.nodes());
    Map<Images, Seen> seen = new LinkedHashMap<>();
    Map<String, Seen> turned = new LinkedHashMap<>();
    for (Images i : images.values()) {
      Seen s = new Seen(i.channels(model));
      seen.put(i, s);
      List<String> values =
          Stream.concat(i.readers.stream().map(n -> n.getInput(0)), i.gated.stream())
              .distinct()
              .toList();
      for (String value : values) {
        int rank = dims(i.readers.get(0)).length;
        String last = names.unique(value + "_channels_last");
        nodes.add(Nodes.node("Transpose", last, value).addAttribute(channelsLast(rank)).build());
        turned.put(last, s);
      }
    }
    copy.setNodes(nodes);
    source.run(copy, turned.keySet(), (name, shape, values) -> turned.get(name).add(values));
    return seen;
  }

  private static AttributeProto channelsLast(int rank) {
    AttributeProto.Builder b =
        AttributeProto.newBuilder().setName("perm").setType(AttributeType.INTS).addInts(0);
    IntStream.range(2, rank).forEach(b::addInts);
    return b.addInts(1).build();
  }

  /** The factors of the channels; null where nothing is gained. */
  private float[] factors(Images i, Seen s) {
    int channels = s.low.length;
    double[] ranges = new double[channels];
    for (int c = 0; c < channels; c++) {
      ranges[c] = (double) s.high[c] - s.low[c];
    }
    double[] sorted = ranges.clone();
    Arrays.sort(sorted);
    double largest = sorted[channels - 1];
    double floor = Math.max(SMALLEST * sorted[channels / 2], LEAST_FACTOR * largest);
    if (!(largest > 0 && largest <= Float.MAX_VALUE) || !mayGrow(i)) {
      return null;
    }
    double margin = i.bounded ? MARGIN : 1;
    double least = Double.POSITIVE_INFINITY;
    double before = 0;
    float[] best = null;
    for (int step = 0; step <= STEPS; step++) {
      float[] factors = new float[channels];
      for (int c = 0; c < channels; c++) {
        double share = Math.min(1, margin * Math.max(ranges[c], floor) / largest);
        factors[c] = (float) Math.pow(share, (double) step / STEPS);
      }
      double noise = noise(i, s, factors);
      before = step == 0 ? noise : before;
      if (noise < least) {
        least = noise;
        best = factors;
      }
    }
    LOG.debug("{}: noise {} to {}", i.makers.get(0).getOutput(0), before, least);
    return least <= (i.shifted || !i.gated.isEmpty() ? WORTH_A_CONV : WORTH) * before ? best : null;
  }

  /** Whether weights divided by the least factor are numbers. */
  private boolean mayGrow(Images i) {
    return i.makers.stream()
        .flatMap(n -> n.getInputList().subList(1, n.getInputCount()).stream())
        .filter(constant -> !constant.isEmpty())
        .map(constant -> model.constant(constant).floats())
        .allMatch(
            values -> {
              boolean fits = true;
              while (values.hasRemaining()) {
                fits &= Math.abs(values.get()) <= LEAST_FACTOR * Float.MAX_VALUE;
              }
              return fits;
            });
  }

  private double noise(Images i, Seen s, float[] factors) {
    int channels = factors.length;
    double high = 0;
    double low = 0;
    double power = 0;
    for (int c = 0; c < channels; c++) {
      high = Math.max(high, s.high[c] / factors[c]);
      low = Math.min(low, s.low[c] / factors[c]);
      power += s.squares[c] / s.rows / ((double) factors[c] * factors[c]);
    }
    double step = (high - low) / 255;
    double noise = 0;
    for (NodeProto n : i.readers) {
      FloatBuffer values = model.constant(n.getInput(1)).floats();
      Layout w = layout(n);
      double squares = 0;
      double steps = 0;
      for (int o = 0, at = 0; o < w.outputs(); o++) {
        double most = 0;
        for (int c = 0; c < w.inputs(); c++) {
          float f = factors[w.channel(o, c)];
          for (int k = 0; k < w.inner(); k++, at++) {
            double v = (double) f * values.get(at);
            squares += v * v;
            most = Math.max(most, Math.abs(v));
          }
        }
        steps += most / qmax * (most / qmax);
      }
      noise += step * step / 12 * squares;
      if (w.inputs() > 1) {
        noise += steps / 12 * power * w.inner() * w.inputs() / channels;
      }
    }
    return noise;
  }

  /** Divides the output channels of a Conv by the factors, or multiplies its input channels with them. */
  private void scale(NodeProto conv, float[] factors, boolean maker) {
    OnnxInitializer w = model.constant(conv.getInput(1));
    Layout layout = layout(conv);
    float[] values = new float[(int) w.elements()];
    w.floats().get(values);
    for (int o = 0, at = 0; o < layout.outputs(); o++) {
      for (int c = 0; c < layout.inputs(); c++) {
        for (int k = 0; k < layout.inner(); k++, at++) {
          values[at] = maker ? values[at] / factors[o] : values[at] * factors[layout.channel(o, c)];
        }
      }
    }
    model.replaceConstant(OnnxInitializer.floats(w.name(), w.dims(), values));
    if (maker && conv.getInputCount() > 2 && !conv.getInput(2).isEmpty()) {
      OnnxInitializer b = model.constant(conv.getInput(2));
      float[] bias = new float[factors.length];
      b.floats().get(bias);
      for (int o = 0; o < bias.length; o++) {
        bias[o] /= factors[o];
      }
      model.replaceConstant(OnnxInitializer.floats(b.name(), b.dims(), bias));
    }
  }
}

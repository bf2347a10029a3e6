package org.espalier.compress.onnx;

import ai.onnx.proto.OnnxMl.AttributeProto;
import ai.onnx.proto.OnnxMl.AttributeProto.AttributeType;
import ai.onnx.proto.OnnxMl.NodeProto;
import java.nio.FloatBuffer;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.HashMap;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.stream.IntStream;
import java.util.stream.Stream;
import org.espalier.compress.onnx.CommutingImages.Gate;
import org.espalier.compress.onnx.CommutingImages.Images;
import org.espalier.format.onnx.Attributes;
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
  private final CommutingImages images;
  private final int qmax;

  private ConvEqualization(OnnxModel model, CommutingImages images, int qmax) {
    this.model = model;
    this.images = images;
    this.qmax = qmax;
  }

  /**
   * Rewrites the weights and biases of Convs in {@code model}.
   *
   * @param convolutions the outputs of the Convs that become int8: where none of them reads an image, it stays
   * @param qmax largest integer of the weights
   * @param source runs the examples, once; not at all where no image can be changed
   */
  static void apply(OnnxModel model, Set<String> convolutions, int qmax, ActivationSource source) {
    CommutingImages images = CommutingImages.find(model, convolutions);
    if (!images.all().isEmpty()) {
      new ConvEqualization(model, images, qmax).equalize(source);
    }
  }

  /** Whether a constant is none of the model's, but holds factors of channels or what is added to them. */
  static boolean isChannelwise(String constant) {
    return constant.contains(CHANNELWISE);
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
    return new Layout(outputs, inputs, inner, (int) (outputs / CommutingImages.groups(conv)));
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
      Gate gate = images.gate(output);
      float[] factors = chosen.get(images.of(gate == null ? output : gate.image()));
      boolean bound = factors != null && OnnxModel.isOwn(n, "Clip") && images.bounds(n)[0] < 0;
      if (factors != null && gate != null) {
        String line = names.unique(output + "_line");
        nodes.add(channelwise(gate.image(), line, names, factors, gate.hard()));
        nodes.add(n.toBuilder().setInput(0, line).build());
      } else if (factors != null && images.isShift(n)) {
        nodes.add(shifted(n, names, factors));
      } else if (bound) {
        float least = 1;
        for (float f : factors) {
          least = Math.min(least, f);
        }
        String name = names.unique(n.getInput(1));
        model.addInitializer(
            OnnxInitializer.floats(name, new long[0], images.bounds(n)[0] / least));
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
    long[] shape = new long[images.of(image).rank(model)];
    Arrays.fill(shape, 1);
    shape[0] = channels;
    String weight = names.unique(output + CHANNELWISE);
    String bias = names.unique(output + CHANNELWISE + "_bias");
    model.addInitializer(OnnxInitializer.floats(weight, shape, weights));
    model.addInitializer(OnnxInitializer.floats(bias, new long[] {channels}, biases));
    return Nodes.node("Conv", output, image, weight, bias)
        .clearName()
        .addAttribute(Attributes.attribute("group", channels))
        .build();
  }

  /** What the readers and the gates of the images see of them. */
  private Map<Images, Seen> observe(ActivationSource source) {
    OnnxModel copy = model.copy();
    OnnxModel.Names names = copy.names();
    List<NodeProto> nodes = new ArrayList<>(copy.nodes());
    Map<Images, Seen> seen = new LinkedHashMap<>();
    Map<String, Seen> turned = new LinkedHashMap<>();
    for (Images i : images.all()) {
      Seen s = new Seen(i.channels(model));
      seen.put(i, s);
      List<String> values =
          Stream.concat(i.readers.stream().map(n -> n.getInput(0)), i.gated.stream())
              .distinct()
              .toList();
      for (String value : values) {
        String last = names.unique(value + "_channels_last");
        nodes.add(
            Nodes.node("Transpose", last, value).addAttribute(channelsLast(i.rank(model))).build());
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

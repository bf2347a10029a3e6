package org.espalier.compress.onnx;

import ai.onnx.proto.OnnxMl.AttributeProto;
import ai.onnx.proto.OnnxMl.NodeProto;
import java.nio.FloatBuffer;
import java.util.Arrays;
import java.util.List;
import java.util.function.Predicate;
import java.util.stream.IntStream;
import org.espalier.InputException;
import org.espalier.compress.onnx.fitting.ActivationStatistics;
import org.espalier.format.onnx.Attributes;
import org.espalier.format.onnx.ConstantVector;
import org.espalier.format.onnx.OnnxModel;
import org.espalier.format.onnx.OnnxWeight;
import org.espalier.format.onnx.OnnxWeight.Kind;
import org.espalier.format.onnx.OnnxWeight.Use;

/**
 * What a node makes of a constant tensor: sums Σ_k x_k·w_kn over inputs k for outputs n, in groups that share nothing.
 * A matrix product sums over rows of its activation, a convolution over the pixels of a window and
 * their channels. Of other nodes, and where calibration sees no activation, only the axis is known that they sum over.
 */
final class WeightedSums {
  /** Of an image so many windows an example are looked at. */
  private static final int WINDOWS = 64;

  final OnnxWeight weight;

  /** The value that is summed over; null where calibration does not see it. */
  final String activation;

  /** Why calibration does not see it; null where it does. */
  final String obstacle;

  /** The output of the node that adds a constant vector to the sums, itself included; null where none does. */
  final String bias;

  final int groups;

  /** Of a group. */
  final int inputs;

  final int outputs;

  /** How many inputs, one after the other, are of one input channel. */
  final int window;

  private final NodeProto node;
  private final long[] kernel;

  /** Where the first weight of a group, of an input and of an output lie in the stored tensor. */
  private final int groupStride;

  private final int[] inputOffsets;
  private final int[] outputOffsets;

  /**
   * @param weight of the model, at least one element, used by no embedding alone
   * @param vectors which constant vectors may change, by name
   */
  WeightedSums(OnnxModel model, OnnxWeight weight, Predicate<String> vectors) {
    this.weight = weight;
    Use use = weight.uses().get(0);
    node = model.allProducers().get(use.node());
    long[] stored = model.constant(weight.value()).dims();
    obstacle = obstacle(model, weight, node);
    boolean conv = obstacle == null && use.kind() == Kind.CONV;
    if (conv) {
      List<Integer> axes = use.axes();
      groups = Math.toIntExact(use.groups());
      int[] all = offsets(stored, axes.subList(0, 1));
      outputOffsets = Arrays.copyOf(all, all.length / groups);
      groupStride = groups == 1 ? 0 : all[outputOffsets.length];
      inputOffsets = offsets(stored, axes.subList(1, axes.size()));
      kernel = axes.stream().skip(2).mapToLong(axis -> stored[axis]).toArray();
      window = inputOffsets.length / (int) stored[axes.get(1)];
    } else {
      groups = 1;
      groupStride = 0;
      int reduced = use.reductionAxis();
      inputOffsets = offsets(stored, List.of(reduced));
      outputOffsets =
          offsets(
              stored,
              IntStream.range(0, stored.length).filter(axis -> axis != reduced).boxed().toList());
      kernel = null;
      window = 1;
    }
    inputs = inputOffsets.length;
    outputs = outputOffsets.length;
    activation = obstacle == null ? node.getInput(0) : null;
    bias = obstacle == null ? bias(model, use, vectors) : null;
  }

  /** Where the elements along some axes lie, row-major. */
  private static int[] offsets(long[] dims, List<Integer> axes) {
    int[] offsets = {0};
    for (int axis : axes) {
      int stride = 1;
      for (int i = axis + 1; i < dims.length; i++) {
        stride = Math.toIntExact(stride * dims[i]);
      }
      int[] longer = new int[Math.toIntExact(offsets.length * dims[axis])];
      for (int i = 0; i < longer.length; i++) {
        int place = i % (int) dims[axis];
        longer[i] = offsets[i / (int) dims[axis]] + place * stride;
      }
      offsets = longer;
    }
    return offsets;
  }

  private static String obstacle(OnnxModel model, OnnxWeight weight, NodeProto node) {
    Use use = weight.uses().get(0);
    if (weight.isShared()) {
      return "several nodes read it";
    }
    if (!model.producers().containsKey(use.node())) {
      return "it lies in a branch or body";
    }
    int rank = model.constant(weight.value()).dims().length;
    return switch (use.kind()) {
      case MATMUL ->
          use.input() != 1
              ? "it is the left factor"
              : rank != 2 || use.axes().size() != 2 ? "it is no matrix" : null;
      case GEMM ->
          use.input() != 1 || Attributes.integer(node, "transA", 0) != 0
              ? "its Gemm transposes what it reads"
              : null;
      case CONV -> use.axes().size() == rank ? null : "its dimensions change on the way";
      case EMBEDDING -> "it is looked up in";
      default -> "what its " + node.getOpType() + " sums over is not seen";
    };
  }

  private String bias(OnnxModel model, Use use, Predicate<String> vectors) {
    String output =
        use.kind() == Kind.MATMUL
            ? ConstantVector.biasAdd(model, use.node(), outputs, model.consumers())
            : use.node();
    if (output == null) {
      return null;
    }
    NodeProto adds = model.producers().get(output);
    int width = groups * outputs;
    int input = vectorInput(model, adds, width);
    return input >= 0 && vectors.test(adds.getInput(input)) ? output : null;
  }

  /** Which input of a node is the constant vector that it adds to sums of that many outputs; −1 if none is. */
  static int vectorInput(OnnxModel model, NodeProto n, int width) {
    boolean own = OnnxModel.isOwn(n, "Conv") || OnnxModel.isOwn(n, "Gemm");
    if (!own) {
      return ConstantVector.input(model, n, width);
    }
    boolean plain =
        OnnxModel.isOwn(n, "Conv")
            || Attributes.real(n, "alpha", 1) == 1 && Attributes.real(n, "beta", 1) == 1;
    return plain && n.getInputCount() == 3 && ConstantVector.isVector(model, n.getInput(2), width)
        ? 2
        : -1;
  }

  /** What tells the statistics apart that sums need: equal for sums over the same inputs. */
  String source() {
    return kernel == null ? activation : node.getOutput(0);
  }

  /** Statistics of what the sums are over, all groups one after the other. */
  ActivationStatistics statistics() {
    return new ActivationStatistics(activation, groups * inputs, inputs);
  }

  long bytes() {
    return ActivationStatistics.bytes(groups * inputs, inputs);
  }

  /** The weights of a group as a matrix [inputs, outputs], of the values of the tensor. */
  float[] matrix(FloatBuffer values, int group) {
    float[] matrix = new float[inputs * outputs];
    for (int k = 0; k < inputs; k++) {
      for (int n = 0; n < outputs; n++) {
        matrix[k * outputs + n] = values.get(values.position() + at(group, k, n));
      }
    }
    return matrix;
  }

  /** Where in the stored tensor the weight of an input and an output of a group lies. */
  int at(int group, int input, int output) {
    return group * groupStride + inputOffsets[input] + outputOffsets[output];
  }

  /**
   * The rows of inputs that an activation holds, of an image those of some windows, evenly spread.
   *
   * @param shape of the activation
   */
  FloatBuffer rows(long[] shape, FloatBuffer values) {
    return kernel == null ? values : windows(shape, values);
  }

  private FloatBuffer windows(long[] shape, FloatBuffer image) {
    int axes = kernel.length;
    long channels = (long) groups * inputs / window;
    if (shape.length != axes + 2 || shape[1] != channels) {
      throw new InputException(
          "the convolution "
              + node.getOutput(0)
              + " reads an activation of shape "
              + Arrays.toString(shape)
              + "; [batch, "
              + channels
              + (axes == 1 ? ", size]" : ", " + axes + " sizes]")
              + " is right");
    }
    long[] strides = integers("strides", axes, 1);
    long[] dilations = integers("dilations", axes, 1);
    long[] pads = integers("pads", 2 * axes, 0);
    AttributeProto auto = Attributes.find(node, "auto_pad");
    String mode = auto == null ? "NOTSET" : auto.getS().toStringUtf8();
    long[] sizes = new long[axes];
    long[] before = new long[axes];
    long places = shape[0];
    for (int a = 0; a < axes; a++) {
      long size = shape[a + 2];
      long span = (kernel[a] - 1) * dilations[a] + 1;
      if (mode.startsWith("SAME")) {
        sizes[a] = (size + strides[a] - 1) / strides[a];
        long pad = Math.max(0, (sizes[a] - 1) * strides[a] + span - size);
        before[a] = mode.equals("SAME_LOWER") ? pad - pad / 2 : pad / 2;
      } else {
        boolean padded = mode.equals("NOTSET");
        before[a] = padded ? pads[a] : 0;
        long after = padded ? pads[a + axes] : 0;
        sizes[a] = (size + before[a] + after - span) / strides[a] + 1;
      }
      places *= Math.max(0, sizes[a]);
    }
    int some = (int) Math.min(places, WINDOWS * Math.max(1, shape[0]));
    float[] rows = new float[some * groups * inputs];
    long[] corner = new long[axes];
    for (int i = 0; i < some; i++) {
      long place = Math.floorDiv(Math.multiplyExact(2L * i + 1, places), 2L * some);
      for (int a = axes - 1; a >= 0; a--) {
        corner[a] = place % sizes[a] * strides[a] - before[a];
        place /= sizes[a];
      }
      copy(image, shape, place, corner, dilations, rows, i * groups * inputs);
    }
    return FloatBuffer.wrap(rows);
  }

  /** Copies the window with that corner of one image; what lies beyond the image is 0. */
  private void copy(
      FloatBuffer images,
      long[] shape,
      long batch,
      long[] corner,
      long[] dilations,
      float[] rows,
      int to) {
    int axes = kernel.length;
    long pixels = 1;
    for (int a = 0; a < axes; a++) {
      pixels *= shape[a + 2];
    }
    for (int p = 0; p < window; p++) {
      long pixel = 0;
      boolean inside = true;
      for (int a = 0, rest = p, inner = window; a < axes; a++) {
        inner /= (int) kernel[a];
        long place = corner[a] + rest / inner * dilations[a];
        rest %= inner;
        inside &= place >= 0 && place < shape[a + 2];
        pixel = pixel * shape[a + 2] + place;
      }
      if (inside) {
        for (int c = 0; c < shape[1]; c++) {
          long at = (batch * shape[1] + c) * pixels + pixel;
          rows[to + c * window + p] = images.get(images.position() + (int) at);
        }
      }
    }
  }

  private long[] integers(String name, int count, long otherwise) {
    long[] told = Attributes.integers(node, name);
    if (told != null && told.length == count) {
      return told;
    }
    long[] usual = new long[count];
    Arrays.fill(usual, otherwise);
    return usual;
  }
}

package org.espalier.compress.onnx;

import ai.onnx.proto.OnnxMl.AttributeProto;
import ai.onnx.proto.OnnxMl.NodeProto;
import ai.onnx.proto.OnnxMl.TensorProto.DataType;
import ai.onnx.proto.OnnxMl.ValueInfoProto;
import java.nio.ByteBuffer;
import java.util.Arrays;
import java.util.HashMap;
import java.util.HashSet;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Set;
import org.espalier.format.onnx.Attributes;
import org.espalier.format.onnx.OnnxInitializer;
import org.espalier.format.onnx.OnnxModel;

/**
 * How many channels images get so that ONNX Runtime's fast int8 kernel takes their depthwise convolutions: on
 * x86 it wants a multiple of 16 and is 4 times as fast as the other. What is added is made by weights of 0
 * and read by weights of 0, so the model computes the same.
 *
 * <p>Images that a depthwise Conv, a pool or an addition ties together have one width. It can be changed where
 * Convs of one group make and read them, and nothing else sees them but a Concat that appends channels of zeros:
 * what is added is 0 itself, so it takes the place of some of those.
 */
final class ChannelWidths {
  private static final int MULTIPLE = 16;

  /** Wider than that, what is added costs more than it saves. */
  private static final int MOST = 2;

  private static final Set<String> TYING =
      Set.of("AveragePool", "GlobalAveragePool", "LeakyRelu", "MaxPool", "Relu");

  private final OnnxModel model;

  /** A forest of the values: one tree for all that have one width. */
  private final ValueSets sets = new ValueSets();

  /** By the root of a tree. */
  private final Map<String, Long> channels = new HashMap<>();

  private final Set<String> fixed = new HashSet<>();
  private final Set<String> wanted = new HashSet<>();

  /** Concats that append zeros, by what makes the zeros. */
  private final Map<String, NodeProto> appending = new LinkedHashMap<>();

  private final Map<String, NodeProto> producers;
  private final Map<String, List<NodeProto>> consumers;

  /**
   * Finds the widths.
   *
   * @param products the outputs of the nodes that become int8
   */
  ChannelWidths(OnnxModel model, Set<String> products) {
    this.model = model;
    producers = model.producers();
    consumers = model.consumers();
    model.nodes().forEach(this::tie);
    for (ValueInfoProto v : model.inputs()) {
      fix(v.getName());
    }
    model.outputNames().forEach(this::fix);
    for (NodeProto n : model.nodes()) {
      if (isDepthwise(n) && products.contains(n.getOutput(0))) {
        wanted.add(sets.root(n.getOutput(0)));
      }
    }
    boolean changed = true;
    while (changed) {
      int before = fixed.size();
      appending.forEach(
          (zeros, concat) -> {
            Long in = channels.get(sets.root(concat.getInput(0)));
            Long out = channels.get(sets.root(concat.getOutput(0)));
            if (in == null || out == null || out - in != zeros(zeros)[1] || appended(zeros) < 0) {
              fix(concat.getInput(0));
              fix(concat.getOutput(0));
            }
          });
      changed = fixed.size() > before;
    }
    model.removeValueInfo(value -> width(value) != channels.getOrDefault(sets.root(value), 0L));
  }

  private void tie(NodeProto n) {
    String op = n.getOpType();
    if (!OnnxModel.isOwn(n) || n.getOutputCount() != 1) {
      fixAll(n);
    } else if (op.equals("Conv") && isPlain(n)) {
      OnnxInitializer w = model.constant(n.getInput(1));
      if (isDepthwise(n)) {
        tie(n.getInput(0), n.getOutput(0));
      } else if (Attributes.integer(n, "group", 1) == 1) {
        count(n.getInput(0), w.dims()[1]);
      } else {
        fixAll(n);
      }
      count(n.getOutput(0), w.dims()[0]);
    } else if (TYING.contains(op) || op.equals("Clip") && keepsZero(n)) {
      tie(n.getInput(0), n.getOutput(0));
    } else if (appendsZeros(n)) {
      appending.put(n.getInput(1), n);
    } else if (Set.of("Add", "Mul").contains(op)) {
      for (String input : n.getInputList()) {
        OnnxInitializer c = model.constant(input);
        if (c == null) {
          tie(input, n.getOutput(0));
        } else if (c.elements() != 1 || op.equals("Add")) {
          fix(n.getOutput(0));
        }
      }
    } else if (consumers.getOrDefault(n.getOutput(0), List.of()).stream()
        .noneMatch(c -> appendsZeros(c) && c.getInput(1).equals(n.getOutput(0)))) {
      fixAll(n);
    }
  }

  private boolean keepsZero(NodeProto clip) {
    float[] bounds = IntegerOperators.bounds(model, clip);
    return bounds != null && bounds[0] <= 0 && bounds[1] >= 0;
  }

  private boolean appendsZeros(NodeProto n) {
    return OnnxModel.isOwn(n, "Concat")
        && n.getInputCount() == 2
        && Attributes.integer(n, "axis", 0) == 1
        && zeros(n.getInput(1)) != null
        && consumers.get(n.getInput(1)).size() == 1;
  }

  /** The shape of an image of zeros; null if it is something else. */
  private long[] zeros(String value) {
    NodeProto n = producers.get(value);
    OnnxInitializer shape =
        n != null && OnnxModel.isOwn(n, "ConstantOfShape") ? model.constant(n.getInput(0)) : null;
    if (shape == null || shape.type() != DataType.INT64 || shape.elements() != 4) {
      return null;
    }
    // Without an attribute the value is 0 in float32.
    AttributeProto fill = Attributes.find(n, "value");
    if (fill != null) {
      OnnxInitializer c = OnnxInitializer.ofMessage(fill.getT());
      if (c.type() != DataType.FLOAT || c.elements() != 1 || c.floats().get(0) != 0) {
        return null;
      }
    }
    long[] dims = new long[4];
    shape.data().asLongBuffer().get(dims);
    return dims;
  }

  /** How many channels of zeros a Concat appends now. */
  private long appended(String zeros) {
    NodeProto concat = appending.get(zeros);
    return width(concat.getOutput(0)) - width(concat.getInput(0));
  }

  private long width(String value) {
    return of(value, channels.getOrDefault(sets.root(value), 0L));
  }

  /**
   * Lets a ConstantOfShape make, and a Concat append, the zeros that are left to append.
   *
   * @param n the node as it is in the model
   * @param changed the node to change
   */
  void append(NodeProto n, NodeProto.Builder changed, OnnxModel.Names names) {
    if (n.getOutputCount() == 1 && appending.containsKey(n.getOutput(0))) {
      long[] shape = zeros(n.getOutput(0));
      shape[1] = appended(n.getOutput(0));
      String name = names.unique("shape");
      model.addInitializer(OnnxInitializer.int64s(name, new long[] {4}, shape));
      changed.setInput(0, name);
    } else if (n.getInputCount() == 2
        && n.equals(appending.get(n.getInput(1)))
        && appended(n.getInput(1)) == 0) {
      String image = changed.getInput(0);
      changed.clearInput().addInput(image);
    }
  }

  private boolean isPlain(NodeProto n) {
    OnnxInitializer w = model.constant(n.getInput(1));
    if (w == null || w.type() != DataType.FLOAT || w.dims().length != 4) {
      return false;
    }
    boolean biased = n.getInputCount() > 2 && !n.getInput(2).isEmpty();
    OnnxInitializer bias = biased ? model.constant(n.getInput(2)) : null;
    boolean fits = bias != null && bias.type() == DataType.FLOAT && bias.elements() == w.dims()[0];
    return (!biased || fits) && model.constant(n.getInput(0)) == null;
  }

  /** Whether a Conv has one filter for each channel. */
  private boolean isDepthwise(NodeProto n) {
    OnnxInitializer w = OnnxModel.isOwn(n, "Conv") ? model.constant(n.getInput(1)) : null;
    return w != null
        && w.dims().length == 4
        && w.dims()[1] == 1
        && w.dims()[0] > 1
        && Attributes.integer(n, "group", 1) == w.dims()[0];
  }

  private void count(String value, long n) {
    String root = sets.root(value);
    Long known = channels.putIfAbsent(root, n);
    if (known != null && known != n) {
      fixed.add(root);
    }
  }

  private void fixAll(NodeProto n) {
    OnnxModel.uses(n).forEach(this::fix);
    n.getOutputList().forEach(this::fix);
  }

  private void fix(String value) {
    fixed.add(sets.root(value));
  }

  private void tie(String a, String b) {
    String first = sets.root(a);
    String second = sets.root(b);
    if (first.equals(second)) {
      return;
    }
    sets.join(first, second);
    if (channels.containsKey(second)) {
      count(first, channels.get(second));
    }
    if (fixed.contains(second)) {
      fixed.add(first);
    }
  }

  /** The channels that a value of {@code n} of them gets. */
  long of(String value, long n) {
    String root = sets.root(value);
    long wide = (n + MULTIPLE - 1) / MULTIPLE * MULTIPLE;
    return wanted.contains(root)
            && !fixed.contains(root)
            && channels.getOrDefault(root, 0L) == n
            && wide <= MOST * n
        ? wide
        : n;
  }

  /** Whether a node is a Conv of weights that get another shape. */
  boolean changes(NodeProto n) {
    return OnnxModel.isOwn(n, "Conv") && isPlain(n) && !list(weights(n)).equals(list(dims(n)));
  }

  private long[] dims(NodeProto conv) {
    return model.constant(conv.getInput(1)).dims();
  }

  /** The shape that the weights of a Conv get. */
  long[] weights(NodeProto conv) {
    long[] wide = dims(conv);
    wide[0] = of(conv.getOutput(0), wide[0]);
    if (Attributes.integer(conv, "group", 1) == 1) {
      wide[1] = of(conv.getInput(0), wide[1]);
    }
    return wide;
  }

  /** Gives a depthwise Conv the groups that its weights have now. */
  void widenGroups(NodeProto.Builder conv) {
    NodeProto n = conv.build();
    if (isDepthwise(n)) {
      conv.clearAttribute();
      n.getAttributeList().stream()
          .filter(a -> !a.getName().equals("group"))
          .forEach(conv::addAttribute);
      conv.addAttribute(Attributes.attribute("group", weights(n)[0]));
    }
  }

  /** Gives a Conv that stays float its new weights and bias. */
  void widen(NodeProto.Builder conv, OnnxModel.Names names) {
    NodeProto n = conv.build();
    long[] wide = weights(n);
    OnnxInitializer w = model.constant(n.getInput(1));
    String name = names.unique(w.name() + "_wide");
    model.addInitializer(
        OnnxInitializer.of(name, w.type(), wide, pad(w.data(), w.dims(), wide, Float.BYTES)));
    widenGroups(conv);
    conv.setInput(1, name);
    if (n.getInputCount() > 2 && !n.getInput(2).isEmpty()) {
      conv.setInput(2, widenBias(n.getInput(2), (int) wide[0], names));
    }
  }

  /** The float bias for that many channels. */
  String widenBias(String bias, int count, OnnxModel.Names names) {
    OnnxInitializer b = model.constant(bias);
    if (b.elements() == count) {
      return bias;
    }
    float[] values = new float[count];
    b.floats().get(values, 0, (int) b.elements());
    String name = names.unique(bias + "_wide");
    model.addInitializer(OnnxInitializer.floats(name, new long[] {count}, values));
    return name;
  }

  /** A tensor in the corner of a larger one of zeros. */
  static ByteBuffer pad(ByteBuffer values, long[] dims, long[] wide, int elementBytes) {
    int inner = elementBytes;
    for (int d = 2; d < dims.length; d++) {
      inner *= (int) dims[d];
    }
    int row = inner * (int) dims[1];
    int wideRow = inner * (int) wide[1];
    ByteBuffer result = ByteBuffer.allocateDirect(wideRow * (int) wide[0]).order(values.order());
    for (int i = 0; i < dims[0]; i++) {
      result.put(i * wideRow, values, values.position() + i * row, row);
    }
    return result;
  }

  static List<Long> list(long[] dims) {
    return Arrays.stream(dims).boxed().toList();
  }
}

package org.espalier.compress.onnx;

import ai.onnx.proto.OnnxMl.AttributeProto;
import ai.onnx.proto.OnnxMl.NodeProto;
import ai.onnx.proto.OnnxMl.TensorProto.DataType;
import ai.onnx.proto.OnnxMl.ValueInfoProto;
import java.util.ArrayList;
import java.util.Collection;
import java.util.HashMap;
import java.util.HashSet;
import java.util.LinkedHashMap;
import java.util.LinkedHashSet;
import java.util.List;
import java.util.Map;
import java.util.Set;
import org.espalier.format.onnx.Attributes;
import org.espalier.format.onnx.OnnxInitializer;
import org.espalier.format.onnx.OnnxModel;

/**
 * The images of a model whose channels may be divided by factors where Convs make them, and multiplied again where Convs read
 * them: all operators between do the same to each channel, whatever its factor. Values that such an operator ties together
 * have the same factors.
 */
final class CommutingImages {
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
  static final class Images {
    /** The Convs whose outputs they are, and those that read them. */
    final List<NodeProto> makers = new ArrayList<>();

    final List<NodeProto> readers = new ArrayList<>();

    /** Those that gates read. */
    final Set<String> gated = new LinkedHashSet<>();

    /** Whether something else makes or reads one, which factors would change. */
    boolean blocked;

    /** Whether a Clip cuts them off above. */
    boolean bounded;

    /** Whether a number is added to one. */
    boolean shifted;

    int channels(OnnxModel model) {
      return (int) dims(model, makers.get(0))[0];
    }

    /** Of the values, with the batch. */
    int rank(OnnxModel model) {
      return dims(model, makers.get(0)).length;
    }
  }

  /** A gate of an image. */
  record Gate(String image, GateBounds.Hard hard) {}

  private final OnnxModel model;
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

  private CommutingImages(OnnxModel model) {
    this.model = model;
    producers = model.producers();
    consumers = model.consumers();
  }

  /**
   * The images of a model.
   *
   * @param convolutions the outputs of Convs, of which one must read each of them
   */
  static CommutingImages find(OnnxModel model, Set<String> convolutions) {
    CommutingImages found = new CommutingImages(model);
    found.join();
    found
        .images
        .values()
        .removeIf(
            i ->
                i.blocked
                    || i.makers.isEmpty()
                    || i.readers.stream().noneMatch(n -> convolutions.contains(n.getOutput(0)))
                    || !found.agree(i));
    return found;
  }

  Collection<Images> all() {
    return images.values();
  }

  /** The images that a value is one of; null where it is none. */
  Images of(String value) {
    return images.get(sets.root(value));
  }

  /** The gate whose Clip has this output; null where it is of none. */
  Gate gate(String output) {
    return gates.get(output);
  }

  private Images made(String value) {
    return images.computeIfAbsent(sets.root(value), v -> new Images());
  }

  private void findGates() {
    GateBounds bounds = new GateBounds(model);
    for (NodeProto n : model.nodes()) {
      if (OnnxModel.isOwn(n, "Mul") && n.getInputCount() == 2) {
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

  private void join() {
    findGates();
    for (NodeProto n : model.nodes()) {
      commuting(n).forEach(input -> sets.join(n.getOutput(0), input));
    }
    List<NodeProto> clips = model.nodes().stream().filter(n -> OnnxModel.isOwn(n, "Clip")).toList();
    for (NodeProto n : clips) {
      made(n.getOutput(0)).bounded |= !commuting(n).isEmpty() && bounds(n)[1] < Float.MAX_VALUE;
    }
    zeros.keySet().forEach(image -> made(image).gated.add(image));
    model.nodes().stream().filter(this::isShift).forEach(n -> made(n.getOutput(0)).shifted = true);
    for (ValueInfoProto v : model.inputs()) {
      made(v.getName()).blocked = true;
    }
    model.outputNames().forEach(output -> made(output).blocked = true);
    for (NodeProto n : model.nodes()) {
      if (isScalable(n)) {
        made(n.getInput(0)).readers.add(n);
        made(n.getOutput(0)).makers.add(n);
        continue;
      }
      String first = n.getOutputCount() == 0 ? "" : n.getOutput(0);
      if (OnnxModel.isOwn(n, "Shape") || gates.containsKey(first) || inGates.contains(first)) {
        continue;
      }
      List<String> commuting = commuting(n);
      for (String input : OnnxModel.uses(n)) {
        // What no node makes cannot be divided.
        if (!commuting.contains(input) || !producers.containsKey(input)) {
          made(input).blocked = true;
        }
      }
      if (commuting.isEmpty()) {
        n.getOutputList().forEach(output -> made(output).blocked = true);
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
    AttributeProto mode = Attributes.find(resize, "coordinate_transformation_mode");
    return mode != null && mode.getS().toStringUtf8().equals("tf_crop_and_resize");
  }

  /** Between what a Clip cuts off. */
  float[] bounds(NodeProto clip) {
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
  boolean isShift(NodeProto n) {
    int number = OnnxModel.isOwn(n, "Add") ? Nodes.number(model, n) : -1;
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
    if (!OnnxModel.isOwn(n, "Conv") || n.getOutputCount() != 1) {
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

  /** Whether all Convs see images of the same rank and the same number of channels, several. */
  private boolean agree(Images i) {
    int channels = i.channels(model);
    int rank = i.rank(model);
    return channels > 1
        && i.makers.stream()
            .map(n -> dims(model, n))
            .allMatch(d -> d.length == rank && d[0] == channels)
        && i.readers.stream()
            .allMatch(
                n -> dims(model, n).length == rank && dims(model, n)[1] * groups(n) == channels);
  }

  private static long[] dims(OnnxModel model, NodeProto conv) {
    return model.constant(conv.getInput(1)).dims();
  }

  static long groups(NodeProto conv) {
    return Attributes.integer(conv, "group", 1);
  }
}

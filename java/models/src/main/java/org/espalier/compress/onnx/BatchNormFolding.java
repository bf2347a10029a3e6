package org.espalier.compress.onnx;

import ai.onnx.proto.OnnxMl.NodeProto;
import ai.onnx.proto.OnnxMl.TensorProto.DataType;
import java.nio.FloatBuffer;
import java.util.ArrayList;
import java.util.HashMap;
import java.util.HashSet;
import java.util.List;
import java.util.Map;
import java.util.Set;
import org.espalier.format.onnx.Attributes;
import org.espalier.format.onnx.OnnxInitializer;
import org.espalier.format.onnx.OnnxModel;

/**
 * Folds a BatchNormalization in inference form, and products and sums with constants, into the Conv before
 * them, as a runtime does; once there are quantization nodes between the two, no runtime can. With
 * g = scale/√(variance + ε) of a channel its weights become g·W and its bias g·(b − mean) + B.
 */
final class BatchNormFolding {
  private BatchNormFolding() {}

  /**
   * Folds what can be folded, in place: constant float32 parameters, and nothing else reads them.
   */
  static void apply(OnnxModel model) {
    Map<String, List<NodeProto>> consumers = model.consumers();
    Set<String> outputs = model.outputNames();
    OnnxModel.Names names = model.names();
    // What has become of a Conv, by its first output in the file, and that output by the one it has
    // now.
    Map<String, NodeProto> convs = new HashMap<>();
    Map<String, String> origins = new HashMap<>();
    Set<String> gone = new HashSet<>();
    for (NodeProto n : model.nodes()) {
      String image = image(model, n);
      NodeProto conv = convs.get(origins.get(image));
      boolean alone =
          conv != null
              && !outputs.contains(image)
              && consumers.get(image).size() == 1
              && consumers.getOrDefault(conv.getInput(1), List.of()).size() == 1;
      NodeProto folded = alone ? fold(model, names, conv, n) : null;
      if (folded != null) {
        convs.put(origins.get(image), folded);
        origins.put(folded.getOutput(0), origins.get(image));
        gone.add(folded.getOutput(0));
      } else if (OnnxModel.isOwn(n, "Conv") && n.getOutputCount() == 1) {
        convs.put(n.getOutput(0), n);
        origins.put(n.getOutput(0), n.getOutput(0));
      }
    }
    if (gone.isEmpty()) {
      return;
    }
    List<NodeProto> nodes = new ArrayList<>();
    for (NodeProto n : model.nodes()) {
      String output = n.getOutputCount() == 0 ? "" : n.getOutput(0);
      if (!gone.contains(output)) {
        nodes.add(convs.getOrDefault(output, n));
      }
    }
    model.setNodes(nodes);
    model.removeUnusedInitializers();
  }

  /** What a node scales and shifts by constants; null if it does something else. */
  private static String image(OnnxModel model, NodeProto n) {
    switch (OnnxModel.isOwn(n) ? n.getOpType() : "") {
      case "BatchNormalization" -> {
        boolean plain =
            n.getInputCount() == 5
                && n.getOutputCount() == 1
                && Attributes.integer(n, "training_mode", 0) == 0;
        return plain ? n.getInput(0) : null;
      }
      case "Add", "Mul", "Div", "Sub" -> {
        boolean turned = model.constant(n.getInput(0)) != null;
        boolean commutes = Set.of("Add", "Mul").contains(n.getOpType());
        return turned ? commutes ? n.getInput(1) : null : n.getInput(0);
      }
      default -> {
        return null;
      }
    }
  }

  /**
   * The Conv with the operation behind it in it, defining the operation's output; null if it cannot.
   */
  private static NodeProto fold(
      OnnxModel model, OnnxModel.Names names, NodeProto conv, NodeProto norm) {
    OnnxInitializer w = model.constant(conv.getInput(1));
    if (w == null || w.type() != DataType.FLOAT || w.dims().length < 3) {
      return null;
    }
    int channels = Math.toIntExact(w.dims()[0]);
    boolean biased = conv.getInputCount() > 2 && !conv.getInput(2).isEmpty();
    FloatBuffer bias = biased ? vector(model, conv.getInput(2), channels) : null;
    double[][] affine =
        OnnxModel.isOwn(norm, "BatchNormalization")
            ? normalization(model, norm, channels)
            : arithmetic(model, norm, channels, w.dims().length);
    if (affine == null || biased && bias == null) {
      return null;
    }
    float[] weights = new float[Math.toIntExact(w.elements())];
    w.floats().get(weights);
    float[] biases = new float[channels];
    int inner = channels == 0 ? 0 : weights.length / channels;
    for (int c = 0; c < channels; c++) {
      double g = affine[0][c];
      for (int i = 0; i < inner; i++) {
        weights[c * inner + i] = (float) (g * weights[c * inner + i]);
      }
      biases[c] = (float) (g * (biased ? bias.get(c) : 0) + affine[1][c]);
    }
    model.replaceConstant(OnnxInitializer.floats(w.name(), w.dims(), weights));
    String name = names.unique(conv.getOutput(0) + "_bias");
    model.addInitializer(OnnxInitializer.floats(name, new long[] {channels}, biases));
    NodeProto.Builder b = conv.toBuilder().setOutput(0, norm.getOutput(0));
    if (conv.getInputCount() > 2) {
      b.setInput(2, name);
    } else {
      b.addInput(name);
    }
    return b.build();
  }

  /** The factors and the summands of a normalization; null if its parameters are no constants. */
  private static double[][] normalization(OnnxModel model, NodeProto norm, int channels) {
    FloatBuffer[] p = new FloatBuffer[4];
    for (int i = 0; i < 4; i++) {
      p[i] = vector(model, norm.getInput(i + 1), channels);
      if (p[i] == null) {
        return null;
      }
    }
    float epsilon = Attributes.real(norm, "epsilon", 1e-5f);
    double[][] affine = new double[2][channels];
    for (int c = 0; c < channels; c++) {
      affine[0][c] = p[0].get(c) / Math.sqrt((double) p[3].get(c) + epsilon);
      affine[1][c] = p[1].get(c) - affine[0][c] * p[2].get(c);
    }
    return affine;
  }

  /**
   * The factors and the summands of an operation with a constant that is one number, or one for each channel;
   * null if it is anything else.
   */
  private static double[][] arithmetic(OnnxModel model, NodeProto n, int channels, int rank) {
    OnnxInitializer c = model.constant(n.getInput(model.constant(n.getInput(0)) == null ? 1 : 0));
    if (c == null || c.type() != DataType.FLOAT || c.dims().length > rank) {
      return null;
    }
    int axis = c.dims().length - (rank - 1);
    boolean perChannel = axis >= 0 && c.dims()[axis] == channels && c.elements() == channels;
    if (!perChannel && c.elements() != 1) {
      return null;
    }
    double[][] affine = new double[2][channels];
    for (int i = 0; i < channels; i++) {
      float value = c.floats().get(perChannel ? i : 0);
      boolean scales = Set.of("Mul", "Div").contains(n.getOpType());
      affine[0][i] = !scales ? 1 : OnnxModel.isOwn(n, "Mul") ? value : 1.0 / value;
      affine[1][i] = scales ? 0 : OnnxModel.isOwn(n, "Add") ? value : -value;
      if (!Double.isFinite(affine[0][i])) {
        return null;
      }
    }
    return affine;
  }

  private static FloatBuffer vector(OnnxModel model, String value, int channels) {
    OnnxInitializer v = model.constant(value);
    return v != null
            && v.type() == DataType.FLOAT
            && v.dims().length == 1
            && v.elements() == channels
        ? v.floats()
        : null;
  }
}

package org.espalier.compress.onnx;

import ai.onnx.proto.OnnxMl.NodeProto;
import ai.onnx.proto.OnnxMl.TensorProto.DataType;
import ai.onnx.proto.OnnxMl.ValueInfoProto;
import java.nio.FloatBuffer;
import java.util.ArrayList;
import java.util.HashMap;
import java.util.HashSet;
import java.util.List;
import java.util.Map;
import java.util.Set;
import org.espalier.format.onnx.OnnxInitializer;
import org.espalier.format.onnx.OnnxModel;

/**
 * Folds a BatchNormalization in inference form into the Conv before it, as a runtime does; once
 * there are quantization nodes between the two, no runtime can. With g = scale/√(variance + ε) of a
 * channel its weights become g·W and its bias g·(b − mean) + B.
 */
final class BatchNormFolding {
  private BatchNormFolding() {}

  /**
   * Folds what can be folded, in place: constant float32 parameters, and nothing else reads them.
   */
  static void apply(OnnxModel model) {
    Map<String, List<NodeProto>> consumers = model.consumers();
    Set<String> outputs = new HashSet<>();
    for (ValueInfoProto v : model.outputs()) {
      outputs.add(v.getName());
    }
    Map<String, NodeProto> convs = new HashMap<>();
    Map<String, NodeProto> folded = new HashMap<>();
    OnnxModel.Names names = model.names();
    for (NodeProto n : model.nodes()) {
      if (n.getOpType().equals("Conv") && n.getOutputCount() == 1) {
        convs.put(n.getOutput(0), n);
      } else if (n.getOpType().equals("BatchNormalization") && n.getInputCount() == 5) {
        NodeProto conv = convs.get(n.getInput(0));
        boolean alone =
            conv != null
                && !outputs.contains(conv.getOutput(0))
                && consumers.get(conv.getOutput(0)).size() == 1
                && consumers.getOrDefault(conv.getInput(1), List.of()).size() == 1;
        if (alone && Nodes.integer(n, "training_mode", 0) == 0 && n.getOutputCount() == 1) {
          NodeProto replacement = fold(model, names, conv, n);
          if (replacement != null) {
            folded.put(conv.getOutput(0), replacement);
            folded.put(n.getOutput(0), null);
          }
        }
      }
    }
    if (folded.isEmpty()) {
      return;
    }
    List<NodeProto> nodes = new ArrayList<>();
    for (NodeProto n : model.nodes()) {
      String output = n.getOutputCount() == 0 ? "" : n.getOutput(0);
      if (!folded.containsKey(output)) {
        nodes.add(n);
      } else if (folded.get(output) != null) {
        nodes.add(folded.get(output));
      }
    }
    model.setNodes(nodes);
    model.removeUnusedInitializers();
  }

  /**
   * The Conv with the normalization in it, defining the normalization's output; null if it cannot.
   */
  private static NodeProto fold(
      OnnxModel model, OnnxModel.Names names, NodeProto conv, NodeProto norm) {
    OnnxInitializer w = model.constant(conv.getInput(1));
    if (w == null || w.type() != DataType.FLOAT || w.dims().length < 3) {
      return null;
    }
    int channels = Math.toIntExact(w.dims()[0]);
    FloatBuffer[] p = new FloatBuffer[4];
    for (int i = 0; i < 4; i++) {
      p[i] = vector(model, norm.getInput(i + 1), channels);
    }
    boolean biased = conv.getInputCount() > 2 && !conv.getInput(2).isEmpty();
    FloatBuffer bias = biased ? vector(model, conv.getInput(2), channels) : null;
    if (p[0] == null || p[1] == null || p[2] == null || p[3] == null || biased && bias == null) {
      return null;
    }
    float epsilon = Nodes.real(norm, "epsilon", 1e-5f);
    float[] weights = new float[Math.toIntExact(w.elements())];
    w.floats().get(weights);
    float[] biases = new float[channels];
    int inner = channels == 0 ? 0 : weights.length / channels;
    for (int c = 0; c < channels; c++) {
      double g = p[0].get(c) / Math.sqrt((double) p[3].get(c) + epsilon);
      for (int i = 0; i < inner; i++) {
        weights[c * inner + i] = (float) (g * weights[c * inner + i]);
      }
      biases[c] = (float) (g * ((biased ? bias.get(c) : 0) - p[2].get(c)) + p[1].get(c));
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

package org.espalier.format.onnx;

import ai.onnx.proto.OnnxMl.NodeProto;
import java.nio.FloatBuffer;
import java.util.List;
import java.util.Map;

/**
 * The constant vector that a node adds along the last axis of its output: the second operand of an Add
 * (a bias, or the end of a LayerNorm that was exported in parts) or the bias of a LayerNormalization.
 */
public final class ConstantVector {
  private ConstantVector() {}

  /** Which input of {@code n} is such a vector of {@code width} values; −1 if none is. */
  public static int input(OnnxModel model, NodeProto n, int width) {
    if (n == null) {
      return -1;
    }
    if (n.getOpType().equals("Add")) {
      for (int i = 1; i >= 0; i--) {
        if (isVector(model, n.getInput(i), width) && model.constant(n.getInput(1 - i)) == null) {
          return i;
        }
      }
      return -1;
    }
    boolean norm = n.getOpType().equals("LayerNormalization") && n.getInputCount() == 3;
    return norm && isVector(model, n.getInput(2), width) ? 2 : -1;
  }

  /** Whether a value is a constant of {@code width} floats along one axis. */
  public static boolean isVector(OnnxModel model, String value, int width) {
    OnnxInitializer c = model.constant(value);
    return c != null && c.isFloat() && c.dims().length == 1 && c.elements() == width;
  }

  /** The output of the node that alone reads a product of so many columns and adds such a vector to it; null where none does. */
  public static String biasAdd(
      OnnxModel model, String product, int columns, Map<String, List<NodeProto>> consumers) {
    List<NodeProto> readers = consumers.getOrDefault(product, List.of());
    if (readers.size() != 1 || model.outputNames().contains(product)) {
      return null;
    }
    NodeProto add = readers.get(0);
    return input(model, add, columns) >= 0 ? add.getOutput(0) : null;
  }

  /** The node with {@code change} added to its vector, in a new initializer. */
  public static NodeProto changed(
      OnnxModel model, OnnxModel.Names names, NodeProto n, double[] change) {
    return changed(model, names, n, input(model, n, change.length), change);
  }

  /** The same for the vector of that input, which may be the bias of a convolution or Gemm. */
  public static NodeProto changed(
      OnnxModel model, OnnxModel.Names names, NodeProto n, int input, double[] change) {
    String old = n.getInput(input);
    String vector = names.unique(old + "_fitted");
    model.addInitializer(sum(model, old, change).withName(vector));
    return n.toBuilder().setInput(input, vector).build();
  }

  /** What a constant vector is with a change added to it. */
  public static OnnxInitializer sum(OnnxModel model, String vector, double[] change) {
    OnnxInitializer constant = model.constant(vector);
    FloatBuffer values = constant.floats();
    float[] sum = new float[change.length];
    for (int c = 0; c < sum.length; c++) {
      sum[c] = (float) (values.get(c) + change[c]);
    }
    return OnnxInitializer.floats(vector, constant.type(), new long[] {sum.length}, sum);
  }
}

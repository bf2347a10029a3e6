package org.espalier.format.onnx;

import ai.onnx.proto.OnnxMl.NodeProto;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.util.Arrays;
import java.util.Map;

/**
 * Checks constants that operators read: weights of recurrent layers against each other, and divisors of whole numbers.
 * Runtimes end the process where they do not fit.
 */
final class NodeOperands {
  private NodeOperands() {}

  /**
   * What is wrong with what a node reads; null if nothing is, or its operator is another.
   *
   * @param constants the constants that it may read
   * @param ranks the number of axes of the values of which it is known
   */
  static String problem(NodeProto n, Map<String, OnnxInitializer> constants, ValueRanks ranks) {
    return switch (n.getOpType()) {
      case "LSTM" -> recurrent(n, 4, constants, ranks);
      case "GRU" -> recurrent(n, 3, constants, ranks);
      case "RNN" -> recurrent(n, 1, constants, ranks);
      case "Div", "Mod" -> n.getInputCount() < 2 ? null : divisor(constants.get(n.getInput(1)));
      default -> null;
    };
  }

  private static String recurrent(
      NodeProto n, int gates, Map<String, OnnxInitializer> constants, ValueRanks ranks) {
    Integer rank = ranks.of(n.getInput(0));
    if (rank != null && rank != 3) {
      return "its input has " + rank + " axes; 3 are right: steps, examples, features";
    }
    OnnxInitializer r = constants.get(n.getInput(2));
    if (r == null) {
      return null;
    }
    long[] dims = r.dims();
    if (dims.length != 3 || dims[0] < 1 || dims[0] > 2 || dims[1] != gates * dims[2]) {
      return "its recurrent weights R have the shape "
          + Arrays.toString(dims)
          + "; [directions, "
          + (gates == 1 ? "" : gates + " * ")
          + "hidden, hidden] is right";
    }
    OnnxInitializer w = constants.get(n.getInput(1));
    if (w != null && (w.dims().length != 3 || w.dims()[0] != dims[0] || w.dims()[1] != dims[1])) {
      return "its weights W have the shape "
          + Arrays.toString(w.dims())
          + "; with R of "
          + Arrays.toString(dims)
          + " ["
          + dims[0]
          + ", "
          + dims[1]
          + ", features] is right";
    }
    OnnxInitializer b = n.getInputCount() < 4 ? null : constants.get(n.getInput(3));
    long[] biases = {dims[0], 2 * dims[1]};
    if (b != null && !Arrays.equals(b.dims(), biases)) {
      return "its biases B have the shape "
          + Arrays.toString(b.dims())
          + "; "
          + Arrays.toString(biases)
          + " is right";
    }
    return null;
  }

  /** What is wrong with a constant that whole numbers are divided by; null if nothing is. */
  private static String divisor(OnnxInitializer constant) {
    if (constant == null) {
      return null;
    }
    int bytes =
        switch (constant.type()) {
          case INT8, UINT8 -> 1;
          case INT16, UINT16 -> 2;
          case INT32, UINT32 -> 4;
          case INT64, UINT64 -> 8;
          default -> 0;
        };
    if (bytes == 0 || !constant.fitsMessage()) {
      return null;
    }
    ByteBuffer data = constant.data().order(ByteOrder.LITTLE_ENDIAN);
    for (int at = data.position(); at + bytes <= data.limit(); at += bytes) {
      boolean zero = true;
      for (int i = 0; i < bytes; i++) {
        zero &= data.get(at + i) == 0;
      }
      if (zero) {
        return "it divides whole numbers by " + constant.name() + ", which holds 0";
      }
    }
    return null;
  }
}

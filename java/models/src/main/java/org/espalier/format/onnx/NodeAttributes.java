package org.espalier.format.onnx;

import ai.onnx.proto.OnnxMl.AttributeProto;
import ai.onnx.proto.OnnxMl.NodeProto;
import java.util.Arrays;
import java.util.List;
import java.util.Map;
import java.util.Set;

/**
 * Checks axes, and the attributes of convolutions, pools and group norms against each other and against
 * constant weights. Runtimes index with them and divide by them without looking, and take the
 * process with them.
 */
final class NodeAttributes {
  private static final Map<String, Integer> WEIGHTS =
      Map.of("Conv", 1, "ConvTranspose", 1, "ConvInteger", 1, "QLinearConv", 3);

  private static final Set<String> POOLS = Set.of("AveragePool", "LpPool", "MaxPool", "MaxUnpool");

  private NodeAttributes() {}

  /**
   * What is wrong with the attributes of a node; null if nothing is, or nothing is known of its operator.
   *
   * @param constants the constants that it may read
   * @param ranks the number of axes of the values of which it is known
   */
  static String problem(NodeProto n, Map<String, OnnxInitializer> constants, ValueRanks ranks) {
    for (AttributeProto a : n.getAttributeList()) {
      if (a.getName().equals("axis") && a.getI() != (int) a.getI()) {
        return "its axis is " + a.getI() + ", which no tensor has";
      }
    }
    if (n.getOpType().equals("GroupNormalization")) {
      return n.getAttributeList().stream()
          .filter(a -> a.getName().equals("num_groups") && a.getI() < 1)
          .map(a -> "its num_groups is " + a.getI() + "; 1 or more is right")
          .findFirst()
          .orElse(null);
    }
    Integer input = WEIGHTS.get(n.getOpType());
    if (input == null && !POOLS.contains(n.getOpType())) {
      return null;
    }
    OnnxInitializer weights =
        input == null || n.getInputCount() <= input ? null : constants.get(n.getInput(input));
    int axes = -1;
    if (weights != null) {
      long[] dims = weights.dims();
      if (dims.length < 3) {
        return "its weights have the shape " + Arrays.toString(dims) + "; they need 3 axes or more";
      }
      axes = dims.length - 2;
    }
    Integer rank = n.getInputCount() == 0 ? null : ranks.of(n.getInput(0));
    if (rank != null && (rank < 3 || axes >= 0 && rank != axes + 2)) {
      return "its input has "
          + rank
          + " axes; "
          + (axes < 0
              ? "3 or more are right"
              : axes + 2 + " are right, as many as its weights have");
    }
    axes = rank == null ? axes : rank - 2;
    for (AttributeProto a : n.getAttributeList()) {
      List<Long> values = a.getIntsList();
      int each = a.getName().equals("pads") ? 2 : 1;
      long least;
      switch (a.getName()) {
        case "group" -> {
          String problem = groups(n, a.getI(), weights);
          if (problem != null) {
            return problem;
          }
          continue;
        }
        case "kernel_shape", "strides", "dilations" -> least = 1;
        case "output_padding" -> least = 0;
        case "pads" -> least = n.getOpType().equals("ConvTranspose") ? Long.MIN_VALUE : 0;
        default -> {
          continue;
        }
      }
      if (values.isEmpty()) {
        continue; // as if it were not there
      }
      axes = axes < 0 && values.size() % each == 0 ? values.size() / each : axes;
      if (values.size() != each * axes) {
        return "its "
            + a.getName()
            + " are "
            + values
            + (axes < 0
                ? "; they need two values for each axis"
                : "; its windows have " + axes + " axes, so " + each * axes + " are needed");
      }
      for (long value : values) {
        if (value < Math.max(least, -Integer.MAX_VALUE) || value > Integer.MAX_VALUE) {
          return "its " + a.getName() + " are " + values + ", of which " + value + " cannot be";
        }
      }
    }
    return null;
  }

  private static String groups(NodeProto n, long group, OnnxInitializer weights) {
    if (group < 1) {
      return "its group is " + group + "; 1 or more is right";
    }
    // The output channels of Conv, the input channels of ConvTranspose.
    if (weights != null && weights.dims()[0] % group != 0) {
      return "its weights have "
          + weights.dims()[0]
          + (n.getOpType().equals("ConvTranspose") ? " input" : " output")
          + " channels, which do not fall into "
          + group
          + " groups";
    }
    return null;
  }
}

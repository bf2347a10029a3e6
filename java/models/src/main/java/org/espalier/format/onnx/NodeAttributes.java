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
      return groupNormalization(n);
    }
    Integer input = WEIGHTS.get(n.getOpType());
    if (input == null && !POOLS.contains(n.getOpType())) {
      return null;
    }
    OnnxInitializer weights =
        input == null || n.getInputCount() <= input ? null : constants.get(n.getInput(input));
    Integer rank = n.getInputCount() == 0 ? null : ranks.of(n.getInput(0));
    String problem = shapes(weights, rank);
    if (problem != null) {
      return problem;
    }
    int axes = rank != null ? rank - 2 : weights != null ? weights.dims().length - 2 : -1;
    return windows(n, weights, axes);
  }

  private static String groupNormalization(NodeProto n) {
    return n.getAttributeList().stream()
        .filter(a -> a.getName().equals("num_groups") && a.getI() < 1)
        .map(a -> "its num_groups is " + a.getI() + "; 1 or more is right")
        .findFirst()
        .orElse(null);
  }

  /**
   * What is wrong with the weights of a node, or with its input beside them.
   *
   * @param weights null where they are not known
   * @param rank of the input; null where it is not known
   */
  private static String shapes(OnnxInitializer weights, Integer rank) {
    if (weights != null && weights.dims().length < 3) {
      return "its weights have the shape "
          + Arrays.toString(weights.dims())
          + "; they need 3 axes or more";
    }
    if (rank != null && (rank < 3 || weights != null && rank != weights.dims().length)) {
      return "its input has "
          + rank
          + " axes; "
          + (weights == null
              ? "3 or more are right"
              : weights.dims().length + " are right, as many as its weights have");
    }
    return null;
  }

  /**
   * What is wrong with the attributes of windows.
   *
   * @param known how many axes the windows have; −1 where only the attributes can tell
   */
  private static String windows(NodeProto n, OnnxInitializer weights, int known) {
    int axes = known;
    for (AttributeProto a : n.getAttributeList()) {
      if (a.getName().equals("group")) {
        String problem = groups(n, a.getI(), weights);
        if (problem != null) {
          return problem;
        }
      }
      Long least = least(n, a.getName());
      List<Long> values = a.getIntsList();
      if (least == null || values.isEmpty()) { // which is as if it were not there
        continue;
      }
      int each = a.getName().equals("pads") ? 2 : 1;
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

  /** The least that an attribute of windows may hold; null for other attributes. */
  private static Long least(NodeProto n, String attribute) {
    return switch (attribute) {
      case "kernel_shape", "strides", "dilations" -> 1L;
      case "output_padding" -> 0L;
      case "pads" -> n.getOpType().equals("ConvTranspose") ? Long.MIN_VALUE : 0L;
      default -> null;
    };
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

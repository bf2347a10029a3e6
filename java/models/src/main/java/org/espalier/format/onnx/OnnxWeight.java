package org.espalier.format.onnx;

import java.util.List;

/**
 * A constant tensor that is multiplied with activations, or looked up in. Axes are those of the
 * stored tensor, whatever transpositions lie between it and the node.
 *
 * @param name a name for people: the constant's own where it has one, otherwise the place of the
 *     first node that uses it, for instance {@code encoder.layer.0.attention.self.query.weight}
 * @param value the value that holds it in the graph: an initializer or the output of a Constant
 *     node
 * @param uses the nodes that use it as a weight, in graph order; at least one
 * @param otherUses how many nodes use it in some other way
 */
public record OnnxWeight(String name, String value, List<Use> uses, int otherUses) {
  /** What a node does with a weight. */
  public enum Kind {
    MATMUL,
    GEMM,
    CONV,
    /** Stored as [input channels, output channels of a group, kernel]. */
    CONV_TRANSPOSE,
    /** W or R of a recurrent layer, stored as [directions, gates · hidden, inputs or hidden]. */
    LSTM,
    GRU,
    RNN,
    /**
     * Rows are looked up by Gather; the output axis is the row, the reduction axis the features.
     */
    EMBEDDING
  }

  /**
   * One use of a weight.
   *
   * @param kind what the node does
   * @param node the name of the node's first output that has one, which identifies the node
   * @param input which input of the node the weight is
   * @param outputAxis the axis of the output channels
   * @param reductionAxis the axis that is summed over; for Conv and ConvTranspose the
   *     input channels
   * @param axes for each axis of what the node sees the axis of the stored tensor
   * @param groups how many groups the output channels fall into; 1 except for grouped Conv
   *     and ConvTranspose
   * @param path the names of the values between the weight and the node, from the weight's own to
   *     the node's input; one name where the node uses the weight directly
   */
  public record Use(
      Kind kind,
      String node,
      int input,
      int outputAxis,
      int reductionAxis,
      List<Integer> axes,
      long groups,
      List<String> path) {
    public Use {
      axes = List.copyOf(axes);
      path = List.copyOf(path);
    }

    /** Whether the node uses the tensor as it is stored. */
    public boolean isDirect() {
      return path.size() == 1;
    }
  }

  public OnnxWeight {
    uses = List.copyOf(uses);
  }

  /** Whether the weight is only looked up in. */
  public boolean isEmbedding() {
    return uses.stream().allMatch(u -> u.kind() == Kind.EMBEDDING);
  }

  /** Whether several nodes use the tensor. */
  public boolean isShared() {
    return uses.size() + otherUses > 1;
  }

  /** The axis of the output channels in the first use. */
  public int outputAxis() {
    return uses.get(0).outputAxis();
  }

  /** The axis that is summed over in the first use. */
  public int reductionAxis() {
    return uses.get(0).reductionAxis();
  }
}

package org.espalier.torch;

import java.util.List;
import org.bytedeco.pytorch.Tensor;

/**
 * A tensor that training changes: the working weights, which {@link TrainableModel#forward} reads.
 * Where weights are fake-quantized the optimizer keeps the latent ones and writes the quantized ones
 * here.
 *
 * @param name unique in the model and the same in every run, for instance {@code
 *     encoder.layer.0.attention.self.query.weight}
 * @param tensor a leaf of autograd: F32, contiguous, {@code requires_grad}; owned by the model
 * @param kind what the model does with it
 * @param outputAxis the axis of the output channels, along which scales lie; -1 where there is none
 * @param reductionAxis the axis that is summed over (for convolutions the input channels), along
 *     which n:m patterns lie; -1 where there is none
 * @param nodes the names of the nodes (layers) that it feeds, in order; a weight shared by several
 *     nodes has several
 */
public record Parameter(
    String name, Tensor tensor, Kind kind, int outputAxis, int reductionAxis, List<String> nodes) {
  /** What a model does with a parameter. */
  public enum Kind {
    /** Multiplied with activations by a matrix product. */
    LINEAR,
    CONVOLUTION,
    /** Convolved; the first axis of the weight is that of the input channels. */
    TRANSPOSED_CONVOLUTION,
    /** Multiplied with the inputs or the state of a recurrent layer. */
    RECURRENT,
    /** Rows are looked up; the output axis is the row. */
    EMBEDDING,
    /** Biases, norms, tables and whatever else is not quantized. */
    OTHER
  }

  public Parameter {
    nodes = List.copyOf(nodes);
  }

  /** Whether it is a weight that something is multiplied with, which pruning is for. */
  public boolean isWeight() {
    return kind != Kind.EMBEDDING && kind != Kind.OTHER;
  }
}

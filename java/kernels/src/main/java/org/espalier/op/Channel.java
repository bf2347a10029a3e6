package org.espalier.op;

import org.espalier.binding.global.espalier;
import org.espalier.device.Tensor;

/** What has a scale of its own in the working copy of an optimizer. */
public enum Channel {
  /** The whole tensor: one scale. */
  TENSOR(espalier.ESP_CHANNEL_TENSOR),
  /** Each index of the first axis: the output channels of Linear [out, in] and Conv. */
  FIRST_AXIS(espalier.ESP_CHANNEL_ROW),
  /** Each index of the last axis: the output channels of an ONNX MatMul [in, out]. */
  LAST_AXIS(espalier.ESP_CHANNEL_COLUMN);

  private final int code;

  Channel(int code) {
    this.code = code;
  }

  /**
   * The channels of an axis; negative axes count from the last.
   *
   * @throws IllegalArgumentException for an axis that is neither the first nor the last
   */
  public static Channel ofAxis(int axis, int rank) {
    int from = axis < 0 ? axis + rank : axis;
    if (from < 0 || from >= rank || from != 0 && from != rank - 1) {
      throw new IllegalArgumentException(
          "axis " + axis + " of " + rank + "; channels along the first or the last axis only");
    }
    return from == 0 ? FIRST_AXIS : LAST_AXIS;
  }

  long count(Tensor weight) {
    return this == TENSOR ? 1 : weight.dimension(this == FIRST_AXIS ? 0 : -1);
  }

  int code() {
    return code;
  }
}

package org.espalier.op;

import org.espalier.device.DType;
import org.espalier.device.Tensor;

/**
 * The scales of a quantized working copy.
 *
 * @param values one F32 scale a channel
 * @param given false: each step writes absmax / 127 (1 for a channel of zeros) before it quantizes;
 *     true: the scales stay what they are, each positive with a finite reciprocal, and what lies
 *     beyond 127 of them is clipped and gated
 */
public record Scale(Tensor values, Channel channel, boolean given) {
  public Scale {
    if (values.dtype() != DType.F32) {
      throw new IllegalArgumentException("scales are " + values.dtype() + "; F32 is needed");
    }
  }
}

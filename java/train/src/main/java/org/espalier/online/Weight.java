package org.espalier.online;

import org.espalier.device.Tensor;

/**
 * A tensor that is learned, in native memory. All three have the same shape and are F32.
 *
 * @param name unique in the model
 * @param latent what the optimizer updates
 * @param working what forward reads: the latent weights, or their values on the int8 grid
 * @param gradient what backward writes
 */
public record Weight(String name, Tensor latent, Tensor working, Tensor gradient) {
  public Weight {
    if (latent.elements() != working.elements() || latent.elements() != gradient.elements()) {
      throw new IllegalArgumentException(name + ": the sizes differ");
    }
  }

  /** Whether it is a matrix or more, which masks and int8 are for; biases are not. */
  public boolean isMatrix() {
    return latent.rank() >= 2;
  }
}

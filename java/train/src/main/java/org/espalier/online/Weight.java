package org.espalier.online;

import org.espalier.device.Tensor;

/**
 * A tensor that is learned, in native memory. All have the same shape and are F32.
 *
 * @param name unique in the model
 * @param latent what the optimizer updates; may be {@code working} itself, and where something rounds that, the
 *     learner keeps the latent weights elsewhere
 * @param working what forward reads: the latent weights, or their values on the int8 grid
 * @param gradient what backward writes; see {@link Learnable#weights}. Null of a table that is learned by rows
 * @param isMatrix whether inputs are multiplied with it, so that its zeros may be kept
 * @param scaleAxis the axis of the outputs, the first or the last, along which int8 scales lie; −1 for
 *     what is not quantized, as biases
 * @param grid the scales of the int8 grid that it always lies on, one for each index of the axis; null where it need not lie
 *     on one, and then the settings say whether it does, and its scales follow it
 */
public record Weight(
    String name,
    Tensor latent,
    Tensor working,
    Tensor gradient,
    boolean isMatrix,
    int scaleAxis,
    float[] grid) {
  public Weight {
    if (grid != null && (scaleAxis < 0 || grid.length != latent.dimension(scaleAxis))) {
      throw new IllegalArgumentException(name + ": a scale is needed for each index of the axis");
    }
    if (latent.elements() != working.elements()
        || gradient != null && latent.elements() != gradient.elements()) {
      throw new IllegalArgumentException(name + ": the sizes differ");
    }
  }

  /** A weight that lies on a grid where the settings say so. */
  public Weight(
      String name,
      Tensor latent,
      Tensor working,
      Tensor gradient,
      boolean isMatrix,
      int scaleAxis) {
    this(name, latent, working, gradient, isMatrix, scaleAxis, null);
  }

  /** The same with a gradient elsewhere, or null. */
  public Weight withGradient(Tensor elsewhere) {
    return new Weight(name, latent, working, elsewhere, isMatrix, scaleAxis, grid);
  }
}

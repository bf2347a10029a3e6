package org.espalier.online;

/**
 * A model whose gradient for one example is the outer product of the outputs' gradient and the
 * features. A step of plain gradient descent on one example then needs no gradient in memory: it
 * reads and writes each weight once, with the bits of the general step.
 */
interface OuterProduct {
  /**
   * Whether it is plain without a look at each entry that the gradient of the last forward's only
   * example is finite. The outputs were.
   *
   * @param slope the loss's gradient with respect to the outputs
   */
  boolean isFinite(float[] slope);

  /** working weights −= rate · gradient of the last forward's only example. */
  void descend(float[] slope, double rate);

  /** Has the latent weights be what descend made of the working ones. */
  void settle();
}

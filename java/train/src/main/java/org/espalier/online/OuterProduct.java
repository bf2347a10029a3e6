package org.espalier.online;

/**
 * What a {@link Learnable} is too whose gradient for one example is made of outer products of slopes and what they are the
 * slopes of. A step of plain gradient descent on one example then needs no gradient in memory: it reads and writes each
 * weight once, with the bits of the general step.
 */
public interface OuterProduct {
  /** Whether {@link #descend} does all of a step: nothing is rounded, and all that is learned has such a gradient. */
  boolean descendsAlone();

  /**
   * Whether features that are not finite make outputs that are not. A saturated layer hides them, and then
   * they would spoil the gradient of the whole batch.
   */
  boolean outputsTell();

  /**
   * Whether it is plain without a look at each entry that the gradient of the last forward's only
   * example is finite. The outputs were, and the features.
   * To be asked before descend.
   *
   * @param slope the loss's gradient with respect to the outputs
   */
  boolean isFinite(float[] slope);

  /** working weights −= rate · gradient of the last forward's only example. */
  void descend(float[] slope, double rate);

  /** Has the latent weights be what descend made of the working ones. */
  void settle();
}

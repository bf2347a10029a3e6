package org.espalier.online;

import java.util.List;

/**
 * A model that an {@link OnlineLearner} can learn. Owned by one thread, but for the predictors it
 * makes.
 */
public interface Learnable extends AutoCloseable {
  /** How many features an example has. */
  int features();

  /** How many outputs it gives for one. */
  int outputs();

  /** What is learned, always in the same order. */
  List<Weight> weights();

  /**
   * Runs the working weights and remembers what {@link #backward} needs.
   *
   * @param features {@code rows} arrays; they must not change until backward
   * @param outputs receives rows · outputs values, row by row
   */
  void forward(float[][] features, int rows, float[] outputs);

  /**
   * Writes the gradients of the weights for the last forward.
   *
   * @param gradient of the loss with respect to the outputs, rows · outputs values
   */
  void backward(float[] gradient, int rows);

  /**
   * Writes the sum over the rows of each row's gradient, scaled down to at most {@code bound} in norm:
   * what differentially private learning adds noise to.
   *
   * @param gradient of each row's own loss with respect to its outputs
   * @return how many rows were scaled down
   */
  int backwardClipped(float[] gradient, int rows, double bound);

  /** A new place for a published version. Several may be made. */
  Predictor predictor();

  @Override
  void close();
}

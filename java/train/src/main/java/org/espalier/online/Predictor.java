package org.espalier.online;

import java.util.List;

/**
 * A copy of a model's working weights that answers. {@link #predict} is safe for several threads at
 * once; {@link #load} is not, and nobody may predict meanwhile.
 */
public interface Predictor extends AutoCloseable {
  /** Takes the working weights over. */
  void load(List<Weight> weights);

  /**
   * @param features {@code rows} arrays
   * @param outputs receives rows · outputs values, row by row
   */
  void predict(float[][] features, int rows, float[] outputs);

  @Override
  void close();
}

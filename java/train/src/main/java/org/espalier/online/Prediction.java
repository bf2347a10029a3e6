package org.espalier.online;

/**
 * What the model answered.
 *
 * @param outputs logits of classes, or values
 * @param version the version that answered
 */
public record Prediction(float[] outputs, long version) {
  /** The class with the largest output; with one output, whether it is above 0. */
  public int label() {
    if (outputs.length == 1) {
      return outputs[0] > 0 ? 1 : 0;
    }
    int best = 0;
    for (int c = 1; c < outputs.length; c++) {
      best = outputs[c] > outputs[best] ? c : best;
    }
    return best;
  }

  /**
   * How probable the {@link #label} is: by the softmax of the logits or, of one, its sigmoid. Of no meaning where outputs are
   * values.
   */
  public double probability() {
    if (outputs.length == 1) {
      return 1 / (1 + Math.exp(-Math.abs((double) outputs[0])));
    }
    double largest = outputs[label()];
    double sum = 0;
    for (float logit : outputs) {
      sum += Math.exp(logit - largest);
    }
    return 1 / sum;
  }
}

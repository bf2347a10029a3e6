package org.espalier.compress.onnx;

import org.espalier.format.onnx.OnnxModel;

/** Guards a plan to change a model in place. The plan describes the model as it was, so it can be carried out once. */
final class OneUse {
  private final OnnxModel model;
  private final String done;
  private boolean over;

  /**
   * @param done what became of the model, as it is told
   */
  OneUse(OnnxModel model, String done) {
    this.model = model;
    this.done = done;
  }

  /**
   * What needs the model as it was calls this before.
   *
   * @throws IllegalStateException if the plan has been carried out
   */
  void check() {
    if (over) {
      throw new IllegalStateException(
          model.name()
              + " "
              + done
              + " already; what comes next needs a model as it was, and a plan of its own");
    }
  }

  /** From here on the model changes; a failure may leave the plan half carried out. */
  void begin() {
    over = true;
  }
}

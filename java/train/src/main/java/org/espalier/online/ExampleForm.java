package org.espalier.online;

import org.espalier.InputException;

/**
 * What examples a learner takes. Safe for several threads.
 *
 * @param features of an example
 * @param outputs of the model for one
 * @param isForClasses whether the outcome is a class; else it is as many values as outputs
 */
record ExampleForm(int features, int outputs, boolean isForClasses) {
  /** See {@link OnlineLearner#check}. */
  void check(Example example) {
    checkLength(example.features());
    if (isForClasses) {
      int classes = Math.max(2, outputs);
      if (example.label() < 0 || example.label() >= classes) {
        throw new InputException(
            example.label() < 0
                ? "the outcome is values; this model learns classes, 0 to " + (classes - 1)
                : "the label "
                    + example.label()
                    + " is unknown; 0 to "
                    + (classes - 1)
                    + " are right");
      }
    } else if (example.values() == null || example.values().length != outputs) {
      throw new InputException(
          "the outcome is "
              + (example.values() == null ? "a class" : example.values().length + " values")
              + "; this model learns "
              + outputs
              + " values");
    }
  }

  /**
   * Checks the number of features.
   *
   * @throws InputException where it is not the model's
   */
  void checkLength(float[] values) {
    if (values.length != features) {
      throw new InputException(
          "an example has " + values.length + " features; the model takes " + features);
    }
  }
}

package org.espalier.online;

import java.io.DataInput;
import java.io.DataOutput;
import java.io.IOException;
import org.espalier.InputException;
import org.espalier.online.memory.SavedState;

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

  /** Writes an example for {@link #read}. */
  void write(DataOutput out, Example example) throws IOException {
    SavedState.write(out, example.id());
    SavedState.write(out, example.features());
    out.writeInt(example.label());
    if (example.label() < 0) {
      SavedState.write(out, example.values());
    }
  }

  /**
   * An example that was written.
   *
   * @throws InputException where it is damaged or of another form
   */
  Example read(DataInput in) throws IOException {
    String id = SavedState.text(in);
    float[] values = SavedState.floats(in, features);
    int label = SavedState.count(in, -1, Math.max(1, outputs - 1));
    Example example =
        new Example(id, values, label, label < 0 ? SavedState.floats(in, outputs) : null);
    check(example);
    return example;
  }
}

package org.espalier.online;

import java.util.Objects;

/**
 * What is known about one case: its features and its outcome, a class or values.
 *
 * <p>The arrays are not copied; do not change them.
 *
 * @param id what the caller calls it, or null
 * @param features the model's input
 * @param label the class from 0 on, or −1 where the outcome is values
 * @param values the outcome as values, one an output of the model; null where it is a class
 */
public record Example(String id, float[] features, int label, float[] values) {
  public Example {
    Objects.requireNonNull(features, "features");
    if (label < -1 || (label >= 0) == (values != null)) {
      throw new IllegalArgumentException(
          "an outcome is either a class from 0 on or values: label "
              + label
              + (values == null ? ", no values" : ", " + values.length + " values"));
    }
  }

  /** A case that belongs to a class. */
  public static Example of(float[] features, int label) {
    return new Example(null, features, label, null);
  }

  /** A case with values as its outcome. */
  public static Example of(float[] features, float... values) {
    return new Example(null, features, -1, values);
  }

  public Example withId(String name) {
    return new Example(name, features, label, values);
  }
}

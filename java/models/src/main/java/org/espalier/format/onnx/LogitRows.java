package org.espalier.format.onnx;

import java.util.Arrays;
import org.espalier.InputException;

/**
 * How the logits of an output [N, …] fall into rows, one row for each label: one an example, or one for each of its
 * tokens, its pixels, or its classes where several can be right at once.
 *
 * @param perExample rows, at least 1
 * @param classes logits of a row, at least 1; a single one, z, stands for two classes with the logits 0 and z
 * @param lastAxis whether classes are along the last axis, [N, …, classes]; else they are along the one after
 *     the examples, [N, classes, …]
 */
public record LogitRows(int perExample, int classes, boolean lastAxis) {
  /**
   * Finds the rows of an output.
   *
   * <p>Labels say how many there are. Where classes may then be along both axes that {@code lastAxis} names,
   * they are along the last of [N, rows, classes], as of tokens, and the second of what has more axes, as of
   * images. Without labels an output [N, classes] has one row an example and those with more axes are read
   * in the same way, but of a Sigmoid each value is a row.
   *
   * @param shape of the output, the examples first
   * @param labels of an example; 0 where there are none
   * @param form of the output
   * @throws InputException where there are not as many rows as labels; the message begins with the shape
   */
  public static LogitRows of(long[] shape, int labels, ClassifierOutput.Form form) {
    long values = 1;
    for (int i = 1; i < shape.length; i++) {
      values = Math.multiplyExact(values, shape[i]);
    }
    int size = Math.toIntExact(values);
    if (labels == 0 ? form == ClassifierOutput.Form.SIGMOID || size == 1 : labels == size) {
      return new LogitRows(size, 1, true);
    }
    int rank = shape.length;
    boolean last = rank > 1 && fits(size, labels, shape[rank - 1]);
    boolean second = rank > 1 && fits(size, labels, shape[1]);
    if (!last && !second) {
      throw new InputException(
          Arrays.toString(shape)
              + " for an example with "
              + (labels == 1 ? "a label" : labels + " labels")
              + "; logits are [examples, classes] for a label an example, [examples, labels,"
              + " classes] or [examples, classes, labels …] for several, or one value a label");
    }
    boolean lastAxis = last && (rank <= 3 || !second);
    int classes = (int) (lastAxis ? shape[rank - 1] : shape[1]);
    return new LogitRows(size / classes, classes, lastAxis);
  }

  /** Whether an axis holds the classes; without labels it may. */
  private static boolean fits(int size, int labels, long axis) {
    return labels == 0 ? axis > 1 : axis * labels == size;
  }

  /** The axis of the classes in an output of so many axes. */
  public int axis(int rank) {
    return lastAxis ? rank - 1 : 1;
  }

  /** Where in an example's values the logit of a row's class is. */
  public int index(int row, int of) {
    return lastAxis ? row * classes + of : of * perExample + row;
  }
}

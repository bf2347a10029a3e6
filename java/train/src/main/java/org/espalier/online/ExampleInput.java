package org.espalier.online;

import org.bytedeco.pytorch.global.torch.ScalarType;

/**
 * An input of a model, and what it takes of each example. An example's features are the values of all inputs, one input
 * after the other.
 *
 * @param name of the input
 * @param type of its values: Float, Long or Int
 * @param shape of an example's values, without the batch; empty for one value of a model whose input is [batch]
 */
public record ExampleInput(String name, ScalarType type, long... shape) {
  public ExampleInput {
    if (type != ScalarType.Float && type != ScalarType.Long && type != ScalarType.Int) {
      throw new IllegalArgumentException(
          "the input " + name + " is of " + type + "; Float, Long or Int is right");
    }
    shape = shape.clone();
  }

  /** An input of float32. */
  public static ExampleInput floats(String name, long... shape) {
    return new ExampleInput(name, ScalarType.Float, shape);
  }

  /** Whether its values may have a fraction. */
  public boolean isOfFloats() {
    return type == ScalarType.Float;
  }

  /** How many values an example has for it. */
  public int size() {
    long size = 1;
    for (long n : shape) {
      size = Math.multiplyExact(size, n);
    }
    return Math.toIntExact(size);
  }
}

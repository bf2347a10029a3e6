package org.espalier.compress.onnx;

/**
 * The grid of a quantized weight: w ≈ scale · q with whole numbers q in [least, largest]. Where {@code block} is 0 there is one
 * positive scale for each index of {@code axis}, or one for all where that is −1. Otherwise each run of {@code block} weights
 * along {@code axis} has a scale, of which the last run may have fewer; these lie as the weights do, a run in the place of its
 * weights, and may be negative, but not 0.
 */
public record WeightGrid(int least, int largest, int axis, int block) {
  /** The grid [−largest, largest] with one scale for each index of an axis, or one for all where that is −1. */
  static WeightGrid channels(int largest, int axis) {
    return new WeightGrid(-largest, largest, axis, 0);
  }

  /** The grid of so many bits with one scale for each run of weights along an axis. */
  static WeightGrid blocks(int bits, int block, int axis) {
    return new WeightGrid(BlockWeights.least(bits), BlockWeights.largest(bits), axis, block);
  }

  /** How many bits its integers take. */
  public int bits() {
    return Integer.SIZE - Integer.numberOfLeadingZeros(largest) + 1;
  }
}

package org.espalier.online.model;

import java.nio.FloatBuffer;
import java.util.Arrays;
import org.espalier.device.DType;
import org.espalier.device.OwnedTensor;
import org.espalier.device.Tensor;
import org.espalier.online.memory.Floats;

/** The slopes of what a layer's factors give, [capacity, features]. For one thread at a time. */
final class FactorSlopes implements AutoCloseable {
  private final OwnedTensor slopes;
  private final FloatBuffer memory;
  private final FloatBuffer multiplied;
  private final FloatBuffer factors;
  private final FloatBuffer gradient;
  private final float[] slope;
  private final float[] other;
  private final float[] sums;

  /**
   * @param multiplied [capacity, features], what the factors multiply
   * @param gradient receives that of the factors
   */
  FactorSlopes(Tensor multiplied, Tensor factors, Tensor gradient) {
    slopes = OwnedTensor.allocate(DType.F32, multiplied.shape());
    memory = Floats.of(slopes);
    this.multiplied = Floats.of(multiplied);
    this.factors = Floats.of(factors);
    this.gradient = Floats.of(gradient);
    slope = new float[(int) factors.elements()];
    other = new float[slope.length];
    sums = new float[slope.length];
  }

  OwnedTensor slopes() {
    return slopes;
  }

  FloatBuffer memory() {
    return memory;
  }

  /** Writes the slopes of what the factors multiply. */
  void passOn(int rows, FloatBuffer to) {
    factors.get(0, other);
    for (int i = 0; i < rows; i++) {
      memory.get(i * slope.length, slope);
      for (int j = 0; j < slope.length; j++) {
        slope[j] *= other[j];
      }
      to.put(i * slope.length, slope);
    }
  }

  /** Writes the gradient of the factors. */
  void write(int rows) {
    Arrays.fill(sums, 0);
    for (int i = 0; i < rows; i++) {
      read(i);
      for (int j = 0; j < sums.length; j++) {
        sums[j] += slope[j] * other[j];
      }
    }
    gradient.put(0, sums);
  }

  /** Adds the squared norm of each row's own gradient of the factors. */
  void addSquares(int rows, double[] squares) {
    for (int i = 0; i < rows; i++) {
      read(i);
      for (int j = 0; j < slope.length; j++) {
        double product = (double) slope[j] * other[j];
        squares[i] += product * product;
      }
    }
  }

  private void read(int row) {
    memory.get(row * slope.length, slope);
    multiplied.get(row * slope.length, other);
  }

  @Override
  public void close() {
    slopes.close();
  }
}

package org.espalier.op;

import org.bytedeco.javacpp.DoublePointer;
import org.bytedeco.javacpp.FloatPointer;
import org.espalier.binding.Status;
import org.espalier.binding.esp_linear;
import org.espalier.binding.global.espalier;
import org.espalier.device.DType;
import org.espalier.device.Tensor;

/**
 * A linear layer that learns from rows as they come. Alone it is a linear model; layers one after the other, with
 * {@linkplain Activation activations} between them, are a multilayer perceptron.
 *
 * <pre>
 *   forward       z[i][c]  = sum over j of W[c][j] · x[i][j], + b[c]
 *   backward      dW[c][j] = sum over i of s[i][c] · x[i][j],  db[c] = sum over i of s[i][c]
 *   backwardRows  dx[i][j] = sum over c of s[i][c] · W[c][j]
 *   addSquares    n[i] += |s[i]|² · (|x[i]|², + 1 with a bias): the squared norm of row i's own gradient
 *   descend       W[c][j] −= rate · (s[c] · x[j]),  b[c] −= rate · s[c]
 * </pre>
 *
 * <p>descend is the step of plain gradient descent on one row, with the bits that backward and {@link FusedSgd} give,
 * without a gradient in memory. Results have the same bits on every instruction set, for every
 * number of threads, and for a row alone as among others.
 *
 * <p>Holds its tensors in native form: a call copies nothing. After close, and where memory of a tensor was closed, a call
 * throws an {@link IllegalStateException}. Several threads wait for each other.
 */
public final class Linear implements AutoCloseable {
  private static final int WEIGHT = 0;
  private static final int BIAS = 1;
  private static final int ROWS = 2;
  private static final int OUTPUTS = 3;

  private final Tensor[] tensors; // keeps the memory reachable
  private final esp_linear weights;
  private final FloatPointer rows;
  private final FloatPointer outputs;
  private final long capacity;
  private boolean closed;

  /**
   * A layer whose weight is [outputs, features].
   *
   * @param weight weights for {@link #forward}, {@link #backwardRows} and {@link #descend}, their gradient for
   *     {@link #backward}
   * @param bias [outputs], likewise; null where there is none
   * @param rows [capacity, features]: x; dx, which backwardRows writes
   * @param outputs [capacity, outputs]: z, which forward writes; s, which the others read
   * @throws IllegalArgumentException where the shapes do not fit each other, or one is not F32
   */
  public Linear(Tensor weight, Tensor bias, Tensor rows, Tensor outputs) {
    this(weight, bias, rows, outputs, false);
  }

  /**
   * A layer whose weight may lie the other way.
   *
   * @param transposed whether the weight is [features, outputs]
   */
  public Linear(Tensor weight, Tensor bias, Tensor rows, Tensor outputs, boolean transposed) {
    tensors = new Tensor[] {weight, bias, rows, outputs};
    for (Tensor tensor : tensors) {
      if (tensor != null && tensor.dtype() != DType.F32) {
        throw new IllegalArgumentException(tensor + ": F32 is needed");
      }
    }
    int outputAxis = transposed ? 1 : 0;
    if (weight.rank() != 2
        || bias != null && bias.elements() != weight.dimension(outputAxis)
        || rows.rank() != 2
        || rows.dimension(1) != weight.dimension(1 - outputAxis)
        || outputs.rank() != 2
        || outputs.dimension(0) != rows.dimension(0)
        || outputs.dimension(1) != weight.dimension(outputAxis)) {
      throw new IllegalArgumentException(
          "weight "
              + weight
              + ", bias "
              + bias
              + ", rows "
              + rows
              + ", outputs "
              + outputs
              + ": "
              + (transposed ? "[features, outputs]" : "[outputs, features]")
              + ", [outputs], [capacity, features] and [capacity, outputs] are needed");
    }
    weights =
        Natives.keep(new esp_linear())
            .weight(new FloatPointer(weight.pointer()))
            .bias(bias == null ? null : new FloatPointer(bias.pointer()))
            .outputs(weight.dimension(outputAxis))
            .features(weight.dimension(1 - outputAxis))
            .transposed(outputAxis);
    this.rows = new FloatPointer(rows.pointer());
    this.outputs = new FloatPointer(outputs.pointer());
    this.capacity = rows.dimension(0);
  }

  /** Writes the outputs of the first {@code count} rows. */
  public synchronized void forward(int count) {
    check(count);
    tensors[OUTPUTS].requireWritable("outputs");
    Status.check(espalier.esp_linear_forward(weights, rows, count, outputs));
  }

  /** Writes the gradient for the first {@code count} rows. */
  public synchronized void backward(int count) {
    checkToLearn(count);
    Status.check(espalier.esp_linear_backward(weights, rows, count, outputs));
  }

  /** Writes the gradient of the first {@code count} rows where the rows lie. */
  public synchronized void backwardRows(int count) {
    check(count);
    tensors[ROWS].requireWritable("rows");
    Status.check(espalier.esp_linear_backward_rows(weights, outputs, count, rows));
  }

  /**
   * Adds the squared norm of each row's own gradient.
   *
   * @param squares of at least {@code count} rows
   */
  public synchronized void addSquares(int count, double[] squares) {
    check(count);
    if (squares.length < count) {
      throw new IllegalArgumentException(squares.length + " squares for " + count + " rows");
    }
    try (DoublePointer sums = new DoublePointer(squares)) {
      Status.check(espalier.esp_linear_squares(weights, rows, count, outputs, sums));
      sums.get(squares);
    }
  }

  /**
   * One step on the first row.
   *
   * @param rate 0 or more
   */
  public synchronized void descend(double rate) {
    checkToLearn(1);
    Status.check(espalier.esp_linear_descend(weights, rows, outputs, rate));
  }

  private void check(int count) {
    if (closed) {
      throw new IllegalStateException("the operation is closed");
    }
    for (Tensor tensor : tensors) {
      Lifetimes.requireOpen(tensor);
    }
    if (count < 0 || count > capacity) {
      throw new IllegalArgumentException(count + " rows of " + capacity);
    }
  }

  /** For what writes the weights or their gradient. */
  private void checkToLearn(int count) {
    check(count);
    tensors[WEIGHT].requireWritable("weight");
    if (tensors[BIAS] != null) {
      tensors[BIAS].requireWritable("bias");
    }
  }

  @Override
  public synchronized void close() {
    closed = true;
    weights.close();
  }
}

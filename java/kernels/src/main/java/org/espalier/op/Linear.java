package org.espalier.op;

import org.bytedeco.javacpp.FloatPointer;
import org.bytedeco.javacpp.LongPointer;
import org.espalier.binding.Status;
import org.espalier.binding.esp_linear;
import org.espalier.binding.global.espalier;
import org.espalier.device.DType;
import org.espalier.device.Tensor;

/**
 * A linear model that learns from rows as they come.
 *
 * <pre>
 *   forward    z[i][c]  = sum over j of W[c][j] · x[i][j], + b[c]
 *   backward   dW[c][j] = sum over i of k[i] · s[i][c] · x[i][j],  db[c] = sum over i of k[i] · s[i][c]
 *              k[i] = min(1, bound / norm of row i's own gradient), or 1 without a bound
 *   descend    W[c][j] −= rate · (s[c] · x[j]),  b[c] −= rate · s[c]
 * </pre>
 *
 * <p>backward with a bound is the sum that differentially private learning adds noise to. descend is the
 * step of plain gradient descent on one row, with the bits that backward and {@link FusedSgd} give,
 * without a gradient in memory. Results have the same bits on every instruction set and for every
 * number of threads.
 *
 * <p>Holds its tensors in native form: a call copies nothing. After close, and where memory of a tensor was closed, a call
 * throws an {@link IllegalStateException}. Thread safe as far as its tensors are.
 */
public final class Linear implements AutoCloseable {
  private final Tensor[] tensors; // keeps the memory reachable
  private final esp_linear weights;
  private final FloatPointer rows;
  private final FloatPointer outputs;
  private final long capacity;
  private final LongPointer clipped = Natives.keep(new LongPointer(1));

  /**
   * @param weight [outputs, features]: weights for {@link #forward} and {@link #descend}, their
   *     gradient for {@link #backward}
   * @param bias [outputs], likewise
   * @param rows [capacity, features], x
   * @param outputs [capacity, outputs]: z, which forward writes; s, which the others read
   * @throws IllegalArgumentException where the shapes do not fit each other, or one is not F32
   */
  public Linear(Tensor weight, Tensor bias, Tensor rows, Tensor outputs) {
    for (Tensor tensor : new Tensor[] {weight, bias, rows, outputs}) {
      if (tensor.dtype() != DType.F32) {
        throw new IllegalArgumentException(tensor + ": F32 is needed");
      }
    }
    if (weight.rank() != 2
        || bias.elements() != weight.dimension(0)
        || rows.rank() != 2
        || rows.dimension(1) != weight.dimension(1)
        || outputs.rank() != 2
        || outputs.dimension(0) != rows.dimension(0)
        || outputs.dimension(1) != weight.dimension(0)) {
      throw new IllegalArgumentException(
          "weight "
              + weight
              + ", bias "
              + bias
              + ", rows "
              + rows
              + ", outputs "
              + outputs
              + ": [outputs, features], [outputs], [capacity, features] and [capacity, outputs] are"
              + " needed");
    }
    tensors = new Tensor[] {weight, bias, rows, outputs};
    weights =
        Natives.keep(new esp_linear())
            .weight(new FloatPointer(weight.pointer()))
            .bias(new FloatPointer(bias.pointer()))
            .outputs(weight.dimension(0))
            .features(weight.dimension(1));
    this.rows = new FloatPointer(rows.pointer());
    this.outputs = new FloatPointer(outputs.pointer());
    this.capacity = rows.dimension(0);
  }

  /** Writes the outputs of the first {@code count} rows. */
  public void forward(int count) {
    int rowsRead = checked(count);
    requireWritable(3, "outputs");
    Status.check(espalier.esp_linear_forward(weights, rows, rowsRead, outputs));
  }

  /** Writes the gradient for the first {@code count} rows. */
  public void backward(int count) {
    int rowsRead = checkedToWrite(count);
    Status.check(
        espalier.esp_linear_backward(weights, rows, rowsRead, outputs, 0, (LongPointer) null));
  }

  /**
   * The same with each row's gradient scaled down to at most {@code bound} in norm.
   *
   * @param bound above 0
   * @return how many rows were scaled down
   */
  public synchronized long backwardClipped(int count, double bound) {
    if (!(bound > 0 && bound <= Double.MAX_VALUE)) {
      throw new IllegalArgumentException("bound " + bound + "; a number above 0 is right");
    }
    int rowsRead = checkedToWrite(count);
    Status.check(espalier.esp_linear_backward(weights, rows, rowsRead, outputs, bound, clipped));
    return clipped.get();
  }

  /**
   * One step on the first row.
   *
   * @param rate 0 or more
   */
  public void descend(double rate) {
    checkedToWrite(1);
    Status.check(espalier.esp_linear_descend(weights, rows, outputs, rate));
  }

  private int checked(int count) {
    for (Tensor tensor : tensors) {
      if (tensor == null) {
        throw new IllegalStateException("the operation is closed");
      }
      tensor.requireOpen();
    }
    if (count < 0 || count > capacity) {
      throw new IllegalArgumentException(count + " rows of " + capacity);
    }
    return count;
  }

  /** For what writes the weights or their gradient. */
  private int checkedToWrite(int count) {
    int rowsRead = checked(count);
    requireWritable(0, "weight");
    requireWritable(1, "bias");
    return rowsRead;
  }

  private void requireWritable(int index, String name) {
    Tensor tensor = tensors[index];
    if (tensor != null) { // else another thread closes this
      tensor.requireWritable(name);
    }
  }

  @Override
  public synchronized void close() {
    java.util.Arrays.fill(tensors, null);
    weights.close();
    clipped.close();
  }
}

package org.espalier.online.model;

import java.nio.FloatBuffer;
import java.util.List;
import org.bytedeco.javacpp.BytePointer;
import org.bytedeco.javacpp.FloatPointer;
import org.bytedeco.javacpp.IntPointer;
import org.espalier.InputException;
import org.espalier.device.DType;
import org.espalier.device.OwnedTensor;
import org.espalier.device.Tensor;
import org.espalier.online.memory.Floats;
import org.espalier.op.FakeQuantize;
import org.espalier.torch.onnx.Rounding;

/** Rounds rows, and lets the gradient pass where nothing was clipped. For one thread at a time. */
final class RowRounding implements AutoCloseable {
  private final Rounding rounding;
  private final Tensor from;
  private final int width;
  private final OwnedTensor values;
  private final BytePointer gate;
  private final FloatPointer scale;
  private final IntPointer zero;

  // Made for so many rows.
  private int rows;
  private FakeQuantize.Batch batch;

  // Of the last backward.
  private Tensor slopes;
  private Tensor slopesOfRows;

  /**
   * @param from [capacity, width], which stays as it is
   */
  RowRounding(Rounding rounding, Tensor from) {
    this.rounding = rounding;
    this.from = from;
    width = (int) from.dimension(1);
    values = OwnedTensor.allocate(DType.F32, from.shape());
    gate = new BytePointer((from.elements() + 63) / 64 * 8);
    scale = new FloatPointer(new float[] {rounding.scale()});
    zero = new IntPointer(new int[] {rounding.zero()});
    // A scope that is open here shall not free them.
    gate.retainReference();
    scale.retainReference();
    zero.retainReference();
  }

  /** The rounded rows, [capacity, width]. */
  OwnedTensor values() {
    return values;
  }

  /** Rounds the first {@code count} rows. */
  void forward(int count) {
    if (count == 0) {
      return; // nothing has a range
    }
    long n = (long) count * width;
    if (count != rows) {
      forget();
      batch =
          rounding
              .grid()
              .batch(
                  List.of(
                      FakeQuantize.Job.fake(
                          from.slice(0, n), values.slice(0, n), gate, scale, zero)));
      rows = count;
    }
    if (!rounding.isToOwnRange()) {
      batch.run();
      return;
    }
    boolean isFinite;
    try {
      isFinite = batch.run().get(0).total() == 0;
    } catch (InputException e) {
      isFinite = false; // there is no scale with a reciprocal for this range
    }
    if (!isFinite) {
      roundAsDefined((int) n);
    }
  }

  /**
   * DynamicQuantizeLinear as ONNX defines it, for ranges that the kernel does not take: too narrow, too wide, or with what is not
   * finite, where nothing that comes out is finite.
   */
  private void roundAsDefined(int n) {
    float[] x = new float[n];
    FloatBuffer memory = Floats.of(values);
    Floats.of(from).get(0, x);
    float low = 0;
    float high = 0;
    for (float v : x) {
      low = Math.min(low, v);
      high = Math.max(high, v);
    }
    float step = (high - low) / 255;
    step = step == 0 ? 1 : step;
    float origin = (float) Math.rint(Math.max(0, Math.min(255, -low / step)));
    for (int i = 0; i < n; i++) {
      double q = Math.rint(x[i] / step) + origin;
      x[i] =
          step < Float.POSITIVE_INFINITY
              ? ((float) Math.max(0, Math.min(255, q)) - origin) * step
              : Float.NaN;
    }
    memory.put(0, x);
    BytePointer.memset(gate, 0xff, gate.capacity());
  }

  /** Clears those slopes of the rounded rows, as many as forward has rounded last, of which the values were clipped. */
  void backward(Tensor ofRows) {
    if (rows == 0) {
      return;
    }
    if (slopes != ofRows) {
      slopes = ofRows;
      slopesOfRows = ofRows.slice(0, (long) rows * width);
    }
    FakeQuantize.backward(slopesOfRows, gate, slopesOfRows);
  }

  private void forget() {
    if (batch != null) {
      batch.close();
    }
    slopes = null;
    rows = 0;
  }

  @Override
  public void close() {
    forget();
    zero.close();
    scale.close();
    gate.close();
    values.close();
  }
}

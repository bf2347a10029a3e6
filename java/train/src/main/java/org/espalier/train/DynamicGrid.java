package org.espalier.train;

import java.nio.ByteOrder;
import java.nio.LongBuffer;
import org.bytedeco.javacpp.BytePointer;
import org.bytedeco.javacpp.FloatPointer;
import org.bytedeco.javacpp.IntPointer;
import org.bytedeco.pytorch.AbstractTensor;
import org.bytedeco.pytorch.Tensor;
import org.espalier.op.FakeQuantize;
import org.espalier.torch.TensorView;

/**
 * With DynamicQuantizeLinear (ONNX) every run finds its own step, so in training each example gets the one
 * that it would get alone:
 *
 * <pre>
 *   scale = (max(0, max x) − min(0, min x)) / 255,  zero = rint(clamp(−min / scale, 0, 255))
 *   q = clamp(rint(x / scale) + zero, 0, 255),      y = scale · (q − zero)
 * </pre>
 *
 * <p>over the example without its padding.
 */
final class DynamicGrid implements ActivationSimulation.Grid {
  private static final FakeQuantize GRID =
      FakeQuantize.affine(8).perChannel(0).rounding(FakeQuantize.Rounding.DIVIDE).minMax();

  private FloatPointer scales = new FloatPointer(1).retainReference();
  private IntPointer zeroPoints = new IntPointer(1).retainReference();
  private BytePointer gate = new BytePointer(8).retainReference();
  private LongBuffer words = LongBuffer.allocate(1);

  @Override
  public Tensor quantize(String activation, Tensor x, Batch batch) {
    long[] shape = x.shape();
    if (shape[0] != batch.size()) {
      throw new IllegalStateException(
          "an activation has " + shape[0] + " rows in a batch of " + batch.size());
    }
    Tensor source = x.contiguous();
    // Zero is in every range, so zeroed padding leaves the range of the example alone.
    Tensor y = batch.pads(source) ? source.mul(batch.mask()) : source.clone();
    long bits = (y.numel() + 63) / 64 * 8;
    if (scales.capacity() < shape[0]) {
      scales.close();
      zeroPoints.close();
      // Retained: the scope of this step must not free what the next one uses.
      scales = new FloatPointer(shape[0]).retainReference();
      zeroPoints = new IntPointer(shape[0]).retainReference();
    }
    if (gate.capacity() < bits) {
      gate.close();
      gate = new BytePointer(bits).retainReference();
      words = gate.asByteBuffer().order(ByteOrder.nativeOrder()).asLongBuffer();
    }
    // Nothing in the graph has kept y yet, so writing to it is what its later readers see.
    org.espalier.device.Tensor view = TensorView.of(y);
    GRID.run(FakeQuantize.Job.fake(view, view, gate, scales, zeroPoints));
    return allPass(y.numel()) ? y : gated(source, y);
  }

  private boolean allPass(long n) {
    int whole = (int) (n / 64);
    for (int i = 0; i < whole; i++) {
      if (words.get(i) != -1L) {
        return false;
      }
    }
    for (long i = whole * 64L; i < n; i++) {
      if ((gate.get(i >> 3) >> (i & 7) & 1) == 0) {
        return false;
      }
    }
    return true;
  }

  /** The values of {@code y} behind a product with the gate, whose gradient is the gate. */
  private Tensor gated(Tensor source, Tensor y) {
    float[] passes = new float[(int) y.numel()];
    for (int i = 0; i < passes.length; i++) {
      passes[i] = gate.get(i >> 3) >> (i & 7) & 1;
    }
    Tensor masked = source.mul(AbstractTensor.create(passes, y.shape()));
    TrainedWeight.copy(TensorView.of(y), TensorView.of(masked));
    return masked;
  }

  @Override
  public DynamicGrid sibling() {
    return new DynamicGrid();
  }

  @Override
  public void close() {
    scales.close();
    zeroPoints.close();
    gate.close();
  }
}

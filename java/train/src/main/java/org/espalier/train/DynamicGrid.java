package org.espalier.train;

import java.nio.ByteBuffer;
import org.bytedeco.javacpp.BytePointer;
import org.bytedeco.pytorch.Tensor;
import org.bytedeco.pytorch.global.torch;
import org.espalier.op.FakeQuantize;
import org.espalier.torch.TorchDevice;

/**
 * With DynamicQuantizeLinear (ONNX) every run finds its own step, so in training each example gets the one
 * that it would get alone, where the first axis of an activation counts them; else it is that of the batch:
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

  private final TorchDevice device;
  private TrainingBuffer scales;
  private TrainingBuffer zeroPoints;

  /** One bit an element, in whole words of 64. */
  private TrainingBuffer gate;

  private final RepeatedQuantize quantizing;

  DynamicGrid(TorchDevice device) {
    this.device = device;
    quantizing = new RepeatedQuantize(GRID, device);
    scales = TrainingBuffer.zeros(device, 1);
    zeroPoints = TrainingBuffer.zeros(device, 1);
    gate = TrainingBuffer.zeros(device, 2);
  }

  @Override
  public Tensor quantize(String activation, Tensor x, Batch batch) {
    boolean byExample = x.dim() > 0 && x.size(0) == batch.size();
    Tensor source = x.contiguous();
    // Zero is in every range, so zeroed padding leaves the range of the example alone.
    Tensor y;
    Tensor from = source;
    if (batch.pads(source)) {
      y = source.mul(device.place(batch.mask()));
      from = y;
    } else {
      // Autograd's identity, in memory of its own: a copy would be read and written once more.
      y = source.alias();
      y.set_data(torch.empty_like(source));
    }
    long ranges = byExample ? batch.size() : 1;
    makeRoom(ranges, y.numel());
    // Nothing in the graph has kept y yet, so writing to it is what its later readers see.
    quantizing.run(
        FakeQuantize.Job.fake(
            device.view(rows(from, ranges)),
            device.view(rows(y, ranges)),
            gate.bytes(),
            scales.floats(),
            zeroPoints.ints()));
    return allPass(y.numel()) ? y : gated(source, y);
  }

  /** The same memory with a row for each range. */
  private static Tensor rows(Tensor x, long ranges) {
    return x.view(ranges, x.numel() / ranges);
  }

  private void makeRoom(long ranges, long elements) {
    if (scales.elements() < ranges) {
      scales.close();
      zeroPoints.close();
      scales = TrainingBuffer.zeros(device, ranges);
      zeroPoints = TrainingBuffer.zeros(device, ranges);
    }
    long words = (elements + 63) / 64 * 2;
    if (gate.elements() < words) {
      gate.close();
      gate = TrainingBuffer.zeros(device, words);
    }
  }

  /** Whether no element is known to have been clipped; of a GPU's memory the host knows nothing. */
  private boolean allPass(long n) {
    if (device.hasCudaKernels()) {
      return false;
    }
    ByteBuffer bits = gate.bytes().capacity((n + 63) / 64 * 8).asByteBuffer();
    int whole = (int) (n / 64);
    for (int i = 0; i < whole; i++) {
      if (bits.getLong(8 * i) != -1L) {
        return false;
      }
    }
    for (int i = whole * 64; i < n; i++) {
      if ((bits.get(i >> 3) >> (i & 7) & 1) == 0) {
        return false;
      }
    }
    return true;
  }

  /** The values of {@code y} behind a product with the gate, whose gradient is the gate. */
  private Tensor gated(Tensor source, Tensor y) {
    Tensor passes = torch.ones_like(y);
    org.espalier.device.Tensor view = device.view(passes);
    BytePointer bits = gate.bytes();
    if (device.hasCudaKernels()) {
      device.queue(stream -> FakeQuantize.backward(view, bits, view, stream));
    } else {
      FakeQuantize.backward(view, bits, view);
    }
    Tensor masked = source.mul(passes);
    TrainingBuffer.of(device, masked).copyFrom(TrainingBuffer.of(device, y));
    return masked;
  }

  @Override
  public DynamicGrid sibling() {
    return new DynamicGrid(device);
  }

  @Override
  public void close() {
    quantizing.close();
    scales.close();
    zeroPoints.close();
    gate.close();
  }
}

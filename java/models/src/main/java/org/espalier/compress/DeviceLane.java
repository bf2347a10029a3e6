package org.espalier.compress;

import java.nio.ByteBuffer;
import java.util.Arrays;
import java.util.List;
import java.util.function.Consumer;
import org.bytedeco.javacpp.FloatPointer;
import org.bytedeco.javacpp.IntPointer;
import org.bytedeco.javacpp.Pointer;
import org.espalier.device.CudaMemory;
import org.espalier.device.CudaStream;
import org.espalier.device.CudaTensor;
import org.espalier.device.Device;
import org.espalier.device.Tensor;
import org.espalier.op.FakeQuantize;

/**
 * A CUDA stream with buffers of its own. Of two lanes, one copies and computes while the host works on the results of
 * the other.
 */
final class DeviceLane implements RowLane {
  private final Device device;
  private final FakeQuantize observer;
  private final FakeQuantize quantizer;
  private final CudaStream stream;
  private final CudaMemory input; // page-locked
  private final CudaMemory output; // page-locked
  private final CudaMemory weights;
  private final CudaMemory integers;
  private final CudaMemory scales;
  private final CudaMemory zeroPoints; // null: all 0
  // Planned for the rows of this type and shape.
  private FakeQuantize.Batch observing;
  private FakeQuantize.Batch quantizing;
  private Tensor planned;

  /**
   * @param elements of the rows at most
   * @param rows at most
   * @param affine whether there are zero points
   */
  DeviceLane(
      Device device,
      FakeQuantize observer,
      FakeQuantize quantizer,
      long elements,
      long rows,
      boolean affine) {
    this.device = device;
    this.observer = observer;
    this.quantizer = quantizer;
    stream = CudaStream.create(device);
    input = CudaMemory.pinned(4 * elements);
    output = CudaMemory.pinned(elements);
    weights = CudaMemory.allocate(device, 4 * elements);
    integers = CudaMemory.allocate(device, elements);
    scales = CudaMemory.allocate(device, 4 * rows);
    zeroPoints = affine ? CudaMemory.allocate(device, 4 * rows) : null;
  }

  @Override
  public void start(Tensor rows) {
    if (planned == null
        || planned.dtype() != rows.dtype()
        || !Arrays.equals(planned.shape(), rows.shape())) {
      closeBatches();
      planned = CudaTensor.of(device, weights.pointer(), rows.dtype(), rows.shape());
      FloatPointer scale = scales.asFloats();
      IntPointer zeroPoint = zeroPoints == null ? null : zeroPoints.asInts();
      observing = observer.batch(List.of(FakeQuantize.Job.observe(planned, scale, zeroPoint)));
      quantizing =
          quantizer.batch(
              List.of(FakeQuantize.Job.real(planned, integers.asBytes(), scale, zeroPoint)));
    }
    Pointer.memcpy(input.pointer(), rows.pointer(), rows.bytes());
    weights.copyFrom(input.pointer(), rows.bytes(), stream);
    observing.queue(stream);
  }

  @Override
  public FakeQuantize.NonFinite observe(FloatPointer to, IntPointer zerosTo) {
    scales.copyTo(to, 4 * planned.dimension(0), stream);
    if (zeroPoints != null) {
      zeroPoints.copyTo(zerosTo, 4 * planned.dimension(0), stream);
    }
    return observing.result(stream).get(0);
  }

  @Override
  public void quantize(FloatPointer from, IntPointer zerosFrom, Consumer<ByteBuffer> sink) {
    scales.copyFrom(from, 4 * planned.dimension(0), stream);
    if (zeroPoints != null) {
      zeroPoints.copyFrom(zerosFrom, 4 * planned.dimension(0), stream);
    }
    quantizing.queue(stream);
    integers.copyTo(output.pointer(), planned.elements(), stream);
    quantizing.result(stream);
    sink.accept(output.asBytes().limit(planned.elements()).asByteBuffer());
  }

  private void closeBatches() {
    if (planned != null) {
      observing.close();
      quantizing.close();
    }
  }

  @Override
  public void close() {
    stream.synchronize(); // rows that were begun
    closeBatches();
    stream.close();
    input.close();
    output.close();
    weights.close();
    integers.close();
    scales.close();
    if (zeroPoints != null) {
      zeroPoints.close();
    }
  }
}

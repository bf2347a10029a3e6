package org.espalier.device;

import java.util.Objects;
import org.bytedeco.javacpp.Pointer;

/**
 * A dense row-major tensor on a CUDA device. Operations that run there take it in place of a tensor of
 * the host; all others refuse it. Close one that was allocated here when no queued work uses it.
 */
public final class CudaTensor extends Tensor implements AutoCloseable {
  private final Device device;
  private final CudaMemory memory; // null: somebody else's

  private CudaTensor(
      Device device, CudaMemory memory, Pointer pointer, Object owner, DType dtype, long[] shape) {
    super(pointer, owner, dtype, shape);
    this.device = CudaStream.requireCuda(device);
    this.memory = memory;
  }

  /**
   * Allocates a tensor. What it holds is not defined.
   *
   * @throws OutOfMemoryError where the device has no such memory
   */
  public static CudaTensor allocate(Device device, DType dtype, long... shape) {
    long bytes = Math.multiplyExact(elementsOf(shape), dtype.bytes());
    CudaMemory memory = CudaMemory.allocate(device, bytes);
    return new CudaTensor(device, memory, memory.pointer(), memory, dtype, shape);
  }

  /**
   * A view of device memory that somebody else owns and keeps alive: a pointer of the JavaCPP CUDA presets,
   * a CUDA tensor of torch.
   *
   * @throws IllegalArgumentException where the pointer is known to hold fewer bytes
   */
  public static CudaTensor of(Device device, Pointer pointer, DType dtype, long... shape) {
    Tensor view = Tensor.of(pointer, dtype, shape);
    return new CudaTensor(device, null, view.addressed(), pointer, dtype, shape);
  }

  @Override
  public Device device() {
    return device;
  }

  @Override
  public Pointer pointer() {
    throw new UnsupportedOperationException(
        this + " is on " + device + "; this runs on the CPU only");
  }

  /** A flat view of elements {@code [start, start + count)}; it does not outlive this tensor. */
  @Override
  public CudaTensor slice(long start, long count) {
    Objects.checkFromIndexSize(start, count, elements());
    long bytes = count * dtype().bytes();
    Pointer view = at(addressed().address() + start * dtype().bytes(), bytes);
    return new CudaTensor(device, null, view, this, dtype(), new long[] {count});
  }

  /** Frees the memory if it is this tensor's own; views of it become invalid. */
  @Override
  public void close() {
    if (memory != null) {
      memory.close();
    }
  }
}

package org.espalier.device;

/** A tensor in page-locked memory of the host, from and to which copies run beside kernels. Close it. */
public final class PinnedTensor extends Tensor implements AutoCloseable {
  private final CudaMemory memory;

  private PinnedTensor(CudaMemory memory, DType dtype, long[] shape) {
    super(memory.pointer(), memory, dtype, shape);
    this.memory = memory;
  }

  /**
   * Allocates a tensor. What it holds is not defined.
   *
   * @throws UnsupportedOperationException with the reason, where CUDA cannot be used
   * @throws OutOfMemoryError where there is no such memory
   */
  public static PinnedTensor allocate(DType dtype, long... shape) {
    long bytes = Math.multiplyExact(elementsOf(shape), dtype.bytes());
    return new PinnedTensor(CudaMemory.pinned(bytes), dtype, shape);
  }

  /** Frees the memory; views of it become invalid. */
  @Override
  public void close() {
    memory.close();
  }
}

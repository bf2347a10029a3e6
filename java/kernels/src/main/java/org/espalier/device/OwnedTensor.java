package org.espalier.device;

import org.bytedeco.javacpp.Pointer;
import org.bytedeco.javacpp.PointerPointer;
import org.espalier.binding.Status;
import org.espalier.binding.global.espalier;

/**
 * A tensor with zeroed memory of its own, 64-byte aligned, on 2 MiB pages from 4 MiB on. Close it;
 * one that is forgotten is reported when the garbage collector finds it, and freed then.
 */
public final class OwnedTensor extends Tensor implements AutoCloseable {
  private final NativeMemory memory;

  private OwnedTensor(long address, long bytes, DType dtype, long[] shape) {
    super(at(address, bytes), null, dtype, shape);
    memory =
        new NativeMemory(
            this,
            "a tensor of " + bytes + " bytes",
            address,
            bytes,
            block -> espalier.esp_release(block, bytes));
  }

  /**
   * Allocates a tensor of zeros.
   *
   * @throws OutOfMemoryError where the system has no such memory
   */
  public static OwnedTensor allocate(DType dtype, long... shape) {
    long bytes = Math.multiplyExact(elementsOf(shape), dtype.bytes());
    try (PointerPointer<Pointer> result = new PointerPointer<>(1)) {
      Status.check(espalier.esp_allocate(bytes, result));
      return new OwnedTensor(result.get(0).address(), bytes, dtype, shape);
    }
  }

  @Override
  public void requireOpen() {
    memory.address(); // refuses after close
  }

  /** Frees the memory; views of it become invalid. Closing twice does nothing. */
  @Override
  public void close() {
    memory.close();
  }
}

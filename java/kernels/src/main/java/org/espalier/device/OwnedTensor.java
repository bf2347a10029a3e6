package org.espalier.device;

import java.lang.ref.Cleaner;
import java.util.concurrent.atomic.AtomicBoolean;
import org.bytedeco.javacpp.Pointer;
import org.bytedeco.javacpp.PointerPointer;
import org.espalier.binding.Status;
import org.espalier.binding.global.espalier;
import org.slf4j.LoggerFactory;

/**
 * A tensor with zeroed memory of its own, 64-byte aligned, on 2 MiB pages from 4 MiB on. Close it;
 * one that is forgotten is reported when the garbage collector finds it, and freed then.
 */
public final class OwnedTensor extends Tensor implements AutoCloseable {
  private static final Cleaner CLEANER = Cleaner.create();

  private final Memory memory;
  private final Cleaner.Cleanable cleanable;

  private OwnedTensor(Memory memory, DType dtype, long[] shape) {
    super(at(memory.address, memory.bytes), null, dtype, shape);
    this.memory = memory;
    this.cleanable = CLEANER.register(this, memory);
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
      return new OwnedTensor(new Memory(result.get(0).address(), bytes), dtype, shape);
    }
  }

  /**
   * @throws IllegalStateException after close
   */
  @Override
  public Pointer pointer() {
    if (memory.released.get()) {
      throw new IllegalStateException("the tensor is closed");
    }
    return super.pointer();
  }

  /** Frees the memory; views of it become invalid. Closing twice does nothing. */
  @Override
  public void close() {
    memory.closed = true;
    cleanable.clean();
  }

  /** What the cleaner frees; it must not reach the tensor. */
  private static final class Memory implements Runnable {
    final long address;
    final long bytes;
    final AtomicBoolean released = new AtomicBoolean();
    volatile boolean closed;

    Memory(long address, long bytes) {
      this.address = address;
      this.bytes = bytes;
    }

    @Override
    public void run() {
      if (released.compareAndSet(false, true)) {
        espalier.esp_release(at(address, bytes), bytes);
        if (!closed) {
          LoggerFactory.getLogger(OwnedTensor.class)
              .warn("a tensor of {} bytes was never closed; use try-with-resources", bytes);
        }
      }
    }
  }
}

package org.espalier.compress;

import java.nio.ByteBuffer;
import org.bytedeco.javacpp.BytePointer;
import org.espalier.device.DType;
import org.espalier.device.OwnedTensor;
import org.espalier.device.Tensor;

/** A buffer of fixed size: kernels write to it, and files are written from it. */
public final class PieceBuffer implements AutoCloseable {
  private final OwnedTensor memory;
  private final BytePointer pointer;
  private final ByteBuffer buffer;

  /**
   * @param bytes its size, rounded up to a multiple of 4
   */
  public PieceBuffer(int bytes) {
    memory = OwnedTensor.allocate(DType.F32, (bytes + 3L) / 4);
    pointer = new BytePointer(memory.pointer()).capacity(memory.bytes());
    buffer = pointer.asByteBuffer();
  }

  /** The memory as a tensor. */
  public Tensor tensor(DType dtype, long... shape) {
    return Tensor.ofAddress(memory.address(), memory.bytes(), dtype, shape);
  }

  /** The memory as bytes. */
  public BytePointer pointer() {
    return pointer;
  }

  /** The first bytes of the memory, to be written to a file. */
  public ByteBuffer first(long bytes) {
    return buffer.duplicate().clear().limit(Math.toIntExact(bytes));
  }

  @Override
  public void close() {
    memory.close();
  }
}

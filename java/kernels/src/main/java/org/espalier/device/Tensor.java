package org.espalier.device;

import java.nio.Buffer;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.FloatBuffer;
import java.util.Arrays;
import java.util.Objects;
import org.bytedeco.javacpp.Pointer;

/**
 * A dense row-major view of memory that somebody else owns: a JavaCPP pointer, a direct buffer, a
 * memory-mapped file, an address. Nothing is copied.
 *
 * <p>The view keeps the pointer or buffer object reachable, so memory that its garbage collection
 * would free stays valid as long as the view is. Memory given by address, and pointers that do not
 * own their memory (such as a torch tensor's {@code data_ptr}), must be kept alive by the caller. Memory that was given
 * as an object is refused once that object is closed; of an address nobody knows whether it is still valid.
 *
 * <p>Immutable as an object; what it points to may change. Thread safe.
 */
public class Tensor {
  private final Pointer pointer;
  private final Object owner;
  private final DType dtype;
  private final long[] shape;
  private final long elements;
  private final boolean writable;

  Tensor(Pointer pointer, Object owner, DType dtype, long[] shape) {
    this(pointer, owner, true, dtype, shape);
  }

  Tensor(Pointer pointer, Object owner, boolean writable, DType dtype, long[] shape) {
    this.pointer = pointer;
    this.owner = owner;
    this.writable = writable;
    this.dtype = dtype;
    this.shape = shape.clone();
    this.elements = elementsOf(shape);
  }

  /**
   * A view of a JavaCPP pointer's memory, from its position on.
   *
   * @throws IllegalArgumentException where the pointer is null or known to hold fewer bytes
   */
  public static Tensor of(Pointer pointer, DType dtype, long... shape) {
    long bytes = Math.multiplyExact(elementsOf(shape), dtype.bytes());
    if (pointer.isNull() && bytes > 0) {
      throw new IllegalArgumentException(
          "a null pointer, closed or never allocated, for a tensor of " + bytes + " bytes");
    }
    long address = pointer.address() + pointer.position() * pointer.sizeof();
    // A limit of 0 means «unknown» in JavaCPP: torch's data_ptr gives such pointers.
    long known = (pointer.limit() - pointer.position()) * pointer.sizeof();
    if (pointer.limit() > 0 && known < bytes) {
      throw tooSmall(known, bytes, dtype, shape);
    }
    return new Tensor(at(address, bytes), pointer, dtype, shape);
  }

  /**
   * A view of a direct buffer (memory-mapped ones are direct) from its position to its limit. What is written
   * through a view of a read-only buffer is refused.
   *
   * @throws IllegalArgumentException where the buffer is on the Java heap or too small. Elements are read
   *     in the machine's order whatever {@link ByteBuffer#order()} says
   */
  public static Tensor of(ByteBuffer buffer, DType dtype, long... shape) {
    return of(buffer, buffer.remaining(), buffer.position(), dtype, shape);
  }

  /**
   * A view of a direct buffer of floats from its position to its limit.
   *
   * @throws IllegalArgumentException where the buffer is on the Java heap, too small, or of another byte order than the
   *     machine's: {@code ByteBuffer.allocateDirect(n).asFloatBuffer()} is
   */
  public static Tensor of(FloatBuffer buffer, long... shape) {
    if (buffer.order() != ByteOrder.nativeOrder()) {
      throw new IllegalArgumentException(
          "the buffer's floats are "
              + buffer.order()
              + ", the machine's are "
              + ByteOrder.nativeOrder()
              + "; make it after byteBuffer.order(ByteOrder.nativeOrder())");
    }
    long bytes = 4L * buffer.remaining();
    return of(buffer, bytes, 4L * buffer.position(), DType.F32, shape);
  }

  private static Tensor of(Buffer buffer, long available, long offset, DType dtype, long[] shape) {
    if (!buffer.isDirect()) {
      throw new IllegalArgumentException(
          "the buffer lies on the Java heap, where it can move; a direct buffer is needed");
    }
    long bytes = Math.multiplyExact(elementsOf(shape), dtype.bytes());
    if (available < bytes) {
      throw tooSmall(available, bytes, dtype, shape);
    }
    // Position 0, because JavaCPP counts a position in bytes for some kinds of buffer.
    Pointer base = new Pointer(buffer.duplicate().clear());
    return new Tensor(
        at(base.address() + offset, bytes), buffer, !buffer.isReadOnly(), dtype, shape);
  }

  /**
   * A view of {@code bytes} bytes at an address, for users of MemorySegment or Unsafe.
   *
   * @throws IllegalArgumentException where the address is 0 or the bytes are too few for the shape
   */
  public static Tensor ofAddress(long address, long bytes, DType dtype, long... shape) {
    long needed = Math.multiplyExact(elementsOf(shape), dtype.bytes());
    if (bytes < needed) {
      throw tooSmall(bytes, needed, dtype, shape);
    }
    if (address == 0 && needed > 0) {
      throw new IllegalArgumentException("address 0 for a tensor of " + needed + " bytes");
    }
    return new Tensor(at(address, needed), null, dtype, shape);
  }

  /**
   * The memory as a pointer whose limit is its size in bytes. A pointer of JavaCPP that is made of it, such as {@code new
   * FloatPointer(tensor.pointer())}, takes that limit for a count of its own elements; give it a capacity.
   *
   * @throws UnsupportedOperationException where it is a CUDA device's: whoever asks reads it from here
   * @throws IllegalStateException where what the memory belongs to is closed
   */
  public Pointer pointer() {
    requireOpen();
    return pointer;
  }

  /**
   * Refuses memory that was freed: for who keeps an address from {@link #pointer}, before each use of it.
   *
   * @throws IllegalStateException where what the memory belongs to is closed
   */
  public void requireOpen() {
    if (owner instanceof Tensor whole) {
      whole.requireOpen();
    } else if (owner instanceof MappedFile file) {
      file.requireOpen();
    } else if (owner instanceof CudaMemory memory) {
      memory.requireOpen();
    } else if (owner instanceof Pointer given && given.isNull() && elements > 0) {
      throw new IllegalStateException("the memory of " + this + " is closed");
    }
  }

  /** Whether the memory can be written: views of read-only buffers and of mapped files cannot. */
  public final boolean isWritable() {
    return writable;
  }

  /**
   * Refuses memory that cannot be written.
   *
   * @param what it was given as, for the message
   * @throws IllegalArgumentException where it is read-only
   */
  public final void requireWritable(String what) {
    if (!writable) {
      throw new IllegalArgumentException(
          what + " " + this + " is read-only memory, of a mapped file or a read-only buffer");
    }
  }

  /** Where the memory is. */
  public Device device() {
    return Device.cpu();
  }

  /**
   * The memory as a pointer that is valid on a device.
   *
   * @throws IllegalArgumentException where the memory is elsewhere
   */
  public final Pointer pointerOn(Device wanted) {
    if (!device().equals(wanted)) {
      throw new IllegalArgumentException(
          this + " is on " + device() + ", the others are on " + wanted);
    }
    return wanted.isCuda() ? addressed() : pointer();
  }

  /** The pointer, wherever it points. */
  Pointer addressed() {
    requireOpen();
    return pointer;
  }

  public final long address() {
    return pointer().address();
  }

  public final DType dtype() {
    return dtype;
  }

  public final long[] shape() {
    return shape.clone();
  }

  public final int rank() {
    return shape.length;
  }

  /**
   * The size of an axis; negative axes count from the last.
   *
   * @throws IndexOutOfBoundsException where there is no such axis
   */
  public final long dimension(int axis) {
    int from = axis < 0 ? axis + shape.length : axis;
    if (from < 0 || from >= shape.length) {
      throw new IndexOutOfBoundsException("axis " + axis + " of " + this);
    }
    return shape[from];
  }

  public final long elements() {
    return elements;
  }

  public final long bytes() {
    return elements * dtype.bytes();
  }

  /**
   * A flat view of elements {@code [start, start + count)}; it keeps this tensor reachable.
   *
   * @throws IndexOutOfBoundsException where the range leaves the tensor
   */
  public Tensor slice(long start, long count) {
    Objects.checkFromIndexSize(start, count, elements);
    long bytes = count * dtype.bytes();
    return new Tensor(
        at(address() + start * dtype.bytes(), bytes), this, writable, dtype, new long[] {count});
  }

  @Override
  public String toString() {
    return dtype + Arrays.toString(shape);
  }

  static Pointer at(long address, long bytes) {
    return new Address(address, bytes);
  }

  static long elementsOf(long[] shape) {
    long elements = 1;
    for (long size : shape) {
      if (size < 0) {
        throw new IllegalArgumentException("negative size in shape " + Arrays.toString(shape));
      }
      elements = Math.multiplyExact(elements, size);
    }
    return elements;
  }

  private static IllegalArgumentException tooSmall(
      long available, long needed, DType dtype, long[] shape) {
    return new IllegalArgumentException(
        "the memory holds "
            + available
            + " bytes, "
            + dtype
            + Arrays.toString(shape)
            + " needs "
            + needed);
  }

  /** A pointer to memory that it does not own. */
  private static final class Address extends Pointer {
    Address(long address, long bytes) {
      this.address = address;
      this.limit = bytes;
      this.capacity = bytes;
    }

    /** JavaCPP takes a class that it does not know for one of pointers, of 8 bytes each. */
    @Override
    public int sizeof() {
      return 1;
    }
  }
}

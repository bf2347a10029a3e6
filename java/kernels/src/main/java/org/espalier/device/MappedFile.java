package org.espalier.device;

import java.nio.charset.Charset;
import java.nio.file.Path;
import java.util.Objects;
import org.bytedeco.javacpp.BytePointer;
import org.bytedeco.javacpp.Pointer;
import org.bytedeco.javacpp.PointerPointer;
import org.espalier.binding.Status;
import org.espalier.binding.global.espalier;

/**
 * A file mapped read-only into memory as one piece, whatever its size. Operations refuse to write to views of it;
 * touching it after the file was made shorter ends the process.
 *
 * <p>Close it; one that is forgotten is reported when the garbage collector finds it, and unmapped
 * then. Views become invalid with {@link #close()}. Thread safe up to that.
 */
public final class MappedFile implements AutoCloseable {
  /** The encoding in which the JVM itself gives names to the system. */
  private static final Charset NAMES =
      Charset.forName(System.getProperty("sun.jnu.encoding", Charset.defaultCharset().name()));

  private final Path path;
  private final NativeMemory mapping;

  private MappedFile(Path path, long address, long bytes) {
    this.path = path;
    mapping =
        new NativeMemory(
            this,
            "the mapping of " + path,
            address,
            bytes,
            block -> espalier.esp_file_unmap(block, bytes));
  }

  /**
   * Maps a file.
   *
   * @param path a regular file
   * @param bytes its size, at least 1
   * @throws IllegalArgumentException if it is not a regular file of that size or cannot be mapped
   */
  public static MappedFile open(Path path, long bytes) {
    byte[] name = path.toString().getBytes(NAMES);
    try (BytePointer text = new BytePointer(name.length + 1L);
        PointerPointer<Pointer> result = new PointerPointer<>(1)) {
      text.put(name).put(name.length, (byte) 0);
      Status.check(espalier.esp_file_map(text, bytes, result));
      return new MappedFile(path, result.get(0).address(), bytes);
    }
  }

  /** The path that was opened. */
  public Path path() {
    return path;
  }

  /** The size of the file. */
  public long bytes() {
    return mapping.bytes();
  }

  /**
   * A view of a part of the file. It keeps the mapping reachable.
   *
   * @param offset the first byte, which must be a multiple of the element size
   * @throws IllegalArgumentException if the offset is not aligned
   * @throws IndexOutOfBoundsException if the tensor is not inside the file
   */
  public Tensor tensor(long offset, DType dtype, long... shape) {
    long bytes = Math.multiplyExact(Tensor.elementsOf(shape), dtype.bytes());
    long address = address(offset, bytes);
    if (offset % dtype.bytes() != 0) {
      throw new IllegalArgumentException(
          path + ": byte " + offset + " is no place for elements of " + dtype.bytes() + " bytes");
    }
    return new Tensor(Tensor.at(address, bytes), this, false, dtype, shape);
  }

  /**
   * Bytes of the file as a pointer, which is valid as long as this object is reachable and open.
   *
   * @throws IndexOutOfBoundsException if they are not inside the file
   */
  public BytePointer bytes(long offset, long count) {
    return new BytePointer(Tensor.at(address(offset, count), count)).capacity(count);
  }

  private long address(long offset, long count) {
    long start = mapping.address();
    Objects.checkFromIndexSize(offset, count, bytes());
    return start + offset;
  }

  /**
   * @throws IllegalStateException after close
   */
  void requireOpen() {
    mapping.address();
  }

  /** Unmaps the file; views of it become invalid. Closing twice does nothing. */
  @Override
  public void close() {
    mapping.close();
  }
}

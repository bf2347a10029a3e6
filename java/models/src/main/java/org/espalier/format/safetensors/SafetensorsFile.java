package org.espalier.format.safetensors;

import java.io.EOFException;
import java.io.IOException;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.channels.FileChannel;
import java.nio.file.AccessDeniedException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.nio.file.StandardOpenOption;
import java.util.Collection;
import java.util.Collections;
import java.util.Comparator;
import java.util.List;
import java.util.Map;
import org.bytedeco.javacpp.BytePointer;
import org.espalier.InputException;
import org.espalier.device.DType;
import org.espalier.device.MappedFile;
import org.espalier.device.Tensor;

/**
 * A safetensors file, checked as a whole when it is opened: the length and the UTF-8 of the header,
 * its JSON, every dtype, shape and offset, and that the tensors fill the file exactly. The file
 * must not change while it is open.
 *
 * <p>Instances can be read by several threads at once; {@link #close()} must come after, and what reads then throws an {@link
 * IllegalStateException}.
 */
public final class SafetensorsFile implements AutoCloseable {
  private final Path path;
  private final FileChannel channel;
  private final Header header;
  private final long dataStart;
  private MappedFile mapping;

  private SafetensorsFile(Path path, FileChannel channel, Header header, long dataStart) {
    this.path = path;
    this.channel = channel;
    this.header = header;
    this.dataStart = dataStart;
  }

  /**
   * Opens and checks a file.
   *
   * @throws InputException if it cannot be read or is not a valid safetensors file
   */
  public static SafetensorsFile open(Path path) {
    if (!Files.exists(path)) {
      throw new InputException(path + ": there is no such file");
    }
    // A pipe or a device could block for ever.
    if (!Files.isRegularFile(path)) {
      throw new InputException(path + " is not a regular file");
    }
    FileChannel channel = null;
    try {
      channel = FileChannel.open(path, StandardOpenOption.READ);
      long length = channel.size();
      long headerBytes = headerBytes(channel, length, path);
      ByteBuffer json = ByteBuffer.allocate(Math.toIntExact(headerBytes));
      readFully(channel, Long.BYTES, json);
      Header header = Header.parse(json.array(), path.toString());
      long dataStart = Long.BYTES + headerBytes;
      long dataBytes = length - dataStart;
      if (header.dataBytes() != dataBytes) {
        throw new InputException(
            path
                + (header.dataBytes() > dataBytes ? " is truncated: " : " is too long: ")
                + "the header describes "
                + header.dataBytes()
                + " bytes of tensors and the file holds "
                + dataBytes);
      }
      return new SafetensorsFile(path, channel, header, dataStart);
    } catch (IOException e) {
      InputException failure = cannotRead(path, e);
      closeQuietly(channel, failure);
      throw failure;
    } catch (RuntimeException e) {
      closeQuietly(channel, e);
      throw e;
    }
  }

  private static long headerBytes(FileChannel channel, long length, Path path) throws IOException {
    if (length < Long.BYTES) {
      throw new InputException(
          path
              + " has "
              + length
              + " bytes; a safetensors file begins with 8 bytes of header length");
    }
    ByteBuffer prefix = ByteBuffer.allocate(Long.BYTES).order(ByteOrder.LITTLE_ENDIAN);
    readFully(channel, 0, prefix);
    long headerBytes = prefix.getLong(0);
    if (headerBytes < 0 || headerBytes > Header.MAX_BYTES) {
      throw new InputException(
          path
              + ": the header length is "
              + Long.toUnsignedString(headerBytes)
              + " bytes, above the limit of "
              + Header.MAX_BYTES
              + "; "
              + Header.NOT_SAFETENSORS);
    }
    if (headerBytes > length - Long.BYTES) {
      throw new InputException(
          path
              + ": the header length is "
              + headerBytes
              + " bytes, but only "
              + (length - Long.BYTES)
              + " follow; "
              + Header.NOT_SAFETENSORS);
    }
    return headerBytes;
  }

  /** The path that was opened. */
  public Path path() {
    return path;
  }

  /** All tensors in the order of their names' UTF-8 bytes. */
  public Collection<TensorInfo> tensors() {
    return Collections.unmodifiableCollection(header.tensors().values());
  }

  /** All tensors in the order in which their bytes lie in the file. */
  public List<TensorInfo> tensorsByPlace() {
    return header.tensors().values().stream()
        .sorted(Comparator.comparingLong(TensorInfo::begin).thenComparingLong(TensorInfo::end))
        .toList();
  }

  /** The tensor of that name, or null. */
  public TensorInfo tensor(String name) {
    return header.tensors().get(name);
  }

  /** What {@code __metadata__} holds; empty where there is none. */
  public Map<String, String> metadata() {
    return Collections.unmodifiableMap(header.metadata());
  }

  /** The number of bytes of all tensors. */
  public long dataBytes() {
    return header.dataBytes();
  }

  /**
   * Fills {@code target} with bytes of a tensor.
   *
   * @param tensor a tensor of this file
   * @param offset the first byte wanted, counted from the tensor's beginning
   * @throws IllegalArgumentException if the bytes are not inside the tensor
   * @throws InputException if the file cannot be read
   */
  public void read(TensorInfo tensor, long offset, ByteBuffer target) {
    checkRange(tensor, offset, target.remaining());
    requireOpen();
    try {
      readFully(channel, dataStart + tensor.begin() + offset, target);
    } catch (IOException e) {
      throw cannotRead(path, e);
    }
  }

  /**
   * A view of a tensor in the mapped file: read-only, nothing is copied. It is valid until {@link
   * #close()}.
   *
   * @param tensor an F32, BF16 or F16 tensor of this file that {@linkplain #isAligned lies aligned}
   * @throws IllegalArgumentException if it is of another type or does not
   * @throws InputException if the file cannot be mapped
   */
  public Tensor view(TensorInfo tensor) {
    DType dtype = tensor.dtype().computable();
    if (dtype == null || !isAligned(tensor)) {
      throw new IllegalArgumentException(path + ": kernels cannot read " + tensor);
    }
    checkRange(tensor, 0, tensor.bytes());
    long[] shape = tensor.shape().stream().mapToLong(Long::longValue).toArray();
    if (tensor.bytes() == 0) {
      return Tensor.ofAddress(0, 0, dtype, shape);
    }
    return mapping().tensor(dataStart + tensor.begin(), dtype, shape);
  }

  /**
   * Bytes of a tensor in the mapped file: read-only, nothing is copied. They are valid until {@link
   * #close()} and as long as this object is reachable.
   *
   * @param offset the first byte wanted, counted from the tensor's beginning
   * @throws IllegalArgumentException if the bytes are not inside the tensor
   * @throws InputException if the file cannot be mapped
   */
  public BytePointer bytes(TensorInfo tensor, long offset, long bytes) {
    checkRange(tensor, offset, bytes);
    return mapping().bytes(dataStart + tensor.begin() + offset, bytes);
  }

  /** Where the bytes of a tensor of this file begin in it. */
  public long offset(TensorInfo tensor) {
    checkRange(tensor, 0, 0);
    return dataStart + tensor.begin();
  }

  /**
   * Whether the tensor begins at a multiple of its element size, as kernels need it. The format
   * does not promise it: writers of old did not pad the header.
   */
  public boolean isAligned(TensorInfo tensor) {
    return (dataStart + tensor.begin()) % Math.max(1, tensor.dtype().bits() / 8) == 0;
  }

  private synchronized MappedFile mapping() {
    requireOpen();
    if (mapping == null) {
      try {
        mapping = MappedFile.open(path, dataStart + dataBytes());
      } catch (IllegalArgumentException e) {
        throw new InputException("cannot read " + path + ": " + e.getMessage(), e);
      }
    }
    return mapping;
  }

  private void checkRange(TensorInfo tensor, long offset, long bytes) {
    if (!tensor.equals(tensor(tensor.name()))) {
      throw new IllegalArgumentException(path + " has no tensor " + tensor);
    }
    if (offset < 0 || bytes < 0 || offset > tensor.bytes() - bytes) {
      throw new IllegalArgumentException(
          bytes + " bytes from " + offset + " are not inside " + tensor);
    }
  }

  private void requireOpen() {
    if (!channel.isOpen()) {
      throw new IllegalStateException(path + " is closed");
    }
  }

  @Override
  public synchronized void close() {
    if (mapping != null) {
      mapping.close();
    }
    try {
      channel.close();
    } catch (IOException e) {
      throw cannotRead(path, e);
    }
  }

  private static void readFully(FileChannel channel, long position, ByteBuffer target)
      throws IOException {
    while (target.hasRemaining()) {
      int read = channel.read(target, position);
      if (read < 0) {
        throw new EOFException("it became shorter while it was read");
      }
      position += read;
    }
  }

  static InputException cannotRead(Path path, IOException e) {
    String reason = e instanceof AccessDeniedException ? "permission denied" : e.getMessage();
    return new InputException("cannot read " + path + ": " + reason, e);
  }

  private static void closeQuietly(FileChannel channel, Exception because) {
    if (channel != null) {
      try {
        channel.close();
      } catch (IOException e) {
        because.addSuppressed(e);
      }
    }
  }
}

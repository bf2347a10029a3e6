package org.espalier.format.safetensors;

import java.io.IOException;
import java.nio.ByteBuffer;
import java.nio.channels.FileChannel;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.function.Function;
import org.espalier.InputException;
import org.espalier.format.AtomicFile;
import org.espalier.format.Names;

/**
 * Writes a safetensors file whose bytes depend on its content alone: tensors by descending width of
 * their elements, then by name; metadata by key; the header padded with spaces to a multiple of 8.
 *
 * <p>All tensors are declared first. Their bytes then come in any order of tensors, each tensor
 * front to back in pieces of any size, and go to the file at once. {@link #finish()} checks that
 * nothing is missing, which an {@link AtomicFile} asks for too before it takes its name.
 *
 * <p>Not for use by several threads at once.
 */
public final class SafetensorsWriter {
  private final FileChannel channel;
  private final Function<IOException, InputException> failure;
  private final Map<String, TensorInfo> tensors = new HashMap<>();
  private final Map<String, Long> written = new HashMap<>();
  private final long dataStart;
  private final long fileBytes;

  /**
   * Writes the header.
   *
   * @param channel an empty file
   * @param failure what to throw when the file system refuses a write
   * @param specs the tensors, in any order
   * @param metadata the content of {@code __metadata__}, which is left out when empty
   * @throws IllegalArgumentException if two tensors have the same name
   */
  public SafetensorsWriter(
      FileChannel channel,
      Function<IOException, InputException> failure,
      List<TensorSpec> specs,
      Map<String, String> metadata) {
    this.channel = channel;
    this.failure = failure;
    List<TensorInfo> layout = Header.layOut(specs);
    for (TensorInfo tensor : layout) {
      if (tensors.put(tensor.name(), tensor) != null) {
        throw new IllegalArgumentException(Names.quote(tensor.name()) + " is declared twice");
      }
      written.put(tensor.name(), 0L);
    }
    ByteBuffer header = Header.encode(layout, metadata);
    dataStart = header.remaining();
    fileBytes = dataStart + (layout.isEmpty() ? 0 : layout.get(layout.size() - 1).end());
    write(header, 0);
  }

  /** Writes the header into an atomic file, which gets its name only when every tensor is complete. */
  public SafetensorsWriter(AtomicFile file, List<TensorSpec> specs, Map<String, String> metadata) {
    this(file.channel(), file::failure, specs, metadata);
    file.beforeCommit(this::finish);
  }

  /** The bytes of the file that these tensors and metadata will make. */
  public static long fileBytes(List<TensorSpec> specs, Map<String, String> metadata) {
    List<TensorInfo> layout = Header.layOut(specs);
    return Header.encode(layout, metadata).remaining()
        + (layout.isEmpty() ? 0 : layout.get(layout.size() - 1).end());
  }

  /**
   * Writes the next bytes of a tensor: all that remains in {@code bytes}.
   *
   * @throws IllegalArgumentException if there is no such tensor or the bytes exceed it
   * @throws InputException if the file system refuses, for instance because it is full
   */
  public void append(String name, ByteBuffer bytes) {
    TensorInfo tensor = tensors.get(name);
    if (tensor == null) {
      throw new IllegalArgumentException(Names.quote(name) + " was not declared");
    }
    long offset = written.get(name);
    if (bytes.remaining() > tensor.bytes() - offset) {
      throw new IllegalArgumentException(
          Names.quote(name)
              + " has "
              + tensor.bytes()
              + " bytes; "
              + bytes.remaining()
              + " more than the "
              + offset
              + " written are too many");
    }
    written.put(name, offset + bytes.remaining());
    write(bytes, dataStart + tensor.begin() + offset);
  }

  /**
   * Appends a tensor of another file as it is.
   *
   * @param buffer in pieces of its size
   */
  public void append(SafetensorsFile source, TensorInfo tensor, ByteBuffer buffer) {
    for (long at = 0; at < tensor.bytes(); at += buffer.capacity()) {
      buffer.clear().limit((int) Math.min(buffer.capacity(), tensor.bytes() - at));
      source.read(tensor, at, buffer);
      append(tensor.name(), buffer.flip());
    }
  }

  /**
   * Checks that every tensor is complete.
   *
   * @return the bytes of the file
   * @throws IllegalStateException if bytes of a tensor are missing
   */
  public long finish() {
    for (TensorInfo tensor : tensors.values()) {
      if (written.get(tensor.name()) != tensor.bytes()) {
        throw new IllegalStateException(
            Names.quote(tensor.name())
                + " has "
                + tensor.bytes()
                + " bytes and only "
                + written.get(tensor.name())
                + " were written");
      }
    }
    return fileBytes;
  }

  private void write(ByteBuffer bytes, long position) {
    try {
      while (bytes.hasRemaining()) {
        position += channel.write(bytes, position);
      }
    } catch (IOException e) {
      throw failure.apply(e);
    }
  }
}

package org.espalier.format;

import java.io.IOException;
import java.nio.ByteBuffer;
import java.nio.channels.FileChannel;
import java.nio.file.Path;
import java.nio.file.StandardOpenOption;
import java.util.HashMap;
import java.util.Map;
import org.espalier.InputException;

/**
 * Parts of files that are read, mapped where they are large: a file once where one mapping can hold it. They stay
 * readable as long as somebody holds them; the files must not change meanwhile. Not safe for several threads.
 */
public final class FileRegions {
  /** Below this a part of a large file is read; the number of mappings of a process is limited. */
  private static final int MAPPED = 1 << 16;

  private final Map<Path, ByteBuffer> whole = new HashMap<>();

  /**
   * Bytes of a file, read-only.
   *
   * @throws IllegalArgumentException if the file ends before
   * @throws InputException if it cannot be read
   */
  public ByteBuffer bytes(Path file, long offset, int length) {
    ByteBuffer map = whole.get(file);
    if (map != null) {
      return part(file, map, offset, length);
    }
    try (FileChannel channel = FileChannel.open(file, StandardOpenOption.READ)) {
      long size = channel.size();
      if (size <= Integer.MAX_VALUE) {
        map = channel.map(FileChannel.MapMode.READ_ONLY, 0, size);
        whole.put(file, map);
        return part(file, map, offset, length);
      }
      check(file, offset, length, size);
      if (length >= MAPPED) {
        return channel.map(FileChannel.MapMode.READ_ONLY, offset, length);
      }
      ByteBuffer copy = ByteBuffer.allocateDirect(length);
      while (copy.hasRemaining() && channel.read(copy, offset + copy.position()) >= 0) {
        continue;
      }
      return copy.flip().asReadOnlyBuffer();
    } catch (IOException e) {
      throw InputException.of("cannot read " + file, e);
    }
  }

  private static ByteBuffer part(Path file, ByteBuffer map, long offset, int length) {
    check(file, offset, length, map.limit());
    return map.slice((int) offset, length);
  }

  private static void check(Path file, long offset, int length, long size) {
    if (offset < 0 || length < 0 || offset > size - length) {
      throw new IllegalArgumentException(
          length + " bytes from " + offset + " are not inside " + file + ", which has " + size);
    }
  }
}

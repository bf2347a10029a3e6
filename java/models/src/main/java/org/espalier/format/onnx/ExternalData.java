package org.espalier.format.onnx;

import ai.onnx.proto.OnnxMl.TensorProto;
import com.google.protobuf.ByteString;
import com.google.protobuf.UnsafeByteOperations;
import java.io.IOException;
import java.nio.ByteBuffer;
import java.nio.channels.FileChannel;
import java.nio.file.Path;
import java.nio.file.StandardOpenOption;
import java.util.HashMap;
import java.util.Map;
import java.util.Set;
import org.espalier.InputException;

/** The external data files of a model while it is read. Each is mapped once where one mapping can hold it. */
final class ExternalData {
  /**
   * Below this a tensor of a large file is read; the number of mappings of a process is limited.
   */
  private static final int MAPPED = 1 << 16;

  private final Path folder;
  private final Map<Path, ByteBuffer> whole = new HashMap<>();

  /**
   * @param folder the model's folder; null for a model that is not a file
   */
  ExternalData(Path folder) {
    this.folder = folder;
  }

  /** The files that were used so far. */
  Set<Path> files() {
    return whole.keySet();
  }

  OnnxTensors.External find(TensorProto t, String where) {
    OnnxTensors.External data = OnnxTensors.external(t, folder, where);
    whole.putIfAbsent(data.file(), null);
    return data;
  }

  /** The tensor with its data inside, which is mapped where it is large; below 2 GiB only. */
  TensorProto resolve(TensorProto t, OnnxTensors.External data) {
    return t.toBuilder()
        .clearExternalData()
        .clearDataLocation()
        .setRawData(bytes(data.file(), data.offset(), Math.toIntExact(data.length())))
        .build();
  }

  private ByteString bytes(Path file, long offset, int length) {
    ByteBuffer map = whole.get(file);
    if (map == null) {
      try (FileChannel channel = FileChannel.open(file, StandardOpenOption.READ)) {
        if (channel.size() <= Integer.MAX_VALUE) {
          map = channel.map(FileChannel.MapMode.READ_ONLY, 0, channel.size());
          whole.put(file, map);
        } else if (length >= MAPPED) {
          return UnsafeByteOperations.unsafeWrap(
              channel.map(FileChannel.MapMode.READ_ONLY, offset, length));
        } else {
          ByteBuffer copy = ByteBuffer.allocate(length);
          while (copy.hasRemaining() && channel.read(copy, offset + copy.position()) >= 0) {
            continue;
          }
          return ByteString.copyFrom(copy.flip());
        }
      } catch (IOException e) {
        throw new InputException("cannot read " + file + ": " + e.getMessage(), e);
      }
    }
    return UnsafeByteOperations.unsafeWrap(map.slice((int) offset, length));
  }
}

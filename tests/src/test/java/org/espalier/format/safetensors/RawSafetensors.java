package org.espalier.format.safetensors;

import java.io.IOException;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.List;
import java.util.Map;
import org.espalier.format.AtomicFile;

/** Safetensors files for tests: bytes as they are given, valid or not, and small valid files. */
public final class RawSafetensors {
  private RawSafetensors() {}

  /** The length of the header, the header and {@code dataBytes} bytes 0, 1, 2 and so on. */
  public static byte[] bytes(byte[] header, int dataBytes) {
    ByteBuffer file =
        ByteBuffer.allocate(8 + header.length + dataBytes).order(ByteOrder.LITTLE_ENDIAN);
    file.putLong(header.length).put(header);
    for (int i = 0; i < dataBytes; i++) {
      file.put((byte) i);
    }
    return file.array();
  }

  public static byte[] bytes(String header, int dataBytes) {
    return bytes(header.getBytes(StandardCharsets.UTF_8), dataBytes);
  }

  public static Path write(Path path, String header, int dataBytes) throws IOException {
    return Files.write(path, bytes(header, dataBytes));
  }

  /** Writes the tensors' bytes with the product's writer. */
  public static Path write(
      Path path, Map<String, String> metadata, Map<TensorSpec, byte[]> tensors) {
    try (AtomicFile file = AtomicFile.create(path)) {
      SafetensorsWriter writer =
          new SafetensorsWriter(file, List.copyOf(tensors.keySet()), metadata);
      tensors.forEach((spec, bytes) -> writer.append(spec.name(), ByteBuffer.wrap(bytes)));
      writer.finish();
      file.commit();
    }
    return path;
  }

  /** All bytes of a tensor, which must be small. */
  public static byte[] read(SafetensorsFile file, String name) {
    TensorInfo tensor = file.tensor(name);
    ByteBuffer bytes = ByteBuffer.allocate(Math.toIntExact(tensor.bytes()));
    file.read(tensor, 0, bytes);
    return bytes.array();
  }
}

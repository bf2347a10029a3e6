package org.espalier.format.safetensors;

import static org.junit.jupiter.api.Assertions.assertEquals;

import java.io.IOException;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.channels.FileChannel;
import java.nio.charset.StandardCharsets;
import java.nio.file.Path;
import java.nio.file.StandardOpenOption;
import org.bytedeco.javacpp.FloatPointer;
import org.espalier.device.Tensor;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;

/** Tensors beyond 2^31 and 2^32 bytes, in a sparse file that takes no room. */
class SafetensorsLargeTest {
  @TempDir Path folder;

  @Test
  void readsTensorsOfGigabytes() throws IOException {
    long first = (1L << 30) + 3; // 4 GiB and 12 bytes of F32
    long second = (1L << 31) + 5; // bytes
    long end = 4 * first + second;
    String json =
        "{\"w\":{\"dtype\":\"F32\",\"shape\":[%d],\"data_offsets\":[0,%d]},"
                .formatted(first, 4 * first)
            + "\"b\":{\"dtype\":\"U8\",\"shape\":[1,%d],\"data_offsets\":[%d,%d]}}"
                .formatted(second, 4 * first, end);
    json += " ".repeat((8 - json.length() % 8) % 8);
    Path path = folder.resolve("m");
    ByteBuffer header = ByteBuffer.allocate(8 + json.length()).order(ByteOrder.LITTLE_ENDIAN);
    header.putLong(json.length()).put(json.getBytes(StandardCharsets.UTF_8)).flip();
    long start = header.limit();
    try (FileChannel channel =
        FileChannel.open(
            path,
            StandardOpenOption.CREATE_NEW,
            StandardOpenOption.WRITE,
            StandardOpenOption.SPARSE)) {
      channel.write(header, 0);
      ByteBuffer value = ByteBuffer.allocate(5).order(ByteOrder.LITTLE_ENDIAN);
      value.putFloat(-3f).put((byte) 9);
      channel.write(value.flip(), start + 4 * first - 4);
      channel.write(ByteBuffer.wrap(new byte[] {42}), start + end - 1);
    }
    try (SafetensorsFile file = SafetensorsFile.open(path)) {
      TensorInfo w = file.tensor("w");
      TensorInfo b = file.tensor("b");
      Tensor last = file.view(w).slice(first - 1, 1);
      assertEquals(-3f, new FloatPointer(last.pointer()).get(0));
      assertEquals(9, file.bytes(b, 0, 1).get());
      assertEquals(42, file.bytes(b, second - 1, 1).get());
      ByteBuffer one = ByteBuffer.allocate(1);
      file.read(b, second - 1, one);
      assertEquals(42, one.get(0));
    }
  }
}

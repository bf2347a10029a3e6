package org.espalier.device;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.io.IOException;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.channels.FileChannel;
import java.nio.charset.Charset;
import java.nio.file.Files;
import java.nio.file.Path;
import java.nio.file.StandardOpenOption;
import org.bytedeco.javacpp.FloatPointer;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;

class MappedFileTest {
  @TempDir Path folder;

  private Path floats(float... values) throws IOException {
    ByteBuffer bytes = ByteBuffer.allocate(4 * values.length).order(ByteOrder.LITTLE_ENDIAN);
    for (float value : values) {
      bytes.putFloat(value);
    }
    // Names of files are in the encoding of the locale, which may be ASCII.
    boolean wide =
        Charset.forName(System.getProperty("sun.jnu.encoding")).newEncoder().canEncode('ü');
    return Files.write(folder.resolve(wide ? "ü file" : "u file"), bytes.array());
  }

  @Test
  void readsInPlace() throws IOException {
    Path path = floats(1, 2, 3, 4);
    try (MappedFile file = MappedFile.open(path, 16)) {
      Tensor tensor = file.tensor(4, DType.F32, 3, 1);
      assertEquals(3, tensor.elements());
      assertEquals(4f, new FloatPointer(tensor.pointer()).get(2));
      assertEquals(0x40, file.bytes(4, 4).get(3));
    }
  }

  @Test
  void reachesBeyondFourGigabytes() throws IOException {
    long size = (5L << 30) + 8;
    Path path = folder.resolve("sparse");
    try (FileChannel channel =
        FileChannel.open(
            path,
            StandardOpenOption.CREATE_NEW,
            StandardOpenOption.WRITE,
            StandardOpenOption.SPARSE)) {
      channel.write(ByteBuffer.allocate(4).order(ByteOrder.LITTLE_ENDIAN).putFloat(0, 7), size - 4);
    }
    try (MappedFile file = MappedFile.open(path, size)) {
      Tensor tensor = file.tensor(0, DType.F32, size / 4);
      Tensor last = tensor.slice(size / 4 - 1, 1);
      assertEquals(7f, new FloatPointer(last.pointer()).get(0));
    }
  }

  @Test
  void refusesRangesOutsideAndMisalignedTensors() throws IOException {
    try (MappedFile file = MappedFile.open(floats(1, 2), 8)) {
      assertThrows(IndexOutOfBoundsException.class, () -> file.tensor(4, DType.F32, 2));
      assertThrows(IndexOutOfBoundsException.class, () -> file.tensor(-4, DType.F32, 1));
      assertThrows(IndexOutOfBoundsException.class, () -> file.bytes(8, 1));
      assertThrows(IllegalArgumentException.class, () -> file.tensor(2, DType.F32, 1));
    }
  }

  @Test
  void refusesWhatItCannotMap() throws IOException {
    Path path = floats(1);
    assertRefused(path, 8, "not a regular file of 8 bytes");
    assertRefused(path, 0, "at least one byte");
    assertRefused(folder.resolve("none"), 4, "No such file");
    assertRefused(folder, 4, "not a regular file");
    assertRefused(Path.of("/dev/zero"), 4, "not a regular file");
  }

  private static void assertRefused(Path path, long bytes, String message) {
    IllegalArgumentException e =
        assertThrows(IllegalArgumentException.class, () -> MappedFile.open(path, bytes));
    assertTrue(e.getMessage().contains(message), e.getMessage());
  }

  @Test
  void useAfterCloseThrows() throws IOException {
    MappedFile file = MappedFile.open(floats(1), 4);
    file.close();
    file.close();
    assertThrows(IllegalStateException.class, () -> file.bytes(0, 1));
    assertThrows(IllegalStateException.class, () -> file.tensor(0, DType.F32, 1));
  }
}

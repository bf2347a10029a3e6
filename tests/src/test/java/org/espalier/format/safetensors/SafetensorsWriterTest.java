package org.espalier.format.safetensors;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.io.IOException;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.Collections;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Random;
import java.util.stream.Stream;
import org.espalier.InputException;
import org.espalier.format.AtomicFile;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.MethodSource;

class SafetensorsWriterTest {
  @TempDir Path folder;

  @Test
  void bytesDependOnTheContentAlone() throws IOException {
    Random random = new Random(1);
    List<TensorSpec> specs = new ArrayList<>();
    Map<String, byte[]> content = new LinkedHashMap<>();
    for (SafetensorsDtype dtype : SafetensorsDtype.values()) {
      for (String name : List.of("z", "a", "ä", "\ud83c\udf33", "\ufb01", "")) {
        TensorSpec spec = new TensorSpec(name + dtype, dtype, List.of(4L, random.nextLong(4)));
        specs.add(spec);
        byte[] bytes = new byte[(int) spec.bytes()];
        random.nextBytes(bytes);
        content.put(spec.name(), bytes);
      }
    }
    Map<String, String> metadata = new LinkedHashMap<>(Map.of("b", "1", "a", "\n\"\\", "c", "ü"));
    byte[] first = null;
    for (int order = 0; order < 4; order++) {
      Collections.shuffle(specs, random);
      Map<TensorSpec, byte[]> tensors = new LinkedHashMap<>();
      specs.forEach(s -> tensors.put(s, content.get(s.name())));
      Path path = RawSafetensors.write(folder.resolve("m" + order), metadata, tensors);
      byte[] bytes = Files.readAllBytes(path);
      assertArrayEquals(first == null ? bytes : first, bytes);
      first = bytes;
      assertEquals(SafetensorsWriter.fileBytes(specs, metadata), bytes.length);
      try (SafetensorsFile file = SafetensorsFile.open(path)) {
        assertEquals(metadata, file.metadata());
        assertEquals(content.keySet().size(), file.tensors().size());
        for (TensorInfo tensor : file.tensors()) {
          assertArrayEquals(
              content.get(tensor.name()), RawSafetensors.read(file, tensor.name()), tensor.name());
          assertEquals(0, tensor.begin() % Math.max(1, tensor.dtype().bits() / 8));
        }
      }
    }
    assertEquals(0, headerBytes(first) % 8);
  }

  @Test
  void writesTheDocumentedLayout() throws IOException {
    Map<TensorSpec, byte[]> tensors = new LinkedHashMap<>();
    tensors.put(new TensorSpec("b", SafetensorsDtype.U8, List.of(2L)), new byte[] {9, 8});
    tensors.put(new TensorSpec("c", SafetensorsDtype.F32, List.of()), new byte[] {1, 2, 3, 4});
    tensors.put(new TensorSpec("a", SafetensorsDtype.U8, List.of(1L, 1L)), new byte[] {7});
    Path path = RawSafetensors.write(folder.resolve("m"), Map.of("k", "v"), tensors);
    String header =
        "{\"__metadata__\":{\"k\":\"v\"},"
            + "\"c\":{\"dtype\":\"F32\",\"shape\":[],\"data_offsets\":[0,4]},"
            + "\"a\":{\"dtype\":\"U8\",\"shape\":[1,1],\"data_offsets\":[4,5]},"
            + "\"b\":{\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":[5,7]}}";
    header += " ".repeat((8 - header.length() % 8) % 8);
    byte[] expected = RawSafetensors.bytes(header, 7);
    System.arraycopy(new byte[] {1, 2, 3, 4, 7, 9, 8}, 0, expected, expected.length - 7, 7);
    assertArrayEquals(expected, Files.readAllBytes(path));
  }

  static Stream<Path> golden() throws IOException {
    Path folder = Path.of(System.getProperty("espalier.root"), "tests", "golden");
    return Files.list(folder).filter(p -> p.toString().endsWith(".safetensors")).sorted();
  }

  /** The golden files come from another writer. */
  @ParameterizedTest
  @MethodSource("golden")
  void goldenFilesComeOutAsTheyWere(Path path) throws IOException {
    try (SafetensorsFile file = SafetensorsFile.open(path)) {
      Map<TensorSpec, byte[]> tensors = new LinkedHashMap<>();
      for (TensorInfo tensor : file.tensors()) {
        tensors.put(TensorSpec.of(tensor), RawSafetensors.read(file, tensor.name()));
      }
      Path copy = RawSafetensors.write(folder.resolve("m"), file.metadata(), tensors);
      try (SafetensorsFile written = SafetensorsFile.open(copy)) {
        assertEquals(List.copyOf(file.tensors()), List.copyOf(written.tensors()));
      }
      // Its metadata is in no order; all that follows is equal.
      byte[] theirs = Files.readAllBytes(path);
      byte[] ours = Files.readAllBytes(copy);
      assertEquals(theirs.length, ours.length);
      assertArrayEquals(afterMetadata(theirs), afterMetadata(ours));
    }
  }

  private static byte[] afterMetadata(byte[] file) {
    int end = 8;
    while (file[end] != '}') {
      end++;
    }
    return Arrays.copyOfRange(file, end, file.length);
  }

  @Test
  void missingBytesAndTooManyAreProgrammingErrors() {
    TensorSpec spec = new TensorSpec("a", SafetensorsDtype.U8, List.of(4L));
    try (AtomicFile file = AtomicFile.create(folder.resolve("m"))) {
      SafetensorsWriter writer = new SafetensorsWriter(file, List.of(spec), Map.of());
      writer.append("a", ByteBuffer.allocate(3));
      assertThrows(IllegalStateException.class, writer::finish);
      assertThrows(
          IllegalArgumentException.class, () -> writer.append("a", ByteBuffer.allocate(2)));
      assertThrows(
          IllegalArgumentException.class, () -> writer.append("b", ByteBuffer.allocate(1)));
      writer.append("a", ByteBuffer.allocate(1));
      assertEquals(SafetensorsWriter.fileBytes(List.of(spec), Map.of()), writer.finish());
    }
    try (AtomicFile file = AtomicFile.create(folder.resolve("m"))) {
      assertThrows(
          IllegalArgumentException.class,
          () -> new SafetensorsWriter(file, List.of(spec, spec), Map.of()));
    }
  }

  @Test
  void aFileWithAHoleGetsNoName() {
    TensorSpec spec = new TensorSpec("a", SafetensorsDtype.U8, List.of(4L));
    Path target = folder.resolve("m");
    Path whole = folder.resolve("whole");
    try (AtomicFile file = AtomicFile.create(target);
        AtomicFile other = AtomicFile.create(whole)) {
      SafetensorsWriter writer = new SafetensorsWriter(file, List.of(spec), Map.of());
      writer.append("a", ByteBuffer.allocate(3));
      IllegalStateException e = assertThrows(IllegalStateException.class, file::commit);
      assertTrue(e.getMessage().contains("only 3 were written"), e.getMessage());
      assertThrows(IllegalStateException.class, () -> AtomicFile.commitAll(List.of(other, file)));
      assertFalse(Files.exists(target) || Files.exists(whole));
      writer.append("a", ByteBuffer.allocate(1));
      AtomicFile.commitAll(List.of(other, file));
    }
    SafetensorsFile.open(target).close();
    assertTrue(Files.exists(whole));
  }

  @Test
  void specificationsAreChecked() {
    assertSpecRefused("a", SafetensorsDtype.U8, -1L);
    assertSpecRefused("a", SafetensorsDtype.F32, Long.MAX_VALUE);
    assertSpecRefused("a", SafetensorsDtype.F4, 3L);
    assertSpecRefused("__metadata__", SafetensorsDtype.U8, 1L);
    assertSpecRefused("\ud800", SafetensorsDtype.U8, 1L);
  }

  private static void assertSpecRefused(String name, SafetensorsDtype dtype, long size) {
    assertThrows(IllegalArgumentException.class, () -> new TensorSpec(name, dtype, List.of(size)));
  }

  @Test
  void aHeaderAboveTheLimitIsRefused() {
    Map<String, String> metadata = Map.of("k", "v".repeat(100_000_000));
    try (AtomicFile file = AtomicFile.create(folder.resolve("m"))) {
      InputException e =
          assertThrows(
              InputException.class, () -> new SafetensorsWriter(file, List.of(), metadata));
      assertTrue(e.getMessage().contains("allows 100000000"), e.getMessage());
    }
  }

  private static long headerBytes(byte[] file) {
    return ByteBuffer.wrap(file).order(ByteOrder.LITTLE_ENDIAN).getLong();
  }
}

package org.espalier.format.safetensors;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertNull;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.io.IOException;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.channels.FileChannel;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.nio.file.StandardOpenOption;
import java.util.List;
import java.util.Map;
import java.util.stream.Stream;
import org.espalier.InputException;
import org.espalier.device.Tensor;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.function.Executable;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.Arguments;
import org.junit.jupiter.params.provider.EnumSource;
import org.junit.jupiter.params.provider.MethodSource;

class SafetensorsFileTest {
  private static final String A = "\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]}";

  @TempDir Path folder;

  @Test
  void readsTensorsMetadataAndBytes() throws IOException {
    Path path =
        RawSafetensors.write(
            folder.resolve("m"),
            "{\"b\":{\"data_offsets\":[8,10],\"shape\":[],\"dtype\":\"BF16\"},"
                + "\"__metadata__\":{\"format\":\"pt\",\"ä\":\"\\u0001\"},"
                + A
                + ",\"none\":{\"dtype\":\"I64\",\"shape\":[3,0],\"data_offsets\":[8,8]}}   ",
            10);
    try (SafetensorsFile file = SafetensorsFile.open(path)) {
      assertEquals(
          List.of("a", "b", "none"), file.tensors().stream().map(TensorInfo::name).toList());
      assertEquals(new TensorInfo("b", SafetensorsDtype.BF16, List.of(), 8, 10), file.tensor("b"));
      assertEquals(1, file.tensor("b").elements());
      assertEquals(0, file.tensor("none").elements());
      assertEquals(Map.of("format", "pt", "ä", "\u0001"), file.metadata());
      assertArrayEquals(new byte[] {0, 1, 2, 3, 4, 5, 6, 7}, RawSafetensors.read(file, "a"));
      assertArrayEquals(new byte[] {8, 9}, RawSafetensors.read(file, "b"));
      ByteBuffer two = ByteBuffer.allocate(2);
      file.read(file.tensor("a"), 5, two);
      assertArrayEquals(new byte[] {5, 6}, two.array());
      assertNull(file.tensor("c"));
    }
  }

  @Test
  void readsAFileWithoutTensors() throws IOException {
    try (SafetensorsFile file =
        SafetensorsFile.open(RawSafetensors.write(folder.resolve("m"), "{}", 0))) {
      assertTrue(file.tensors().isEmpty());
      assertEquals(0, file.dataBytes());
    }
  }

  @Test
  void refusesToReadOutsideATensor() throws IOException {
    Path path = RawSafetensors.write(folder.resolve("m"), "{" + A + "}", 8);
    try (SafetensorsFile file = SafetensorsFile.open(path)) {
      TensorInfo a = file.tensor("a");
      ByteBuffer target = ByteBuffer.allocate(2);
      assertThrows(IllegalArgumentException.class, () -> file.read(a, 7, target));
      assertThrows(IllegalArgumentException.class, () -> file.read(a, -1, target));
      assertThrows(IllegalArgumentException.class, () -> file.read(a, Long.MAX_VALUE, target));
      TensorInfo other = new TensorInfo("a", SafetensorsDtype.F32, List.of(4L), 0, 16);
      assertThrows(IllegalArgumentException.class, () -> file.read(other, 0, target));
    }
  }

  @Test
  void aClosedFileIsNotRead() throws IOException {
    String header = "{" + A + "}";
    header += " ".repeat((8 - header.length() % 8) % 8); // the tensor lies aligned
    Path path = RawSafetensors.write(folder.resolve("m"), header, 8);
    SafetensorsFile file = SafetensorsFile.open(path);
    TensorInfo a = file.tensor("a");
    Tensor view = file.view(a);
    assertFalse(view.isWritable());
    file.close();
    for (Executable look :
        List.<Executable>of(
            () -> file.read(a, 0, ByteBuffer.allocate(8)),
            () -> file.view(a),
            () -> file.bytes(a, 0, 8))) {
      assertEquals(
          path + " is closed", assertThrows(IllegalStateException.class, look).getMessage());
    }
    assertThrows(IllegalStateException.class, view::pointer);
  }

  @ParameterizedTest
  @EnumSource
  void acceptsEveryDtypeAndChecksItsSize(SafetensorsDtype dtype) throws IOException {
    // 8 elements of any width end on a byte.
    int bytes = dtype.bits();
    String header =
        "{\"t\":{\"dtype\":\"%s\",\"shape\":[2,4],\"data_offsets\":[0,%d]}}"
            .formatted(dtype, bytes);
    try (SafetensorsFile file =
        SafetensorsFile.open(RawSafetensors.write(folder.resolve("m"), header, bytes))) {
      assertEquals(dtype, file.tensor("t").dtype());
    }
    String wrong =
        "{\"t\":{\"dtype\":\"%s\",\"shape\":[2,4],\"data_offsets\":[0,%d]}}"
            .formatted(dtype, bytes - 1);
    assertRefused(
        RawSafetensors.bytes(wrong, bytes - 1), "'t'", bytes + " bytes", "hold " + (bytes - 1));
  }

  static Stream<Arguments> badHeaders() {
    String deep = "[".repeat(100_000);
    return Stream.of(
        bad("{" + A + "}", 7, "truncated", "8 bytes", "holds 7"),
        bad("{" + A + "}", 9, "too long", "8 bytes", "holds 9"),
        bad("{}", 1, "too long"),
        bad("", 0, "'{'"),
        bad(" {}", 0, "'{'"),
        bad("[]", 0, "'{'"),
        bad("\ufeff{}", 0, "'{'"),
        bad("{", 0, "not valid"),
        bad("{}x", 0, "not valid"),
        bad("{}{}", 0, "goes on"),
        bad("{},", 0, "not valid"),
        bad("{" + A + "," + A + "}", 8, "'a'", "twice"),
        bad("{\"\\u0061\":1," + A + "}", 8, "'a'"),
        bad("{\"__metadata__\":{},\"__metadata__\":{}}", 0, "twice"),
        bad("{\"__metadata__\":{\"k\":\"1\",\"k\":\"2\"}}", 0, "'k' occurs twice"),
        bad("{\"__metadata__\":{\"k\":1}}", 0, "'k'", "an integer", "only strings"),
        bad("{\"__metadata__\":{\"k\":null}}", 0, "'k'", "null"),
        bad("{\"__metadata__\":{\"k\":{}}}", 0, "'k'", "an object"),
        bad("{\"__metadata__\":\"k\"}", 0, "__metadata__", "a string"),
        bad("{\"__metadata__\":null}", 0, "__metadata__", "null"),
        bad("{\"a\":" + deep, 0, "an"),
        bad("{\"__metadata__\":{\"a\":" + deep, 0, "a list"),
        bad("{\"a\":{\"dtype\":" + deep, 0, "'a'", "a list"),
        bad("{\"a\":{\"shape\":[[1]]}}", 0, "depth"),
        bad("{\"a\":[]}", 0, "'a'", "a list"),
        bad("{\"a\":null}", 0, "'a'", "null"),
        bad("{\"a\":{}}", 0, "'a'", "no dtype"),
        bad(tensor("\"F32\"", "[2]", null), 8, "'a'", "no data_offsets"),
        bad(tensor("\"F32\"", null, "[0,8]"), 8, "'a'", "no shape"),
        bad(tensor("\"F33\"", "[2]", "[0,8]"), 8, "'a'", "'F33'", "BF16"),
        bad(tensor("\"f32\"", "[2]", "[0,8]"), 8, "'a'", "'f32'"),
        bad(tensor("32", "[2]", "[0,8]"), 8, "'a'", "not a string"),
        bad(tensor("\"F32\"", "[3]", "[0,8]"), 8, "'a'", "12 bytes", "hold 8"),
        bad(tensor("\"F16\"", "[2]", "[0,8]"), 8, "'a'", "4 bytes", "hold 8"),
        bad(tensor("\"F32\"", "[-2]", "[0,8]"), 8, "'a'", "shape", "negative"),
        bad(tensor("\"F32\"", "[-0]", "[0,0]"), 0, "'a'", "shape", "negative"),
        bad(
            tensor("\"F32\"", "[2.0]", "[0,8]"),
            8,
            "'a'",
            "a number that is not an integer; integers are right"),
        bad(
            tensor("\"F32\"", "[2e0]", "[0,8]"),
            8,
            "'a'",
            "a number that is not an integer; integers are right"),
        bad(tensor("\"F32\"", "[NaN]", "[0,8]"), 8, "not valid"),
        bad(tensor("\"F32\"", "[\"2\"]", "[0,8]"), 8, "'a'", "a string"),
        bad(tensor("\"F32\"", "[null]", "[0,8]"), 8, "'a'", "null"),
        bad(tensor("\"F32\"", "2", "[0,8]"), 8, "'a'", "shape", "not a list"),
        bad(tensor("\"F32\"", "[02]", "[0,8]"), 8, "not valid"),
        bad(tensor("\"F32\"", "[9223372036854775808]", "[0,8]"), 8, "'a'", "2^63"),
        bad(tensor("\"F32\"", "[" + "9".repeat(100_000) + "]", "[0,8]"), 8, "not valid"),
        bad(tensor("\"F32\"", "[4611686018427387905]", "[0,4]"), 4, "'a'", "overflow"),
        bad(tensor("\"F32\"", "[4294967296,4294967296,2]", "[0,8]"), 8, "'a'", "overflow"),
        bad(tensor("\"F32\"", "[" + "1,".repeat(64) + "2]", "[0,8]"), 8, "'a'", "more than 64"),
        bad(tensor("\"F4\"", "[3]", "[0,1]"), 1, "'a'", "inside a byte"),
        bad(tensor("\"F32\"", "[2]", "[8,0]"), 8, "'a'", "end before"),
        bad(tensor("\"F32\"", "[2]", "[-8,0]"), 8, "'a'", "data_offsets", "negative"),
        bad(tensor("\"F32\"", "[2]", "[0]"), 8, "'a'", "data_offsets", "[begin, end]"),
        bad(tensor("\"F32\"", "[2]", "[0,8,8]"), 8, "'a'", "data_offsets", "more than 2"),
        bad(tensor("\"F32\"", "[2]", "[0,9223372036854775807]"), 8, "'a'", "8 bytes"),
        bad(tensor("\"F32\"", "[2]", "[4,12]"), 12, "'a'", "hole", "the header"),
        bad(tensor("\"F32\"", "[2305843009213693951]", "[0,9223372036854775804]"), 8, "truncated"),
        bad("{\"a\":{\"dtype\":\"U8\",\"dtype\":\"U8\"}}", 8, "'a'", "dtype twice"),
        bad("{\"a\":{\"size\":1}}", 8, "'a'", "'size'"),
        bad(
            "{" + A + ",\"b\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[4,8]}}",
            8,
            "'b'",
            "overlaps 'a'"),
        bad(
            "{" + A + ",\"b\":{\"dtype\":\"U8\",\"shape\":[8],\"data_offsets\":[0,8]}}",
            8,
            "overlaps"),
        bad(
            "{" + A + ",\"b\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[9,10]}}",
            10,
            "'b'",
            "hole after 'a'"),
        bad("{\"\\ud800\":{}}", 0, "surrogate"),
        bad("{\"__metadata__\":{\"k\":\"\\udc00\"}}", 0, "surrogate"),
        bad("{\"" + "n".repeat(70_000) + "\":{}}", 0, "not valid"),
        bad("{\"bad\u001bname\":{}}", 0, "not valid"),
        bad("{\"bad\\u001bname\":{}}", 0, "'bad\\u001bname'"));
  }

  private static String tensor(String dtype, String shape, String offsets) {
    return "{\"a\":{\"dtype\":"
        + dtype
        + (shape == null ? "" : ",\"shape\":" + shape)
        + (offsets == null ? "" : ",\"data_offsets\":" + offsets)
        + "}}";
  }

  private static Arguments bad(String header, int dataBytes, String... messages) {
    return Arguments.of(header, dataBytes, messages);
  }

  @ParameterizedTest
  @MethodSource("badHeaders")
  void refusesABadHeader(String header, int dataBytes, String[] messages) throws IOException {
    assertRefused(RawSafetensors.bytes(header, dataBytes), messages);
  }

  @Test
  void refusesInvalidUtf8() throws IOException {
    byte[] header = "{\"a?\":{}}".getBytes(StandardCharsets.UTF_8);
    // A lone continuation byte, an overlong slash, an encoded surrogate, UTF-16.
    header[3] = (byte) 0x80;
    assertRefused(RawSafetensors.bytes(header, 0), "not UTF-8");
    header[2] = (byte) 0xc0;
    header[3] = (byte) 0xaf;
    assertRefused(RawSafetensors.bytes(header, 0), "not UTF-8");
    byte[] surrogate = {'{', '"', (byte) 0xed, (byte) 0xa0, (byte) 0x80, '"', ':', '{', '}', '}'};
    assertRefused(RawSafetensors.bytes(surrogate, 0), "not UTF-8");
    assertRefused(RawSafetensors.bytes("{}".getBytes(StandardCharsets.UTF_16LE), 0), "not valid");
  }

  @Test
  void refusesALyingHeaderLength() throws IOException {
    assertRefused(new byte[0], "0 bytes", "8 bytes");
    assertRefused(new byte[7], "7 bytes");
    assertRefused(new byte[8], "'{'");
    byte[] file = RawSafetensors.bytes("{" + A + "}", 8);
    assertRefused(withLength(file, file.length - 7), "only " + (file.length - 8) + " follow");
    assertRefused(withLength(file, file.length - 8), "not valid");
    assertRefused(withLength(file, 100_000_000), "only");
    assertRefused(withLength(file, 100_000_001), "limit of 100000000");
    assertRefused(withLength(file, Long.MAX_VALUE), "limit");
    assertRefused(withLength(file, -1), "18446744073709551615", "limit");
  }

  @Test
  void refusesAHeaderOfAHundredMegabytesOfNothing() throws IOException {
    Path path = folder.resolve("m");
    try (FileChannel channel =
        FileChannel.open(path, StandardOpenOption.CREATE, StandardOpenOption.WRITE)) {
      ByteBuffer length = ByteBuffer.allocate(8).order(ByteOrder.LITTLE_ENDIAN);
      channel.write(length.putLong(0, 100_000_000));
      channel.write(ByteBuffer.wrap(new byte[1]), 100_000_007);
    }
    assertRefused(path, "'{'");
  }

  private static byte[] withLength(byte[] file, long length) {
    byte[] changed = file.clone();
    ByteBuffer.wrap(changed).order(ByteOrder.LITTLE_ENDIAN).putLong(length);
    return changed;
  }

  @Test
  void refusesWhatIsNotAFile() {
    assertRefused(folder, "not a regular file");
    assertRefused(Path.of("/dev/zero"), "not a regular file");
    assertRefused(folder.resolve("none"), "no such file");
  }

  private void assertRefused(byte[] bytes, String... messages) throws IOException {
    assertRefused(Files.write(folder.resolve("bad.safetensors"), bytes), messages);
  }

  private static void assertRefused(Path path, String... messages) {
    InputException e = assertThrows(InputException.class, () -> SafetensorsFile.open(path));
    assertTrue(e.getMessage().contains(path.toString()), e.getMessage());
    for (String message : messages) {
      assertTrue(e.getMessage().contains(message), e.getMessage() + " lacks " + message);
    }
    assertTrue(e.getMessage().length() < 1500, e.getMessage());
  }
}

package org.espalier.format.safetensors;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.io.IOException;
import java.lang.management.ManagementFactory;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Arrays;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Random;
import java.util.function.Supplier;
import java.util.regex.Matcher;
import java.util.regex.Pattern;
import org.espalier.InputException;
import org.espalier.compress.MaskFile;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;

/**
 * Mutated files: each is read or refused by an {@link InputException}, soon and without much
 * memory.
 *
 * <p>Runs for the seconds that the system property {@code espalier.fuzz.seconds} gives to each
 * test, 6 by default. The seeds are fixed, so a longer run begins with the shorter one's inputs; a
 * failure names its number.
 */
class SafetensorsFuzzTest {
  private static final double SECONDS =
      Double.parseDouble(System.getProperty("espalier.fuzz.seconds", "3"));

  /** Reading may take this many bytes of heap for each byte of the file, and this many beside. */
  private static final long HEAP_PER_BYTE = 64;

  /** The first input loads classes; later ones take some 30,000 bytes. */
  private static final long HEAP = 8 << 20;

  private static final Pattern NUMBER = Pattern.compile("\\d+");
  private static final List<String> NUMBERS =
      List.of(
          "0",
          "1",
          "-1",
          "7",
          "8",
          "16",
          "1.0",
          "8e0",
          "1e999",
          "2147483648",
          "4294967296",
          "9223372036854775807",
          "9223372036854775808",
          "18446744073709551615",
          "null",
          "\"8\"",
          "[]",
          "{}");
  private static final List<String> TOKENS =
      List.of(
          "{",
          "}",
          "[",
          "]",
          ",",
          ":",
          "\"",
          "\\u0000",
          "\\ud800",
          "\"dtype\":\"F32\",",
          "\"shape\":[2],",
          "\"data_offsets\":[0,8],",
          "\"__metadata__\":{},",
          "\"U8\"",
          "\"F4\"",
          "\"weight_map\":{},",
          "\"../x.safetensors\"",
          "\"b.safetensors\"",
          "[[[[[[[[",
          "\u00e9",
          " ");

  @TempDir Path folder;

  @Test
  void filesAreReadOrRefused() throws IOException {
    String[] seeds = {
      "{}",
      "{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]}}",
      "{\"__metadata__\":{\"format\":\"pt\"},\"a\":{\"dtype\":\"BF16\",\"shape\":[2,2],"
          + "\"data_offsets\":[0,8]},\"b\":{\"dtype\":\"U8\",\"shape\":[8],\"data_offsets\":[8,16]},\"c\":{\"dtype\":\"I64\",\"shape\":[0],\"data_offsets\":[16,16]}}"
          + "   "
    };
    int[] dataBytes = {0, 8, 16};
    Path path = folder.resolve("m.safetensors");
    int[] outcomes = new int[2];
    run(
        1,
        (random, number) -> {
          int seed = random.nextInt(seeds.length);
          byte[] header = mutate(random, seeds[seed]);
          byte[] file = RawSafetensors.bytes(header, dataBytes[seed]);
          if (random.nextInt(8) == 0) {
            long[] lengths = {
              random.nextLong(), random.nextInt(64), 100_000_000, header.length - 1L
            };
            ByteBuffer.wrap(file)
                .order(ByteOrder.LITTLE_ENDIAN)
                .putLong(lengths[random.nextInt(lengths.length)]);
          }
          if (random.nextInt(8) == 0) {
            file = Arrays.copyOf(file, random.nextInt(file.length + 8));
          }
          Files.write(path, file);
          read(number, file.length, outcomes, () -> SafetensorsFile.open(path), this::rewrite);
        });
    assertTrue(outcomes[0] > 0 && outcomes[1] > 0, "one kind of outcome: all the same input?");
  }

  /** What is accepted is so whole that it can be written and read again. */
  private void rewrite(SafetensorsFile file) {
    Map<TensorSpec, byte[]> tensors = new LinkedHashMap<>();
    for (TensorInfo tensor : file.tensors()) {
      tensors.put(TensorSpec.of(tensor), RawSafetensors.read(file, tensor.name()));
    }
    Path copy = RawSafetensors.write(folder.resolve("copy"), file.metadata(), tensors);
    try (SafetensorsFile written = SafetensorsFile.open(copy)) {
      assertEquals(file.metadata(), written.metadata());
      assertEquals(tensors.keySet().size(), written.tensors().size());
      tensors.forEach(
          (spec, bytes) ->
              assertTrue(Arrays.equals(bytes, RawSafetensors.read(written, spec.name()))));
    }
  }

  @Test
  void indexesAreReadOrRefused() throws IOException {
    String shard = "{\"%s\":{\"dtype\":\"U8\",\"shape\":[8],\"data_offsets\":[0,8]}}";
    RawSafetensors.write(folder.resolve("a.safetensors"), shard.formatted("a"), 8);
    RawSafetensors.write(folder.resolve("b.safetensors"), shard.formatted("b"), 8);
    String seed =
        "{\"metadata\":{\"total_size\":16},"
            + "\"weight_map\":{\"a\":\"a.safetensors\",\"b\":\"b.safetensors\"}}";
    Path index = folder.resolve(Checkpoint.INDEX);
    int[] outcomes = new int[2];
    run(
        2,
        (random, number) -> {
          byte[] json = mutate(random, seed);
          Files.write(index, json);
          read(number, json.length, outcomes, () -> Checkpoint.open(folder), c -> {});
        });
    assertTrue(outcomes[0] > 0 && outcomes[1] > 0, "one kind of outcome: all the same input?");
  }

  @Test
  void masksAreReadOrRefused() throws IOException {
    String seed =
        "{\"__metadata__\":{\"format\":\"espalier-mask\",\"shape:a\":\"3,4\"},"
            + "\"a\":{\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":[0,2]}}";
    Path path = folder.resolve("mask");
    int[] outcomes = new int[2];
    run(
        3,
        (random, number) -> {
          byte[] file = RawSafetensors.bytes(mutate(random, seed), 2);
          Files.write(path, file);
          read(number, file.length, outcomes, () -> MaskFile.open(path), m -> {});
        });
    assertTrue(outcomes[0] > 0 && outcomes[1] > 0, "one kind of outcome: all the same input?");
  }

  private interface Round {
    void run(Random random, long number) throws IOException;
  }

  private static void run(long test, Round round) throws IOException {
    long end = System.nanoTime() + (long) (SECONDS * 1e9);
    for (long number = 0; System.nanoTime() < end; number++) {
      round.run(new Random(test << 48 | number), number);
    }
  }

  private interface Use<T> {
    void of(T opened);
  }

  private static <T extends AutoCloseable> void read(
      long number, long bytes, int[] outcomes, Supplier<T> open, Use<T> use) {
    com.sun.management.ThreadMXBean threads =
        (com.sun.management.ThreadMXBean) ManagementFactory.getThreadMXBean();
    long before = threads.getCurrentThreadAllocatedBytes();
    long start = System.nanoTime();
    T opened = null;
    try {
      opened = open.get();
      outcomes[0]++;
    } catch (InputException e) {
      outcomes[1]++;
      assertTrue(e.getMessage().length() < 4000, () -> "input " + number + ": a long message");
    } catch (RuntimeException | Error e) {
      throw new AssertionError("input " + number, e);
    }
    long heap = threads.getCurrentThreadAllocatedBytes() - before;
    double seconds = (System.nanoTime() - start) * 1e-9;
    assertTrue(
        heap < HEAP + HEAP_PER_BYTE * bytes, () -> "input " + number + " took " + heap + " bytes");
    assertTrue(seconds < 5, () -> "input " + number + " took " + seconds + " s");
    if (opened != null) {
      try {
        use.of(opened);
        opened.close();
      } catch (Exception e) {
        throw new AssertionError("input " + number, e);
      }
    }
  }

  private static byte[] mutate(Random random, String seed) {
    String text = seed;
    int edits = random.nextInt(4);
    for (int i = 0; i < edits; i++) {
      text = edit(random, text);
    }
    byte[] bytes = text.getBytes(StandardCharsets.UTF_8);
    if (random.nextInt(3) == 0 && bytes.length > 0) {
      bytes[random.nextInt(bytes.length)] ^= (byte) (1 << random.nextInt(8));
    }
    return bytes;
  }

  private static String edit(Random random, String text) {
    int at = random.nextInt(text.length() + 1);
    int to = Math.min(text.length(), at + random.nextInt(24));
    return switch (random.nextInt(6)) {
      case 0 -> text.substring(0, at) + text.substring(to);
      case 1 -> text.substring(0, to) + text.substring(at);
      case 2 -> text.substring(0, at) + pick(random, TOKENS) + text.substring(at);
      case 3 -> text.substring(0, at) + pick(random, TOKENS) + text.substring(to);
      default -> {
        Matcher numbers = NUMBER.matcher(text);
        if (numbers.find(at)) {
          yield text.substring(0, numbers.start())
              + pick(random, NUMBERS)
              + text.substring(numbers.end());
        }
        yield text;
      }
    };
  }

  private static String pick(Random random, List<String> from) {
    return from.get(random.nextInt(from.size()));
  }
}

package org.espalier.format.safetensors;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.io.BufferedReader;
import java.io.IOException;
import java.nio.ByteBuffer;
import java.nio.channels.FileChannel;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Arrays;
import java.util.List;
import java.util.Map;
import java.util.Random;
import java.util.concurrent.TimeUnit;
import java.util.stream.Stream;
import org.espalier.TestProgram;
import org.espalier.format.AtomicFile;
import org.espalier.format.AtomicFolder;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;

/** A process that is killed while it writes leaves whole files and whole folders. */
class SafetensorsKillTest {
  private static final int BYTES = 1 << 20;
  private static final int PIECE = 1 << 16;
  private static final int ROUNDS = 6;

  @TempDir Path folder;

  @Test
  void aKilledWriterLeavesTheOldOrTheNew() throws Exception {
    Random random = new Random(5);
    int seen = 0;
    for (int round = 0; round < ROUNDS; round++) {
      Process process = TestProgram.of(Writer.class, folder, round).start();
      try (BufferedReader out = TestProgram.output(process)) {
        assertEquals("first file", out.readLine());
        if (round == ROUNDS - 1) { // on a slow machine the others may end before it
          assertEquals("first folder", out.readLine());
        }
        Thread.sleep(random.nextInt(60));
        process.destroyForcibly();
        assertTrue(process.waitFor(60, TimeUnit.SECONDS));
      }
      check(folder.resolve("model"));
      try (Stream<Path> files = Files.list(folder)) {
        for (Path path : files.filter(f -> f.getFileName().toString().startsWith("out")).toList()) {
          check(path.resolve("one.safetensors"));
          check(path.resolve("two.safetensors"));
          seen++;
        }
      }
    }
    assertTrue(seen > 0, "no folder was written");
  }

  private static void check(Path path) {
    try (SafetensorsFile file = SafetensorsFile.open(path)) {
      byte[] expected = new byte[BYTES];
      Arrays.fill(expected, Byte.parseByte(file.metadata().get("version")));
      assertArrayEquals(expected, RawSafetensors.read(file, "a"), path.toString());
    }
  }

  /** Writes one version after another until it is killed. */
  static final class Writer {
    private Writer() {}

    public static void main(String[] args) throws IOException {
      Path folder = Path.of(args[0]);
      for (int version = 0; ; version = (version + 1) % 100) {
        try (AtomicFile file = AtomicFile.create(folder.resolve("model"))) {
          write(new SafetensorsWriter(file, specs(), metadata(version)), version);
          file.commit();
        }
        if (version == 0) {
          System.out.println("first file");
        }
        Path target = folder.resolve("out-" + args[1] + "-" + System.nanoTime());
        try (AtomicFolder out = AtomicFolder.create(target)) {
          for (String name : List.of("one.safetensors", "two.safetensors")) {
            try (FileChannel channel = out.create(name)) {
              write(
                  new SafetensorsWriter(
                      channel, e -> out.failure(name, e), specs(), metadata(version)),
                  version);
            }
          }
          out.commit();
        }
        if (version == 0) {
          System.out.println("first folder");
        }
      }
    }

    private static List<TensorSpec> specs() {
      return List.of(new TensorSpec("a", SafetensorsDtype.U8, List.of((long) BYTES)));
    }

    private static Map<String, String> metadata(int version) {
      return Map.of("version", String.valueOf(version));
    }

    private static void write(SafetensorsWriter writer, int version) {
      byte[] piece = new byte[PIECE];
      Arrays.fill(piece, (byte) version);
      for (int at = 0; at < BYTES; at += PIECE) {
        writer.append("a", ByteBuffer.wrap(piece));
      }
      writer.finish();
    }
  }
}

package org.espalier.format;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;
import static org.junit.jupiter.api.Assumptions.assumeTrue;

import java.io.BufferedReader;
import java.io.IOException;
import java.nio.ByteBuffer;
import java.nio.channels.FileChannel;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.concurrent.TimeUnit;
import java.util.stream.Stream;
import org.espalier.InputException;
import org.espalier.TestProgram;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;

class AtomicFolderTest {
  @TempDir Path folder;

  @Test
  void commitGivesTheNameToAllFilesAtOnce() throws IOException {
    Path target = folder.resolve("model");
    Path source = Files.writeString(folder.resolve("source"), "copied");
    try (AtomicFolder made = AtomicFolder.create(target)) {
      try (FileChannel channel = made.create("weights")) {
        channel.write(ByteBuffer.wrap(new byte[] {'w'}));
      }
      made.copy(source, "sub/config");
      assertFalse(Files.exists(target));
      made.commit();
      assertThrows(IllegalStateException.class, made::commit);
    }
    assertEquals("w", Files.readString(target.resolve("weights")));
    assertEquals("copied", Files.readString(target.resolve("sub/config")));
    assertEquals(2, count());
  }

  @Test
  void givesFilesSecondNamesOrCopiesThem() throws IOException {
    Path near = Files.writeString(folder.resolve("near"), "near");
    Path memory = Path.of("/dev/shm"); // names do not reach from one file system to another
    boolean other =
        Files.isWritable(memory) && !Files.getFileStore(memory).equals(Files.getFileStore(folder));
    Path far = other ? Files.createTempFile(memory, "espalier-", ".test") : null;
    Path target = folder.resolve("model");
    try (AtomicFolder made = AtomicFolder.create(target)) {
      made.link(near, "sub/near");
      assertThrows(InputException.class, () -> made.link(near, "sub/near"));
      assertThrows(InputException.class, () -> made.link(folder.resolve("none"), "none"));
      if (other) {
        Files.writeString(far, "far");
        made.link(far, "far");
      }
      made.commit();
    } finally {
      if (other) {
        Files.delete(far);
      }
    }
    assertTrue(Files.isSameFile(near, target.resolve("sub/near")));
    assertFalse(Files.exists(target.resolve("none")));
    assumeTrue(other, "there is one file system");
    assertEquals("far", Files.readString(target.resolve("far")));
  }

  @Test
  void anEmptyFolderIsReplaced() throws IOException {
    Path target = Files.createDirectory(folder.resolve("model"));
    try (AtomicFolder made = AtomicFolder.create(target)) {
      made.create("weights").close();
      made.commit();
    }
    assertTrue(Files.exists(target.resolve("weights")));
  }

  @Test
  void closeWithoutCommitLeavesNothing() throws IOException {
    try (AtomicFolder made = AtomicFolder.create(folder.resolve("model"))) {
      made.create("sub/weights").close();
      assertEquals(1, count());
    }
    assertEquals(0, count());
  }

  @Test
  void aFileOutsideIsAProgrammingError() {
    try (AtomicFolder made = AtomicFolder.create(folder.resolve("model"))) {
      assertThrows(IllegalArgumentException.class, () -> made.create("../escaped"));
      assertThrows(IllegalArgumentException.class, () -> made.create("/etc/escaped"));
      assertThrows(IllegalArgumentException.class, () -> made.create("."));
      InputException e =
          assertThrows(InputException.class, () -> made.copy(folder.resolve("none"), "copy"));
      assertTrue(e.getMessage().contains("cannot read"), e.getMessage());
    }
  }

  @Test
  void refusesTargetsThatAreThere() throws IOException {
    Files.createDirectories(folder.resolve("full/sub"));
    Files.writeString(folder.resolve("file"), "x");
    assertRefused(folder.resolve("full"), "not empty");
    assertRefused(folder.resolve("file"), "not a folder");
    assertRefused(folder.resolve("none/model"), "does not exist");
    assertRefused(Path.of("/"), "names no folder");
    // Holds for root too: nothing can be created in /proc.
    assertRefused(Path.of("/proc/espalier-model"), "cannot write /proc/espalier-model");
    assertEquals(2, count());
  }

  @Test
  void aTargetThatAppearsMeanwhileIsNotReplaced() throws IOException {
    Path target = folder.resolve("model");
    try (AtomicFolder made = AtomicFolder.create(target)) {
      Files.createDirectories(target.resolve("other"));
      assertThrows(InputException.class, made::commit);
    }
    assertTrue(Files.exists(target.resolve("other")));
    assertEquals(1, count());
  }

  @Test
  void aTerminatedProcessLeavesNothing() throws Exception {
    Process process = TestProgram.of(Writer.class, "wait", folder.resolve("model")).start();
    try (BufferedReader out = TestProgram.output(process)) {
      assertEquals("written", out.readLine());
      assertEquals(1, count());
      process.destroy();
      assertTrue(process.waitFor(60, TimeUnit.SECONDS));
    }
    assertEquals(0, count());
  }

  /** A limit on the file's size stops the write as a full disk does: the system call fails. */
  @Test
  void aWriteThatTheSystemRefusesNamesTheFileAndLeavesNothing() throws Exception {
    Path source = folder.resolve("source");
    Files.write(source, new byte[1 << 20]);
    Process process =
        TestProgram.withFilesUpTo(64, Writer.class, "fill", folder.resolve("model"), source)
            .start();
    try (BufferedReader out = TestProgram.output(process)) {
      Path file = folder.resolve("model/weights");
      assertEquals("InputException: cannot write " + file + ": File too large", out.readLine());
    }
    assertTrue(process.waitFor(60, TimeUnit.SECONDS));
    assertEquals(1, count());
  }

  private static void assertRefused(Path target, String message) {
    InputException e = assertThrows(InputException.class, () -> AtomicFolder.create(target));
    assertTrue(e.getMessage().contains(message), e.getMessage());
  }

  private long count() throws IOException {
    try (Stream<Path> files = Files.list(folder)) {
      return files.count();
    }
  }

  /** The program of the tests that need a process of their own. */
  static final class Writer {
    private Writer() {}

    public static void main(String[] args) throws Exception {
      try (AtomicFolder made = AtomicFolder.create(Path.of(args[1]))) {
        if (args[0].equals("fill")) {
          made.copy(Path.of(args[2]), "weights");
          made.commit();
        } else {
          made.create("sub/weights").close();
          System.out.println("written");
          Thread.sleep(60_000);
        }
      } catch (InputException e) {
        System.out.println("InputException: " + e.getMessage());
      }
    }
  }
}

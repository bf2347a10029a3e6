package org.espalier.format;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.io.BufferedReader;
import java.io.IOException;
import java.nio.ByteBuffer;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.List;
import java.util.concurrent.TimeUnit;
import java.util.stream.Stream;
import org.espalier.InputException;
import org.espalier.TestProgram;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;

class AtomicFileTest {
  @TempDir Path folder;

  @Test
  void commitGivesTheNameAndReplacesTheOldFile() throws IOException {
    Path target = folder.resolve("model");
    Files.writeString(target, "old");
    try (AtomicFile file = AtomicFile.create(target)) {
      file.write(bytes("new content"));
      assertEquals("old", Files.readString(target));
      file.commit();
    }
    assertEquals("new content", Files.readString(target));
    assertEquals(1, count());
  }

  @Test
  void closeWithoutCommitLeavesTheOldFileAndNoTemporary() throws IOException {
    Path target = folder.resolve("model");
    Files.writeString(target, "old");
    try (AtomicFile file = AtomicFile.create(target)) {
      file.write(bytes("half"));
      assertEquals(2, count());
    }
    assertEquals("old", Files.readString(target));
    assertEquals(1, count());
  }

  @Test
  void commitTwiceIsAProgrammingError() {
    try (AtomicFile file = AtomicFile.create(folder.resolve("model"))) {
      file.commit();
      assertThrows(IllegalStateException.class, file::commit);
    }
  }

  @Test
  void allFilesOfACommitAppear() throws IOException {
    try (AtomicFile data = AtomicFile.create(folder.resolve("model.data"));
        AtomicFile model = AtomicFile.create(folder.resolve("model"))) {
      data.write(bytes("data"));
      model.stream().write("model".getBytes(StandardCharsets.UTF_8));
      AtomicFile.commitAll(List.of(data, model));
    }
    assertEquals("data", Files.readString(folder.resolve("model.data")));
    assertEquals("model", Files.readString(folder.resolve("model")));
    assertEquals(2, count());
  }

  @Test
  void aFailedRenameTakesTheEarlierNewFilesBack() throws IOException {
    try (AtomicFile data = AtomicFile.create(folder.resolve("model.data"));
        AtomicFile model = AtomicFile.create(folder.resolve("model"))) {
      data.write(bytes("data"));
      Files.createDirectory(folder.resolve("model"));
      assertThrows(InputException.class, () -> AtomicFile.commitAll(List.of(data, model)));
    }
    assertFalse(Files.exists(folder.resolve("model.data")));
    assertEquals(1, count());
  }

  /** What others have put there since then was replaced: taking it back would leave neither. */
  @Test
  void aFailedRenameKeepsAFileThatCameInTheMeantime() throws IOException {
    Path other = folder.resolve("model.data");
    try (AtomicFile data = AtomicFile.create(other);
        AtomicFile model = AtomicFile.create(folder.resolve("model"))) {
      data.write(bytes("data"));
      Files.writeString(other, "another's");
      Files.createDirectory(folder.resolve("model"));
      assertThrows(InputException.class, () -> AtomicFile.commitAll(List.of(data, model)));
    }
    assertEquals("data", Files.readString(other));
    assertEquals(2, count());
  }

  @Test
  void refusesAFolder() {
    assertRefused(folder, "is a directory");
    assertRefused(Path.of("/"), "is a directory");
    assertRefused(Path.of(""), "is a directory");
  }

  @Test
  void refusesAMissingFolder() {
    assertRefused(folder.resolve("none/model"), "does not exist");
  }

  @Test
  void refusesAFileAsFolder() throws IOException {
    Files.writeString(folder.resolve("file"), "x");
    assertRefused(folder.resolve("file/model"), "is not a folder");
  }

  @Test
  void refusesADevice() {
    assertRefused(Path.of("/dev/null"), "not a regular file");
  }

  @Test
  void refusesAFolderThatCannotBeWritten() {
    // Holds for root too: no file can be created in /proc.
    assertRefused(Path.of("/proc/espalier-model"), "cannot write /proc/espalier-model");
  }

  @Test
  void refusesTheInputUnderAnyName() throws IOException {
    Path input = folder.resolve("input");
    Files.writeString(input, "x");
    Path soft = Files.createSymbolicLink(folder.resolve("soft"), input);
    Path hard = Files.createLink(folder.resolve("hard"), input);
    for (Path name : List.of(input, soft, hard, folder.resolve("./input"))) {
      InputException e =
          assertThrows(InputException.class, () -> AtomicFile.create(name, folder, input));
      assertTrue(e.getMessage().contains("is the input"), e.getMessage());
    }
    assertEquals("x", Files.readString(input));
    assertEquals(3, count());
  }

  @Test
  void writesThroughASymbolicLink() throws IOException {
    Path other = Files.createDirectory(folder.resolve("other"));
    Path real = Files.writeString(other.resolve("model"), "old");
    Path link = Files.createSymbolicLink(folder.resolve("link"), real);
    try (AtomicFile file = AtomicFile.create(link)) {
      file.write(bytes("new"));
      file.commit();
    }
    assertTrue(Files.isSymbolicLink(link));
    assertEquals("new", Files.readString(real));
    assertRefused(
        Files.createSymbolicLink(folder.resolve("dangling"), folder.resolve("nowhere")),
        "symbolic link to a file that does not exist");
  }

  /** A limit on the file's size stops the write as a full disk does: the system call fails. */
  @Test
  void aWriteThatTheSystemRefusesNamesTheTargetAndLeavesNothing() throws Exception {
    Path target = folder.resolve("model");
    Process process = TestProgram.withFilesUpTo(64, Writer.class, "fill", target).start();
    try (BufferedReader out = TestProgram.output(process)) {
      assertEquals("InputException: cannot write " + target + ": File too large", out.readLine());
    }
    assertTrue(process.waitFor(60, TimeUnit.SECONDS));
    assertEquals(0, count());
  }

  @Test
  void aTerminatedProcessLeavesNothing() throws Exception {
    Path target = folder.resolve("model");
    Process process = TestProgram.of(Writer.class, "wait", target).start();
    try (BufferedReader out = TestProgram.output(process)) {
      assertEquals("written", out.readLine());
      assertEquals(1, count());
      process.destroy();
      assertTrue(process.waitFor(60, TimeUnit.SECONDS));
    }
    assertEquals(0, count());
  }

  private void assertRefused(Path target, String message) {
    InputException e = assertThrows(InputException.class, () -> AtomicFile.create(target));
    assertTrue(e.getMessage().contains(message), e.getMessage());
  }

  private static ByteBuffer bytes(String text) {
    return ByteBuffer.wrap(text.getBytes(StandardCharsets.UTF_8));
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
      try (AtomicFile file = AtomicFile.create(Path.of(args[1]))) {
        if (args[0].equals("fill")) {
          for (int i = 0; i < 1000; i++) {
            file.write(ByteBuffer.allocate(1 << 12));
          }
          file.commit();
        } else {
          file.write(ByteBuffer.allocate(100));
          System.out.println("written");
          Thread.sleep(60_000);
        }
      } catch (InputException e) {
        System.out.println("InputException: " + e.getMessage());
      }
    }
  }
}

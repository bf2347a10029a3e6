package org.espalier.format;

import java.io.IOException;
import java.nio.file.FileVisitResult;
import java.nio.file.Files;
import java.nio.file.NoSuchFileException;
import java.nio.file.Path;
import java.nio.file.SimpleFileVisitor;
import java.nio.file.attribute.BasicFileAttributes;
import java.util.List;
import org.espalier.InputException;

/** Files together, and folders with all that is in them. */
public final class FileTree {
  private FileTree() {}

  /**
   * The bytes of files together.
   *
   * @throws InputException where one cannot be read
   */
  public static long bytes(List<Path> files) {
    long sum = 0;
    for (Path file : files) {
      try {
        sum += Files.size(file);
      } catch (IOException e) {
        throw new InputException("cannot read the size of " + file + ": " + e.getMessage(), e);
      }
    }
    return sum;
  }

  /**
   * Makes a folder, and those above it, where there is none.
   *
   * @throws InputException where that cannot be
   */
  public static void createFolder(Path folder) {
    try {
      Files.createDirectories(folder);
    } catch (IOException e) {
      throw InputException.of("cannot make the folder " + folder, e);
    }
  }

  /**
   * Deletes a file, or a folder with all that is in it. Links are deleted, not followed. What another
   * thread or process deletes at the same time is no failure.
   *
   * @throws IOException where something cannot be deleted, or a folder gets new files meanwhile
   */
  public static void delete(Path root) throws IOException {
    try {
      Files.walkFileTree(root, new Deleting());
    } catch (NoSuchFileException e) {
      // Somebody else was first.
    }
  }

  private static final class Deleting extends SimpleFileVisitor<Path> {
    @Override
    public FileVisitResult visitFile(Path file, BasicFileAttributes attributes) throws IOException {
      Files.deleteIfExists(file);
      return FileVisitResult.CONTINUE;
    }

    @Override
    public FileVisitResult postVisitDirectory(Path folder, IOException e) throws IOException {
      if (e != null) {
        throw e;
      }
      Files.deleteIfExists(folder);
      return FileVisitResult.CONTINUE;
    }
  }
}

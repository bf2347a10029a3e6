package org.espalier.cli;

import java.io.IOException;
import java.io.InputStream;
import java.nio.file.Files;
import java.nio.file.NoSuchFileException;
import java.nio.file.Path;
import java.nio.file.attribute.BasicFileAttributes;
import java.util.Objects;

/** A regular file that may grow, and may be replaced or emptied as logs are. */
final class FileSource implements LineReader.Source, AutoCloseable {
  private final Path path;
  private final InputStream in;
  private final Object key;
  private long position;

  FileSource(Path path) throws IOException {
    this.path = path;
    this.in = Files.newInputStream(path);
    this.key = Files.readAttributes(path, BasicFileAttributes.class).fileKey();
  }

  @Override
  public int read(byte[] buffer) throws IOException {
    int read = in.read(buffer);
    position += Math.max(0, read);
    return read;
  }

  /** Whether the name is another file's now, or the file is shorter than what was read of it. */
  boolean isReplaced() throws IOException {
    try {
      BasicFileAttributes now = Files.readAttributes(path, BasicFileAttributes.class);
      return !Objects.equals(now.fileKey(), key) || now.size() < position;
    } catch (NoSuchFileException e) {
      return false; // between the old file and the new one
    }
  }

  @Override
  public void close() throws IOException {
    in.close();
  }
}

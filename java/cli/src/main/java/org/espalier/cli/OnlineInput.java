package org.espalier.cli;

import java.io.IOException;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.HexFormat;
import java.util.List;
import org.espalier.InputException;
import org.espalier.format.Sha256;
import org.espalier.source.ModelSource;

/** The stream that is learned from: its lines, how it begins, and whether another file has taken its name. */
final class OnlineInput implements AutoCloseable {
  private static final int MAX_LINE = 16 << 20;

  private final String input;
  private final boolean follow;
  private LineReader reader;
  private FileSource file;

  /**
   * Opens a stream.
   *
   * @param input a file; - for standard input
   * @param follow whether more may come at the end of the file
   * @throws InputException where there is no such file, or none that could be followed
   */
  OnlineInput(String input, boolean follow) throws IOException {
    this.input = input;
    this.follow = follow;
    open();
  }

  LineReader reader() {
    return reader;
  }

  private void open() throws IOException {
    LineReader.Source source;
    if (input.equals("-")) {
      source = new PipeSource(System.in);
    } else {
      Path path = ModelSource.path(input);
      if (!Files.exists(path)) {
        throw new InputException("there is no file " + path);
      }
      if (Files.isDirectory(path)) {
        throw new InputException(path + " is a folder; a file of lines is right");
      }
      if (Files.isRegularFile(path)) {
        file = new FileSource(path);
        source = file;
      } else if (follow) {
        throw new InputException("--follow is for regular files; " + path + " is none");
      } else {
        source = new PipeSource(Files.newInputStream(path));
      }
    }
    reader = new LineReader(input, source, MAX_LINE);
  }

  /** Refuses a file that holds no lines of text, before anything is made. */
  void check() throws IOException {
    if (file != null) {
      reader.peek(0, !follow, () -> true);
    }
  }

  /** Whether a later run finds the same lines: neither a pipe nor a file that is followed, which may be replaced. */
  boolean isReadAgain() {
    return file != null && !follow;
  }

  /** Whether another file has taken the name since; asked of files that are followed only. */
  boolean isReplaced() throws IOException {
    return file.isReplaced();
  }

  /** Goes on with the first line of the file that has the name now. */
  void reopen() throws IOException {
    file.close();
    open();
  }

  @Override
  public void close() throws IOException {
    if (file != null) {
      file.close();
    }
  }

  /** Whether the first lines have these digests. A window of feedback to a service has none, and is no such stream. */
  boolean beginsAs(List<String> digests, Interrupts interrupts) throws IOException {
    if (digests.isEmpty()) {
      return false;
    }
    for (int i = 0; i < digests.size(); i++) {
      LineReader.Line line = reader.peek(i, !follow, interrupts::requested);
      if (line == null || !digest(line.text()).equals(digests.get(i))) {
        return false;
      }
    }
    return true;
  }

  /** By what a line is known again. */
  static String digest(String line) {
    byte[] hash = Sha256.digest().digest(line.getBytes(StandardCharsets.UTF_8));
    return HexFormat.of().formatHex(hash, 0, 8);
  }
}

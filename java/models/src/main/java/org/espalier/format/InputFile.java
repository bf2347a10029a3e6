package org.espalier.format;

import java.io.BufferedReader;
import java.io.IOException;
import java.io.InputStream;
import java.io.InputStreamReader;
import java.io.Reader;
import java.nio.ByteBuffer;
import java.nio.charset.CharacterCodingException;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import org.espalier.InputException;

/**
 * Files from outside that are read whole. They may be pipes and devices, which have no size beforehand and need
 * not end, so what is read is counted.
 */
public final class InputFile {
  /** Characters of a line: all of a long book. */
  private static final int LONGEST_LINE = 1 << 24;

  /** What a string takes beside two bytes a character. */
  private static final int STRING_BYTES = 64;

  private InputFile() {}

  /**
   * The bytes of a small file.
   *
   * @throws InputException if it has more than {@code most}
   */
  public static byte[] bytes(Path file, int most) throws IOException {
    try (InputStream in = Files.newInputStream(file)) {
      byte[] bytes = in.readNBytes(most + 1);
      if (bytes.length > most) {
        throw new InputException(file + " has more than " + most + " bytes");
      }
      return bytes;
    }
  }

  /**
   * The text of a small UTF-8 file.
   *
   * @throws InputException if it has more than {@code most} bytes
   * @throws CharacterCodingException if it is not UTF-8
   */
  public static String text(Path file, int most) throws IOException {
    return StandardCharsets.UTF_8
        .newDecoder()
        .decode(ByteBuffer.wrap(bytes(file, most)))
        .toString();
  }

  /**
   * The lines of a UTF-8 file that are not blank. A byte order mark is not part of the first.
   *
   * @throws InputException if they take more than a quarter of the memory that there is, or one is too long to
   *     be a line
   * @throws CharacterCodingException if it is not UTF-8
   */
  public static List<String> lines(Path file) throws IOException {
    return lines(file, false);
  }

  /** All lines of a UTF-8 file, as {@link #lines}. */
  public static List<String> linesWithBlank(Path file) throws IOException {
    return lines(file, true);
  }

  private static List<String> lines(Path file, boolean blank) throws IOException {
    long room = Runtime.getRuntime().maxMemory() / 4;
    List<String> lines = new ArrayList<>();
    try (Reader reader =
        new BufferedReader(
            new InputStreamReader(
                Files.newInputStream(file), StandardCharsets.UTF_8.newDecoder()))) {
      skipMark(reader);
      for (String line; (line = line(reader, file)) != null; ) {
        if (!blank && line.isBlank()) {
          continue;
        }
        room -= 2L * line.length() + STRING_BYTES;
        if (room < 0) {
          throw new InputException(
              file
                  + " has more lines than memory: the first "
                  + lines.size()
                  + " take a quarter of it; head -n makes a file of fewer");
        }
        lines.add(line);
      }
    }
    return lines;
  }

  private static void skipMark(Reader reader) throws IOException {
    reader.mark(1);
    if (reader.read() != '\ufeff') {
      reader.reset();
    }
  }

  /** The next line, which \n, \r or both of them end; null at the end. */
  private static String line(Reader reader, Path file) throws IOException {
    StringBuilder line = new StringBuilder();
    int c = reader.read();
    if (c < 0) {
      return null;
    }
    for (; c >= 0 && c != '\n' && c != '\r'; c = reader.read()) {
      if (line.length() == LONGEST_LINE) {
        throw new InputException(
            file
                + " has a line of more than "
                + LONGEST_LINE
                + " characters; a text a line is right");
      }
      line.append((char) c);
    }
    if (c == '\r') {
      reader.mark(1);
      if (reader.read() != '\n') {
        reader.reset();
      }
    }
    return line.toString();
  }
}

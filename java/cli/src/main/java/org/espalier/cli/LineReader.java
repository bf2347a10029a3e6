package org.espalier.cli;

import java.io.IOException;
import java.nio.ByteBuffer;
import java.nio.charset.CharacterCodingException;
import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.function.BooleanSupplier;
import org.espalier.InputException;

/**
 * Lines of a stream that may grow and may be anything. They end with a line feed, a carriage return, or
 * both; a byte order mark of UTF-8 is not part of the first. A line that is too long is given as its
 * beginning and costs no more memory.
 */
final class LineReader {
  private static final byte[] UTF8_MARK = {(byte) 0xef, (byte) 0xbb, (byte) 0xbf};

  /** Where the bytes come from. */
  @FunctionalInterface
  interface Source {
    /** How many bytes were read: 0 where there are none yet, −1 at the end, which may move. */
    int read(byte[] buffer) throws IOException;
  }

  /**
   * A line.
   *
   * @param number from 1
   * @param text without its end
   * @param problem why it cannot be used, or null
   */
  record Line(long number, String text, String problem) {}

  private final String name;
  private final Source source;
  private final int limit;
  private final byte[] buffer = new byte[1 << 16];
  private final List<Line> ahead = new ArrayList<>();
  private byte[] line = new byte[1 << 10];
  private int length;
  private int at;
  private int end;
  private long number;
  private boolean tooLong;
  private boolean afterReturn;
  private boolean atEnd;

  /**
   * @param name what messages call the stream
   * @param limit bytes of a line
   */
  LineReader(String name, Source source, int limit) {
    this.name = name;
    this.source = source;
    this.limit = limit;
  }

  /**
   * The next line; null where the stream has no whole line now. A growing file may have one later; at the
   * end of any other stream {@link #rest} gives what came after the last line.
   *
   * @throws InputException if the stream is UTF-16 or UTF-32
   */
  Line next() throws IOException {
    return ahead.isEmpty() ? read() : ahead.remove(0);
  }

  /** Whether the source was at its end when {@link #next} gave nothing. */
  boolean isAtEnd() {
    return atEnd;
  }

  /** What came after the last line; null where nothing did. */
  Line rest() {
    return length == 0 ? null : finish();
  }

  /**
   * A line that {@link #next} will give, without taking it: 0 for the next one.
   *
   * @param whole whether the end of the source ends a line
   * @param stop asked while there is nothing yet
   * @return null where the source ends before it, or it is time to stop
   */
  Line peek(int index, boolean whole, BooleanSupplier stop) throws IOException {
    while (ahead.size() <= index) {
      Line next = read();
      if (next == null && atEnd && whole) {
        next = rest();
      }
      if (next != null) {
        ahead.add(next);
      } else if (atEnd || stop.getAsBoolean()) {
        return null;
      }
    }
    return ahead.get(index);
  }

  private Line read() throws IOException {
    while (true) {
      while (at < end) {
        int from = at;
        if (afterReturn && buffer[at] == '\n') {
          from++;
        }
        afterReturn = false;
        at = from;
        while (at < end && buffer[at] != '\n' && buffer[at] != '\r') {
          at++;
        }
        append(from, at);
        if (at < end) {
          afterReturn = buffer[at++] == '\r';
          return finish();
        }
      }
      int read = source.read(buffer);
      atEnd = read < 0;
      if (read <= 0) {
        return null;
      }
      at = 0;
      end = read;
    }
  }

  private void append(int from, int to) {
    int taken = Math.min(to - from, limit - length);
    tooLong |= taken < to - from;
    if (length + taken > line.length) {
      line = Arrays.copyOf(line, Math.min(limit, Math.max(2 * line.length, length + taken)));
    }
    System.arraycopy(buffer, from, line, length, taken);
    length += taken;
  }

  private Line finish() {
    number++;
    int from = 0;
    if (number == 1) {
      refuseWideCharacters();
      boolean marked = length >= 3 && Arrays.equals(line, 0, 3, UTF8_MARK, 0, 3);
      from = marked ? UTF8_MARK.length : 0;
    }
    String text = new String(line, from, length - from, StandardCharsets.UTF_8);
    String problem = null;
    if (tooLong) {
      problem = "the line has more than " + limit + " bytes";
    } else if (text.indexOf('\ufffd') >= 0 && !isUtf8(from)) {
      problem = "it is not UTF-8";
    }
    length = 0;
    tooLong = false;
    return new Line(number, text, problem);
  }

  /** Such a stream has a zero byte for each character: no line of it could be used. */
  private void refuseWideCharacters() {
    int first = length < 2 ? 0 : (line[0] & 0xff) << 8 | line[1] & 0xff;
    if (first == 0xfffe || first == 0xfeff) {
      throw new InputException(
          name + " is UTF-16 or UTF-32; UTF-8 is right: iconv -f utf-16 -t utf-8");
    }
  }

  private boolean isUtf8(int from) {
    try {
      StandardCharsets.UTF_8.newDecoder().decode(ByteBuffer.wrap(line, from, length - from));
      return true;
    } catch (CharacterCodingException e) {
      return false;
    }
  }
}

package org.espalier.cli;

import java.io.ByteArrayOutputStream;
import java.io.IOException;
import java.io.InputStream;
import java.nio.charset.StandardCharsets;

/**
 * Lines of a stream that may grow and may be anything: a line that is too long is given as its
 * beginning and marked, and costs no more memory.
 */
final class LineReader {
  private final InputStream in;
  private final int limit;
  private final byte[] buffer = new byte[1 << 16];
  private final ByteArrayOutputStream line = new ByteArrayOutputStream();
  private int at;
  private int end;
  private long number;
  private boolean tooLong;
  private boolean wasTooLong;

  LineReader(InputStream in, int limit) {
    this.in = in;
    this.limit = limit;
  }

  /**
   * The next line without its end; null where the stream has no whole line now. A growing file may
   * have one later; at the end of any other stream {@link #rest} gives what came after the last line.
   */
  String next() throws IOException {
    while (true) {
      while (at < end) {
        byte b = buffer[at++];
        if (b == '\n') {
          return finish();
        }
        if (line.size() < limit) {
          line.write(b);
        } else {
          tooLong = true;
        }
      }
      int read = in.read(buffer);
      if (read < 0) {
        return null;
      }
      at = 0;
      end = read;
    }
  }

  /** What came after the last line; null where nothing did. */
  String rest() {
    return line.size() == 0 ? null : finish();
  }

  private String finish() {
    number++;
    wasTooLong = tooLong;
    tooLong = false;
    String text = line.toString(StandardCharsets.UTF_8);
    line.reset();
    return text.endsWith("\r") ? text.substring(0, text.length() - 1) : text;
  }

  /** The number of the line that was given last, from 1. */
  long number() {
    return number;
  }

  /** Whether the line that was given last is only a beginning. */
  boolean wasTooLong() {
    return wasTooLong;
  }
}

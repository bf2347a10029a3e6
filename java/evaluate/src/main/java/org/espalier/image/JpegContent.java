package org.espalier.image;

import java.io.ByteArrayOutputStream;
import java.nio.charset.StandardCharsets;
import java.util.Arrays;
import org.espalier.InputException;

/** What a JPEG holds beside its pixels, as far as it changes how they are read. */
final class JpegContent {
  /** Cameras and programs write ten or so; a few bytes more of each have all pixels decoded anew. */
  private static final int MOST_SCANS = 100;

  private static final byte[] PROFILE = "ICC_PROFILE\0".getBytes(StandardCharsets.US_ASCII);

  /** From here to {@link #START} markers have no segment behind them. */
  private static final int FIRST_ALONE = 0xD0;

  private static final int START = 0xD8;
  private static final int END = 0xD9;
  private static final int SCAN = 0xDA;
  private static final int APP2 = 0xE2;

  private JpegContent() {}

  /** Whether a file begins as a JPEG. */
  static boolean is(byte[] content) {
    return isMarker(content, 0, START);
  }

  private static boolean isMarker(byte[] content, int at, int marker) {
    return at + 1 < content.length
        && (content[at] & 255) == 0xFF
        && (content[at + 1] & 255) == marker;
  }

  /**
   * A JPEG without its colour profile, by which readers would change the values.
   *
   * @throws InputException where it would take very long to read
   */
  static byte[] withoutProfile(byte[] content, String name) {
    ByteArrayOutputStream kept = new ByteArrayOutputStream(0); // most have none
    int from = 0; // what is before is kept, or left out
    int at = 2;
    int scans = 0;
    // What comes behind the end is no part of the picture: films, other pictures.
    while (at + 3 < content.length && !isMarker(content, at, END)) {
      int marker = content[at + 1] & 255;
      if ((content[at] & 255) != 0xFF || marker == 0xFF || marker == 0) {
        at++; // of a scan, or filled up
        continue;
      }
      if (marker == 0x01 || marker >= FIRST_ALONE && marker <= START) {
        at += 2;
        continue;
      }
      if (marker == SCAN && ++scans > MOST_SCANS) {
        throw new InputException("the image " + name + " has more than " + MOST_SCANS + " scans");
      }
      int length = (content[at + 2] & 255) << 8 | content[at + 3] & 255;
      int next = Math.min(content.length, at + 2 + length);
      if (marker == APP2 && isProfile(content, at + 4, next)) {
        kept.write(content, from, at - from);
        from = next;
      }
      at = next;
    }
    if (from == 0) {
      return content;
    }
    kept.write(content, from, content.length - from);
    return kept.toByteArray();
  }

  private static boolean isProfile(byte[] content, int from, int to) {
    int end = from + PROFILE.length;
    return end <= to && Arrays.equals(content, from, end, PROFILE, 0, PROFILE.length);
  }
}

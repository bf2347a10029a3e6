package org.espalier.compress;

import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.util.function.Consumer;

/**
 * Packs integers from −8 to 7 into words of 32 bits, the first in the lowest bits. Each is stored as a number from 0 to
 * 15, with 8 added. What a row's last word has beyond the row is 0.
 */
final class Nibbles {
  private static final long NIBBLES = 0x0f0f0f0f0f0f0f0fL;
  private static final long EIGHTS = 0x0808080808080808L;

  private final int most;
  private final ByteBuffer words;

  /**
   * @param most integers that are packed at once, a multiple of 8
   */
  Nibbles(int most) {
    this.most = most;
    words = ByteBuffer.allocateDirect(4 * most).order(ByteOrder.LITTLE_ENDIAN);
  }

  /**
   * Packs rows, or a part of one row that ends the row or has a multiple of 8 integers.
   *
   * @param integers one a byte
   * @param width integers of a row
   * @param sink receives the words, little-endian, in one piece or several
   */
  void pack(ByteBuffer integers, long width, Consumer<ByteBuffer> sink) {
    ByteBuffer all = integers.duplicate().order(ByteOrder.LITTLE_ENDIAN);
    int end = all.limit();
    for (int at = all.position(); at < end; at += most) {
      int stop = Math.min(end, at + most);
      int row = (int) Math.min(width, stop - at);
      words.clear();
      for (int first = at; first < stop; first += row) {
        packRow(all, first, first + row);
      }
      sink.accept(words.flip());
    }
  }

  private void packRow(ByteBuffer integers, int from, int to) {
    int i = from;
    for (; i + 8 <= to; i += 8) {
      long eight = (integers.getLong(i) & NIBBLES) ^ EIGHTS;
      eight = (eight | eight >>> 4) & 0x00ff00ff00ff00ffL;
      eight = (eight | eight >>> 8) & 0x0000ffff0000ffffL;
      words.putInt((int) (eight | eight >>> 16));
    }
    if (i < to) {
      int word = 0;
      for (int j = i; j < to; j++) {
        word |= stored(integers.get(j)) << 4 * (j - i);
      }
      words.putInt(word);
    }
  }

  /** What stands for an integer. */
  static int stored(int integer) {
    return integer & 15 ^ 8;
  }
}

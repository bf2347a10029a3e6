package org.espalier.compress;

import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.util.Arrays;
import java.util.function.Consumer;

/**
 * Packs the zero points [rows, blocks] of a matrix, which come row by row, into words [rows / 8, blocks] of eight rows each. Rows
 * that the last words lack are 0.
 */
final class ZeroPointWords {
  private final int[] words;
  private final ByteBuffer bytes;
  private final Consumer<ByteBuffer> sink;
  private int row; // of the words
  private int block;

  /**
   * @param sink receives the words, little-endian
   */
  ZeroPointWords(long blocks, Consumer<ByteBuffer> sink) {
    words = new int[Math.toIntExact(blocks)];
    bytes = ByteBuffer.allocate(Math.multiplyExact(4, words.length)).order(ByteOrder.LITTLE_ENDIAN);
    this.sink = sink;
  }

  void add(int zeroPoint) {
    words[block] |= Nibbles.stored(zeroPoint) << 4 * row;
    if (++block == words.length) {
      block = 0;
      if (++row == LinearForm.PER_WORD) {
        write();
      }
    }
  }

  /** After the last one. */
  void finish() {
    if (row > 0) {
      write();
    }
  }

  private void write() {
    bytes.clear();
    bytes.asIntBuffer().put(words);
    sink.accept(bytes);
    Arrays.fill(words, 0);
    row = 0;
  }
}

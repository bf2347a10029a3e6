package org.espalier.evaluate;

import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.IntBuffer;
import java.nio.charset.CharacterCodingException;
import java.nio.charset.StandardCharsets;
import java.util.ArrayDeque;
import java.util.Base64;
import java.util.BitSet;
import java.util.Deque;

/**
 * What a Precompiled normalizer replaces: the length of a trie, the trie, and UTF-8 texts that end with 0, as
 * SentencePiece writes them. The trie is a double array of units of 32 bits: bits 0 to 7 are the label of the byte
 * that leads to a unit, which a unit with bit 31 is not; bits 10 on, eight bits further left where bit 9 is set, are what
 * the unit's place is xored with to find its children's, each of which lies at that place xored with its byte; bit 8
 * says that the unit there holds a value, where a text begins (lib.rs of spm_precompiled 0.1).
 *
 * <p>The tokenizers library follows a text's bytes through the trie without a look at its end, and cuts the texts
 * without a look at where characters begin, and panics where that fails.
 */
final class Charsmap {
  private static final int BYTES = 256;

  private final IntBuffer trie;
  private final byte[] texts;

  private Charsmap(IntBuffer trie, byte[] texts) {
    this.trie = trie;
    this.texts = texts;
  }

  /**
   * Whether the library can follow any text through it.
   *
   * @param base64 null for none
   */
  static boolean isOne(String base64) {
    if (base64 == null) {
      return false;
    }
    try {
      ByteBuffer bytes =
          ByteBuffer.wrap(Base64.getDecoder().decode(base64)).order(ByteOrder.LITTLE_ENDIAN);
      long size = bytes.remaining() < 4 ? -1 : Integer.toUnsignedLong(bytes.getInt()) / 4 * 4;
      if (size < 4 || size > bytes.remaining()) {
        return false;
      }
      IntBuffer trie = bytes.slice(4, (int) size).order(ByteOrder.LITTLE_ENDIAN).asIntBuffer();
      byte[] texts = new byte[bytes.remaining() - (int) size];
      bytes.get(bytes.position() + (int) size, texts);
      StandardCharsets.UTF_8.newDecoder().decode(ByteBuffer.wrap(texts));
      return new Charsmap(trie, texts).isWalkable();
    } catch (IllegalArgumentException | CharacterCodingException e) {
      return false;
    }
  }

  /** Whether all paths through the trie stay inside of it. Each unit is visited once. */
  private boolean isWalkable() {
    BitSet reached = new BitSet();
    Deque<Integer> ahead = new ArrayDeque<>();
    reached.set(0);
    ahead.push(0);
    while (!ahead.isEmpty()) {
      int children = children(ahead.pop());
      for (int c = 1; c < BYTES; c++) { // a 0 ends the search
        int place = children ^ c;
        if (!isInside(place)) {
          return false;
        }
        int unit = trie.get(place);
        if ((unit & (1 << 31 | 0xff)) != c || reached.get(place)) {
          continue;
        }
        reached.set(place);
        ahead.push(place);
        if ((unit & 1 << 8) != 0
            && !(isInside(children(place)) && isStart(trie.get(children(place))))) {
          return false;
        }
      }
    }
    return true;
  }

  /** Where the children of a unit would be if they had the label 0; no more than 30 bits. */
  private int children(int place) {
    int unit = trie.get(place);
    return place ^ (unit >>> 10) << ((unit & 1 << 9) >> 6);
  }

  private boolean isInside(int place) {
    return place < trie.limit();
  }

  /** Whether a text may be cut at what a value says. */
  private boolean isStart(int unit) {
    int value = unit & Integer.MAX_VALUE;
    boolean withinACharacter = value < texts.length && (texts[value] & 0xc0) == 0x80;
    return value <= texts.length && !withinACharacter;
  }
}

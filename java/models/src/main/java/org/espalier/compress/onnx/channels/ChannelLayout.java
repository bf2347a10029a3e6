package org.espalier.compress.onnx.channels;

import java.util.Arrays;

/**
 * Which numbers of an axis are those of channels: so many times all of them, one after the other, each with a block of
 * numbers; behind these, as the keys and values behind the queries of one product, so many times all of them with
 * blocks of another length; and behind all that numbers that are no channel's.
 *
 * @param repeat how many times all channels come
 * @param block how many numbers a channel has each time, one after the other
 * @param times how many times they come again
 * @param part how many numbers a channel has each of these times
 * @param rest how many numbers at the end are no channel's
 */
public record ChannelLayout(int repeat, int block, int times, int part, int rest) {
  ChannelLayout(int repeat, int block) {
    this(repeat, block, 0, 0, 0);
  }

  /** Whether the channels come in one way alone, and nothing else. */
  boolean isEven() {
    return times == 0 && rest == 0;
  }

  /** How many numbers of the axis a channel has. */
  int each() {
    return repeat * block + times * part;
  }

  /** How many numbers of a channel come before one of the axis; −1 if some of one's are and others of that time are not. */
  int eachBefore(int size, long number) {
    long before = Math.min(number, length(size) - rest);
    long first = (long) size * repeat * block;
    long run = (long) size * (before < first || times == 0 ? block : part);
    long inside = before < first || times == 0 ? before : before - first;
    return inside % run == 0 ? (int) (before / size) : -1;
  }

  /** What is between two numbers of the axis; null if that is not all channels some times, or nothing of them. */
  ChannelLayout piece(int size, long from, long to) {
    int before = eachBefore(size, from);
    int behind = eachBefore(size, to);
    if (before < 0 || behind < before) {
      return null;
    }
    int firsts = Math.min(behind, repeat * block) - Math.min(before, repeat * block);
    int others = behind - before - firsts;
    int left = (int) (to - from - (long) size * (behind - before));
    int more = others == 0 ? 0 : others / part;
    return firsts > 0
        ? new ChannelLayout(firsts / block, block, more, more == 0 ? 0 : part, left)
        : new ChannelLayout(more, more == 0 ? 0 : part, 0, 0, left);
  }

  /** How long the axis is. */
  long length(int size) {
    return (long) size * each() + rest;
  }

  /**
   * For each number of the axis which one it is, if the numbers of a channel are counted one after the other; −1 for
   * those that are no channel's.
   *
   * @param size how many channels there are
   * @param group how many numbers of a channel are counted; those that it has beyond come in equal shares
   */
  public int[] numbers(int size, int group) {
    int share = each() / group;
    int[] numbers = new int[Math.toIntExact(length(size))];
    Arrays.fill(numbers, -1);
    int at = 0;
    for (int time = 0; time < repeat + times; time++) {
      boolean first = time < repeat;
      int width = first ? block : part;
      int before = first ? time * block : repeat * block + (time - repeat) * part;
      for (int c = 0; c < size; c++) {
        for (int i = 0; i < width; i++) {
          numbers[at++] = c * group + (before + i) / share;
        }
      }
    }
    return numbers;
  }
}

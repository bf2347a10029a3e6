package org.espalier.online.model;

import java.nio.FloatBuffer;
import java.util.ArrayDeque;
import java.util.Deque;
import java.util.List;
import org.espalier.device.Tensor;
import org.espalier.online.memory.Floats;

/**
 * Which rows of a table have changed, one change after the other, so that a copy that was made at some time can be
 * brought up to date by these rows alone. Not for several threads.
 */
final class RowLog {
  /** Beyond this share of the table's rows one copy of all of it is as fast. */
  private static final int SHARE = 8;

  private final long most;
  private final Deque<long[]> changes = new ArrayDeque<>();

  /** Changes that were, those that are no longer known among them. */
  private long count;

  /** Rows in {@link #changes}. */
  private long logged;

  /**
   * @param rows of the table
   */
  RowLog(long rows) {
    most = rows / SHARE;
  }

  /** Rows have changed. */
  void add(long[] rows) {
    changes.addLast(rows);
    logged += rows.length;
    count++;
    while (logged > most) {
      logged -= changes.removeFirst().length;
    }
  }

  /** Any row may have changed. */
  void addAll() {
    changes.clear();
    logged = 0;
    count++;
  }

  /** The time now: how many changes there were. */
  long now() {
    return count;
  }

  /**
   * What has changed since a time.
   *
   * @return the rows of each change; null where any row may have changed
   */
  List<long[]> since(long time) {
    if (time < count - changes.size()) {
      return null;
    }
    return changes.stream().skip(changes.size() - (count - time)).toList();
  }

  /** Copies rows that have changed to another table of the shape. */
  static void copy(List<long[]> changes, Tensor from, Tensor to) {
    int width = Floats.rowLength(from);
    FloatBuffer source = Floats.of(from);
    FloatBuffer target = Floats.of(to);
    for (long[] some : changes) {
      for (long row : some) {
        target.put((int) row * width, source, (int) row * width, width);
      }
    }
  }
}

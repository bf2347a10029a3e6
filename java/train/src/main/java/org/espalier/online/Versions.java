package org.espalier.online;

import java.util.ArrayList;
import java.util.List;
import java.util.concurrent.atomic.AtomicIntegerArray;
import java.util.function.Supplier;

/**
 * The versions that readers see. One writer publishes, any number of readers take the newest, none
 * of them waits: a reader counts itself in at the version, looks whether it still is the newest, and
 * counts itself out when it is done. The writer takes the memory of an older version again only
 * when nobody is counted in there, and makes more memory where everybody is slow.
 *
 * <p>The order of the accesses is what makes it right: a reader counts itself in before it looks,
 * the writer publishes before it looks at the counts, and both are sequentially consistent. So
 * either the writer sees the reader, or the reader sees that the version is old and leaves without
 * having touched it.
 *
 * @param <T> what holds a version
 */
final class Versions<T extends AutoCloseable> implements AutoCloseable {
  /** Counters a version, so that readers do not fight for one cache line. */
  private static final int STRIPES = 8;

  /** Ints between two counters: 128 bytes, because processors fetch lines in pairs. */
  private static final int SPACING = 32;

  private final Supplier<T> maker;
  private final List<Slot<T>> all = new ArrayList<>();
  private volatile Slot<T> current;

  /** One version's memory. */
  static final class Slot<T> {
    private final T content;
    private final AtomicIntegerArray readers = new AtomicIntegerArray(STRIPES * SPACING);
    private volatile long number;

    private Slot(T content) {
      this.content = content;
    }

    T content() {
      return content;
    }

    long number() {
      return number;
    }

    private boolean unread() {
      for (int i = 0; i < STRIPES; i++) {
        if (readers.get(i * SPACING) != 0) {
          return false;
        }
      }
      return true;
    }
  }

  Versions(Supplier<T> maker) {
    this.maker = maker;
  }

  /** Memory that nobody reads, for the writer to fill and {@link #publish}. Writer only. */
  Slot<T> free() {
    for (Slot<T> slot : all) {
      if (slot != current && slot.unread()) {
        return slot;
      }
    }
    Slot<T> slot = new Slot<>(maker.get());
    all.add(slot);
    return slot;
  }

  /** Makes a filled slot the newest version. Writer only. */
  void publish(Slot<T> slot, long number) {
    slot.number = number;
    current = slot;
  }

  /** The stripe of this thread, for {@link #enter} and {@link #leave}. */
  static int stripe() {
    // Thread numbers are consecutive; neighbours get different counters.
    return (int) (Thread.currentThread().getId() % STRIPES) * SPACING;
  }

  /**
   * The newest version, which stays as it is until {@link #leave}.
   *
   * @throws IllegalStateException if it is closed
   */
  Slot<T> enter(int stripe) {
    while (true) {
      Slot<T> slot = current;
      if (slot == null) {
        throw new IllegalStateException("the learner is closed");
      }
      slot.readers.incrementAndGet(stripe);
      if (slot == current) {
        return slot;
      }
      slot.readers.decrementAndGet(stripe);
    }
  }

  void leave(Slot<T> slot, int stripe) {
    slot.readers.decrementAndGet(stripe);
  }

  /** How many versions have memory now. */
  int slots() {
    return all.size();
  }

  /** Frees all memory, once those who read now have left. Writer only. */
  @Override
  public void close() {
    current = null;
    for (Slot<T> slot : all) {
      while (!slot.unread()) {
        Thread.onSpinWait();
      }
      try {
        slot.content.close();
      } catch (Exception e) {
        throw new IllegalStateException("a version could not be closed", e);
      }
    }
    all.clear();
  }
}

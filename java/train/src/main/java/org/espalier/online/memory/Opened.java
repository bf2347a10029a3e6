package org.espalier.online.memory;

import java.util.ArrayDeque;
import java.util.Deque;

/**
 * What an object has opened and closes with itself, the last first. A constructor that fails closes it too, for nobody
 * else can. Not safe for several threads.
 */
public final class Opened implements AutoCloseable {
  private final Deque<AutoCloseable> all = new ArrayDeque<>();

  /** Takes one more, and gives it back. */
  public <T extends AutoCloseable> T add(T opened) {
    all.push(opened);
    return opened;
  }

  /** Closes all that was added since it was closed last. */
  @Override
  public void close() {
    while (!all.isEmpty()) {
      AutoCloseable last = all.pop();
      try {
        last.close();
      } catch (Exception e) {
        throw new IllegalStateException(last + " could not be closed", e);
      }
    }
  }
}

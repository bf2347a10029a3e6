package org.espalier.online;

import java.util.Iterator;
import java.util.LinkedHashMap;
import java.util.Map;
import org.espalier.InputException;

/**
 * Cases that were predicted and whose outcome is not known yet, by id. Holds the newest {@code
 * capacity} of them. Thread safe.
 */
public final class PendingLabels {
  private static final int MAX_ID = 1000;

  /** Bytes of a case beside its features, without an id of unusual length. */
  private static final int OVERHEAD = 300;

  private final int capacity;
  private final Map<String, Case> cases = new LinkedHashMap<>();
  private long joined;
  private long expired;
  private long unknown;

  /**
   * A case that waits.
   *
   * @param version what predicted it
   * @param outputs what was predicted; empty where nobody asked to keep it
   * @param storeVersion the version of a store that {@code version} goes back to; 0 where there is none
   */
  public record Case(float[] features, long version, float[] outputs, long storeVersion) {}

  /**
   * How many cases fit into an eighth of the memory that the JVM may use.
   *
   * @param wanted the most that are wanted
   * @param values features, and outputs that are kept
   */
  public static int capacity(int wanted, int values) {
    long bytes = 4L * values + OVERHEAD;
    return (int) Math.max(1, Math.min(wanted, Runtime.getRuntime().maxMemory() / 8 / bytes));
  }

  public PendingLabels(int capacity) {
    if (capacity < 1) {
      throw new IllegalArgumentException("capacity " + capacity);
    }
    this.capacity = capacity;
  }

  /**
   * Remembers a case.
   *
   * @throws InputException if the id is empty, too long, or waits already
   */
  public void remember(String id, float[] features, long version) {
    Case mine = new Case(features, version, new float[0], 0);
    if (rememberOnce(id, mine) != mine) {
      throw new InputException("the id '" + id + "' waits for its outcome already");
    }
  }

  /**
   * Remembers a case, where none of that id waits.
   *
   * @return the case that waits under the id: the given one, or that of an earlier call
   * @throws InputException if the id is empty or too long
   */
  public synchronized Case rememberOnce(String id, Case mine) {
    if (id.isEmpty() || id.length() > MAX_ID) {
      throw new InputException("an id has " + id.length() + " characters; 1 to 1000 are right");
    }
    Case earlier = cases.putIfAbsent(id, mine);
    if (earlier != null) {
      return earlier;
    }
    if (cases.size() > capacity) {
      Iterator<Case> oldest = cases.values().iterator();
      oldest.next();
      oldest.remove();
      expired++;
    }
    return mine;
  }

  /**
   * Takes a case out, because its outcome is known.
   *
   * @throws InputException if no case of that id waits: it never did, it was answered, or it was
   *     pushed out by newer ones
   */
  public synchronized Case join(String id) {
    Case found = cases.remove(id);
    if (found == null) {
      unknown++;
      throw new InputException(
          "no prediction of the id '"
              + (id.length() > MAX_ID ? id.substring(0, MAX_ID) + "…" : id)
              + "' waits for its outcome; the newest "
              + capacity
              + " do");
    }
    joined++;
    return found;
  }

  /** Undoes {@link #join}, where the case could not be used yet. */
  public synchronized void putBack(String id, Case found) {
    if (cases.putIfAbsent(id, found) == null) {
      joined--;
    }
  }

  public synchronized int waiting() {
    return cases.size();
  }

  public synchronized long joined() {
    return joined;
  }

  public synchronized long expired() {
    return expired;
  }

  public synchronized long unknown() {
    return unknown;
  }
}

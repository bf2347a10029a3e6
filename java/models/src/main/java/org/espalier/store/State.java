package org.espalier.store;

import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.node.ArrayNode;
import com.fasterxml.jackson.databind.node.ObjectNode;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Collections;
import java.util.List;
import java.util.Set;
import java.util.TreeSet;

/**
 * What changes in a store: one small file, replaced as a whole.
 *
 * @param current the version that readers take, 0 while there is none
 * @param next the least number that no version has had
 * @param history versions that were current before, oldest first
 * @param pinned versions that are never collected
 */
record State(long current, long next, List<Long> history, Set<Long> pinned) {
  /** Older entries are forgotten. */
  private static final int REMEMBERED = 1000;

  static final State EMPTY = new State(0, 1, List.of(), Set.of());

  State {
    history =
        List.copyOf(history.subList(Math.max(0, history.size() - REMEMBERED), history.size()));
    pinned = Collections.unmodifiableSet(new TreeSet<>(pinned));
  }

  static State of(JsonNode json, Path file) {
    return new State(
        Records.integer(json, "current", file, 0),
        Records.integer(json, "next", file, 1),
        Records.integers(json, "history", file),
        Set.copyOf(new TreeSet<>(Records.integers(json, "pinned", file))));
  }

  byte[] encode() {
    ObjectNode json = Records.object();
    json.put("format", ModelStore.FORMAT).put("current", current).put("next", next);
    ArrayNode before = json.putArray("history");
    history.forEach(before::add);
    ArrayNode kept = json.putArray("pinned");
    pinned.forEach(kept::add);
    return Records.bytes(json);
  }

  /** A new version was published under {@code id}. */
  State published(long id, boolean makeCurrent) {
    State counted = new State(current, id + 1, history, pinned);
    return makeCurrent ? counted.withCurrent(id) : counted;
  }

  private State withCurrent(long id) {
    List<Long> before = new ArrayList<>(history);
    if (current != 0) {
      before.add(current);
    }
    return new State(id, next, before, pinned);
  }

  /** {@code id} is current again; what was current after it is no longer history. */
  State rolledBack(long id) {
    int at = history.lastIndexOf(id);
    return at < 0 ? withCurrent(id) : new State(id, next, history.subList(0, at), pinned);
  }

  State pinned(long id, boolean pin) {
    Set<Long> kept = new TreeSet<>(pinned);
    if (pin) {
      kept.add(id);
    } else {
      kept.remove(id);
    }
    return new State(current, next, history, kept);
  }

  State without(Set<Long> collected) {
    return new State(
        current, next, history.stream().filter(id -> !collected.contains(id)).toList(), pinned);
  }
}

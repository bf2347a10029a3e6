package org.espalier.online;

import java.util.ArrayList;
import java.util.EnumMap;
import java.util.List;
import java.util.Map;
import java.util.function.Consumer;
import org.slf4j.Logger;
import org.slf4j.LoggerFactory;

/** Tells listeners, the log and the quarantine of what a learner met. For one thread. */
final class LearnerEvents {
  private static final Logger LOG = LoggerFactory.getLogger(OnlineLearner.class);

  /** So many events of a kind are warnings; later ones are where their number is a power of two. */
  private static final int LOGGED = 10;

  private final List<Consumer<Event>> listeners = new ArrayList<>();
  private final Map<Event.Kind, Long> fired = new EnumMap<>(Event.Kind.class);

  /** Null for nowhere. */
  private Quarantine quarantine;

  /** Whether a listener is being told of an event. */
  private boolean telling;

  void add(Consumer<Event> listener) {
    listeners.add(listener);
  }

  /** Where examples go that were taken out; null for nowhere. */
  void quarantine(Quarantine file) {
    quarantine = file;
  }

  /** Whether a listener is being told of an event. */
  boolean isTelling() {
    return telling;
  }

  /**
   * Tells of an event.
   *
   * @param suspects the examples that were taken out or back for it
   */
  void tell(Event event, List<Example> suspects) {
    Event.Kind kind = event.kind();
    long count = fired.merge(kind, 1L, Long::sum);
    telling = true;
    try {
      listeners.forEach(listener -> listener.accept(event));
    } finally {
      telling = false;
      // A flood would hide the rest of a log.
      String line = "{} {} at step {}, example {}: {}";
      Object[] values = {kind, count, event.step(), event.examples(), event.evidence()};
      if (count <= LOGGED || Long.bitCount(count) == 1) {
        LOG.warn(line, values);
      } else {
        LOG.debug(line, values);
      }
    }
    if (quarantine != null) {
      boolean written = true;
      for (Example example : suspects) {
        written &= quarantine.add(kind, event.step(), example);
      }
      if (!written && kind != Event.Kind.QUARANTINE_FULL) {
        String evidence = quarantine.lost() + " examples are not kept";
        tell(
            new Event(
                Event.Kind.QUARANTINE_FULL,
                event.step(),
                event.examples(),
                event.version(),
                evidence),
            List.of());
      }
    }
  }
}

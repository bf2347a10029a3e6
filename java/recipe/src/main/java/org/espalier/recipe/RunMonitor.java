package org.espalier.recipe;

import java.util.Map;

/**
 * Who watches a run. Called by the thread that runs it and by those that measure; what is not overridden does
 * nothing.
 */
public interface RunMonitor {
  /** Nobody. */
  RunMonitor NONE = new RunMonitor() {};

  /** A line for people: what was found, changed or left. */
  default void note(String text) {}

  /**
   * How far the run is.
   *
   * @param text what is done now with loss, speed and time left
   * @param done the part that is done, in any unit
   * @param total all of it; 0 where it is not known
   */
  default void progress(String text, long done, long total) {}

  /** Whether the run shall stop at a checkpoint; asked at every step. */
  default boolean stopRequested() {
    return false;
  }

  /** What the report says of the program that runs it, by name. */
  default Map<String, Object> program() {
    return Map.of();
  }
}

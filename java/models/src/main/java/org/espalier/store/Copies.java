package org.espalier.store;

import java.nio.file.Path;
import java.util.UUID;

/**
 * Tells apart the copies of this library that several class loaders of one JVM have loaded. Locks on files belong
 * to the process, and what is known of them to a copy: another one would open such a file beside the first, and the
 * system drops all locks when one of the two closes it.
 */
final class Copies {
  /** System properties are the one place that all class loaders share. */
  private static final String KEY = "org.espalier.store.open:";

  private static final String OWN = UUID.randomUUID().toString();

  private Copies() {}

  /** Whether this copy may open the file now; where it may, until {@link #drop}. */
  static boolean claim(Path file) {
    Object holder = System.getProperties().putIfAbsent(KEY + file, OWN);
    return holder == null || holder.equals(OWN);
  }

  static void drop(Path file) {
    System.getProperties().remove(KEY + file, OWN);
  }
}

package org.espalier.store;

import java.nio.file.Path;
import java.util.UUID;

/**
 * Tells apart the copies of this library that several class loaders of one JVM have loaded. Locks on files belong to
 * the process, and each copy knows only its own. A second copy would open the same file again, and when either closes
 * it, the system drops the locks of both.
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

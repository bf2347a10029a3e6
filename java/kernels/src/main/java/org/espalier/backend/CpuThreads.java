package org.espalier.backend;

import org.bytedeco.javacpp.IntPointer;
import org.espalier.binding.Status;
import org.espalier.binding.global.espalier;

/**
 * How many threads one kernel call may use, the caller included. Starts as {@code ESPALIER_THREADS},
 * else as the processors that the process may use. Results do not depend on it.
 */
public final class CpuThreads {
  private CpuThreads() {}

  /**
   * The number in use.
   *
   * @throws UnsupportedOperationException where {@code ESPALIER_THREADS} is not a number from 1 to 256
   */
  public static int get() {
    try (IntPointer threads = new IntPointer(1)) {
      Status.check(espalier.esp_threads_current(threads));
      return threads.get();
    }
  }

  /**
   * Takes effect with the next call.
   *
   * @throws IllegalArgumentException outside 1 to 256
   */
  public static void set(int threads) {
    Status.check(espalier.esp_threads_set(threads));
  }
}

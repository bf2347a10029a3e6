package org.espalier.cli;

import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import org.espalier.InputException;
import org.espalier.backend.CpuThreads;
import org.espalier.backend.Isa;

/** What the environment asks the kernels to run on, with its mistakes as bad input. */
final class Machine {
  private static final String FREE = "MemAvailable:";

  private Machine() {}

  /**
   * The instruction set variant in use.
   *
   * @throws InputException where {@code ESPALIER_ISA} names none that this machine can run
   */
  static Isa isa() {
    try {
      return Isa.current();
    } catch (UnsupportedOperationException e) {
      throw new InputException(e.getMessage(), e);
    }
  }

  /** Bytes of memory that a process can have without others being paged out; as many as there can be where that is not known. */
  static long freeMemory() {
    try {
      for (String line : Files.readAllLines(Path.of("/proc/meminfo"))) {
        if (line.startsWith(FREE)) {
          return 1024 * Long.parseLong(line.substring(FREE.length()).replace("kB", "").trim());
        }
      }
    } catch (IOException | NumberFormatException e) {
      return Long.MAX_VALUE;
    }
    return Long.MAX_VALUE;
  }

  /**
   * The threads that one kernel call may use.
   *
   * @throws InputException where {@code ESPALIER_THREADS} is not a number from 1 to 256
   */
  static int threads() {
    try {
      return CpuThreads.get();
    } catch (UnsupportedOperationException e) {
      throw new InputException(e.getMessage(), e);
    }
  }

  /**
   * Sets how many threads one kernel call may use.
   *
   * @param threads 1 to 256, or null to leave the default
   */
  static void useThreads(Integer threads) {
    if (threads != null) {
      if (threads < 1 || threads > 256) {
        throw new InputException("--threads " + threads + " is outside 1 to 256");
      }
      CpuThreads.set(threads);
    }
    threads();
  }
}

package org.espalier.cli;

import java.io.IOException;
import org.bytedeco.javacpp.Loader;
import org.bytedeco.javacpp.Pointer;
import org.espalier.InputException;
import org.espalier.backend.CpuThreads;
import org.espalier.backend.Isa;

/** What the environment asks the kernels to run on, with its mistakes as bad input. */
final class Machine {
  private Machine() {}

  /**
   * Loads the native libraries, which JavaCPP unpacks where they are not yet.
   *
   * @throws InputException where it cannot
   */
  private static void load() {
    try {
      Loader.load(Pointer.class);
      Isa.best();
    } catch (LinkageError e) {
      throw new InputException(
          "the native libraries cannot be loaded: "
              + (e.getCause() == null ? e : e.getCause()).getMessage()
              + "; they are unpacked into "
              + cache()
              + ", where there must be room, and what lies there must be allowed to run."
              + " JDK_JAVA_OPTIONS=-Dorg.bytedeco.javacpp.cachedir=… names another folder",
          e);
    }
  }

  private static String cache() {
    try {
      return Loader.getCacheDir().toString();
    } catch (IOException e) {
      return "a folder that cannot be made (" + e.getMessage() + ")";
    }
  }

  /**
   * The instruction set variant in use.
   *
   * @throws InputException where {@code ESPALIER_ISA} names none that this machine can run
   */
  static Isa isa() {
    load();
    try {
      return Isa.current();
    } catch (UnsupportedOperationException e) {
      throw new InputException(e.getMessage(), e);
    }
  }

  /**
   * The threads that one kernel call may use.
   *
   * @throws InputException where {@code ESPALIER_THREADS} is not a number from 1 to 256
   */
  static int threads() {
    load();
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

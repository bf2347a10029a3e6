package org.espalier.cli;

import org.espalier.format.AtomicFile;
import sun.misc.Signal;

/**
 * Ctrl-C and SIGTERM as a request to stop at the next good place. A second one ends the process at once.
 */
final class Interrupts implements AutoCloseable {
  private static final String[] NAMES = {"HUP", "INT", "TERM"};
  private static final int FIRST_CODE = 128;

  private final sun.misc.SignalHandler[] before = new sun.misc.SignalHandler[NAMES.length];
  private volatile int code;

  /**
   * @param asked is called at the first signal, in a thread of the JVM's
   */
  Interrupts(Runnable asked) {
    for (int i = 0; i < NAMES.length; i++) {
      before[i] =
          Signal.handle(
              new Signal(NAMES[i]),
              signal -> {
                int given = FIRST_CODE + signal.getNumber();
                if (code != 0) {
                  end(given);
                }
                code = given;
                asked.run();
              });
    }
  }

  /**
   * From now on such a signal deletes what is half written and ends the process at once. The JVM's own way
   * out runs the destructors of native libraries while other threads still compute in them, which ends in a
   * SIGSEGV now and then.
   */
  static void endAtOnce() {
    for (String name : NAMES) {
      Signal.handle(new Signal(name), signal -> end(FIRST_CODE + signal.getNumber()));
    }
  }

  private static void end(int code) {
    AtomicFile.abandonAll();
    Runtime.getRuntime().halt(code);
  }

  /** Whether there was one. */
  boolean requested() {
    return code != 0;
  }

  /** The exit code that a shell expects: 130 for Ctrl-C, 143 for SIGTERM; 0 where there was none. */
  int code() {
    return code;
  }

  @Override
  public void close() {
    for (int i = 0; i < NAMES.length; i++) {
      Signal.handle(new Signal(NAMES[i]), before[i]);
    }
  }
}

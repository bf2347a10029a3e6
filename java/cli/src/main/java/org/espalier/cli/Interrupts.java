package org.espalier.cli;

import sun.misc.Signal;

/**
 * Ctrl-C and SIGTERM as a request to stop at the next good place. A second one ends the process at once, as
 * without this class.
 */
final class Interrupts implements AutoCloseable {
  private static final String[] NAMES = {"INT", "TERM"};
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
                  System.exit(given); // temporary files go
                }
                code = given;
                asked.run();
              });
    }
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

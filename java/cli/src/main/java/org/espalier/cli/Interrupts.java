package org.espalier.cli;

import org.espalier.format.AtomicFile;
import sun.misc.Signal;

/**
 * Ctrl-C and SIGTERM as a request to stop at the next good place. A second one, a second later or more, ends
 * the process at once: {@code timeout} and other wrappers send the first to the process and to its group, and it
 * comes twice.
 */
final class Interrupts implements AutoCloseable {
  private static final String[] NAMES = {"HUP", "INT", "TERM"};
  private static final int FIRST_CODE = 128;
  private static final long SAME_NANOS = 1_000_000_000L;

  private final sun.misc.SignalHandler[] before = new sun.misc.SignalHandler[NAMES.length];
  private volatile int code;
  private long first;

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
                synchronized (this) {
                  if (code != 0) {
                    if (System.nanoTime() - first >= SAME_NANOS) {
                      end(given);
                    }
                    return;
                  }
                  first = System.nanoTime();
                  code = given;
                }
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

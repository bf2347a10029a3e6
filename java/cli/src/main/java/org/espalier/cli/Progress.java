package org.espalier.cli;

import java.io.PrintWriter;
import java.util.concurrent.TimeUnit;

/**
 * Shows how far a piece of work is, when it takes longer than two seconds: a bar that changes on a
 * terminal, a plain line every ten seconds elsewhere.
 */
final class Progress implements AutoCloseable {
  private static final long SILENT = TimeUnit.SECONDS.toNanos(2);
  private static final long PLAIN = TimeUnit.SECONDS.toNanos(10);
  private static final long REDRAW = TimeUnit.MILLISECONDS.toNanos(100);
  private static final int WIDTH = 30;

  private final PrintWriter err;
  private final boolean terminal;
  private final long begin = System.nanoTime();
  private String what = "";
  private long next = begin + SILENT;
  private boolean drawn;

  /**
   * @param err where to show it; whether that is a terminal the launcher says, because Java cannot
   *     ask it about standard error
   */
  Progress(PrintWriter err) {
    this.err = err;
    this.terminal = Boolean.getBoolean("espalier.terminal");
  }

  /**
   * Tells how far the work is. Cheap enough to be called for every chunk.
   *
   * @param stage what is done now, in a word or two
   * @param done the part that is done, in any unit
   * @param total all of it; 0 where it is not known
   */
  synchronized void update(String stage, long done, long total) {
    long now = System.nanoTime();
    if (now < next && !(drawn && !stage.equals(what) && terminal)) {
      return;
    }
    what = stage;
    double share = total > 0 ? Math.min(1, (double) done / total) : 0;
    String percent = total > 0 ? String.format("%3.0f %%", 100 * share) : "";
    String elapsed = Format.seconds(Math.rint((now - begin) * 1e-9));
    if (terminal) {
      int filled = (int) (share * WIDTH);
      String bar = total > 0 ? " [" + "#".repeat(filled) + ".".repeat(WIDTH - filled) + "] " : " ";
      err.print("\r\u001b[K" + stage + bar + percent + " " + elapsed);
      next = now + REDRAW;
    } else {
      err.println("espalier: " + stage + " " + percent + " after " + elapsed);
      next = now + PLAIN;
    }
    err.flush();
    drawn = true;
  }

  /** Takes the bar away. */
  @Override
  public synchronized void close() {
    if (drawn && terminal) {
      err.print("\r\u001b[K");
      err.flush();
    }
    drawn = false;
  }
}

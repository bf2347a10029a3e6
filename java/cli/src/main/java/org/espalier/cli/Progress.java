package org.espalier.cli;

import java.io.PrintWriter;
import java.util.Locale;
import java.util.concurrent.Executors;
import java.util.concurrent.ScheduledExecutorService;
import java.util.concurrent.TimeUnit;
import org.espalier.format.Quantity;

/**
 * Shows how far a piece of work is, when it takes longer than two seconds: a bar that changes on a
 * terminal, a plain line every ten seconds elsewhere.
 */
final class Progress implements AutoCloseable {
  private static final long SILENT_MILLIS = 2_000;
  private static final long BAR_MILLIS = 200;
  private static final long LINE_MILLIS = 10_000;
  private static final int WIDTH = 30;

  private final PrintWriter err;
  private final boolean terminal;
  private final long begin = System.nanoTime();
  private final ScheduledExecutorService clock;
  private String stage;
  private long done;
  private long total;
  private boolean drawn;

  /**
   * Starts the clock.
   *
   * @param err where to show it; whether that is a terminal the launcher says, because Java cannot
   *     ask it about standard error
   * @param stage what is done first, in a word or two
   */
  Progress(PrintWriter err, String stage) {
    this(err, stage, Boolean.getBoolean("espalier.terminal"), SILENT_MILLIS);
  }

  Progress(PrintWriter err, String stage, boolean terminal, long silentMillis) {
    this.err = err;
    this.terminal = terminal;
    this.stage = stage;
    this.clock =
        Executors.newSingleThreadScheduledExecutor(
            task -> {
              Thread thread = new Thread(task, "espalier-progress");
              thread.setDaemon(true);
              return thread;
            });
    clock.scheduleAtFixedRate(
        this::show, silentMillis, terminal ? BAR_MILLIS : LINE_MILLIS, TimeUnit.MILLISECONDS);
  }

  /**
   * Tells how far the work is. Cheap enough to be called for every chunk.
   *
   * @param newStage what is done now, in a word or two
   * @param newDone the part of it that is done, in any unit
   * @param newTotal all of it; 0 where it is not known
   */
  synchronized void update(String newStage, long newDone, long newTotal) {
    stage = newStage;
    done = newDone;
    total = newTotal;
  }

  /** The same for a run of the compressors. */
  void update(org.espalier.compress.Progress.Phase phase, long newDone, long newTotal) {
    update(phase.text(), newDone, newTotal);
  }

  private synchronized void show() {
    if (clock.isShutdown()) {
      return;
    }
    double share = total > 0 ? Math.min(1, (double) done / total) : 0;
    String percent = total > 0 ? String.format(Locale.ROOT, " %.0f %%", 100 * share) : "";
    String elapsed = Quantity.seconds(Math.rint((System.nanoTime() - begin) * 1e-9));
    if (terminal) {
      int filled = (int) (share * WIDTH);
      String bar = total > 0 ? " [" + "#".repeat(filled) + ".".repeat(WIDTH - filled) + "]" : "";
      err.print("\r\u001b[K" + stage + bar + percent + ", " + elapsed);
    } else {
      err.println("espalier: " + stage + percent + " after " + elapsed);
    }
    err.flush();
    drawn = true;
  }

  /** Takes the bar away. */
  @Override
  public synchronized void close() {
    clock.shutdownNow();
    if (drawn && terminal) {
      err.print("\r\u001b[K");
      err.flush();
    }
  }
}

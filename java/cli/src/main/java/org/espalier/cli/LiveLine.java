package org.espalier.cli;

import java.io.PrintWriter;
import java.util.Locale;
import java.util.Map;
import org.espalier.online.Event;
import org.espalier.online.OnlineLearner;

/** Where a stream is: a line that changes on a terminal, a plain one every ten seconds elsewhere. */
final class LiveLine {
  private static final long CHANGES = 200_000_000L;
  private static final long LINES = 10_000_000_000L;

  private final CommonOptions common;
  private final PrintWriter err;
  private final boolean terminal = Boolean.getBoolean("espalier.terminal");
  private long last = System.nanoTime();
  private boolean drawn;

  LiveLine(CommonOptions common) {
    this.common = common;
    this.err = common.err();
  }

  /** Tells the user something, on a line of its own. */
  void note(String text) {
    clear();
    common.note(text);
  }

  void show(OnlineLearner learner, long done, long begin, Map<Event.Kind, Long> events) {
    long now = System.nanoTime();
    if (now - last < (terminal ? CHANGES : LINES)) {
      return;
    }
    last = now;
    Map<String, Double> metrics = learner.metrics();
    String metric = metrics.containsKey("accuracy_fading") ? "accuracy_fading" : "mae_fading";
    String line =
        String.format(
            Locale.ROOT,
            "%d examples, %.0f a second, %s %.4f, %d drifts, %d other events, version %d",
            learner.seen(),
            done / ((now - begin) * 1e-9),
            metric.replace('_', ' '),
            metrics.getOrDefault(metric, Double.NaN),
            events.getOrDefault(Event.Kind.DRIFT, 0L),
            events.entrySet().stream()
                .filter(e -> e.getKey() != Event.Kind.DRIFT)
                .mapToLong(Map.Entry::getValue)
                .sum(),
            learner.version());
    if (terminal) {
      err.print("\r\u001b[K" + line);
    } else {
      err.println("espalier: " + line);
    }
    err.flush();
    drawn = true;
  }

  void clear() {
    if (drawn && terminal) {
      err.print("\r\u001b[K");
      err.flush();
    }
    drawn = false;
  }
}

package org.espalier.cli;

import java.util.Map;
import java.util.function.Consumer;
import org.espalier.recipe.RunMonitor;

/** A run on the terminal. */
final class CommandMonitor implements RunMonitor {
  private final Consumer<String> notes;
  private volatile Progress progress;
  private volatile boolean stopped;

  CommandMonitor(Consumer<String> notes) {
    this.notes = notes;
  }

  /** Shows the run here from now on. */
  void showOn(Progress shown) {
    progress = shown;
  }

  /** Makes {@link #stopRequested} true. */
  void stop() {
    stopped = true;
  }

  @Override
  public void note(String text) {
    notes.accept(text);
  }

  @Override
  public void progress(String text, long done, long total) {
    Progress shown = progress;
    if (shown != null) {
      shown.update(text, done, total);
    }
  }

  @Override
  public boolean stopRequested() {
    return stopped;
  }

  @Override
  public Map<String, Object> program() {
    String commit = Build.current().commit();
    return commit == null ? Map.of() : Map.of("commit", commit);
  }
}

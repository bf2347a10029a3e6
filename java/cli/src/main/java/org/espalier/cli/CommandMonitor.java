package org.espalier.cli;

import java.util.LinkedHashMap;
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
    Build build = Build.current();
    Map<String, Object> program = new LinkedHashMap<>();
    program.put("espalier", build.version());
    if (build.commit() != null) {
      program.put("commit", build.commit());
    }
    return program;
  }
}

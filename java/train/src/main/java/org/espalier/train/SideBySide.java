package org.espalier.train;

import java.util.List;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.CompletionException;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.function.Supplier;
import org.espalier.backend.CpuThreads;

/** Runs two tasks side by side on two threads, or one after the other. */
final class SideBySide implements AutoCloseable {
  private final boolean alone;
  private ExecutorService thread;

  private SideBySide(boolean alone) {
    this.alone = alone;
  }

  /** At once where the library has two threads. */
  static SideBySide onThreads() {
    return new SideBySide(false);
  }

  /** One after the other: a GPU has one queue. */
  static SideBySide inOrder() {
    return new SideBySide(true);
  }

  /** How many of two things run at the same time. */
  int width() {
    return alone ? 1 : Math.min(2, CpuThreads.get());
  }

  /**
   * Both results, in order. Returns, or throws what one of them threw, when neither runs any more.
   *
   * @param first runs in the caller's thread
   */
  <T> List<T> run(Supplier<T> first, Supplier<T> second) {
    if (width() == 1) {
      return List.of(first.get(), second.get());
    }
    if (thread == null) {
      thread =
          Executors.newSingleThreadExecutor(
              task -> {
                Thread made = new Thread(task, "espalier-second-half");
                made.setDaemon(true);
                return made;
              });
    }
    CompletableFuture<T> other = CompletableFuture.supplyAsync(second, thread);
    T mine;
    try {
      mine = first.get();
    } finally {
      other.handle((done, failure) -> null).join(); // it reads what the caller frees
    }
    try {
      return List.of(mine, other.join());
    } catch (CompletionException e) {
      if (e.getCause() instanceof Error error) {
        throw error;
      }
      throw (RuntimeException) e.getCause(); // a supplier throws no others
    }
  }

  @Override
  public void close() {
    if (thread != null) {
      thread.shutdown();
    }
  }
}

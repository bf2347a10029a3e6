package org.espalier.online;

import java.util.ArrayDeque;
import java.util.ArrayList;
import java.util.Deque;
import java.util.List;
import java.util.Locale;
import java.util.function.ToDoubleFunction;

/** The last weights that were good to examples that were held out, to which the {@link Guard} goes back from worse ones. */
final class LastGood {
  /** Null where none are held out: then nothing is remembered but weights. */
  private final Guard.Quality rule;

  private final WeightState state;
  private final Deque<Example> heldOut = new ArrayDeque<>();

  /** What was learned since. */
  private final List<Example> since = new ArrayList<>();

  private StateMemory.Checkpoint weights;

  /**
   * A way back.
   *
   * @param suspects the examples that were learned since
   */
  record Rollback(String evidence, List<Example> suspects) {}

  LastGood(Guard.Quality rule, WeightState state) {
    this.rule = rule;
    this.state = state;
  }

  /** Weights of which nothing is known yet are good; what was good before is of another world. */
  void begin(StateMemory.Checkpoint now) {
    weights = now;
    heldOut.clear();
    since.clear();
  }

  /** Whether the example of this number is held out. */
  boolean holdsOut(long number) {
    return number % rule.holdEvery() == rule.holdEvery() - 1;
  }

  /** Examples to judge by; the newest are kept. */
  void hold(List<Example> examples) {
    for (Example example : examples) {
      heldOut.addLast(example);
      if (heldOut.size() > rule.window()) {
        heldOut.removeFirst();
      }
    }
  }

  void learned(List<Example> examples) {
    if (rule != null) {
      since.addAll(examples);
    }
  }

  /**
   * Compares the weights with the last good ones, and restores those where they are better.
   *
   * @param error of the state's weights to examples
   * @return null where the weights stay: they are the last good ones then
   */
  Rollback check(ToDoubleFunction<List<Example>> error) {
    if (heldOut.size() < rule.window()) {
      weights = state.checkpoint();
      since.clear();
      return null;
    }
    StateMemory.Checkpoint now = state.checkpoint();
    double live = error.applyAsDouble(heldOut());
    state.restore(weights);
    double before = error.applyAsDouble(heldOut());
    if (live - before <= rule.tolerance()) {
      state.restore(now);
      weights = now;
      since.clear();
      return null;
    }
    String evidence =
        String.format(
            Locale.ROOT,
            "the error of the newest %d held-out examples is %.4f, that of the last good version is"
                + " %.4f; %d examples are taken back",
            heldOut.size(),
            live,
            before,
            since.size());
    List<Example> suspects = List.copyOf(since);
    since.clear();
    return new Rollback(evidence, suspects);
  }

  StateMemory.Checkpoint weights() {
    return weights;
  }

  /** The examples that are held out, the oldest first. */
  List<Example> heldOut() {
    return List.copyOf(heldOut);
  }

  /** The examples that were learned since the weights were good. */
  List<Example> learnedSince() {
    return List.copyOf(since);
  }

  /** Takes what was saved. */
  void set(StateMemory.Checkpoint good, List<Example> held, List<Example> learned) {
    begin(good);
    heldOut.addAll(held);
    since.addAll(learned);
  }
}

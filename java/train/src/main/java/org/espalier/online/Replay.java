package org.espalier.online;

import java.util.ArrayList;
import java.util.List;
import org.espalier.CounterRandom;

/** A sample of the examples that were learned, some of which each step learns again. Not for several threads. */
final class Replay {
  /** Null where nothing is learned again; then nothing is kept. */
  private final OnlineSettings.Replay rule;

  private final long seed;
  private final List<Example> reservoir = new ArrayList<>();
  private CounterRandom random;

  Replay(OnlineSettings settings) {
    rule = settings.replay();
    seed = settings.seed();
    random = new CounterRandom(seed, 0);
  }

  /** How many examples are kept at the most. */
  static int capacity(OnlineSettings settings) {
    return settings.replay() == null ? 0 : settings.replay().capacity();
  }

  /** How many examples a step learns again. */
  static int perStep(OnlineSettings settings) {
    return settings.replay() == null ? 0 : settings.replay().perStep();
  }

  /** Examples for a step to learn again; none where none are kept. */
  List<Example> draw() {
    List<Example> drawn = new ArrayList<>();
    for (int i = 0; !reservoir.isEmpty() && i < rule.perStep(); i++) {
      drawn.add(reservoir.get((int) random.below(reservoir.size())));
    }
    return drawn;
  }

  /**
   * Has each of some examples that were learned the chance to be kept that all others have had.
   *
   * @param learned how many were learned so far, these included; their order does not matter for the sample
   */
  void learned(List<Example> batch, long learned) {
    for (int i = 0; rule != null && i < batch.size(); i++) {
      if (reservoir.size() < rule.capacity()) {
        reservoir.add(batch.get(i));
      } else {
        long at = random.below(learned);
        if (at < rule.capacity()) {
          reservoir.set((int) at, batch.get(i));
        }
      }
    }
  }

  void clear() {
    reservoir.clear();
  }

  /** Those that are kept. */
  List<Example> kept() {
    return List.copyOf(reservoir);
  }

  /** How many random numbers were drawn. */
  long drawn() {
    return random.counter();
  }

  /** Takes what was saved. */
  void set(List<Example> kept, long drawn) {
    reservoir.clear();
    reservoir.addAll(kept);
    random = new CounterRandom(seed, drawn);
  }
}

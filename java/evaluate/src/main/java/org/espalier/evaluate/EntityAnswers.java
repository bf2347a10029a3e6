package org.espalier.evaluate;

import java.util.Set;
import org.espalier.evaluate.EntityTags.Entity;

/** The entities that one model finds in texts, and their F1. */
final class EntityAnswers {
  private final EntityTags tags;
  private long found;
  private long actual;
  private long right;

  EntityAnswers(EntityTags tags) {
    this.tags = tags;
  }

  /**
   * Takes a text.
   *
   * @param given the classes that the model gives its words; −1 for none
   * @param labels the right ones
   */
  void add(int[] given, int[] labels) {
    Set<Entity> own = tags.entities(given);
    Set<Entity> known = tags.entities(labels);
    found += own.size();
    actual += known.size();
    own.retainAll(known);
    right += own.size();
  }

  /** 2 · right / (found + actual) over all types and texts together; NaN where there is no entity. */
  double f1() {
    return found + actual == 0 ? Double.NaN : 2.0 * right / (found + actual);
  }
}

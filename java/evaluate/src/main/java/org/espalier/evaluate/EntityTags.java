package org.espalier.evaluate;

import java.util.HashSet;
import java.util.List;
import java.util.Set;

/**
 * Classes of words that say which words are an entity, and of what type: {@code O} for none, {@code B-PER} for the first
 * word of a PER, {@code I-PER} for a further one; where they tell it, {@code E-PER} or {@code L-PER} for its last and
 * {@code S-PER} or {@code U-PER} for its only one. The type may be missing, as in {@code B}.
 *
 * <p>Which entities a sequence of tags holds is decided as the evaluation of CoNLL-2000 decides it. An entity begins at a
 * word that has another tag than O where the word before has O, or another type, or is the last or only one of an entity,
 * or where the word itself is the first or only one of one; so at I after O and after another type too. It ends before the
 * next word that has O or begins one.
 */
final class EntityTags {
  private static final String NONE = "O";

  private final char[] places;
  private final String[] types;

  private EntityTags(List<String> classes) {
    places = new char[classes.size()];
    types = new String[classes.size()];
    for (int c = 0; c < places.length; c++) {
      places[c] = classes.get(c).charAt(0);
      types[c] = classes.get(c).substring(Math.min(2, classes.get(c).length()));
    }
  }

  /**
   * The tags that classes are.
   *
   * @param classes their names, in their order
   * @return null where they are no such tags: one is neither O nor of an entity, or none is O, or all are
   */
  static EntityTags of(List<String> classes) {
    boolean all = classes.stream().allMatch(name -> name.matches("O|[BIELSU](-.+)?"));
    boolean none = classes.contains(NONE);
    return all && none && classes.size() > 1 ? new EntityTags(classes) : null;
  }

  /** How many classes there are. */
  int size() {
    return places.length;
  }

  /**
   * An entity.
   *
   * @param from its first word
   * @param to the word behind its last
   */
  record Entity(int from, int to, String type) {}

  /**
   * The entities of a text.
   *
   * @param classes of its words; −1 is O
   */
  Set<Entity> entities(int[] classes) {
    Set<Entity> entities = new HashSet<>();
    int from = -1;
    for (int i = 0; i <= classes.length; i++) {
      int before = i == 0 ? -1 : classes[i - 1];
      int now = i == classes.length ? -1 : classes[i];
      boolean parts = isNone(now) || isNone(before) || isParted(before, now);
      if (from >= 0 && parts) {
        entities.add(new Entity(from, i, types[before]));
        from = -1;
      }
      if (!isNone(now) && parts) {
        from = i;
      }
    }
    return entities;
  }

  private boolean isNone(int tag) {
    return tag < 0 || places[tag] == 'O';
  }

  /** Whether two words of entities are of different ones. */
  private boolean isParted(int before, int now) {
    return "ELSU".indexOf(places[before]) >= 0
        || "BSU".indexOf(places[now]) >= 0
        || !types[before].equals(types[now]);
  }
}

package org.espalier.recipe;

import java.util.HashSet;
import java.util.List;
import java.util.Set;
import java.util.function.Supplier;
import org.espalier.InputException;

/**
 * Which class a word is: as the user says, else as the model does, else, of folders of images, in the alphabetical order of
 * all of them.
 *
 * @param given by the user; empty where nothing is said
 * @param model gives the names of the model's classes, empty where it has none; asked where labels are words
 */
public record ClassOrder(List<String> given, Supplier<List<String>> model) {
  /**
   * @throws InputException where two classes have one name, or one has none
   */
  public ClassOrder {
    given = List.copyOf(given);
    if (Set.copyOf(given).size() < given.size()) {
      throw new InputException("of the classes " + given + " a word is there twice");
    }
    if (given.stream().anyMatch(String::isBlank)) {
      throw new InputException("of the classes " + given + " one has no name");
    }
  }

  /**
   * The names of the classes.
   *
   * @param words whether labels may be words
   * @param folders the names of folders that are classes; empty where there are none
   * @return empty where labels are numbers
   */
  List<String> names(boolean words, List<String> folders) {
    if (!given.isEmpty() || !words) {
      return given;
    }
    List<String> own = model.get();
    // A name that two classes have says nothing of either.
    boolean distinct = new HashSet<>(own).size() == own.size();
    return distinct && new HashSet<>(own).containsAll(folders) ? own : folders;
  }
}

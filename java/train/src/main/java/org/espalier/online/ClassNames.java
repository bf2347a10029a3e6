package org.espalier.online;

import java.util.HashSet;
import java.util.List;
import org.espalier.InputException;
import org.espalier.format.Names;
import org.espalier.format.NearNames;

/**
 * What classes are called, where they are more than numbers.
 *
 * @param names in the order of the classes; empty where these are numbers alone
 */
public record ClassNames(List<String> names) {
  /** Classes are numbers alone. */
  public static final ClassNames NONE = new ClassNames(List.of());

  /**
   * @throws IllegalArgumentException where names are no two or more different words
   */
  public ClassNames {
    names = List.copyOf(names);
    if (names.size() == 1) {
      throw new IllegalArgumentException("one class alone, " + names + "; two or more are right");
    }
    if (new HashSet<>(names).size() < names.size()) {
      throw new IllegalArgumentException(names + " has a word twice");
    }
    for (String name : names) {
      if (name.isBlank() || isNumber(name)) {
        throw new IllegalArgumentException(
            Names.quote(name) + " is no word; numbers are classes from 0 on without being named");
      }
    }
  }

  /** Whether a word is of digits, which are a class without being named. */
  public static boolean isNumber(String name) {
    return name.matches("[+-]?[0-9.]+");
  }

  public boolean isEmpty() {
    return names.isEmpty();
  }

  /**
   * The class of a name.
   *
   * @throws InputException where there is none
   */
  public int of(String name) {
    int found = names.indexOf(name);
    if (found < 0) {
      throw new InputException(
          "the label "
              + Names.quote(name)
              + (isEmpty()
                  ? " is a word; classes are integers from 0 on, or words where the recipe says"
                      + " classes: […]"
                  : " is no class; there are " + NearNames.list(name, names)));
    }
    return found;
  }

  /**
   * Checks that a model has as many classes.
   *
   * @param outputs of the model; one is for two classes
   * @throws InputException where it has not
   */
  public void requireFor(int outputs) {
    if (!isEmpty() && names.size() != Math.max(2, outputs)) {
      throw new InputException(
          "the recipe names "
              + names.size()
              + " classes, and the model has "
              + Math.max(2, outputs));
    }
  }
}

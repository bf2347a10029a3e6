package org.espalier.recipe;

import java.util.Collection;
import java.util.List;
import java.util.function.Predicate;
import org.espalier.InputException;
import org.espalier.compress.Glob;
import org.espalier.format.NearNames;

/**
 * The weights that a stage takes, by globs over their names.
 *
 * @param stage where they were written
 * @param include none for all
 */
record NameGlobs(Settings stage, List<Glob> include, List<Glob> exclude)
    implements Predicate<String> {
  @Override
  public boolean test(String name) {
    return (include.isEmpty() || include.stream().anyMatch(g -> g.test(name)))
        && exclude.stream().noneMatch(g -> g.test(name));
  }

  /**
   * Checks that each glob matches something.
   *
   * @param names of all weights
   * @throws InputException for one that matches none, naming its place
   */
  void check(Collection<String> names) {
    check("include", include, names);
    check("exclude", exclude, names);
  }

  private void check(String key, List<Glob> globs, Collection<String> names) {
    for (Glob glob : globs) {
      if (names.stream().noneMatch(glob)) {
        throw stage.wrong(
            key,
            "'"
                + glob.text()
                + "' matches no weight; near it are "
                + NearNames.list(glob.text(), names));
      }
    }
  }
}

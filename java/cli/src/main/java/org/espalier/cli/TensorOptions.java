package org.espalier.cli;

import java.util.Collection;
import java.util.List;
import java.util.Set;
import java.util.function.Predicate;
import java.util.stream.Collectors;
import org.espalier.InputException;
import org.espalier.compress.Glob;
import org.espalier.format.NearNames;
import picocli.CommandLine.Option;

/** The options that choose tensors by name. */
final class TensorOptions {
  @Option(
      names = "--include",
      paramLabel = "GLOB",
      description =
          "Take the tensors whose names match instead of the default choice. Repeatable. GLOB is"
              + " a shell glob: *, ?, [...]; quote it.")
  private List<String> include = List.of();

  @Option(
      names = "--exclude",
      paramLabel = "GLOB",
      description = "Leave the tensors out whose names match. Repeatable.")
  private List<String> exclude = List.of();

  /** Whether the user named tensors, and the default choice does not count. */
  boolean replacesDefault() {
    return !include.isEmpty();
  }

  /** Whether the user chose tensors. */
  boolean given() {
    return !include.isEmpty() || !exclude.isEmpty();
  }

  /**
   * The chosen names.
   *
   * @param names the names of all tensors that could be chosen
   * @param byDefault which of them are taken where the user includes none
   * @throws InputException if a glob matches none of the names, or nothing is left
   */
  Set<String> choose(Collection<String> names, Predicate<String> byDefault) {
    List<Glob> included = globs("--include", include, names);
    List<Glob> excluded = globs("--exclude", exclude, names);
    Set<String> chosen =
        names.stream()
            .filter(
                name ->
                    included.isEmpty()
                        ? byDefault.test(name)
                        : included.stream().anyMatch(glob -> glob.test(name)))
            .filter(name -> excluded.stream().noneMatch(glob -> glob.test(name)))
            .collect(Collectors.toUnmodifiableSet());
    if (names.isEmpty()) {
      throw new InputException("the model has no floating-point tensor");
    }
    if (chosen.isEmpty()) {
      throw new InputException(
          include.isEmpty() && exclude.isEmpty()
              ? "the model has no tensor that is taken by default; --include names some of "
                  + NearNames.list("weight", names)
              : "no tensor is left after --include and --exclude");
    }
    return chosen;
  }

  private static List<Glob> globs(String option, List<String> texts, Collection<String> names) {
    List<Glob> globs = texts.stream().map(Glob::parse).toList();
    for (Glob glob : globs) {
      if (names.stream().noneMatch(glob)) {
        throw new InputException(
            option
                + " '"
                + glob.text()
                + "' matches no floating-point tensor; near it are "
                + NearNames.list(glob.text(), names));
      }
    }
    return globs;
  }
}

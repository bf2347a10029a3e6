package org.espalier.cli;

import java.util.Collection;
import java.util.LinkedHashSet;
import java.util.List;
import java.util.Set;
import org.espalier.InputException;
import org.espalier.compress.Glob;
import org.espalier.compress.onnx.Answers;
import org.espalier.format.NearNames;
import org.espalier.format.onnx.OnnxModel;
import picocli.CommandLine.Option;

/** The option that says by which of a model's outputs a smaller one is judged. */
final class OutputOptions {
  @Option(
      names = "--outputs",
      paramLabel = "GLOB",
      split = ",",
      description =
          "Judge by the outputs whose names match, each alike. Repeatable. Default: all of floats,"
              + " without keys and values for a next step and without those that another output is"
              + " computed from, as feature maps are, unless it is the first.")
  private List<String> globs = List.of();

  /** Whether the user named outputs. */
  boolean given() {
    return !globs.isEmpty();
  }

  /**
   * The outputs that count.
   *
   * @throws InputException if a glob matches none that can be compared
   */
  Set<String> choose(OnnxModel model) {
    if (!given()) {
      return Answers.of(model);
    }
    List<String> names = Answers.comparable(model);
    if (names.isEmpty()) {
      throw new InputException("--outputs: " + model.name() + " has no output of floats");
    }
    Set<String> chosen = new LinkedHashSet<>();
    for (String text : globs) {
      Collection<String> matching = names.stream().filter(Glob.parse(text)).toList();
      if (matching.isEmpty()) {
        throw new InputException(
            "--outputs '"
                + text
                + "' matches no output of floats of "
                + model.name()
                + "; near it are "
                + NearNames.list(text, names));
      }
      chosen.addAll(matching);
    }
    return chosen;
  }
}

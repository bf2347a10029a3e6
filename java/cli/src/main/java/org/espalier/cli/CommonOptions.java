package org.espalier.cli;

import com.fasterxml.jackson.core.JsonProcessingException;
import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.ObjectMapper;
import com.fasterxml.jackson.databind.SerializationFeature;
import java.io.PrintWriter;
import java.util.List;
import picocli.CommandLine.Model.CommandSpec;
import picocli.CommandLine.Option;
import picocli.CommandLine.Spec;
import picocli.CommandLine.Spec.Target;

/** The options of every command, and where its output goes. */
final class CommonOptions {
  /** The exit code of what was done, but misses a requirement. */
  private static final int MISSED = 3;

  @Spec(Target.MIXEE)
  private CommandSpec spec;

  @Option(names = "--json", description = "Print the result as JSON.")
  private boolean json;

  @Option(
      names = "--verbose",
      description = "Log more, and show where an error happened. ESPALIER_DEBUG=1 does the same.")
  private boolean verbose;

  @Option(
      names = {"-h", "--help"},
      usageHelp = true,
      description = "Print this help.")
  private boolean help;

  /** Whether the result is wanted as JSON, which may be said before the command's name too. */
  boolean json() {
    for (CommandSpec outer = spec.parent(); outer != null; outer = outer.parent()) {
      if (outer.findOption("--json").<Boolean>getValue()) {
        return true;
      }
    }
    return json;
  }

  /** For results. */
  PrintWriter out() {
    return spec.commandLine().getOut();
  }

  /** For people: progress, notes, warnings. */
  PrintWriter err() {
    return spec.commandLine().getErr();
  }

  /** Prints a line for people that is no result. */
  void note(String text) {
    err().println("espalier: " + text);
  }

  /**
   * The exit code of a command that is done: 0, or 3 where a requirement is missed, which is told.
   *
   * @param missed what the requirements are and what was measured
   */
  int exitCode(List<String> missed) {
    missed.forEach(text -> note("missed: " + text));
    return missed.isEmpty() ? 0 : MISSED;
  }

  /** Prints JSON as the result. */
  void print(JsonNode result) {
    // Made here: its classes would cost every start a tenth of a second.
    ObjectMapper mapper = new ObjectMapper().enable(SerializationFeature.INDENT_OUTPUT);
    try {
      out().println(mapper.writeValueAsString(result));
    } catch (JsonProcessingException e) {
      throw new IllegalStateException("cannot write the JSON of the result", e);
    }
  }
}

package org.espalier.cli;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertTrue;

import com.fasterxml.jackson.core.JsonProcessingException;
import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.ObjectMapper;
import java.io.IOException;
import java.io.PrintWriter;
import java.io.StringWriter;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Arrays;
import java.util.List;
import java.util.TreeMap;
import java.util.stream.Stream;

/**
 * One command line that ran in this JVM.
 *
 * @param code its exit code
 * @param out what it wrote to standard output
 * @param err what it wrote to standard error
 */
record Run(int code, String out, String err) {
  static Run of(Object... args) {
    StringWriter out = new StringWriter();
    StringWriter err = new StringWriter();
    int code =
        Espalier.run(
            new PrintWriter(out),
            new PrintWriter(err),
            Stream.of(args).map(String::valueOf).toArray(String[]::new));
    return new Run(code, out.toString(), err.toString());
  }

  /** Learns a stream into a store by a recipe. */
  static Run online(Path input, Path recipe, Path store, Object... more) {
    return learned(List.of("--input", input, "--recipe", recipe, "--store", store), more);
  }

  /** Goes on with a stream from the current version of a store. */
  static Run resume(Path input, Path store, Object... more) {
    return learned(List.of("--input", input, "--resume", "--store", store), more);
  }

  private static Run learned(List<Object> options, Object... more) {
    return of(
        Stream.of(Stream.of("online"), options.stream(), Stream.of(more))
            .flatMap(part -> part)
            .toArray());
  }

  /** Fails unless the command line was done. */
  Run done() {
    assertEquals(0, code, err);
    return this;
  }

  /** What it printed, as JSON. */
  JsonNode json() {
    done();
    try {
      return new ObjectMapper().readTree(out);
    } catch (JsonProcessingException e) {
      throw new AssertionError("no JSON: " + out, e);
    }
  }

  /**
   * Runs a command line that must be refused: exit code 2, one message that names all {@code words},
   * no stack trace, no result, and nothing in {@code folder} made, removed or changed.
   */
  static void refused(Path folder, String[] words, Object... args) {
    TreeMap<String, String> before = content(folder);
    Run run = of(args);
    assertEquals(
        2,
        run.code,
        () -> String.join(" ", Stream.of(args).map(String::valueOf).toList()) + "\n" + run.err);
    for (String word : words) {
      assertTrue(run.err.contains(word), () -> "no '" + word + "' in: " + run.err);
    }
    assertFalse(run.err.contains("\tat "), run.err);
    assertEquals("", run.out);
    assertEquals(before, content(folder), "files changed");
  }

  /** Every path below a folder with its size and a hash of its bytes. */
  private static TreeMap<String, String> content(Path folder) {
    TreeMap<String, String> content = new TreeMap<>();
    try (Stream<Path> paths = Files.walk(folder)) {
      for (Path path : (Iterable<Path>) paths::iterator) {
        content.put(
            path.toString(),
            Files.isRegularFile(path)
                ? Files.size(path) + " " + Arrays.hashCode(Files.readAllBytes(path))
                : "folder");
      }
    } catch (IOException e) {
      throw new AssertionError(e);
    }
    return content;
  }
}

package org.espalier.torch.onnx;

import static org.junit.jupiter.api.Assertions.assertTrue;

import java.io.IOException;
import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.LinkedHashSet;
import java.util.List;
import java.util.Map;
import java.util.Set;
import org.espalier.compress.Glob;

/**
 * The cases that a file lists as ones that do not pass: a glob and the reason, one a line, the first that fits counts. Where
 * a question mark stands first they pass in some packages of the cases.
 */
final class ConformanceExceptions {
  private final Map<Glob, String> reasons = new LinkedHashMap<>();
  private final Set<Glob> passing = new LinkedHashSet<>();
  private final Set<Glob> unused;

  ConformanceExceptions(String file) throws IOException {
    try (var in = ConformanceExceptions.class.getResourceAsStream(file)) {
      for (String line : new String(in.readAllBytes()).split("\n")) {
        if (!line.isBlank() && !line.startsWith("#")) {
          int colon = line.indexOf(':');
          assertTrue(colon > 0 && line.length() > colon + 10, "no reason: " + line);
          boolean passes = line.startsWith("?");
          Glob glob = Glob.parse(line.substring(passes ? 1 : 0, colon).strip());
          reasons.put(glob, line.substring(colon + 1).strip());
          if (passes) {
            passing.add(glob);
          }
        }
      }
    }
    unused = new LinkedHashSet<>(reasons.keySet());
  }

  /** The reason for a case that ran; null where it is not listed. */
  String reason(String name) {
    for (Map.Entry<Glob, String> e : reasons.entrySet()) {
      if (e.getKey().test(name)) {
        unused.remove(e.getKey());
        return e.getValue();
      }
    }
    return null;
  }

  /** Whether a case that is listed may pass all the same. */
  boolean mayPass(String name) {
    return reasons.keySet().stream().filter(g -> g.test(name)).findFirst().stream()
        .anyMatch(passing::contains);
  }

  /** What is listed and ran in no case, though there is one of its name: not every version of the cases has all. */
  List<String> unused(List<String> names) {
    List<String> found = new ArrayList<>();
    for (Glob g : unused) {
      if (names.stream().anyMatch(g)) {
        found.add(g.text() + " is listed but is no case of operators that are covered");
      }
    }
    return found;
  }
}

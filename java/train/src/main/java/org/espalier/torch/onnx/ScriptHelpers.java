package org.espalier.torch.onnx;

import java.io.IOException;
import java.io.InputStream;
import java.io.UncheckedIOException;
import java.nio.charset.StandardCharsets;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;

/** The methods of {@code helpers.py}, which says what they are. */
final class ScriptHelpers {
  /** The text of each method by its name. */
  private static final Map<String, String> SOURCES = new LinkedHashMap<>();

  static {
    String text = resource().replaceAll("(?m)^(#.*)?\\n", "").replaceAll("\\\\\\n *", "");
    for (String method : text.split("(?m)^(?=def )")) {
      SOURCES.put(method.substring("def ".length(), method.indexOf('(')), method);
    }
  }

  private ScriptHelpers() {}

  private static String resource() {
    try (InputStream in = ScriptHelpers.class.getResourceAsStream("helpers.py")) {
      return new String(in.readAllBytes(), StandardCharsets.UTF_8);
    } catch (IOException e) {
      throw new UncheckedIOException(e);
    }
  }

  /** The text of a method. */
  static String source(String name) {
    return SOURCES.get(name);
  }

  /** The other methods that one calls. */
  static List<String> uses(String name) {
    String source = SOURCES.get(name);
    return SOURCES.keySet().stream().filter(h -> source.contains("self." + h + "(")).toList();
  }
}

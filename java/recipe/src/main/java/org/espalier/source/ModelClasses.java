package org.espalier.source;

import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.json.JsonMapper;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import org.espalier.InputException;
import org.espalier.format.JsonFile;

/** The names of classes in a model's {@code config.json}. */
final class ModelClasses {
  private static final int MOST_BYTES = 10_000_000;
  private static final JsonMapper JSON = new JsonMapper();

  private ModelClasses() {}

  /**
   * Reads {@code id2label}, an object of names by the numbers of the classes from 0 on.
   *
   * @return empty where there is none, or it does not name all from 0 on
   * @throws InputException where the file is no JSON object
   */
  static List<String> read(Path file) {
    JsonNode config = JsonFile.read(file, MOST_BYTES, JSON);
    JsonNode names = config.path("id2label");
    List<String> classes = new ArrayList<>();
    for (int c = 0; c < names.size(); c++) {
      JsonNode name = names.path(Integer.toString(c));
      if (!name.isTextual()) {
        return List.of();
      }
      classes.add(name.textValue());
    }
    return classes;
  }
}

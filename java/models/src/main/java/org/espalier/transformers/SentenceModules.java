package org.espalier.transformers;

import com.fasterxml.jackson.databind.JsonNode;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import java.util.regex.Pattern;
import org.espalier.InputException;
import org.espalier.format.JsonFile;
import org.espalier.format.Names;

/**
 * What sentence-transformers does with texts, one module after the other: its {@code modules.json}.
 *
 * @param all in their order
 */
public record SentenceModules(List<Module> all) {
  /** The name of the file. */
  public static final String FILE = "modules.json";

  private static final int MOST_BYTES = 1 << 20;
  private static final String POOLING = "Pooling";

  /** One folder, or one in another, without ways out. */
  private static final Pattern FOLDER = Pattern.compile("(?!\\.)[\\w.-]+(/(?!\\.)[\\w.-]+)*");

  /**
   * One module.
   *
   * @param kind the name of its class, without the package
   * @param folder where its own files lie; empty for the folder of {@code modules.json}
   */
  public record Module(String kind, String folder) {}

  public SentenceModules {
    all = List.copyOf(all);
  }

  /**
   * Reads the file.
   *
   * @throws InputException if it cannot be read, or is no list of modules
   */
  public static SentenceModules read(Path file) {
    JsonNode root = JsonFile.read(file, MOST_BYTES);
    if (!root.isArray()) {
      throw new InputException(
          file + " is no list of modules, [{\"idx\": 0, \"path\": \"\", \"type\": \"…\"}, …]");
    }
    List<Module> all = new ArrayList<>();
    for (JsonNode module : root) {
      JsonNode type = module.path("type");
      JsonNode folder = module.path("path");
      if (!type.isTextual() || !folder.isTextual()) {
        throw new InputException(
            file + ": module " + all.size() + " has no texts as its type and path");
      }
      if (!folder.textValue().isEmpty() && !FOLDER.matcher(folder.textValue()).matches()) {
        throw new InputException(
            file
                + ": module "
                + all.size()
                + " has the path "
                + Names.quote(folder.textValue())
                + "; a folder beside the file is right");
      }
      String kind = type.textValue();
      all.add(new Module(kind.substring(kind.lastIndexOf('.') + 1), folder.textValue()));
    }
    return new SentenceModules(all);
  }

  /** What makes one embedding of the states of tokens; null where nothing does. */
  public Module pooling() {
    return all.stream().filter(module -> module.kind.equals(POOLING)).findFirst().orElse(null);
  }

  /** The kinds of modules that make other embeddings than states of the last layer and their pooling. */
  public List<String> others() {
    List<String> plain = List.of("Transformer", POOLING, "Normalize");
    return all.stream().map(Module::kind).filter(kind -> !plain.contains(kind)).toList();
  }
}

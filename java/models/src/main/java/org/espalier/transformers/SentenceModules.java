package org.espalier.transformers;

import com.fasterxml.jackson.databind.JsonNode;
import java.nio.file.Files;
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
  static final String DENSE = "Dense";
  static final String NORMALIZE = "Normalize";

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
    List<String> plain = List.of("Transformer", POOLING, NORMALIZE);
    return all.stream().map(Module::kind).filter(kind -> !plain.contains(kind)).toList();
  }

  /**
   * What follows the pooling where linear layers are part of it, in its order: {@code Dense} and {@code Normalize}. Empty where
   * there is no Dense, or other modules are, of which nothing here computes embeddings.
   */
  public List<Module> head() {
    List<String> kinds = all.stream().map(Module::kind).toList();
    if (kinds.size() < 3 || !kinds.subList(0, 2).equals(List.of("Transformer", POOLING))) {
      return List.of();
    }
    List<String> behind = kinds.subList(2, kinds.size());
    boolean known = List.of(DENSE, NORMALIZE).containsAll(behind);
    return known && behind.contains(DENSE) ? all.subList(2, all.size()) : List.of();
  }

  /** The folders of the modules Dense that graphs have which are made of a folder with this file; empty for none. */
  public static List<String> dense(Path folder) {
    Path file = folder.resolve(FILE);
    return Files.isRegularFile(file)
        ? read(file).head().stream()
            .filter(module -> module.kind.equals(DENSE))
            .map(Module::folder)
            .toList()
        : List.of();
  }
}

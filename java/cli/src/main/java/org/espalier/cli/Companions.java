package org.espalier.cli;

import com.fasterxml.jackson.databind.node.ObjectNode;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Map;
import java.util.TreeMap;
import java.util.function.Consumer;
import org.espalier.format.AtomicFile;
import org.espalier.image.ImageProcessor;
import org.espalier.source.ModelSource;
import org.espalier.source.SentencePooling;
import org.espalier.transformers.SentenceModules;

/**
 * What lies beside the weights in a folder of safetensors and says how they are fed: it goes beside an ONNX model that is made
 * of the folder, as {@code STEM-tokenizer.json} and the like, where commands look for it.
 */
final class Companions {
  /** What a tokenizer is called. */
  static final String TOKENIZER = "tokenizer";

  private static final Map<String, String> NAMES =
      Map.of(TOKENIZER, "tokenizer.json", "image processor", ImageProcessor.FILE_NAME);

  /** Where each comes from. */
  private final Map<String, Path> from = new TreeMap<>();

  /** Where it goes, by what it is. */
  private final Map<String, Path> beside = new TreeMap<>();

  /**
   * Finds them.
   *
   * @param source a folder; beside what else is a model nothing is looked for
   * @param target the ONNX model that is written
   * @throws org.espalier.InputException where the folder says how states are pooled and it cannot be read
   */
  Companions(ModelSource source, Path target) {
    if (!Files.isDirectory(source.path())) {
      return;
    }
    NAMES.forEach((what, name) -> add(what, source.path().resolve(name), target, name));
    SentencePooling pooling = source.sentencePooling();
    if (pooling != null) {
      add("modules", pooling.modules(), target, SentenceModules.FILE);
      add("pooling", pooling.file(), target, ModelSource.POOLING);
    }
  }

  private void add(String what, Path file, Path target, String name) {
    if (Files.isRegularFile(file)) {
      from.put(what, file);
      beside.put(what, beside(target, name));
    }
  }

  /** Where a file of a name lies beside an ONNX model that is only that model's. */
  static Path beside(Path target, String name) {
    String model = target.getFileName().toString();
    int end = model.endsWith(".onnx") ? model.length() - ".onnx".length() : model.length();
    return target.resolveSibling(model.substring(0, end) + "-" + name);
  }

  /** Leaves one out that is written otherwise. */
  void leaveOut(String what) {
    from.remove(what);
    beside.remove(what);
  }

  /** Refuses places where nothing can be written. */
  void check() {
    beside.forEach((what, to) -> AtomicFile.check(to, from.get(what)));
  }

  /** Writes them. */
  void write() {
    beside.forEach((what, to) -> AtomicFile.copy(from.get(what), to));
  }

  /** Adds where they are. */
  void addTo(ObjectNode json) {
    beside.forEach((what, path) -> json.put(what.replace(' ', '_'), path.toString()));
  }

  /** Says where they are, a line each. */
  void tell(Consumer<String> lines) {
    beside.forEach((what, path) -> lines.accept("its " + what + " as " + path));
  }
}

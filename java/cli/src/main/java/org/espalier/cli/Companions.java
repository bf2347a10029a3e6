package org.espalier.cli;

import com.fasterxml.jackson.databind.node.ObjectNode;
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
 * What says how a model is fed and is only its own, in its folder of safetensors or beside it with its name: it goes beside an
 * ONNX model that is made of it, as {@code STEM-tokenizer.json} and the like, where commands look for it first.
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
   * @param source the model
   * @param target the ONNX model that is written
   * @throws org.espalier.InputException where a file says how states are pooled and cannot be read
   */
  Companions(ModelSource source, Path target) {
    NAMES.forEach((what, name) -> add(what, source.own(name), target, name));
    SentencePooling pooling =
        source.own(SentenceModules.FILE) == null ? null : source.sentencePooling();
    if (pooling != null) {
      add("modules", pooling.modules(), target, SentenceModules.FILE);
      add("pooling", pooling.file(), target, ModelSource.POOLING);
    }
  }

  private void add(String what, Path file, Path target, String name) {
    Path to = beside(target, name);
    // They are one where the model would be written over itself, which is refused.
    if (file != null
        && !file.toAbsolutePath().normalize().equals(to.toAbsolutePath().normalize())) {
      from.put(what, file);
      beside.put(what, to);
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

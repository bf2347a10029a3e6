package org.espalier.cli;

import java.util.function.Consumer;
import org.espalier.image.ImageProcessor;
import org.espalier.source.MavenEntry;
import org.espalier.source.ModelSource;
import picocli.CommandLine.Option;

/** The options about how images become tensors. */
final class ImageOptions {
  @Option(
      names = "--image-processor",
      paramLabel = "FILE.json",
      description =
          "How images are resized, cropped and scaled: the model's preprocessor_config.json, as"
              + " Hugging Face has it. Default: the one beside the model, in its folder or"
              + " artefact.")
  private String processor;

  /** The file that the user named; null for none. */
  String named() {
    return processor;
  }

  /** Whether the user named one. */
  boolean given() {
    return processor != null;
  }

  /**
   * Reads the file that the user named, or the one beside the model.
   *
   * @param notes receives a line for people about a file that was found
   */
  ImageProcessor open(ModelSource model, Consumer<String> notes) {
    if (processor != null) {
      return ImageProcessor.read(
          MavenEntry.isOne(processor)
              ? model.maven().file(MavenEntry.parse(processor))
              : ModelSource.path(processor));
    }
    ImageProcessor found = ImageProcessor.read(model.imageProcessor("--image-processor"));
    if (model.entry() == null) {
      notes.accept("images become tensors as " + found.file() + " says");
    }
    return found;
  }
}

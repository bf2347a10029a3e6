package org.espalier.cli;

import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import org.espalier.InputException;
import org.espalier.format.FileTree;
import org.espalier.format.onnx.Float16Graph;
import org.espalier.format.onnx.OnnxModel;
import org.espalier.source.ModelSource;

/**
 * A float16 model as a file in the system's folder for temporary ones, whose nodes round what they give ({@link
 * Float16Graph#rounding}). Closing deletes it, as the end of the process does.
 *
 * @param source the file, given as the model was
 */
record RoundedModel(ModelSource source) implements AutoCloseable {
  private static final String PREFIX = "espalier-rounded-";

  /**
   * Writes one.
   *
   * @throws InputException if the model does not compute in 16 bits, or the file cannot be written
   */
  static RoundedModel of(ModelSource model) {
    OnnxModel onnx = OnnxModel.read(model.path());
    if (!Float16Graph.isOne(onnx)) {
      throw new InputException(
          "--round-float16 is for models that compute in 16 bits; " + model.given() + " does not");
    }
    try {
      Path folder = Files.createTempDirectory(PREFIX);
      folder.toFile().deleteOnExit();
      Path file = folder.resolve(model.path().getFileName());
      Float16Graph.rounding(onnx).write(file).forEach(made -> made.toFile().deleteOnExit());
      return new RoundedModel(
          new ModelSource(file, model.given(), null, model.kind(), model.maven()));
    } catch (IOException e) {
      throw InputException.of(
          "a model cannot be stored in " + System.getProperty("java.io.tmpdir"), e);
    }
  }

  @Override
  public void close() {
    Path folder = source.path().getParent();
    try {
      FileTree.delete(folder);
    } catch (IOException e) {
      throw InputException.of("cannot delete " + folder, e);
    }
  }
}

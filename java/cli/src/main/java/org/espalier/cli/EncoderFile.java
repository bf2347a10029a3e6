package org.espalier.cli;

import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.function.Consumer;
import org.espalier.InputException;
import org.espalier.format.FileTree;
import org.espalier.format.onnx.OnnxModel;
import org.espalier.source.ModelSource;

/**
 * The file of an encoder. What a folder of safetensors becomes lies in the system's folder for temporary files until this is
 * closed, or the process ends.
 *
 * @param source the encoder as it was named
 * @param model its ONNX file
 * @param made the folder that was made for that; null for a file that was there
 */
record EncoderFile(ModelSource source, Path model, Path made) implements AutoCloseable {
  private static final String PREFIX = "espalier-encoder-";

  /**
   * Has the file there.
   *
   * @param notes receives a line for people about what of a folder is no part of it
   * @throws InputException if a folder cannot be read as one file, or that cannot be written
   */
  static EncoderFile of(ModelSource source, Consumer<String> notes) {
    if (!Files.isDirectory(source.path())) {
      return new EncoderFile(source, source.path(), null);
    }
    OnnxModel onnx = source.asGiven(notes);
    if (onnx.initializerBytes() > Integer.MAX_VALUE) {
      throw new InputException(
          source.given() + " has 2 GiB of weights or more; an encoder is one file of less");
    }
    EncoderFile file;
    try {
      Path made = Files.createTempDirectory(PREFIX);
      made.toFile().deleteOnExit();
      file = new EncoderFile(source, made.resolve("encoder.onnx"), made);
    } catch (IOException e) {
      throw InputException.of(
          "a model cannot be stored in " + System.getProperty("java.io.tmpdir"), e);
    }
    try {
      onnx.write(file.model).forEach(written -> written.toFile().deleteOnExit());
      return file;
    } catch (RuntimeException e) {
      file.close();
      throw e;
    }
  }

  @Override
  public void close() {
    if (made == null) {
      return;
    }
    try {
      FileTree.delete(made);
    } catch (IOException e) {
      throw InputException.of("cannot delete " + made, e);
    }
  }
}

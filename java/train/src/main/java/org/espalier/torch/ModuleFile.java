package org.espalier.torch;

import java.io.IOException;
import java.nio.file.Path;
import java.util.List;
import org.bytedeco.pytorch.Tensor;
import org.espalier.InputException;
import org.espalier.format.AtomicFile;

/** Writes files with libtorch so that they appear whole or not at all. */
final class ModuleFile {
  /**
   * Room for what a file has beside its tensors. libtorch ends the process where it cannot write: its writer throws out
   * of a destructor.
   */
  private static final long CODE = 2 << 20;

  /** Of an entry in a file: it begins at a multiple of 64, its name is there twice. */
  private static final long PADDING = 1 << 10;

  private ModuleFile() {}

  /** Has libtorch write to a path, and may change the file then. */
  interface Content {
    void write(AtomicFile out) throws IOException;
  }

  /**
   * Writes a file.
   *
   * @param tensors that will be in it: there must be room for them
   * @throws InputException where the file cannot be written
   */
  static void write(Path file, List<Tensor> tensors, Content content) {
    try (AtomicFile out = AtomicFile.create(file)) {
      long bytes = CODE;
      for (Tensor tensor : tensors) {
        bytes += tensor.nbytes() + PADDING;
      }
      out.probe(bytes);
      try {
        content.write(out);
      } catch (IOException e) {
        throw out.failure(e);
      } catch (IllegalStateException e) {
        throw e;
      } catch (RuntimeException e) {
        throw new InputException("cannot write " + file + ": " + Libtorch.firstLine(e), e);
      }
      out.commit();
    }
  }
}

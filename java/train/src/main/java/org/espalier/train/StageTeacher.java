package org.espalier.train;

import java.io.DataOutputStream;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Arrays;
import java.util.HexFormat;
import org.espalier.InputException;
import org.espalier.format.FileTree;
import org.espalier.format.onnx.ModelStream;
import org.espalier.format.onnx.OnnxModel;

/**
 * What a stage left, as the teacher of those that follow. It is in a file, and its weights are read where they lie
 * there: they take no memory. Not safe for several threads.
 */
final class StageTeacher implements AutoCloseable {
  private final OnnxModel model;

  /** A folder that goes when this is closed; null where the file is kept. */
  private final Path temporary;

  private StageTeacher(OnnxModel model, Path temporary) {
    this.model = model;
    this.temporary = temporary;
  }

  /**
   * Writes a model and reads it from its file.
   *
   * @param folder keeps the file, where it is found again by a digest of the model, and written anew where it was damaged;
   *     null: a file that goes when this is closed
   * @throws InputException where it cannot be written
   */
  static StageTeacher of(OnnxModel left, Path folder) {
    try {
      if (folder != null) {
        Files.createDirectories(folder);
        byte[] digest = TeacherOutputs.digest(left);
        Path known = folder.resolve("teacher-" + HexFormat.of().formatHex(digest, 0, 12) + ".onnx");
        if (!holds(known, digest)) {
          left.writeToMap(known);
        }
        return new StageTeacher(OnnxModel.read(known), null);
      }
      Path made = Files.createTempDirectory(TeacherOutputs.temporaryPrefix());
      made.toFile().deleteOnExit();
      boolean whole = false;
      try {
        left.writeToMap(made.resolve("teacher.onnx")).forEach(file -> file.toFile().deleteOnExit());
        StageTeacher teacher = new StageTeacher(OnnxModel.read(made.resolve("teacher.onnx")), made);
        whole = true;
        return teacher;
      } finally {
        if (!whole) {
          FileTree.delete(made);
        }
      }
    } catch (IOException e) {
      throw InputException.of(
          "a teacher cannot be stored in "
              + (folder == null ? System.getProperty("java.io.tmpdir") : folder),
          e);
    }
  }

  private static boolean holds(Path file, byte[] digest) {
    try {
      return Files.exists(file)
          && Arrays.equals(digest, TeacherOutputs.digest(OnnxModel.read(file)));
    } catch (InputException e) {
      return false; // it, or its data, was cut or is gone
    }
  }

  OnnxModel model() {
    return model;
  }

  /** Writes the model, as {@link ModelStream} reads it. */
  void write(DataOutputStream out) throws IOException {
    ModelStream.write(model, out);
  }

  @Override
  public void close() {
    if (temporary != null) {
      try {
        FileTree.delete(temporary);
      } catch (IOException e) {
        throw InputException.of("cannot delete " + temporary, e);
      }
    }
  }
}

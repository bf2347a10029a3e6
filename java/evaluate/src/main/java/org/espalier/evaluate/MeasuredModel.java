package org.espalier.evaluate;

import java.nio.file.Path;
import org.espalier.format.FileTree;
import org.espalier.format.onnx.OnnxModel;

/** A model that is measured in ONNX Runtime: a file, or one in memory, which must not change meanwhile. */
public final class MeasuredModel {
  private final Path file;
  private final OnnxModel model;
  private final long bytes;

  private MeasuredModel(Path file, OnnxModel model, long bytes) {
    this.file = file;
    this.model = model;
    this.bytes = bytes;
  }

  public static MeasuredModel of(Path file) {
    return new MeasuredModel(file, null, -1);
  }

  public static MeasuredModel of(OnnxModel model) {
    return of(model, model.inlineSize());
  }

  /**
   * A model in memory that was made of files.
   *
   * @param bytes what the files take
   */
  public static MeasuredModel of(OnnxModel model, long bytes) {
    return new MeasuredModel(null, model, bytes);
  }

  /**
   * Its graph.
   *
   * @throws org.espalier.InputException where the file holds no valid model
   */
  public OnnxModel graph() {
    return model == null ? OnnxModel.read(file) : model;
  }

  /** What messages call it. */
  String name() {
    return model == null ? file.toString() : model.name();
  }

  /** The bytes of its file and those of its external data; of one in memory those that it was made of, or of the file that it would be. */
  long bytes() {
    return model == null ? FileTree.bytes(graph().files()) : bytes;
  }

  /**
   * Has ONNX Runtime load it.
   *
   * @param threads threads of one run, at least 1
   * @throws org.espalier.InputException where it holds no valid model or ONNX Runtime refuses it
   */
  LoadedModel load(int threads) {
    return model == null ? LoadedModel.read(file, threads) : LoadedModel.of(model, threads);
  }
}

package org.espalier.evaluate;

import java.nio.file.Path;
import java.util.Collection;
import org.espalier.InputException;
import org.espalier.compress.onnx.ActivationSource;
import org.espalier.format.onnx.MissingValues;
import org.espalier.format.onnx.OnnxModel;

/**
 * Runs a model on examples from a safetensors file, each alone. The file has a tensor for each input of the model, of its name and
 * type (floats and whole numbers may have another width), whose first dimension counts the examples.
 */
public final class FileActivations implements ActivationSource {
  private final ExampleTensors examples;
  private final ExampleActivations source;

  /**
   * Reads the examples.
   *
   * @param file the safetensors file
   * @param model whose inputs the tensors must be
   * @param count use at most so many examples, evenly spread; at least 1
   * @param threads threads of one run, at least 1
   * @throws InputException if the file is no valid one, an input has no tensor or a tensor no input,
   *     the types, the shapes or the numbers of examples do not agree, or a number is infinite or, where the model
   *     does not {@linkplain MissingValues know} missing values, NaN
   */
  public FileActivations(Path file, OnnxModel model, int count, int threads) {
    examples = ExampleFile.read(file, model, count);
    source = new ExampleActivations(examples, threads);
  }

  /** What it runs models on. */
  public ExampleTensors examples() {
    return examples;
  }

  @Override
  public int count() {
    return source.count();
  }

  @Override
  public ExampleActivations some(int count) {
    return source.some(count);
  }

  @Override
  public void run(OnnxModel model, Collection<String> activations, Receiver receiver) {
    source.run(model, activations, receiver);
  }
}

package org.espalier.torch;

import java.nio.file.Path;
import java.util.List;
import java.util.Map;
import org.bytedeco.pytorch.Tensor;

/**
 * A model that libtorch runs under autograd. Not safe for several threads, but for {@link #close}, which waits for a
 * forward that is under way.
 *
 * <p>{@link #forward} makes many short-lived native objects: call it, the loss and the backward
 * pass in one {@link org.bytedeco.javacpp.PointerScope} a step.
 */
public interface TrainableModel extends AutoCloseable {
  /** What training changes, always in the same order. The model owns the tensors. */
  List<Parameter> parameters();

  /** The names of the inputs that {@link #forward} asks for. */
  List<String> inputNames();

  /** The names of the outputs that {@link #forward} gives, in order. */
  List<String> outputNames();

  /**
   * Runs the model, recording for a backward pass unless gradients are switched off in this thread.
   *
   * @param inputs a tensor for each input name; they are not changed
   * @return a tensor for each output name, in the order of {@link #outputNames()}
   * @throws org.espalier.InputException where an input is missing, closed, unknown, or of a wrong type or
   *     rank
   * @throws IllegalStateException if it is closed
   */
  Map<String, Tensor> forward(Map<String, Tensor> inputs);

  /**
   * Transforms activations in front of matrix products and convolutions from now on: training with
   * quantized activations inserts its fake quantization here. {@code transforms} is asked once for
   * each input of such a node that is not a parameter or a constant.
   *
   * @param transforms null for none
   * @throws UnsupportedOperationException where the model's inside cannot be reached
   */
  void transformInputs(InputTransforms transforms);

  /** Switches between training (true) and evaluation, which dropout and batch norms follow. */
  void train(boolean on);

  boolean isTraining();

  /**
   * Writes the model with the present values of its parameters, in the format that it was read
   * from, atomically.
   *
   * @throws org.espalier.InputException where the file cannot be written
   */
  void save(Path file);

  /** Frees the parameters. Closing twice does nothing. */
  @Override
  void close();
}

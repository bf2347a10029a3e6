package org.espalier.online;

import java.util.List;
import java.util.Map;
import org.espalier.format.onnx.OnnxModel;

/**
 * A model that an {@link OnlineLearner} can learn. Owned by one thread, but for the predictors it
 * makes and for {@link #close}: a learner holds the model's monitor while it works with it, and close waits for that
 * monitor, so that no memory goes amid a step. It equals itself alone, by which learners know whether another has it.
 */
public interface Learnable extends AutoCloseable {
  /** The inputs, in the order in which an example has their values. */
  List<ExampleInput> inputs();

  /** How many features an example has: the values of all inputs. */
  int features();

  /** How many outputs it gives for one. */
  int outputs();

  /** How many values an example is at most, on its way from features to outputs. */
  default int width() {
    return Math.max(features(), outputs());
  }

  /**
   * What is learned, always in the same order. Gradients are where {@link #backward} has left them the last
   * time, until the next one; all else stays where it is.
   */
  List<Weight> weights();

  /**
   * Runs the working weights and remembers what {@link #backward} needs.
   *
   * @param features {@code rows} arrays; they must not change until backward
   * @param outputs receives rows · outputs values, row by row
   */
  void forward(float[][] features, int rows, float[] outputs);

  /**
   * Writes the gradients of the weights for the last forward.
   *
   * @param gradient of the loss with respect to the outputs, rows · outputs values
   */
  void backward(float[] gradient, int rows);

  /**
   * Writes the sum over the rows of each row's gradient, scaled down to at most {@code bound} in norm:
   * what differentially private learning adds noise to.
   *
   * @param gradient of each row's own loss with respect to its outputs
   * @return how many rows were scaled down
   */
  int backwardClipped(float[] gradient, int rows, double bound);

  /**
   * What of the model is not learned, as text: a saved state goes on only where this is the same. Empty
   * where the number of features and outputs says everything.
   */
  String identity();

  /**
   * The model as ONNX.
   *
   * @param values of the weights, by name
   * @param loss what it was learned with, which says what the outputs mean
   * @throws org.espalier.InputException where it cannot be written as ONNX
   */
  OnnxModel toOnnx(Map<String, float[]> values, Loss loss);

  /** Whether NaN in its features is a value that is missing, which it knows; else an example with one is not learned. */
  default boolean knowsMissing() {
    return false;
  }

  /** Whether an example's outputs follow from what else is in its batch, as where a range is found for all of a batch. */
  default boolean mixesExamples() {
    return false;
  }

  /** A new place for a published version. Several may be made. */
  Predictor predictor();

  /** Whether its memory is gone: a learner of it then throws in place of reading what is not there. */
  boolean isClosed();

  /**
   * Frees its memory, in any thread and once only, when nobody holds the monitor of this any more. Better after the
   * learner that has it is closed: that one can only throw from then on.
   *
   * @throws IllegalStateException if this thread holds the monitor, as a listener of the learner does
   */
  @Override
  void close();

  /**
   * For {@link #close}, before it waits.
   *
   * @throws IllegalStateException if this thread holds the monitor of {@code model}
   */
  static void checkOutsideStep(Learnable model) {
    if (Thread.holdsLock(model)) {
      throw new IllegalStateException(
          "a listener cannot close the model of the learner that tells it of an event; another"
              + " thread can, once the step is done");
    }
  }
}

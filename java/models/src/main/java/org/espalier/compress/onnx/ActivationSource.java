package org.espalier.compress.onnx;

import java.nio.FloatBuffer;
import java.util.Collection;
import org.espalier.format.onnx.OnnxModel;

/**
 * Calibration examples together with a runtime that can run a model on them. The examples, their order
 * and so every value received are the same in each call.
 */
@FunctionalInterface
public interface ActivationSource {

  /**
   * Runs {@code model} on every example, one at a time and without padding.
   *
   * @param model is not changed
   * @param activations float32 values of its main graph, or outputs of 16 bits, which are received as float32
   * @param receiver gets each activation of each example, example by example
   * @throws org.espalier.InputException when the model cannot be run
   */
  void run(OnnxModel model, Collection<String> activations, Receiver receiver);

  /** Receives one activation of one example. */
  @FunctionalInterface
  interface Receiver {
    /**
     * Takes the values, which are valid during the call only.
     *
     * @param shape the dimensions of the activation
     * @param values row-major; the last dimension of the activation is the fastest
     */
    void accept(String activation, long[] shape, FloatBuffer values);
  }
}

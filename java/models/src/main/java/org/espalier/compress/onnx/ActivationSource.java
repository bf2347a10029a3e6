package org.espalier.compress.onnx;

import ai.onnx.proto.OnnxMl.ValueInfoProto;
import java.nio.FloatBuffer;
import java.util.Collection;
import java.util.List;
import java.util.Set;
import java.util.stream.IntStream;
import org.espalier.format.ComputedList;
import org.espalier.format.onnx.OnnxModel;

/**
 * Calibration examples together with a runtime that can run a model on them. The examples, their order
 * and so every value received are the same in each call.
 */
@FunctionalInterface
public interface ActivationSource {
  /** How many texts refitting takes where the user does not say: weights are solved for by what calibration sees. */
  int REFITTING_TEXTS = 2048;

  /**
   * Runs {@code model} on every example, one at a time and without padding.
   *
   * @param model is not changed
   * @param activations float32 values of its main graph, or outputs of 16 bits, which are received as float32
   * @param receiver gets each activation of each example, example by example
   * @throws org.espalier.InputException when the model cannot be run
   */
  void run(OnnxModel model, Collection<String> activations, Receiver receiver);

  /** Whether this source can {@link #hold}. */
  default boolean canHold() {
    return false;
  }

  /**
   * Does the same, and goes on with what the model gave.
   *
   * @param held values of its main graph, and inputs, of any type
   * @return a source whose examples are these values, for models that read them
   * @throws org.espalier.InputException when the model cannot be run
   * @throws UnsupportedOperationException where this source cannot
   */
  default Held hold(
      OnnxModel model, Collection<String> activations, Receiver receiver, Set<String> held) {
    throw new UnsupportedOperationException();
  }

  /** Examples behind a model. To be closed; one that is asked to {@link #hold} gives its values away and is closed by that. */
  interface Held extends ActivationSource, AutoCloseable {
    @Override
    default boolean canHold() {
      return true;
    }

    /** The values that each example has, with their types and what is equal in all shapes. */
    List<ValueInfoProto> values();

    @Override
    void close();
  }

  /** How many examples there are; 0 where that is not known. */
  default int count() {
    return 0;
  }

  /**
   * The same with at most so many of the examples, evenly spread, for runs that are many; a source that cannot choose
   * gives all.
   *
   * @param count at least 1
   */
  default ActivationSource some(int count) {
    return this;
  }

  /** At most so many of a list's members, evenly spread. */
  static <T> List<T> spread(List<T> list, int count) {
    int n = Math.min(count, list.size());
    return ComputedList.pick(
        list, IntStream.range(0, n).mapToObj(i -> (int) ((long) i * list.size() / n)).toList());
  }

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

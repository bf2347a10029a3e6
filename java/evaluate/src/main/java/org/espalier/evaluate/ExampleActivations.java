package org.espalier.evaluate;

import ai.onnxruntime.OnnxTensor;
import ai.onnxruntime.OrtEnvironment;
import ai.onnxruntime.OrtException;
import java.nio.FloatBuffer;
import java.util.ArrayList;
import java.util.Collection;
import java.util.List;
import java.util.Map;
import org.espalier.InputException;
import org.espalier.compress.onnx.ActivationSource;
import org.espalier.format.onnx.OnnxModel;

/** Runs a model with one float32 input on examples of one shape, each alone. */
public final class ExampleActivations implements ActivationSource {
  private final List<float[]> examples;
  private final long[] shape;
  private final int threads;

  /**
   * A source of activations.
   *
   * @param examples at least one, row-major
   * @param shape of an example, without the batch
   * @param threads threads of one run, at least 1
   */
  public ExampleActivations(List<float[]> examples, List<Long> shape, int threads) {
    if (examples.isEmpty()) {
      throw new InputException("calibration needs at least one example");
    }
    this.examples = List.copyOf(examples);
    this.shape = batchOfOne(shape);
    this.threads = threads;
  }

  static long[] batchOfOne(List<Long> shape) {
    long[] dims = new long[shape.size() + 1];
    dims[0] = 1;
    for (int i = 0; i < shape.size(); i++) {
      dims[i + 1] = shape.get(i);
    }
    return dims;
  }

  @Override
  public void run(OnnxModel model, Collection<String> activations, Receiver receiver) {
    String input = model.inputs().get(0).getName();
    List<Map<String, OnnxTensor>> tensors = new ArrayList<>();
    try {
      for (float[] values : examples) {
        tensors.add(
            Map.of(
                input,
                OnnxTensor.createTensor(
                    OrtEnvironment.getEnvironment(), FloatBuffer.wrap(values), shape)));
      }
      new TensorActivations(tensors, threads).run(model, activations, receiver);
    } catch (OrtException e) {
      throw new InputException(
          model.name() + ": ONNX Runtime cannot take the examples: " + e.getMessage(), e);
    } finally {
      tensors.forEach(t -> t.get(input).close());
    }
  }
}

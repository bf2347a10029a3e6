package org.espalier.evaluate;

import ai.onnxruntime.OnnxTensor;
import ai.onnxruntime.OnnxValue;
import ai.onnxruntime.OrtSession;
import ai.onnxruntime.TensorInfo;
import ai.onnxruntime.ValueInfo;
import java.nio.FloatBuffer;
import java.util.Arrays;
import java.util.LinkedHashMap;
import java.util.Map;
import org.espalier.InputException;

/** A model and the examples that it is fed one by one. */
final class FedModel implements AutoCloseable {
  /** Bytes of examples that stay open; at least one does. */
  private static final long MOST_BYTES = Runtime.getRuntime().maxMemory() / 16;

  private final RuntimeModel model;
  private final int main;
  private final ExampleTensors examples;

  /** Of the examples that were used last, as many as are timed together or fit; the one used last at the end. */
  private final Map<Integer, Map<String, OnnxTensor>> open =
      new LinkedHashMap<>(2 * Savings.CASES, 0.75F, true);

  /** What the open ones take. */
  private long bytes;

  /**
   * Feeds a model.
   *
   * @param model is closed with this, or where the examples lack one of its inputs
   */
  FedModel(RuntimeModel model, ExampleTensors examples) {
    this.model = model;
    this.main = model.mainOutput();
    this.examples = examples;
    try {
      open(0);
    } catch (InputException e) {
      model.close();
      throw e;
    }
  }

  /** Makes the tensors of an example, so that to run it next is to run the model alone. */
  Map<String, OnnxTensor> open(int example) {
    Map<String, OnnxTensor> tensors = open.get(example);
    if (tensors == null) {
      try {
        tensors = examples.open(example, model.inputs());
      } catch (InputException e) {
        throw new InputException(model.name() + ": " + e.getMessage(), e);
      }
      bytes += ExampleTensors.bytes(tensors);
      while (!open.isEmpty() && (open.size() == Savings.CASES || bytes > MOST_BYTES)) {
        Map<String, OnnxTensor> oldest = open.remove(open.keySet().iterator().next());
        bytes -= ExampleTensors.bytes(oldest);
        ExampleTensors.close(oldest);
      }
      open.put(example, tensors);
    }
    return tensors;
  }

  /** What messages call it. */
  String name() {
    return model.name();
  }

  /** All that the model gives for an example. The caller closes it. */
  OrtSession.Result run(int example) {
    return model.run(open(example));
  }

  /**
   * What a model gives first for one example.
   *
   * @param shape with 1 for the batch
   */
  record FirstOutput(float[] values, long[] shape) {}

  /**
   * What the model gives first for an example.
   *
   * @throws InputException where that has not one row of floats an example
   */
  FirstOutput first(int example) {
    try (OrtSession.Result result = run(example)) {
      OnnxValue given = result.get(main);
      FloatBuffer floats = OnnxRuntime.floats(given);
      if (!(given instanceof OnnxTensor t)
          || floats == null
          || t.getInfo().getShape().length == 0
          || t.getInfo().getShape()[0] != 1) {
        throw new InputException(
            name()
                + ": the first output must be float32, float16 or bfloat16 with one row an example"
                + " but is "
                + describe(given.getInfo()));
      }
      float[] values = new float[floats.remaining()];
      floats.get(values);
      return new FirstOutput(values, t.getInfo().getShape());
    }
  }

  private static String describe(ValueInfo info) {
    return info instanceof TensorInfo t
        ? t.type + " " + Arrays.toString(t.getShape())
        : "no tensor";
  }

  /**
   * The same of a reference, with which others are compared.
   *
   * @throws InputException where one of the values is not finite, too
   */
  FirstOutput firstFinite(int example) {
    FirstOutput output = first(example);
    for (float value : output.values) {
      if (!Float.isFinite(value)) {
        throw new InputException(
            name()
                + ": the first output is "
                + value
                + " for example "
                + (example + 1)
                + " of those that are measured");
      }
    }
    return output;
  }

  /**
   * The values that the model gives first for an example.
   *
   * @throws InputException where it has not as many of them as the reference
   */
  float[] firstLike(FedModel reference, FirstOutput its, int example) {
    float[] values = first(example).values;
    if (values.length != its.values.length) {
      throw new InputException(
          "the models differ in their first output: "
              + reference.name()
              + " gives "
              + its.values.length
              + " values an example, "
              + name()
              + " "
              + values.length);
    }
    return values;
  }

  @Override
  public void close() {
    open.values().forEach(ExampleTensors::close);
    model.close();
  }
}

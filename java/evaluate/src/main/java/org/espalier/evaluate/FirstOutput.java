package org.espalier.evaluate;

import ai.onnxruntime.OnnxJavaType;
import ai.onnxruntime.OnnxTensor;
import ai.onnxruntime.OrtSession;
import java.nio.file.Path;
import java.util.List;
import java.util.Map;
import org.espalier.InputException;

/** The first output of a model for examples that are fed one by one. */
final class FirstOutput implements AutoCloseable {
  private final RuntimeModel model;
  private final List<Map<String, OnnxTensor>> inputs;
  private long[] shape;

  FirstOutput(Path file, ExampleTensors examples) {
    model = new RuntimeModel(file);
    try {
      inputs = examples.open(model.inputs());
    } catch (InputException e) {
      model.close();
      throw new InputException(file + ": " + e.getMessage(), e);
    }
  }

  /** The shape that the output had when it was last asked for. */
  long[] shape() {
    return shape;
  }

  /** What the model gives for an example. */
  float[] values(int example) {
    try (OrtSession.Result result = model.run(inputs.get(example))) {
      if (!(result.get(0) instanceof OnnxTensor t)
          || t.getInfo().type != OnnxJavaType.FLOAT
          || t.getInfo().getShape().length == 0
          || t.getInfo().getShape()[0] != 1) {
        throw new InputException(
            model.file()
                + ": the first output must be float32 with one row an example but is "
                + result.get(0).getInfo());
      }
      shape = t.getInfo().getShape();
      float[] values = new float[t.getFloatBuffer().remaining()];
      t.getFloatBuffer().get(values);
      return values;
    }
  }

  /** Refuses what a reference may not give: nothing can be compared with it. */
  void requireFinite(float[] values, int example) {
    for (float value : values) {
      if (!Float.isFinite(value)) {
        throw new InputException(
            model.file()
                + ": the first output is "
                + value
                + " for example "
                + (example + 1)
                + " of those that are measured");
      }
    }
  }

  /** Refuses outputs of different sizes. */
  static void requireSame(FirstOutput one, float[] values, FirstOutput other, float[] others) {
    if (values.length != others.length) {
      throw new InputException(
          "the models differ in their first output: "
              + one.model.file()
              + " gives "
              + values.length
              + " values an example, "
              + other.model.file()
              + " "
              + others.length);
    }
  }

  @Override
  public void close() {
    ExampleTensors.close(inputs);
    model.close();
  }
}

package org.espalier.evaluate;

import ai.onnxruntime.OnnxTensor;
import ai.onnxruntime.OrtEnvironment;
import ai.onnxruntime.OrtException;
import ai.onnxruntime.OrtSession;
import java.nio.FloatBuffer;
import java.nio.file.Path;
import java.util.Arrays;
import java.util.List;
import java.util.Map;
import org.espalier.InputException;

/**
 * Compares two ONNX classifiers with one float32 input on labelled examples, in ONNX Runtime on one
 * thread.
 */
public final class ClassifierEvaluator {
  private ClassifierEvaluator() {}

  /**
   * Compares {@code candidate} with {@code reference}.
   *
   * @param examples at least one, row-major
   * @param shape of an example, without the batch
   * @param labels the right class of each example
   * @throws InputException when a model cannot be loaded or run, or the two differ in classes
   */
  public static ClassifierFidelity evaluate(
      Path reference, Path candidate, List<float[]> examples, List<Long> shape, long[] labels) {
    if (examples.isEmpty()) {
      throw new InputException("evaluation needs at least one example");
    }
    try (Classifier first = new Classifier(reference, shape);
        Classifier second = new Classifier(candidate, shape)) {
      int n = examples.size();
      int right = 0;
      int referenceRight = 0;
      int agreed = 0;
      double cosines = 0;
      for (int i = 0; i < n; i++) {
        float[] a = first.logits(examples.get(i));
        float[] b = second.logits(examples.get(i));
        if (a.length != b.length) {
          throw new InputException(
              "the models differ in classes: "
                  + reference
                  + " has "
                  + a.length
                  + ", "
                  + candidate
                  + " has "
                  + b.length);
        }
        int inA = largest(a);
        int inB = largest(b);
        right += inB == labels[i] ? 1 : 0;
        referenceRight += inA == labels[i] ? 1 : 0;
        agreed += inA == inB ? 1 : 0;
        cosines += Statistics.cosine(a, b);
      }
      double[] interval = Statistics.proportionInterval(agreed, n);
      double[] millis =
          Turns.millis(n, i -> first.logits(examples.get(i)), i -> second.logits(examples.get(i)));
      return new ClassifierFidelity(
          n,
          (double) right / n,
          (double) referenceRight / n,
          (double) agreed / n,
          interval[0],
          interval[1],
          cosines / n,
          (double) FidelityEvaluator.bytes(candidate) / FidelityEvaluator.bytes(reference),
          millis[0] / millis[1],
          millis[0],
          millis[1]);
    }
  }

  private static int largest(float[] logits) {
    int best = 0;
    for (int i = 1; i < logits.length; i++) {
      if (logits[i] > logits[best]) {
        best = i;
      }
    }
    return best;
  }

  /** A model with one input; its first output are logits [1, classes]. */
  private static final class Classifier implements AutoCloseable {
    private final RuntimeModel model;
    private final long[] shape;
    private final String input;

    Classifier(Path file, List<Long> shape) {
      model = new RuntimeModel(file);
      this.shape = ExampleActivations.batchOfOne(shape);
      if (model.inputs().size() != 1) {
        close();
        throw new InputException(
            file + ": a classifier has one input; this one has " + model.inputs());
      }
      input = model.inputs().iterator().next();
    }

    float[] logits(float[] example) {
      try (OnnxTensor tensor =
              OnnxTensor.createTensor(
                  OrtEnvironment.getEnvironment(), FloatBuffer.wrap(example), shape);
          OrtSession.Result result = model.run(Map.of(input, tensor))) {
        if (!(result.get(0) instanceof OnnxTensor t)
            || t.getInfo().getShape().length != 2
            || t.getInfo().getShape()[0] != 1) {
          throw new InputException(
              model.file()
                  + ": the first output must be logits [batch, classes] but is "
                  + result.get(0).getInfo());
        }
        float[] logits = new float[(int) t.getInfo().getShape()[1]];
        t.getFloatBuffer().get(logits);
        return logits;
      } catch (OrtException e) {
        throw new InputException(
            model.file()
                + ": ONNX Runtime does not take an example of shape "
                + Arrays.toString(shape)
                + ": "
                + e.getMessage(),
            e);
      }
    }

    @Override
    public void close() {
      model.close();
    }
  }
}

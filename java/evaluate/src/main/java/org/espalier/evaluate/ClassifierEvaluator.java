package org.espalier.evaluate;

import ai.onnxruntime.OnnxTensor;
import ai.onnxruntime.OrtSession;
import java.nio.file.Path;
import java.util.List;
import java.util.Map;
import org.espalier.InputException;

/** Compares two ONNX classifiers on labelled examples, in ONNX Runtime on one thread. */
public final class ClassifierEvaluator {
  private ClassifierEvaluator() {}

  /**
   * Compares {@code candidate} with {@code reference}.
   *
   * @param labels the right class of each example; negative where nobody knows
   * @throws InputException when a model cannot be loaded or run, or the two differ in classes
   */
  public static ClassifierFidelity evaluate(
      Path reference, Path candidate, ExampleTensors examples, long[] labels) {
    try (Classifier first = new Classifier(reference, examples);
        Classifier second = new Classifier(candidate, examples)) {
      int n = examples.size();
      int known = 0;
      int right = 0;
      int referenceRight = 0;
      int agreed = 0;
      double cosines = 0;
      for (int i = 0; i < n; i++) {
        float[] a = first.logits(i);
        float[] b = second.logits(i);
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
        known += labels[i] >= 0 ? 1 : 0;
        right += inB == labels[i] ? 1 : 0;
        referenceRight += inA == labels[i] ? 1 : 0;
        agreed += inA == inB ? 1 : 0;
        cosines += Statistics.cosine(a, b);
      }
      double[] interval = Statistics.proportionInterval(agreed, n);
      double[] millis = Turns.millis(n, first::logits, second::logits);
      return new ClassifierFidelity(
          n,
          (double) right / Math.max(1, known),
          (double) referenceRight / Math.max(1, known),
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

  /** A model whose first output are logits [1, classes], with the examples as its inputs. */
  private static final class Classifier implements AutoCloseable {
    private final RuntimeModel model;
    private final List<Map<String, OnnxTensor>> inputs;

    Classifier(Path file, ExampleTensors examples) {
      model = new RuntimeModel(file);
      try {
        inputs = examples.open(model.inputs());
      } catch (InputException e) {
        model.close();
        throw new InputException(file + ": " + e.getMessage(), e);
      }
    }

    float[] logits(int example) {
      try (OrtSession.Result result = model.run(inputs.get(example))) {
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
      }
    }

    @Override
    public void close() {
      ExampleTensors.close(inputs);
      model.close();
    }
  }
}

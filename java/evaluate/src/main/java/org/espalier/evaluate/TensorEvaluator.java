package org.espalier.evaluate;

import ai.onnxruntime.OnnxJavaType;
import ai.onnxruntime.OnnxTensor;
import ai.onnxruntime.OnnxValue;
import ai.onnxruntime.OrtSession;
import java.nio.DoubleBuffer;
import java.nio.FloatBuffer;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import org.espalier.InputException;
import org.espalier.compress.Progress;
import org.espalier.compress.Progress.Phase;

/**
 * Compares two ONNX models of any kind on example tensors, output by output.
 */
public final class TensorEvaluator {
  private TensorEvaluator() {}

  /**
   * Compares the candidate of a pair with its reference.
   *
   * @param progress receives the progress
   * @throws InputException where a model cannot be run, or the two differ in their outputs
   */
  public static TensorFidelity evaluate(ModelPair pair, Progress progress) {
    Map<String, Comparison> outputs = new LinkedHashMap<>();
    for (int i = 0; i < pair.size(); i++) {
      progress.at(Phase.EVALUATE, i, pair.size());
      try (OrtSession.Result a = pair.reference().run(i);
          OrtSession.Result b = pair.candidate().run(i)) {
        for (Map.Entry<String, OnnxValue> e : a) {
          if (e.getValue() instanceof OnnxTensor t
              && ExampleTensors.REAL.contains(t.getInfo().type)) {
            OnnxTensor other = output(pair.candidate(), b, e.getKey(), t);
            outputs.computeIfAbsent(e.getKey(), Comparison::new).add(t, other);
          }
        }
      }
    }
    if (outputs.isEmpty()) {
      throw new InputException(
          pair.reference().name() + " has no floating-point output to compare");
    }
    return new TensorFidelity(
        pair.size(), outputs.values().stream().map(Comparison::result).toList());
  }

  /** What two models gave for one output. */
  private static final class Comparison {
    private final String name;
    private final List<Double> cosines = new ArrayList<>();
    private boolean single = true;
    private double product;
    private double error;
    private double square;
    private double otherSquare;
    private double largest;
    private long positions;
    private long agreed;

    Comparison(String name) {
      this.name = name;
    }

    void add(OnnxTensor reference, OnnxTensor candidate) {
      float[] a = floats(reference);
      float[] b = floats(candidate);
      // A sequence may be empty, and values may all be 0: then equal is as close as can be. NaN is
      // near nothing.
      boolean equal = Arrays.equals(a, b) && isNumbers(a);
      cosines.add(equal ? 1 : Statistics.cosine(a, b));
      for (int i = 0; i < a.length; i++) {
        double d = (double) b[i] - a[i];
        error += d * d;
        square += (double) a[i] * a[i];
        otherSquare += (double) b[i] * b[i];
        product += (double) a[i] * b[i];
        largest = Math.max(largest, Math.abs(d));
      }
      single &= a.length == 1;
      long[] shape = reference.getInfo().getShape();
      int classes = shape.length == 0 ? 1 : (int) shape[shape.length - 1];
      if ((shape.length == 2 || shape.length == 3) && classes > 1) {
        for (int start = 0; start < a.length; start += classes) {
          positions++;
          int best = Statistics.largest(FloatBuffer.wrap(a), start, classes);
          int other = Statistics.largest(FloatBuffer.wrap(b), start, classes);
          agreed += best >= 0 && best == other ? 1 : 0;
        }
      }
    }

    private static float[] floats(OnnxTensor tensor) {
      if (tensor.getInfo().type == OnnxJavaType.DOUBLE) {
        DoubleBuffer doubles = tensor.getDoubleBuffer();
        float[] values = new float[doubles.remaining()];
        for (int i = 0; i < values.length; i++) {
          values[i] = (float) doubles.get(i);
        }
        return values;
      }
      FloatBuffer buffer = tensor.getFloatBuffer();
      float[] values = new float[buffer.remaining()];
      buffer.get(values);
      return values;
    }

    private static boolean isNumbers(float[] values) {
      for (float v : values) {
        if (Float.isNaN(v)) {
          return false;
        }
      }
      return true;
    }

    TensorFidelity.Output result() {
      return new TensorFidelity.Output(
          name,
          single && error != 0
              ? product / Math.sqrt(square * otherSquare)
              : cosines.stream().mapToDouble(Double::doubleValue).average().orElseThrow(),
          single
              ? Double.NaN
              : cosines.stream().mapToDouble(Double::doubleValue).min().orElseThrow(),
          error == 0 ? 0 : Math.sqrt(error / square),
          largest,
          positions == 0 ? Double.NaN : (double) agreed / positions);
    }
  }

  /** The output that the reference has too, of the same shape. */
  private static OnnxTensor output(
      FedModel model, OrtSession.Result result, String name, OnnxTensor like) {
    OnnxValue value =
        result
            .get(name)
            .orElseThrow(
                () -> new InputException(model.name() + " has no output " + name + " to compare"));
    if (!(value instanceof OnnxTensor t) || !ExampleTensors.REAL.contains(t.getInfo().type)) {
      throw new InputException(
          model.name()
              + ": the output "
              + name
              + " is no tensor of floats, the reference's is one");
    }
    if (!Arrays.equals(t.getInfo().getShape(), like.getInfo().getShape())) {
      throw new InputException(
          model.name()
              + ": for one of the examples the output "
              + name
              + " has the shape "
              + Arrays.toString(t.getInfo().getShape())
              + ", the reference's "
              + Arrays.toString(like.getInfo().getShape())
              + "; outputs whose size follows from values cannot be compared");
    }
    return t;
  }
}

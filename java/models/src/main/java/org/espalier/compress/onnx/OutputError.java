package org.espalier.compress.onnx;

import java.util.ArrayList;
import java.util.Collection;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Locale;
import java.util.Map;
import org.espalier.format.onnx.OnnxModel;

/** How far models are from a reference in some of its outputs, on a few examples. */
public final class OutputError {
  /** The error at which the cosine of an output falls to 0.99. */
  public static final double LARGE = 0.14;

  private final ActivationSource source;
  private final Map<String, List<float[]>> reference;

  /**
   * What a model makes of the outputs. The error of one is a share of its norm, over all examples; 0 where the
   * reference has none but zeros.
   *
   * @param mean that of the outputs' errors, which says which of several models is better: each output counts alike,
   *     whatever its size and its unit; 0 where there are none
   * @param largest the error of the output that differs most, which says whether one is spoilt
   * @param output that one; null where there are no outputs
   */
  public record Made(double mean, double largest, String output) {
    /** The largest error, in words. */
    public String text() {
      return String.format(Locale.ROOT, "%.2g %% of the norm of %s", 100 * largest, output);
    }
  }

  /**
   * Runs the reference, whose {@link Answers} count.
   *
   * @param source a few examples; their outputs are kept
   */
  public OutputError(OnnxModel reference, ActivationSource source) {
    this(reference, Answers.of(reference), source);
  }

  /**
   * Runs the reference.
   *
   * @param outputs that count, of its {@linkplain Answers#comparable comparable} ones
   * @param source a few examples; their outputs are kept
   */
  public OutputError(OnnxModel reference, Collection<String> outputs, ActivationSource source) {
    this.source = source;
    this.reference = new LinkedHashMap<>();
    outputs.forEach(output -> this.reference.put(output, new ArrayList<>()));
    run(reference, this.reference);
  }

  /** Adds the values of the outputs, example by example. */
  private void run(OnnxModel model, Map<String, List<float[]>> values) {
    source.run(
        model,
        values.keySet(),
        (output, shape, buffer) -> {
          float[] copy = new float[buffer.remaining()];
          buffer.get(copy);
          values.get(output).add(copy);
        });
  }

  /**
   * The {@linkplain Made#mean mean error} of a model.
   *
   * @param model with the inputs and outputs of the reference
   */
  public double of(OnnxModel model) {
    return made(model).mean();
  }

  /**
   * What a model makes of the outputs.
   *
   * @param model with the inputs and outputs of the reference
   */
  public Made made(OnnxModel model) {
    Map<String, List<float[]>> tried = new LinkedHashMap<>();
    reference.keySet().forEach(output -> tried.put(output, new ArrayList<>()));
    run(model, tried);
    double sum = 0;
    double largest = 0;
    String worst = null;
    for (String output : tried.keySet()) {
      double error = error(reference.get(output), tried.get(output));
      sum += error;
      if (worst == null || !(error <= largest)) {
        largest = error;
        worst = output;
      }
    }
    return new Made(sum / Math.max(1, tried.size()), largest, worst);
  }

  private static double error(List<float[]> expected, List<float[]> actual) {
    double difference = 0;
    double square = 0;
    for (int e = 0; e < actual.size(); e++) {
      float[] a = expected.get(e);
      float[] b = actual.get(e);
      for (int i = 0; i < a.length; i++) {
        // The size of an output may follow from values.
        double d = i < b.length ? (double) a[i] - b[i] : a[i];
        difference += d * d;
        square += (double) a[i] * a[i];
      }
    }
    return square == 0 ? 0 : Math.sqrt(difference / square);
  }
}

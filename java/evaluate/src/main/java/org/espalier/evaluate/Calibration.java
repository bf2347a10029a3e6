package org.espalier.evaluate;

import ai.onnx.proto.OnnxMl.TensorProto.DataType;
import ai.onnx.proto.OnnxMl.ValueInfoProto;
import ai.onnxruntime.OnnxJavaType;
import ai.onnxruntime.OnnxTensor;
import ai.onnxruntime.OnnxValue;
import ai.onnxruntime.OrtEnvironment;
import ai.onnxruntime.OrtException;
import ai.onnxruntime.OrtSession;
import java.nio.FloatBuffer;
import java.util.Collection;
import java.util.Collections;
import java.util.HashMap;
import java.util.HashSet;
import java.util.LinkedHashMap;
import java.util.Map;
import java.util.Set;
import org.espalier.InputException;
import org.espalier.compress.onnx.ActivationHistogram;
import org.espalier.compress.onnx.ActivationRange;
import org.espalier.compress.onnx.Clipping;
import org.espalier.format.onnx.OnnxModel;

/**
 * Collects the distributions of a model's activations by running it in ONNX Runtime with those
 * activations as additional outputs. Not safe for several threads.
 */
public final class Calibration implements AutoCloseable {
  private final String name;
  private final OrtSession session;
  private final Set<String> fetched = new HashSet<>();
  private final Map<String, ActivationHistogram> histograms = new LinkedHashMap<>();
  private long runs;

  /**
   * Prepares a model.
   *
   * @param model the model, which does not change
   * @param activations values of its main graph, float32
   * @param threads threads of one run, at least 1
   * @throws InputException if ONNX Runtime refuses the model
   */
  public Calibration(OnnxModel model, Collection<String> activations, int threads) {
    this.name = model.name();
    activations.forEach(a -> histograms.put(a, new ActivationHistogram()));
    OnnxModel tapped = model.copy();
    Set<String> outputs = new HashSet<>();
    tapped.outputs().forEach(o -> outputs.add(o.getName()));
    for (String a : histograms.keySet()) {
      if (outputs.add(a)) {
        tapped.addOutput(float32(a));
      }
    }
    try (OrtSession.SessionOptions options = new OrtSession.SessionOptions()) {
      options.setIntraOpNumThreads(threads);
      session = OrtEnvironment.getEnvironment().createSession(tapped.toBuffer(), options);
    } catch (OrtException e) {
      throw new InputException(name + ": ONNX Runtime cannot load it: " + e.getMessage(), e);
    }
    Set<String> inputs = session.getInputNames();
    // A graph input is no output that could be fetched: its statistics come from what is fed.
    histograms.keySet().stream().filter(a -> !inputs.contains(a)).forEach(fetched::add);
  }

  private static ValueInfoProto float32(String value) {
    ValueInfoProto.Builder b = ValueInfoProto.newBuilder().setName(value);
    b.getTypeBuilder().getTensorTypeBuilder().setElemType(DataType.FLOAT_VALUE);
    return b.build();
  }

  /**
   * Runs the model once and adds what its activations were.
   *
   * @param inputs all inputs of the model by name; they stay open
   * @throws InputException if the run fails, or an activation is not float32, NaN or infinite
   */
  public void run(Map<String, OnnxTensor> inputs) {
    try {
      for (Map.Entry<String, OnnxTensor> e : inputs.entrySet()) {
        add(e.getKey(), e.getValue());
      }
      try (OrtSession.Result result = session.run(inputs, fetched)) {
        for (Map.Entry<String, OnnxValue> e : result) {
          add(e.getKey(), e.getValue());
        }
      }
      runs++;
    } catch (OrtException e) {
      throw new InputException(name + ": ONNX Runtime cannot run it: " + e.getMessage(), e);
    }
  }

  private void add(String activation, OnnxValue value) {
    ActivationHistogram histogram = histograms.get(activation);
    if (histogram == null) {
      return;
    }
    if (!(value instanceof OnnxTensor t) || t.getInfo().type != OnnxJavaType.FLOAT) {
      throw new InputException(name + ": the activation " + activation + " is not float32");
    }
    FloatBuffer values = t.getFloatBuffer();
    long bad = histogram.add(values);
    if (bad > 0) {
      throw new InputException(
          name
              + ": the activation "
              + activation
              + " has "
              + bad
              + " NaN or infinite values in run "
              + (runs + 1)
              + "; no range can be found");
    }
  }

  /** How many runs were added. */
  public long runs() {
    return runs;
  }

  /** The distributions so far, by activation. */
  public Map<String, ActivationHistogram> histograms() {
    return Collections.unmodifiableMap(histograms);
  }

  /**
   * The ranges of all activations.
   *
   * @throws InputException if nothing was run
   */
  public Map<String, ActivationRange> ranges(Clipping clipping) {
    if (runs == 0) {
      throw new InputException("calibration needs at least one input");
    }
    Map<String, ActivationRange> ranges = new HashMap<>();
    histograms.forEach((a, h) -> ranges.put(a, clipping.range(h)));
    return ranges;
  }

  @Override
  public void close() {
    try {
      session.close();
    } catch (OrtException e) {
      throw new IllegalStateException(e);
    }
  }
}

package org.espalier.compress.onnx;

import ai.onnx.proto.OnnxMl.TensorProto.DataType;
import ai.onnx.proto.OnnxMl.ValueInfoProto;
import java.util.ArrayList;
import java.util.HashMap;
import java.util.LinkedHashSet;
import java.util.List;
import java.util.Map;
import java.util.Set;
import org.espalier.format.onnx.OnnxModel;
import org.espalier.format.onnx.PastInput;

/**
 * How far models are from a reference in their outputs of float32, float16 and bfloat16, on a few examples. The keys and
 * values that a decoder gives beside others for its next step are none of its answers.
 */
public final class OutputError {
  /** The error at which the cosine of an output falls to 0.99. */
  public static final double LARGE = 0.14;

  private final ActivationSource source;
  private final Set<String> outputs = new LinkedHashSet<>();
  private final Map<String, List<float[]>> reference;

  /**
   * Runs the reference.
   *
   * @param source a few examples; their outputs are kept
   */
  public OutputError(OnnxModel reference, ActivationSource source) {
    this.source = source;
    boolean hasAnswers =
        reference.outputs().stream().anyMatch(output -> !PastInput.isNext(output.getName()));
    for (ValueInfoProto output : reference.outputs()) {
      if (hasAnswers && PastInput.isNext(output.getName())) {
        continue;
      }
      switch (output.getType().getTensorType().getElemType()) {
        case DataType.FLOAT_VALUE, DataType.FLOAT16_VALUE, DataType.BFLOAT16_VALUE ->
            outputs.add(output.getName());
        default -> {}
      }
    }
    this.reference = values(reference);
  }

  private Map<String, List<float[]>> values(OnnxModel model) {
    Map<String, List<float[]>> values = new HashMap<>();
    source.run(
        model,
        outputs,
        (output, shape, buffer) -> {
          float[] copy = new float[buffer.remaining()];
          buffer.get(copy);
          values.computeIfAbsent(output, o -> new ArrayList<>()).add(copy);
        });
    return values;
  }

  /**
   * The error of a model's outputs as a share of their norm, over all examples, in the output that differs
   * most; 0 where the reference has none but zeros.
   *
   * @param model with the inputs and outputs of the reference
   */
  public double of(OnnxModel model) {
    Map<String, List<float[]>> tried = values(model);
    double largest = 0;
    for (Map.Entry<String, List<float[]>> output : reference.entrySet()) {
      double difference = 0;
      double square = 0;
      List<float[]> others = tried.get(output.getKey());
      for (int e = 0; e < others.size(); e++) {
        float[] a = output.getValue().get(e);
        float[] b = others.get(e);
        for (int i = 0; i < a.length; i++) {
          // The size of an output may follow from values.
          double d = i < b.length ? (double) a[i] - b[i] : a[i];
          difference += d * d;
          square += (double) a[i] * a[i];
        }
      }
      largest = Math.max(largest, square == 0 ? 0 : Math.sqrt(difference / square));
    }
    return largest;
  }
}

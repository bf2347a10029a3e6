package org.espalier.compress.onnx;

import ai.onnx.proto.OnnxMl.ModelProto;
import ai.onnxruntime.OnnxTensor;
import ai.onnxruntime.OrtEnvironment;
import ai.onnxruntime.OrtException;
import ai.onnxruntime.OrtSession;
import ai.onnxruntime.OrtSession.SessionOptions.OptLevel;
import java.nio.FloatBuffer;
import java.util.Arrays;
import java.util.List;
import java.util.Map;
import java.util.Random;
import java.util.TreeMap;
import org.espalier.ExactProducts;
import org.espalier.evaluate.TensorActivations;
import org.espalier.format.onnx.OnnxModel;

/** Small models in ONNX Runtime: inputs, runs, and fixed ranges of what they see. */
public final class RuntimeRuns {
  private static final OrtEnvironment ENVIRONMENT = OrtEnvironment.getEnvironment();

  private RuntimeRuns() {}

  /** All weights, as integers whose products are exact on this machine. */
  public static DynamicQuantizer.Options exactDynamic() {
    return new DynamicQuantizer.Options(ExactProducts.first(), true, w -> true);
  }

  /** The same. */
  public static StaticQuantizer.Options exactStatic() {
    return new StaticQuantizer.Options(ExactProducts.first(), true, w -> true);
  }

  static OnnxTensor tensor(float[] values, long... dims) throws OrtException {
    return OnnxTensor.createTensor(ENVIRONMENT, FloatBuffer.wrap(values), dims);
  }

  /** Numbers of a standard normal distribution. */
  public static OnnxTensor normal(Random random, long... dims) throws OrtException {
    float[] values = new float[(int) Arrays.stream(dims).reduce(1, (a, b) -> a * b)];
    for (int i = 0; i < values.length; i++) {
      values[i] = (float) random.nextGaussian();
    }
    return tensor(values, dims);
  }

  /** The first output. */
  static float[] first(OnnxModel model, Map<String, OnnxTensor> inputs) throws OrtException {
    return first(model, inputs, OptLevel.ALL_OPT);
  }

  /** The first output, as the nodes say, without what the runtime's optimizer makes of them. */
  static float[] firstOfNodes(OnnxModel model, Map<String, OnnxTensor> inputs) throws OrtException {
    return first(model, inputs, OptLevel.NO_OPT);
  }

  private static float[] first(OnnxModel model, Map<String, OnnxTensor> inputs, OptLevel level)
      throws OrtException {
    try (OrtSession.SessionOptions options = new OrtSession.SessionOptions()) {
      options.setOptimizationLevel(level);
      try (OrtSession session = ENVIRONMENT.createSession(model.toBuffer(), options);
          OrtSession.Result result = session.run(inputs)) {
        FloatBuffer values = ((OnnxTensor) result.get(0)).getFloatBuffer();
        float[] copy = new float[values.remaining()];
        values.get(copy);
        return copy;
      }
    }
  }

  /** A model with fixed ranges, those of all that the examples show. */
  static OnnxModel fixed(
      ModelProto proto, StaticQuantizer.Options options, List<Map<String, OnnxTensor>> examples) {
    OnnxModel model = OnnxModel.of(proto, "test");
    StaticQuantizer quantizer = new StaticQuantizer(model, options);
    quantizer.apply(quantizer.ranges(new TensorActivations(examples, 1), new Clipping.MinMax()));
    return model;
  }

  /** How often each operator occurs. */
  static Map<String, Integer> operators(OnnxModel model) {
    Map<String, Integer> count = new TreeMap<>();
    model.nodes().forEach(n -> count.merge(n.getOpType(), 1, Integer::sum));
    return count;
  }
}

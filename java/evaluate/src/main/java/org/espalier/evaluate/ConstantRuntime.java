package org.espalier.evaluate;

import ai.onnx.proto.OnnxMl.TensorProto.DataType;
import ai.onnxruntime.NodeInfo;
import ai.onnxruntime.OnnxTensor;
import ai.onnxruntime.OrtException;
import ai.onnxruntime.OrtSession;
import ai.onnxruntime.TensorInfo;
import java.util.ArrayList;
import java.util.Collection;
import java.util.LinkedHashSet;
import java.util.List;
import java.util.Map;
import java.util.Set;
import org.espalier.compress.onnx.ComputedWeights;
import org.espalier.format.onnx.OnnxInitializer;
import org.espalier.format.onnx.OnnxModel;
import org.slf4j.Logger;
import org.slf4j.LoggerFactory;

/**
 * Computes constants with ONNX Runtime, to the bits that it would compute when it loads the model. The sizes of results
 * are worked out first, and nothing is computed where they are not known: a few bytes of a model can ask for any amount
 * of memory.
 */
public final class ConstantRuntime implements ComputedWeights.Runtime {
  private static final Logger LOG = LoggerFactory.getLogger(ConstantRuntime.class);

  /** The most elements of all computed values together; a weight has at most 2 GiB. */
  private static final long MOST_ELEMENTS = 1 << 28;

  @Override
  public List<OnnxInitializer> compute(OnnxModel model, Collection<String> values) {
    try (OrtSession.SessionOptions options = OnnxRuntime.options()) {
      // Optimizing would compute before the sizes are looked at.
      options.setOptimizationLevel(OrtSession.SessionOptions.OptLevel.NO_OPT);
      options.setIntraOpNumThreads(1);
      try (OrtSession session =
          OnnxRuntime.environment().createSession(model.toBuffer(), options)) {
        String unknown = unbounded(session.getOutputInfo());
        if (unknown != null) {
          LOG.info("{}: weights stay computed: {}", model.name(), unknown);
          return List.of();
        }
        Set<String> wanted = new LinkedHashSet<>(values);
        List<OnnxInitializer> tensors = new ArrayList<>();
        try (OrtSession.Result result = session.run(Map.of(), wanted)) {
          for (String value : wanted) {
            OnnxTensor tensor = (OnnxTensor) result.get(value).orElseThrow();
            tensors.add(
                OnnxInitializer.of(
                    value,
                    DataType.valueOf(tensor.getInfo().onnxType.name().replaceFirst(".*_TYPE_", "")),
                    tensor.getInfo().getShape(),
                    tensor.getByteBuffer()));
          }
        }
        return tensors;
      }
    } catch (OrtException e) {
      LOG.info("{}: weights stay computed: {}", model.name(), e.getMessage());
      return List.of();
    }
  }

  /** What is too large or of a size that is not known; null where nothing is. */
  private static String unbounded(Map<String, NodeInfo> outputs) {
    long elements = 0;
    for (NodeInfo output : outputs.values()) {
      if (!(output.getInfo() instanceof TensorInfo info)) {
        return output.getName() + " is no tensor";
      }
      long size = 1;
      for (long d : info.getShape()) {
        if (d < 0) {
          return "the size of " + output.getName() + " is not known";
        }
        size = d == 0 || size <= MOST_ELEMENTS ? size * Math.min(d, MOST_ELEMENTS + 1) : size;
      }
      elements += size;
      if (elements > MOST_ELEMENTS) {
        return output.getName() + " takes them beyond " + MOST_ELEMENTS + " elements";
      }
    }
    return null;
  }
}

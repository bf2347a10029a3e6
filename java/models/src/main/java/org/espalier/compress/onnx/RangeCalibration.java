package org.espalier.compress.onnx;

import ai.onnx.proto.OnnxMl.NodeProto;
import java.nio.FloatBuffer;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Set;
import org.espalier.InputException;
import org.espalier.format.onnx.OnnxModel;

/** The values of activations that examples reach, as histograms, and the ranges that follow from them. */
final class RangeCalibration {
  private final OnnxModel model;
  private final Map<String, ActivationHistogram> histograms = new LinkedHashMap<>();

  private RangeCalibration(OnnxModel model) {
    this.model = model;
  }

  /**
   * Finds ranges of activations in one run of the examples.
   *
   * @return the ranges for each of the clippings
   * @throws InputException if there are no examples or an activation is NaN or infinite, naming it
   */
  static List<Map<String, ActivationRange>> run(
      OnnxModel model, Set<String> activations, ActivationSource source, List<Clipping> clippings) {
    RangeCalibration calibration = new RangeCalibration(model);
    activations.forEach(a -> calibration.histograms.put(a, new ActivationHistogram()));
    source.run(
        model, activations, (activation, shape, values) -> calibration.add(activation, values));
    return clippings.stream().map(calibration::ranges).toList();
  }

  private void add(String activation, FloatBuffer values) {
    long bad = histograms.get(activation).add(values);
    if (bad > 0) {
      throw new InputException(
          model.name()
              + ": the activation "
              + activation
              + " holds "
              + bad
              + " NaN or infinite values; no range can be found");
    }
  }

  private Map<String, ActivationRange> ranges(Clipping clipping) {
    Map<String, NodeProto> producers = model.producers();
    Map<String, ActivationRange> ranges = new LinkedHashMap<>();
    histograms.forEach(
        (activation, histogram) -> {
          if (histogram.count() == 0) {
            throw new InputException(
                model.name()
                    + ": calibration has no values of "
                    + activation
                    + "; give it an example that reaches it, or leave what it goes into float");
          }
          ActivationRange range = clipping.range(histogram);
          ranges.put(activation, bounded(model, producers.get(activation), range));
        });
    return ranges;
  }

  /**
   * A range within the bounds of the Clip that makes an activation.
   *
   * @param producer of the activation; null for an input
   */
  static ActivationRange bounded(OnnxModel model, NodeProto producer, ActivationRange range) {
    float[] bounds = IntegerOperators.bounds(model, producer);
    return bounds == null ? range : range.within(bounds[0], bounds[1]);
  }
}

package org.espalier.compress.onnx;

import java.util.Arrays;
import java.util.HashSet;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.function.Consumer;
import org.espalier.compress.LinearFitting;
import org.espalier.compress.LinearForm;
import org.espalier.compress.Progress;
import org.espalier.compress.Progress.Phase;
import org.espalier.compress.onnx.ProductSite.Product;
import org.espalier.compress.onnx.fitting.ActivationStatistics;
import org.espalier.compress.onnx.fitting.CompensatedRounding;
import org.espalier.compress.onnx.fitting.LinearScales;
import org.espalier.format.onnx.HalfPrecision;
import org.espalier.format.onnx.OnnxModel;
import org.espalier.format.safetensors.SafetensorsDtype;

/**
 * Fits the weights of a checkpoint's linear layers on a graph that computes with them: scales with which the channels of
 * largest activations lose least ({@link LinearScales}), and integers that make good for one another ({@link
 * CompensatedRounding}). What a product reads is seen in the model as it was, before any weight is rounded. The weights of one
 * segment at a time are widened.
 */
public final class CalibratedLinears implements LinearFitting {
  private final OnnxModel model;
  private final ActivationSource source;
  private final Progress progress;
  private final long segment;

  /**
   * @param model whose constants are called as the checkpoint's tensors are; it is not changed
   * @param source runs examples, and {@linkplain ActivationSource#hold goes on} with what a segment of the model gave
   */
  public CalibratedLinears(OnnxModel model, ActivationSource source, Progress progress) {
    this(model, source, progress, ModelSegments.BYTES);
  }

  CalibratedLinears(OnnxModel model, ActivationSource source, Progress progress, long segment) {
    this.model = model;
    this.source = source;
    this.progress = progress;
    this.segment = segment;
  }

  @Override
  public void fit(
      LinearForm form, Map<String, SafetensorsDtype> weights, Consumer<Fitted> receiver) {
    Set<String> done = new HashSet<>();
    new SegmentedStatistics(model, ModelSegments.of(model, weights.keySet(), segment), form.bits())
        .see(
            source,
            progress,
            part -> sites(part, weights.keySet()),
            (part, sites, statistics) -> {
              for (ProductSite site : sites) {
                ActivationStatistics x = statistics.remove(site);
                if (x == null) {
                  continue;
                }
                double[][] moments = x.moments(false);
                CompensatedRounding rounding = new CompensatedRounding(moments);
                double[] importance = new double[site.channels];
                Arrays.setAll(importance, k -> moments[k][moments[k].length - 1]);
                for (Product p : site.products) {
                  if (done.add(p.name)) {
                    progress.at(Phase.FIT, done.size(), weights.size());
                    SafetensorsDtype type = weights.get(p.name);
                    receiver.accept(fit(part, p, form, type, rounding, importance));
                  }
                }
              }
            });
  }

  private static List<ProductSite> sites(OnnxModel part, Set<String> weights) {
    HalfPrecision.widen(part);
    RuntimeForm.turnMatrices(part);
    return ProductSite.find(part, w -> weights.contains(w.name()), new LinkedHashMap<>()).stream()
        .filter(site -> !site.inner)
        .toList();
  }

  private static Fitted fit(
      OnnxModel part,
      Product p,
      LinearForm form,
      SafetensorsDtype type,
      CompensatedRounding rounding,
      double[] importance) {
    float[] w = p.matrix(part);
    LinearScales found = LinearScales.find(form, type.computable(), w, p.columns, importance);
    byte[] integers =
        rounding.round(
            w,
            new CompensatedRounding.Grid(
                p.columns,
                found.scales(),
                found.zeroPoints(),
                found.block(),
                form.least(),
                form.largest(),
                form.isFloat()));
    int blocks = found.scales().length / p.columns;
    float[] scales = new float[found.scales().length];
    for (int b = 0; b < blocks; b++) {
      for (int c = 0; c < p.columns; c++) {
        scales[c * blocks + b] = found.scales()[b * p.columns + c];
      }
    }
    return new Fitted(
        p.name,
        scales,
        found.zeroPoints() == null ? null : turned(found.zeroPoints(), p.columns),
        turned(integers, p.columns));
  }

  /** A matrix with so many columns, column by column. */
  private static byte[] turned(byte[] matrix, int columns) {
    int rows = matrix.length / columns;
    byte[] turned = new byte[matrix.length];
    for (int r = 0; r < rows; r++) {
      for (int c = 0; c < columns; c++) {
        turned[c * rows + r] = matrix[r * columns + c];
      }
    }
    return turned;
  }
}

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
 * CompensatedRounding}). What a product reads is seen in the model as it was, before any weight is rounded.
 */
public final class CalibratedLinears implements LinearFitting {
  private final OnnxModel model;
  private final ActivationSource source;
  private final Progress progress;

  /**
   * @param model whose constants are called as the checkpoint's tensors are; it computes in float32 afterwards
   * @param source runs examples, several times where the statistics of all activations would take more than a quarter of
   *     this JVM's heap
   */
  public CalibratedLinears(OnnxModel model, ActivationSource source, Progress progress) {
    this.model = model;
    this.source = source;
    this.progress = progress;
  }

  @Override
  public void fit(
      LinearForm form, Map<String, SafetensorsDtype> weights, Consumer<Fitted> receiver) {
    HalfPrecision.widen(model);
    RuntimeForm.turnMatrices(model);
    List<ProductSite> sites =
        ProductSite.find(model, w -> weights.containsKey(w.name()), new LinkedHashMap<>()).stream()
            .filter(site -> !site.inner)
            .toList();
    Set<String> done = new HashSet<>();
    int seen = 0;
    for (List<ProductSite> part :
        ActivationStatistics.parts(
            sites, site -> ActivationStatistics.bytesOfRounding(site.channels, form.bits()))) {
      Map<ProductSite, ActivationStatistics> statistics =
          new ToldActivations(source, progress).statistics(model, part, form.bits());
      for (ProductSite site : part) {
        progress.at(Phase.FIT, seen++, sites.size());
        double[][] moments = statistics.remove(site).moments(false);
        CompensatedRounding rounding = new CompensatedRounding(moments);
        double[] importance = new double[site.channels];
        Arrays.setAll(importance, k -> moments[k][moments[k].length - 1]);
        for (Product p : site.products) {
          if (done.add(p.name)) {
            receiver.accept(fit(p, form, weights.get(p.name), rounding, importance));
          }
        }
      }
    }
  }

  private Fitted fit(
      Product p,
      LinearForm form,
      SafetensorsDtype type,
      CompensatedRounding rounding,
      double[] importance) {
    float[] w = p.matrix(model);
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

package org.espalier.compress.onnx;

import java.nio.FloatBuffer;
import java.util.Arrays;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.concurrent.atomic.AtomicInteger;
import org.espalier.InputException;
import org.espalier.compress.Progress;
import org.espalier.compress.Progress.Phase;
import org.espalier.compress.onnx.ProductSite.Product;
import org.espalier.compress.onnx.fitting.ActivationStatistics;
import org.espalier.compress.onnx.fitting.CompensatedRounding;
import org.espalier.compress.onnx.fitting.Equalization;
import org.espalier.format.onnx.OnnxModel;
import org.slf4j.Logger;
import org.slf4j.LoggerFactory;

/**
 * Fits products x·W to examples: activations are equalized in the model ({@link
 * ActivationEqualizer}), and weights are rounded so that later rows compensate for earlier ones
 * ({@link CompensatedRounding}).
 */
final class ProductFitting {
  private static final Logger LOG = LoggerFactory.getLogger(ProductFitting.class);

  /** Of weights, or one less. */
  private static final int BITS = 8;

  /** What was found for a product: W ≈ integers · scales, and the mean error of x·W. */
  record Rounded(byte[] integers, float[] scales, double[] meanError) {}

  private final OnnxModel model;
  private final int qmax;
  private final Progress progress;
  private final Map<Product, Rounded> rounded = new LinkedHashMap<>();

  /** Sites for which an equalization was found. */
  private final AtomicInteger equalized = new AtomicInteger();

  /** Sites that were rounded, or are being. */
  private int fitted;

  private ProductFitting(OnnxModel model, int qmax, Progress progress) {
    this.model = model;
    this.qmax = qmax;
    this.progress = progress;
  }

  /**
   * Equalizes the sites in {@code model}, which computes afterwards what it did before, and rounds
   * the weights of their products, as far as examples show what these read.
   *
   * @param qmax largest integer of the weights
   * @param source runs the examples: once or, where the statistics of all activations would take
   *     more than a quarter of this JVM's heap, several times
   * @param progress receives the progress
   * @throws InputException if a weight or an activation is not finite, naming it, or there are no
   *     examples
   */
  static Map<Product, Rounded> fit(
      OnnxModel model,
      List<ProductSite> sites,
      int qmax,
      ActivationSource source,
      Progress progress) {
    ProductFitting fitting = new ProductFitting(model, qmax, progress);
    List<ProductSite> seen = sites.stream().filter(ProductSite::isSeen).toList();
    for (List<ProductSite> part :
        ActivationStatistics.parts(
            seen, site -> ActivationStatistics.bytesOfRounding(site.channels, BITS))) {
      fitting.fit(part, seen.size(), new ToldActivations(source, progress));
    }
    return fitting.rounded;
  }

  private void fit(List<ProductSite> group, int all, ToldActivations source) {
    long start = System.nanoTime();
    Map<ProductSite, ActivationStatistics> statistics = source.statistics(model, group, BITS);
    LOG.debug("activations collected after {} ms", (System.nanoTime() - start) / 1_000_000);
    ActivationEqualizer equalizer = new ActivationEqualizer(model);
    Map<ProductSite, Equalization> equalizations =
        equalizer.search(
            statistics, qmax, () -> progress.at(Phase.EQUALIZE, equalized.incrementAndGet(), all));
    equalizer.apply(equalizations);
    LOG.debug("equalized after {} ms", (System.nanoTime() - start) / 1_000_000);
    statistics.forEach(
        (site, x) -> {
          progress.at(Phase.FIT, fitted++, all);
          round(site, equalizations.get(site), x);
        });
    LOG.debug("rounded after {} ms", (System.nanoTime() - start) / 1_000_000);
  }

  private void round(ProductSite s, Equalization e, ActivationStatistics x) {
    // A bias takes up the mean of the error, so that only what varies is left to rounding.
    boolean biased = s.products.stream().allMatch(Product::isBiased);
    CompensatedRounding rounding = new CompensatedRounding(x.moments(e.shift(), e.scale(), biased));
    double[] means = new double[s.channels];
    Arrays.setAll(means, k -> (x.mean(k) - e.shift()[k]) / e.scale()[k]);
    for (Product p : s.products) {
      float[] w = p.matrix(model);
      long[] dims = {p.rows, p.columns};
      float[] scales = Int8Weights.of(p.name, FloatBuffer.wrap(w), dims, 1, qmax, null).scales();
      byte[] integers = rounding.round(w, scales, qmax);
      double[] meanError = meanError(w, p.columns, scales, p.rows, integers, means);
      rounded.put(p, new Rounded(integers, scales, meanError));
    }
  }

  /**
   * The mean of what rounding W [rows, n] takes from x·W.
   *
   * @param scales [blocks, n]
   * @param block rows that share a scale
   * @param integers of W, row-major
   * @param means of the channels of x
   */
  static double[] meanError(
      float[] w, int n, float[] scales, int block, byte[] integers, double[] means) {
    double[] error = new double[n];
    for (int k = 0; k < w.length / n; k++) {
      for (int j = 0; j < n; j++) {
        int at = k * n + j;
        double rounded = (double) integers[at] * scales[k / block * n + j];
        error[j] += means[k] * ((double) w[at] - rounded);
      }
    }
    return error;
  }
}

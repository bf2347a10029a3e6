package org.espalier.compress.onnx.fitting;

import java.util.Arrays;
import java.util.stream.IntStream;
import org.espalier.compress.LinearForm;
import org.espalier.device.DType;
import org.espalier.format.HalfFloats;

/**
 * Scales for a matrix W [in, out] in a {@link LinearForm}, which lie as W does: [blocks, out]. Of 4 bits 16 are tried, from that
 * which clips nothing down to 17/32 of it, and the one is taken with which the squares of what rounding changes, times the
 * second moments of their inputs, are least in sum. Of 8 bits it is the largest magnitude / 127.5, of floats / 448, as the format
 * has it.
 *
 * @param block rows of W that share a scale
 * @param scales [blocks, out], positive
 * @param zeroPoints [blocks, out]; null: all 0
 */
public record LinearScales(int block, float[] scales, byte[] zeroPoints) {
  /** Columns that are searched together. */
  private static final int COLUMNS = 256;

  /** Adding and subtracting it rounds numbers below 2²² to the nearest integer, ties to even. */
  private static final float ROUND = 0x1.8p23f;

  /**
   * Finds them.
   *
   * @param type in which scales are stored: F32, F16 or BF16
   * @param weights W, row-major, finite
   * @param columns of W
   * @param importance of each row, none negative
   */
  public static LinearScales find(
      LinearForm form, DType type, float[] weights, int columns, double[] importance) {
    int rows = weights.length / columns;
    int block = form.block() == 0 ? rows : form.block();
    int blocks = (rows + block - 1) / block;
    float[] scales = new float[blocks * columns];
    byte[] zeroPoints = form.symmetric() ? null : new byte[blocks * columns];
    int panels = (columns + COLUMNS - 1) / COLUMNS;
    IntStream.range(0, blocks * panels)
        .parallel()
        .forEach(
            i -> {
              int from = i / panels * block;
              int first = i % panels * COLUMNS;
              Search search =
                  new Search(
                      form,
                      type,
                      weights,
                      columns,
                      new int[] {from, Math.min(rows, from + block)},
                      new int[] {first, Math.min(columns, first + COLUMNS)},
                      importance);
              search.run();
              int at = i / panels * columns + first;
              System.arraycopy(search.scales, 0, scales, at, search.scales.length);
              if (zeroPoints != null) {
                System.arraycopy(search.zeroPoints, 0, zeroPoints, at, search.scales.length);
              }
            });
    return new LinearScales(block, scales, zeroPoints);
  }

  /** Tries scales for one block of some columns; columns are innermost, so that the JIT takes several at once. */
  private static final class Search {
    private final LinearForm form;
    private final DType type;
    private final float[] weights;
    private final int stride;
    private final int from;
    private final int to;
    private final int first;
    private final int width;
    private final double[] importance;
    private final float[] scales;
    private final byte[] zeroPoints;
    private final float[] best;

    /**
     * @param rows from the first on to the second
     * @param columns from the first on to the second
     */
    Search(
        LinearForm form,
        DType type,
        float[] weights,
        int stride,
        int[] rows,
        int[] columns,
        double[] importance) {
      this.form = form;
      this.type = type;
      this.weights = weights;
      this.stride = stride;
      from = rows[0];
      to = rows[1];
      first = columns[0];
      width = columns[1] - first;
      this.importance = importance;
      scales = new float[width];
      zeroPoints = new byte[width];
      best = new float[width];
      Arrays.fill(best, Float.POSITIVE_INFINITY);
    }

    void run() {
      float[] low = new float[width]; // 0 is in each range
      float[] high = new float[width];
      float total = 0;
      for (int k = from; k < to; k++) {
        int at = k * stride + first;
        for (int c = 0; c < width; c++) {
          low[c] = Math.min(low[c], weights[at + c]);
          high[c] = Math.max(high[c], weights[at + c]);
        }
        total += (float) importance[k];
      }
      int tries = form.bits() == 4 ? LinearForm.TRIED_SCALES : 1;
      for (int i = 0; i < tries; i++) {
        tryShare(
            1 - i * (1 - LinearForm.LEAST_SHARE) / (LinearForm.TRIED_SCALES - 1), low, high, total);
      }
    }

    private void tryShare(float share, float[] low, float[] high, float total) {
      int least = form.least();
      int largest = form.largest();
      float[] tried = new float[width];
      float[] inverse = new float[width];
      float[] zeros = new float[width];
      for (int c = 0; c < width; c++) {
        float range =
            (form.symmetric() ? Math.max(-low[c], high[c]) : high[c] - low[c]) / form.steps();
        tried[c] = Math.max(LinearForm.SMALLEST_SCALE, HalfFloats.rounded(share * range, type));
        inverse[c] = 1 / tried[c];
        if (!form.symmetric()) {
          double zero = Math.rint(least - (double) share * low[c] / tried[c]);
          zeros[c] = (float) Math.max(least, Math.min(largest, zero));
        }
      }
      float[] errors = new float[width];
      for (int k = from; k < to; k++) {
        // Of a block that no example reached all rows count alike.
        float h = total > 0 ? (float) importance[k] : 1;
        int at = k * stride + first;
        for (int c = 0; c < width; c++) {
          float q = weights[at + c] * inverse[c] + ROUND - ROUND + zeros[c];
          q = Math.max(least, Math.min(largest, q)) - zeros[c];
          float d = weights[at + c] - q * tried[c];
          errors[c] += h * d * d;
        }
      }
      for (int c = 0; c < width; c++) {
        if (errors[c] < best[c]) {
          best[c] = errors[c];
          scales[c] = tried[c];
          zeroPoints[c] = (byte) zeros[c];
        }
      }
    }
  }
}

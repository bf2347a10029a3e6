package org.espalier.compress.onnx;

import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.util.Arrays;
import java.util.stream.IntStream;

/**
 * A matrix W [rows, columns] as signed integers of 4 or 8 bits, with one scale for each block of rows of a column: w ≈ scale·q with
 * q in [−8, 7] or [−128, 127]. A scale may be negative, so that the largest weight of a block, whatever its sign, can be the least
 * integer, which has no counterpart.
 *
 * @param bits of an integer
 * @param block rows of a block; the last one may have fewer
 * @param scales [blocks, columns], none of them 0
 * @param integers [rows, columns]
 */
record BlockWeights(int bits, int rows, int columns, int block, float[] scales, byte[] integers) {
  /** Scales that are tried, as shares of that which clips nothing. */
  private static final float[] SHARES = {
    1, 0.96f, 0.92f, 0.88f, 0.84f, 0.8f, 0.76f, 0.72f, 0.68f, 0.64f, 0.6f
  };

  /** Adding and subtracting it rounds numbers below 2²² to the nearest integer, ties to even. */
  private static final float ROUND = 0x1.8p23f;

  /** Smaller weights count as 0: the reciprocal of their scale would be infinite. */
  private static final float SMALLEST = 256 * Float.MIN_NORMAL;

  BlockWeights {
    int blocks = (rows + block - 1) / block;
    if (integers.length != rows * columns || scales.length != blocks * columns) {
      throw new IllegalArgumentException(
          rows
              + " x "
              + columns
              + " weights in blocks of "
              + block
              + "; given are "
              + integers.length
              + " integers and "
              + scales.length
              + " scales");
    }
  }

  /** The least integer of so many bits. */
  static int least(int bits) {
    return -(1 << bits - 1);
  }

  /** The largest integer of so many bits. */
  static int largest(int bits) {
    return (1 << bits - 1) - 1;
  }

  /**
   * The scales with which the squares of what rounding changes are least in sum.
   *
   * @param weights W, row-major, finite
   * @param importance what the squares of a row are multiplied with, none negative; null: 1
   */
  static float[] scales(int bits, float[] weights, int columns, int block, double[] importance) {
    int rows = weights.length / columns;
    int blocks = (rows + block - 1) / block;
    float[] scales = new float[blocks * columns];
    IntStream.range(0, blocks)
        .parallel()
        .forEach(
            b -> {
              int from = b * block;
              int to = Math.min(rows, from + block);
              float[] best = new Search(bits, weights, columns, from, to, importance).scales();
              System.arraycopy(best, 0, scales, b * columns, columns);
            });
    return scales;
  }

  /** Rounds each weight for itself. */
  static BlockWeights nearest(int bits, float[] weights, int columns, int block) {
    byte[] integers = new byte[weights.length];
    float[] scales = scales(bits, weights, columns, block, null);
    BlockWeights nearest =
        new BlockWeights(bits, weights.length / columns, columns, block, scales, integers);
    int least = least(bits);
    int largest = largest(bits);
    for (int i = 0; i < weights.length; i++) {
      float scale = nearest.scale(i / columns, i % columns);
      integers[i] = (byte) Math.max(least, Math.min(largest, Math.rint(weights[i] / scale)));
    }
    return nearest;
  }

  /**
   * What lies column by column.
   *
   * @param scales [columns, blocks]
   * @param integers [columns, rows]
   */
  static BlockWeights ofColumns(int bits, int rows, int block, float[] scales, byte[] integers) {
    int columns = integers.length / rows;
    int blocks = (rows + block - 1) / block;
    float[] turnedScales = new float[scales.length];
    byte[] turned = new byte[integers.length];
    for (int c = 0; c < columns; c++) {
      for (int b = 0; b < blocks; b++) {
        turnedScales[b * columns + c] = scales[c * blocks + b];
      }
      for (int k = 0; k < rows; k++) {
        turned[k * columns + c] = integers[c * rows + k];
      }
    }
    return new BlockWeights(bits, rows, columns, block, turnedScales, turned);
  }

  /** The integers [columns, rows]. */
  byte[] columnIntegers() {
    byte[] turned = new byte[integers.length];
    for (int c = 0; c < columns; c++) {
      for (int k = 0; k < rows; k++) {
        turned[c * rows + k] = integers[k * columns + c];
      }
    }
    return turned;
  }

  /** The scales [columns, blocks]. */
  float[] columnScales() {
    float[] turned = new float[scales.length];
    packedScales().asFloatBuffer().get(turned);
    return turned;
  }

  /** What they stand for [columns, rows]. */
  float[] columnValues() {
    float[] values = new float[integers.length];
    for (int c = 0; c < columns; c++) {
      for (int k = 0; k < rows; k++) {
        values[c * rows + k] = scale(k, c) * integers[k * columns + c];
      }
    }
    return values;
  }

  /** The scale of a weight. */
  float scale(int row, int column) {
    return scales[row / block * columns + column];
  }

  private int blocks() {
    return (rows + block - 1) / block;
  }

  /** How many bytes the integers of a block take. */
  int blockBytes() {
    return block * bits / 8;
  }

  /**
   * The integers [columns, blocks, bytes], each from 0 on and, of 4 bits, two in a byte with the first in its lower half. What a
   * block lacks is 0.
   */
  ByteBuffer packed() {
    int blocks = blocks();
    ByteBuffer packed =
        ByteBuffer.allocateDirect(Math.multiplyExact(columns, blocks * blockBytes()));
    int perByte = 8 / bits;
    for (int column = 0; column < columns; column++) {
      for (int row = 0; row < blocks * block; row += perByte) {
        int both = stored(row, column);
        packed.put((byte) (perByte == 1 ? both : both | stored(row + 1, column) << 4));
      }
    }
    return packed.flip();
  }

  private int stored(int row, int column) {
    return (row < rows ? integers[row * columns + column] : 0) - least(bits);
  }

  /** The scales [columns, blocks], little-endian. */
  ByteBuffer packedScales() {
    int blocks = blocks();
    ByteBuffer packed = ByteBuffer.allocateDirect(4 * scales.length).order(ByteOrder.LITTLE_ENDIAN);
    for (int column = 0; column < columns; column++) {
      for (int b = 0; b < blocks; b++) {
        packed.putFloat(scales[b * columns + column]);
      }
    }
    return packed.flip();
  }

  /** Tries scales for one block of all columns; columns are innermost, so that the JIT takes several at once. */
  private static final class Search {
    private final int least;
    private final int largest;
    private final float[] weights;
    private final int columns;
    private final int from;
    private final int to;
    private final double[] importance;
    private final float[] errors;
    private final float[] best;
    private final float[] scales;

    Search(int bits, float[] weights, int columns, int from, int to, double[] importance) {
      least = least(bits);
      largest = largest(bits);
      this.weights = weights;
      this.columns = columns;
      this.from = from;
      this.to = to;
      this.importance = importance;
      errors = new float[columns];
      best = new float[columns];
      scales = new float[columns];
      Arrays.fill(best, Float.POSITIVE_INFINITY);
      Arrays.fill(scales, 1);
    }

    float[] scales() {
      float[] ends = new float[columns];
      for (int k = from; k < to; k++) {
        for (int c = 0; c < columns; c++) {
          float w = weights[k * columns + c];
          ends[c] = Math.abs(w) > Math.abs(ends[c]) ? w : ends[c];
        }
      }
      float total = 0;
      for (int k = from; k < to && importance != null; k++) {
        total += (float) importance[k];
      }
      for (float share : SHARES) {
        tryScales(ends, share / least, total);
        tryScales(ends, share / largest, total);
      }
      return scales;
    }

    private void tryScales(float[] ends, float factor, float total) {
      Arrays.fill(errors, 0);
      float[] tried = new float[columns];
      float[] inverse = new float[columns];
      for (int c = 0; c < columns; c++) {
        boolean any = Math.abs(ends[c]) >= SMALLEST;
        tried[c] = any ? ends[c] * factor : 1;
        inverse[c] = 1 / tried[c];
      }
      for (int k = from; k < to; k++) {
        // Of a block that no example reached all rows count alike.
        float h = total > 0 ? (float) importance[k] : 1;
        addErrors(k * columns, h, tried, inverse);
      }
      for (int c = 0; c < columns; c++) {
        if (errors[c] < best[c]) {
          best[c] = errors[c];
          scales[c] = tried[c];
        }
      }
    }

    private void addErrors(int at, float h, float[] tried, float[] inverse) {
      for (int c = 0; c < columns; c++) {
        float q = weights[at + c] * inverse[c] + ROUND - ROUND;
        q = Math.max(least, Math.min(largest, q));
        float d = weights[at + c] - q * tried[c];
        errors[c] += h * d * d;
      }
    }
  }
}

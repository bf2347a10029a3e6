package org.espalier.compress.onnx.fitting;

import java.nio.FloatBuffer;
import java.util.ArrayList;
import java.util.List;
import java.util.stream.IntStream;
import org.bytedeco.javacpp.FloatPointer;
import org.espalier.device.DType;
import org.espalier.device.Tensor;
import org.espalier.op.Linear;

/**
 * Adds up Σ x·xᵀ of a block of channels, tile by tile of {@value #WIDTH} by {@value #WIDTH}, each the gradient of a {@link
 * Linear} whose rows and slopes are channels of x. Sums of the rows that are added together are of float32, in
 * their order, those of all rows of float64; so results have the same bits whatever the machine and its threads. Not safe for
 * several threads.
 */
final class GramTiles implements AutoCloseable {
  private static final int WIDTH = 64;

  private final double[][] gram;
  private final int from;
  private final List<FloatPointer> memory = new ArrayList<>();

  /** Channels {@value #WIDTH} · p and on, row by row. */
  private final List<FloatBuffer> panels = new ArrayList<>();

  /** By the panel that the tile's rows are of: what receives the tiles. */
  private final List<FloatBuffer> tiles = new ArrayList<>();

  /** By the panels that the tile's rows and columns are of. */
  private final List<List<Linear>> products = new ArrayList<>();

  /**
   * @param gram what is added to: the block's lower triangle, row i having i + 1 entries
   * @param from the block's first channel
   * @param capacity the most rows that are added at once
   */
  GramTiles(double[][] gram, int from, int capacity) {
    this.gram = gram;
    this.from = from;
    List<Tensor> x = new ArrayList<>();
    for (int first = 0; first < gram.length; first += WIDTH) {
      int width = width(x.size());
      FloatPointer panel = allocate(capacity * width);
      panels.add(panel.asBuffer());
      x.add(Tensor.of(panel, DType.F32, capacity, width));
      FloatPointer tile = allocate(width * WIDTH);
      tiles.add(tile.asBuffer());
      List<Linear> row = new ArrayList<>();
      for (int p = 0; p < x.size(); p++) {
        Tensor product = Tensor.of(tile, DType.F32, width, width(p));
        row.add(new Linear(product, null, x.get(p), x.get(x.size() - 1)));
      }
      products.add(row);
    }
  }

  private FloatPointer allocate(int floats) {
    FloatPointer pointer = Scratch.floats(floats);
    memory.add(pointer);
    return pointer;
  }

  private int width(int panel) {
    return Math.min(WIDTH, gram.length - panel * WIDTH);
  }

  /**
   * Adds the first {@code n} rows.
   *
   * @param rows of all channels, those of other blocks too
   */
  void add(float[][] rows, int n) {
    IntStream.range(0, panels.size()).parallel().forEach(p -> put(p, rows, n));
    IntStream.range(0, panels.size()).parallel().forEach(p -> addTiles(p, n));
  }

  private void put(int panel, float[][] rows, int n) {
    int width = width(panel);
    for (int r = 0; r < n; r++) {
      panels.get(panel).put(r * width, rows[r], from + panel * WIDTH, width);
    }
  }

  private void addTiles(int panel, int n) {
    FloatBuffer tile = tiles.get(panel);
    float[] sums = new float[WIDTH];
    for (int p = 0; p <= panel; p++) {
      products.get(panel).get(p).backward(n);
      for (int i = 0; i < width(panel); i++) {
        double[] row = gram[panel * WIDTH + i];
        int count = p < panel ? WIDTH : i + 1;
        tile.get(i * width(p), sums, 0, count);
        for (int j = 0; j < count; j++) {
          row[p * WIDTH + j] += sums[j];
        }
      }
    }
  }

  @Override
  public void close() {
    products.forEach(row -> row.forEach(Linear::close));
    memory.forEach(FloatPointer::close);
  }
}

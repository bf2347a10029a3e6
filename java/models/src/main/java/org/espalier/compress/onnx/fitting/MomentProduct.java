package org.espalier.compress.onnx.fitting;

import java.nio.FloatBuffer;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.stream.IntStream;
import org.bytedeco.javacpp.FloatPointer;
import org.espalier.device.DType;
import org.espalier.device.Tensor;
import org.espalier.op.Linear;

/**
 * Multiplies rows with the second moments H of an activation, many at once, by the kernel of {@link Linear}. H lies in
 * panels of {@value #PANEL} columns, each in one piece: a panel stays in a second-level cache while all rows meet it,
 * where columns of a wide matrix lie a page apart and evict each other. Rows may be put and got by several threads, each by
 * one; results have the same bits whatever the machine and the other rows.
 */
final class MomentProduct implements AutoCloseable {
  private static final int PANEL = 64;

  /** One block of H of more than one input. */
  private static final class Part implements AutoCloseable {
    final int from;
    final int size;
    final FloatPointer rows;
    final FloatBuffer values;
    final List<FloatPointer> memory = new ArrayList<>();
    final List<FloatBuffer> products = new ArrayList<>();
    final List<Linear> panels = new ArrayList<>();

    Part(int from, float[][] block, int capacity) {
      this.from = from;
      size = block.length;
      rows = allocate((long) capacity * size);
      values = rows.asBuffer();
      Tensor x = Tensor.of(rows, DType.F32, capacity, size);
      for (int first = 0; first < size; first += PANEL) {
        int width = Math.min(PANEL, size - first);
        FloatPointer panel = allocate((long) size * width);
        FloatBuffer columns = panel.asBuffer();
        for (float[] row : block) {
          columns.put(row, first, width);
        }
        FloatPointer product = allocate((long) capacity * width);
        products.add(product.asBuffer());
        panels.add(
            new Linear(
                Tensor.of(panel, DType.F32, size, width),
                null,
                Tensor.of(product, DType.F32, capacity, width),
                x));
      }
    }

    private FloatPointer allocate(long floats) {
      FloatPointer pointer = Scratch.floats(floats);
      memory.add(pointer);
      return pointer;
    }

    void get(int row, float[] product) {
      for (int p = 0; p < panels.size(); p++) {
        int width = Math.min(PANEL, size - p * PANEL);
        products.get(p).get(row * width, product, from + p * PANEL, width);
      }
    }

    @Override
    public void close() {
      panels.forEach(Linear::close);
      memory.forEach(FloatPointer::close);
    }
  }

  /** The inputs that are blocks of their own, and their moments. */
  private final int[] single;

  private final float[] square;
  private final List<Part> parts = new ArrayList<>();

  /**
   * @param moments row k: the moments of input k with those of its block
   * @param capacity how many rows there are at once
   */
  MomentProduct(float[][] moments, int capacity) {
    single = IntStream.range(0, moments.length).filter(k -> moments[k].length == 1).toArray();
    square = new float[single.length];
    for (int i = 0; i < single.length; i++) {
      square[i] = moments[single[i]][0];
    }
    for (int from = 0, size; from < moments.length; from += size) {
      size = moments[from].length;
      if (size > 1) {
        parts.add(new Part(from, Arrays.copyOfRange(moments, from, from + size), capacity));
      }
    }
  }

  /** Sets a row of those that are multiplied next. */
  void put(int row, float[] values) {
    for (Part part : parts) {
      part.values.put(row * part.size, values, part.from, part.size);
    }
  }

  /** Multiplies the first {@code count} rows. */
  void multiply(int count) {
    for (Part part : parts) {
      for (Linear panel : part.panels) {
        panel.backwardRows(count);
      }
    }
  }

  /**
   * The product of a row.
   *
   * @param values as they were put
   * @param product receives it
   */
  void get(int row, float[] values, float[] product) {
    for (int i = 0; i < single.length; i++) {
      product[single[i]] = square[i] * values[single[i]];
    }
    for (Part part : parts) {
      part.get(row, product);
    }
  }

  @Override
  public void close() {
    parts.forEach(Part::close);
  }
}

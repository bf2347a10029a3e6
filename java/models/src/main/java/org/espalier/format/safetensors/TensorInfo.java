package org.espalier.format.safetensors;

import java.util.List;

/**
 * What a header says about one tensor; checked against the file before it is handed out.
 *
 * @param name the tensor's name, unique in its checkpoint
 * @param dtype the element type
 * @param shape the sizes, outermost first; empty for a scalar; no size is negative
 * @param begin the first byte, counted from the end of the header
 * @param end one past the last byte, counted from the end of the header
 */
public record TensorInfo(
    String name, SafetensorsDtype dtype, List<Long> shape, long begin, long end) {

  public TensorInfo {
    shape = List.copyOf(shape);
  }

  /** The number of elements; 1 for a scalar. */
  public long elements() {
    return elements(shape);
  }

  /** The number of bytes. */
  public long bytes() {
    return end - begin;
  }

  /** The number of dimensions; 0 for a scalar. */
  public int rank() {
    return shape.size();
  }

  /**
   * The number of elements of a shape.
   *
   * @throws ArithmeticException if it overflows
   */
  static long elements(List<Long> shape) {
    long elements = 1;
    for (long size : shape) {
      elements = Math.multiplyExact(elements, size);
    }
    return elements;
  }
}

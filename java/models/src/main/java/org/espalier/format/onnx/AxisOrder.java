package org.espalier.format.onnx;

import ai.onnx.proto.OnnxMl.NodeProto;
import java.util.Arrays;
import java.util.stream.IntStream;
import java.util.stream.LongStream;

/** In which order a Transpose puts axes: for each that it gives, that which it was. */
public final class AxisOrder {
  private AxisOrder() {}

  /** The order that a Transpose is told; null where it is told none, which turns all around, or no right one. */
  public static int[] of(NodeProto transpose) {
    long[] order = Attributes.integers(transpose, "perm");
    if (order == null) {
      return null;
    }
    long[] sorted = order.clone();
    Arrays.sort(sorted);
    return Arrays.equals(sorted, LongStream.range(0, order.length).toArray())
        ? LongStream.of(order).mapToInt(axis -> (int) axis).toArray()
        : null;
  }

  /** The order of so many axes; null where a Transpose is told one of others, which a runtime refuses. */
  static int[] of(NodeProto transpose, int rank) {
    if (Attributes.find(transpose, "perm") == null) {
      return IntStream.range(0, rank).map(axis -> rank - 1 - axis).toArray();
    }
    int[] order = of(transpose);
    return order == null || order.length != rank ? null : order;
  }
}

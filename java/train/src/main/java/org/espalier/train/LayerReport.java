package org.espalier.train;

import java.nio.FloatBuffer;
import java.util.List;
import java.util.stream.LongStream;
import org.espalier.format.onnx.OnnxInitializer;

/**
 * What became of one weight tensor.
 *
 * @param name of the parameter
 * @param shape its dimensions
 * @param sparsity share of exact zeros
 * @param bits 32 where it is float, 8 or 7 where it is quantized
 * @param smallestScale of its channels; NaN where it is float
 * @param largestScale of its channels; NaN where it is float
 * @param error root of the mean squared difference to the tensor at the start of the plan (after
 *     equalization), as a share of its root mean square
 */
public record LayerReport(
    String name,
    List<Long> shape,
    double sparsity,
    int bits,
    double smallestScale,
    double largestScale,
    double error) {
  /**
   * Compares a tensor with what it was.
   *
   * @param then what it was
   * @param now what it is, of as many values
   */
  static LayerReport of(
      String name,
      List<Long> shape,
      FloatBuffer then,
      FloatBuffer now,
      int bits,
      double smallestScale,
      double largestScale) {
    int elements = now.remaining();
    long zeros = 0;
    double error = 0;
    double square = 0;
    for (int i = 0; i < elements; i++) {
      double d = (double) now.get(i) - then.get(i);
      error += d * d;
      square += (double) then.get(i) * then.get(i);
      zeros += now.get(i) == 0 ? 1 : 0;
    }
    return new LayerReport(
        name,
        shape,
        (double) zeros / elements,
        bits,
        smallestScale,
        largestScale,
        square == 0 ? 0 : Math.sqrt(error / square));
  }

  /** The same of a tensor that is float. */
  static LayerReport ofFloats(String name, OnnxInitializer then, OnnxInitializer now) {
    List<Long> shape = LongStream.of(now.dims()).boxed().toList();
    return of(name, shape, then.floats(), now.floats(), 32, Double.NaN, Double.NaN);
  }
}

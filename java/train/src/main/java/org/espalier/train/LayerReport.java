package org.espalier.train;

import java.util.List;

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
    double error) {}

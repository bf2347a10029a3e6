package org.espalier.compress.onnx;

/**
 * A product whose weights are quantized, in a model that is still float32 and can be trained.
 *
 * @param name of the weight
 * @param output the value that the node defines; it identifies the node
 * @param activation the value that the node multiplies with the weight; products of one activation
 *     quantize it once
 * @param weight the initializer that the node alone reads, but for look-ups in the same weights
 * @param grid where its weights lie
 * @param integers the weights on their grid, in the layout of {@code weight}
 * @param scales as the grid has them
 */
public record QuantizedProduct(
    String name,
    String output,
    String activation,
    String weight,
    WeightGrid grid,
    byte[] integers,
    float[] scales) {}

package org.espalier.compress.onnx;

/**
 * A product whose weights are quantized, in a model that is still float32 and can be trained.
 *
 * @param name of the weight
 * @param output the value that the node defines; it identifies the node
 * @param activation the value that the node multiplies with the weight; products of one activation
 *     quantize it once
 * @param weight the initializer that the node alone reads, but for look-ups in the same weights
 * @param channelAxis the axis of {@code weight} along which the scales lie; −1 where there is one scale
 * @param qmax the integers are in [−qmax, qmax]
 * @param integers the weights on their grid, in the layout of {@code weight}
 * @param scales one positive scale a channel
 */
public record QuantizedProduct(
    String name,
    String output,
    String activation,
    String weight,
    int channelAxis,
    int qmax,
    byte[] integers,
    float[] scales) {}

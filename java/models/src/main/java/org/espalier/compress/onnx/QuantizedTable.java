package org.espalier.compress.onnx;

/**
 * An embedding table that is quantized, in a model that is still float32 and can be trained.
 *
 * @param name of the weight
 * @param table the constant [rows, width] that is looked up in
 * @param qmax the integers are in [−qmax, qmax]
 * @param integers the table on its grid
 * @param scales one positive scale a row
 */
public record QuantizedTable(
    String name, String table, int qmax, byte[] integers, float[] scales) {}

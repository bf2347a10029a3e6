package org.espalier.compress.onnx;

/**
 * An embedding table that is quantized, in a model that is still float32 and can be trained.
 *
 * @param name of the weight
 * @param table the constant [rows, width] that is looked up in
 * @param grid where its weights lie
 * @param integers the table on its grid, row by row
 * @param scales as the grid has them
 */
public record QuantizedTable(
    String name, String table, WeightGrid grid, byte[] integers, float[] scales) {}

package org.espalier.compress.onnx.layers;

/**
 * A layer of a graph that makes of one value another, which the layer behind it reads, as a block of a transformer does.
 *
 * @param stack which of the model's stacks it is of, from 0; a stack's layers have the same operators, and constants of the
 *     same shapes
 * @param input the value that it reads; beside it it may read others that follow from no layer, such as masks
 * @param inputSum where ONNX Runtime's own operators give a sum and its norm, which is the input then, the sum, which the layer
 *     reads too; null else
 * @param output the value that it makes
 * @param normed whether that is such a norm, of the sum that the layer behind it goes on with
 * @param cache the number in the names of the keys and values that it takes and gives for earlier tokens
 *     (past_key_values.3.key); −1 where it has none
 * @param obstacle why it cannot go, for people; null where it can
 */
public record RepeatedLayer(
    int stack,
    String input,
    String inputSum,
    String output,
    boolean normed,
    int cache,
    String obstacle) {}

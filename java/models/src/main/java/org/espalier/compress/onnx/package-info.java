/**
 * Compression of ONNX models: weights of 8 and 4 bits, activations in the arithmetic of ONNX Runtime, weights that are
 * pruned, and refitted where others are, layers, hidden channels and heads that are removed.
 *
 * <p>A quantizer, pruner or converter changes the model that it was made for, which lies in memory, once, and is for one
 * thread. None runs a model: examples and a runtime come as an {@link org.espalier.compress.onnx.ActivationSource}. What is
 * wrong with a model or with examples is an {@link org.espalier.InputException}. The packages below this one are its parts:
 * {@code channels} for the removal of channels, {@code layers} for that of layers, {@code fitting} for what is solved for with second
 * moments.
 */
package org.espalier.compress.onnx;

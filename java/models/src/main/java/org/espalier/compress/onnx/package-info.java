/**
 * Compression of ONNX models: weights of 8 and 4 bits, activations in the arithmetic of ONNX Runtime, weights that are
 * pruned, and refitted where others are, hidden channels and heads that are removed.
 */
package org.espalier.compress.onnx;

/** Compression of ONNX models: int8 weights, activations in the arithmetic of ONNX Runtime. */
package org.espalier.compress.onnx;

/**
 * Models that libtorch runs forward and backward: an ONNX graph, a TorchScript module, a module
 * written in Java. Tensors reach the kernels of {@code org.espalier.op} as views, without a copy.
 */
package org.espalier.torch;

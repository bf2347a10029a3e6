/**
 * Models that libtorch runs forward and backward: a TorchScript module, a module written in Java and, in {@code torch.onnx},
 * an ONNX graph. Tensors reach the kernels of {@code org.espalier.op} as views, without a copy.
 */
package org.espalier.torch;

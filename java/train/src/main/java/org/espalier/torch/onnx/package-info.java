/**
 * ONNX graphs run by libtorch, and written as TorchScript. {@link org.espalier.torch.onnx.OnnxGraph} is one that is trained,
 * {@link org.espalier.torch.onnx.Program} compiles a model into steps;
 * what an operator does stands in the table entries of the {@code …Operators} classes, one family a
 * file, and {@link org.espalier.torch.onnx.OperatorTable} lists the families.
 */
package org.espalier.torch.onnx;

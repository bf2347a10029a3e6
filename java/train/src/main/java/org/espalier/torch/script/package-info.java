/**
 * TorchScript modules read as ONNX graphs, so that whatever is done to graphs can be done to them.
 * {@link org.espalier.torch.script.TorchScriptImport} is the entry; what a call of libtorch becomes stands in the table
 * of {@code TorchScriptOperators} and its families.
 */
package org.espalier.torch.script;

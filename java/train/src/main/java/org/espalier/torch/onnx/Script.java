package org.espalier.torch.onnx;

/** How a node is written in TorchScript: the entry of an operator in {@link ScriptTable}. */
@FunctionalInterface
interface Script {
  /**
   * @return the values of the outputs, one for each that the node may have; null where it is not used
   */
  ScriptValue[] write(ScriptCall call);
}

package org.espalier.torch;

import org.bytedeco.pytorch.Tensor;

/** Where a model's tensors are. */
public final class TorchDevice {
  /** Host memory. */
  public static final TorchDevice CPU = new TorchDevice();

  private TorchDevice() {}

  /** The tensor on this device; itself where it is there already. */
  public Tensor place(Tensor tensor) {
    return tensor;
  }

  @Override
  public String toString() {
    return "cpu";
  }
}

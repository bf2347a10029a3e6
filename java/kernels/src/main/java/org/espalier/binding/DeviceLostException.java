package org.espalier.binding;

/** The CUDA context is dead: no later call in this process can use the device. */
public final class DeviceLostException extends NativeException {
  private static final long serialVersionUID = 1L;

  public DeviceLostException(String message) {
    super(message);
  }
}

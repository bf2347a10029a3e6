package org.espalier.binding;

import org.bytedeco.javacpp.BytePointer;
import org.espalier.InputException;
import org.espalier.binding.global.espalier;
import org.espalier.binding.global.espalier_cuda;

/** The one place that turns a status of the C ABI into an exception. */
public final class Status {
  private Status() {}

  /**
   * Returns where {@code status} is {@code ESP_OK}.
   *
   * @throws IllegalArgumentException an argument that the header forbids
   * @throws UnsupportedOperationException valid, but not on this machine or in this build
   * @throws OutOfMemoryError no memory
   * @throws InputException a NaN or infinity where a finite value is needed
   * @throws NativeException anything else
   */
  public static void check(int status) {
    if (status != espalier.ESP_OK) {
      throw failure(status, espalier.esp_last_error());
    }
  }

  /** The same for the CUDA library, which keeps its own message. */
  public static void checkCuda(int status) {
    if (status != espalier.ESP_OK) {
      throw failure(status, espalier_cuda.esp_cuda_last_error());
    }
  }

  private static RuntimeException failure(int status, BytePointer text) {
    String message = text.getString();
    switch (status) {
      case espalier.ESP_INVALID_ARGUMENT:
        return new IllegalArgumentException(message);
      case espalier.ESP_UNSUPPORTED:
        return new UnsupportedOperationException(message);
      case espalier.ESP_OUT_OF_MEMORY:
        throw new OutOfMemoryError(message);
      case espalier.ESP_NON_FINITE:
        return new InputException(message);
      case espalier.ESP_DEVICE_LOST:
        return new DeviceLostException(message);
      default:
        return new NativeException(message);
    }
  }
}

package org.espalier.device;

import org.espalier.binding.Status;
import org.espalier.binding.global.espalier_cuda;
import org.slf4j.LoggerFactory;

/** Where memory is and operations run: the CPU, or one CUDA device. Immutable, thread safe. */
public final class Device {
  private static final Device CPU = new Device(-1);

  private static final class Best {
    static final Device DEVICE = choose();

    private static Device choose() {
      Throwable cause = Cuda.unavailabilityCause();
      if (cause == null) {
        Device first = new Device(0);
        try {
          first.makeCurrent(); // a device that others have, or have filled, says so only now
          return first;
        } catch (RuntimeException | OutOfMemoryError e) {
          cause = e;
        }
      }
      LoggerFactory.getLogger(Device.class).info("computing on the CPU: {}", cause.getMessage());
      return CPU;
    }
  }

  private final int index;

  private Device(int index) {
    this.index = index;
  }

  public static Device cpu() {
    return CPU;
  }

  /**
   * A CUDA device.
   *
   * @throws UnsupportedOperationException with the reason, where CUDA cannot be used
   * @throws IllegalArgumentException where there is no such device
   */
  public static Device cuda(int index) {
    Cuda.requireAvailable();
    if (index < 0 || index >= Cuda.deviceCount()) {
      throw new IllegalArgumentException(
          "CUDA device " + index + "; this machine has " + Cuda.deviceCount() + ", from 0 on");
    }
    return new Device(index);
  }

  /** The first CUDA device where one can be used, else the CPU; the reason is logged once. */
  public static Device best() {
    return Best.DEVICE;
  }

  public boolean isCuda() {
    return index >= 0;
  }

  /**
   * The number of a CUDA device.
   *
   * @throws IllegalStateException on the CPU
   */
  public int index() {
    if (!isCuda()) {
      throw new IllegalStateException("the CPU has no number");
    }
    return index;
  }

  /** Makes a CUDA device the calling thread's; operations do so themselves. Nothing on the CPU. */
  public void makeCurrent() {
    if (isCuda()) {
      Status.checkCuda(espalier_cuda.esp_cuda_device_set(index));
    }
  }

  @Override
  public boolean equals(Object other) {
    return other instanceof Device && ((Device) other).index == index;
  }

  @Override
  public int hashCode() {
    return index;
  }

  /** {@code cpu} or {@code cuda:N}. */
  @Override
  public String toString() {
    return isCuda() ? "cuda:" + index : "cpu";
  }
}

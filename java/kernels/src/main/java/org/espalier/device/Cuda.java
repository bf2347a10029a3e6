package org.espalier.device;

import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Locale;
import org.bytedeco.javacpp.IntPointer;
import org.espalier.binding.Status;
import org.espalier.binding.esp_cuda_condition;
import org.espalier.binding.esp_cuda_device;
import org.espalier.binding.global.espalier_cuda;

/**
 * Whether CUDA devices can be used here, and why not. Asking costs a file check where there is no
 * driver; nothing of CUDA is loaded then. {@code -Despalier.cuda.probe=always} skips that check,
 * for sandboxes that hide the files.
 */
public final class Cuda {
  private static final class Probe {
    static final Probe RESULT = new Probe();
    final int devices;
    final Throwable cause;

    Probe() {
      int found = 0;
      Throwable failure = null;
      try {
        if (driverPresent()) {
          try (IntPointer count = new IntPointer(1)) {
            Status.checkCuda(espalier_cuda.esp_cuda_device_count(count));
            found = count.get();
          }
        } else {
          failure =
              new UnsupportedOperationException(
                  "no NVIDIA driver: neither /dev/nvidiactl nor /proc/driver/nvidia exists");
        }
      } catch (RuntimeException | LinkageError | OutOfMemoryError e) {
        failure = e;
      }
      devices = found;
      cause = failure;
    }

    private static boolean driverPresent() {
      if ("always".equals(System.getProperty("espalier.cuda.probe"))) {
        return true;
      }
      for (String trace : new String[] {"/dev/nvidiactl", "/proc/driver/nvidia", "/dev/dxg"}) {
        if (Files.exists(Path.of(trace))) {
          return true;
        }
      }
      return false;
    }
  }

  private Cuda() {}

  /** Whether at least one device can be used. */
  public static boolean isAvailable() {
    return Probe.RESULT.cause == null;
  }

  /** Why no device can be used, or null where one can. */
  public static Throwable unavailabilityCause() {
    return Probe.RESULT.cause;
  }

  /** Number of usable devices; 0 where CUDA is not available. */
  public static int deviceCount() {
    return Probe.RESULT.devices;
  }

  /**
   * Name, memory and compute capability of a device, for people to read.
   *
   * @throws UnsupportedOperationException where CUDA is not available
   * @throws IllegalArgumentException for a device that does not exist
   */
  public static String describe(int device) {
    requireAvailable();
    try (esp_cuda_device info = new esp_cuda_device()) {
      Status.checkCuda(espalier_cuda.esp_cuda_device_info(device, info));
      return String.format(
          Locale.ROOT,
          "%s, %.0f GiB, compute capability %d.%d, %d multiprocessors",
          info.name().getString(),
          info.memory_bytes() / (double) (1 << 30),
          info.major(),
          info.minor(),
          info.multiprocessors());
    }
  }

  /**
   * Clocks, temperature, power and memory of a device at this moment.
   *
   * @throws UnsupportedOperationException with the reason, where CUDA is not available or NVML, a part of
   *     the driver, cannot be used
   * @throws IllegalArgumentException for a device that does not exist
   */
  public static CudaCondition condition(int device) {
    requireAvailable();
    try (esp_cuda_condition c = new esp_cuda_condition()) {
      Status.checkCuda(espalier_cuda.esp_cuda_device_condition(device, c));
      return new CudaCondition(
          c.driver().getString(),
          c.sm_megahertz(),
          c.memory_megahertz(),
          c.celsius(),
          c.milliwatts(),
          c.memory_used_bytes(),
          c.memory_bytes());
    }
  }

  /**
   * @throws UnsupportedOperationException with the reason, where CUDA is not available
   */
  public static void requireAvailable() {
    if (!isAvailable()) {
      throw new UnsupportedOperationException(
          "CUDA is not available: " + unavailabilityCause().getMessage(), unavailabilityCause());
    }
  }
}

package org.espalier.cli;

import java.util.regex.Matcher;
import java.util.regex.Pattern;
import org.espalier.InputException;
import org.espalier.device.Cuda;
import picocli.CommandLine.Option;

/** The options about what computes. */
final class DeviceOption {
  private static final Pattern CUDA = Pattern.compile("cuda(?::([0-9]{1,4}))?");

  @Option(
      names = "--device",
      paramLabel = "auto|cpu|cuda[:N]",
      defaultValue = "auto",
      description = "What computes. Default: ${DEFAULT-VALUE}, which is the CPU for this command.")
  private String device;

  @Option(
      names = "--threads",
      paramLabel = "N",
      description =
          "Threads of one kernel call. Default: ESPALIER_THREADS, else as many as there are"
              + " processors. The result does not depend on it.")
  private Integer threads;

  /**
   * Checks and applies the options.
   *
   * @return the device: {@code cpu}
   * @throws InputException where the device cannot be used, with the reason
   */
  String use() {
    Machine.useThreads(threads);
    if (device.equals("auto") || device.equals("cpu")) {
      return "cpu";
    }
    Matcher cuda = CUDA.matcher(device);
    if (!cuda.matches()) {
      throw new InputException("--device " + device + " is none of auto, cpu, cuda and cuda:N");
    }
    if (!Cuda.isAvailable()) {
      throw new InputException(
          "--device " + device + ": " + Cuda.unavailabilityCause().getMessage());
    }
    int index = cuda.group(1) == null ? 0 : Integer.parseInt(cuda.group(1));
    if (index >= Cuda.deviceCount()) {
      throw new InputException(
          "--device " + device + ": this machine has " + Cuda.deviceCount() + " CUDA devices");
    }
    throw new InputException("--device " + device + ": this command computes on the CPU only");
  }
}

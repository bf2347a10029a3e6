package org.espalier.cli;

import java.util.OptionalInt;
import java.util.regex.Matcher;
import java.util.regex.Pattern;
import org.espalier.InputException;
import org.espalier.device.Cuda;
import org.espalier.device.Device;
import picocli.CommandLine.Option;

/** The options about what computes. */
final class DeviceOption {
  private static final Pattern CUDA = Pattern.compile("cuda(?::([0-9]{1,4}))?");

  @Option(
      names = "--device",
      paramLabel = "auto|cpu|cuda[:N]",
      defaultValue = "auto",
      description =
          "What computes on safetensors; ONNX models are the CPU's. Default: ${DEFAULT-VALUE}, a"
              + " CUDA device where one can be used. The result does not depend on it.")
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
   * @param cuda whether a CUDA device can do what is asked for
   * @throws InputException where the device cannot be used, with the reason
   */
  Device use(boolean cuda) {
    Machine.useThreads(threads);
    OptionalInt number = cuda(device);
    if (number.isEmpty()) {
      return device.equals("auto") && cuda ? Device.best() : Device.cpu();
    }
    int index = number.getAsInt();
    if (!Cuda.isAvailable()) {
      throw new InputException(
          "--device " + device + ": " + Cuda.unavailabilityCause().getMessage());
    }
    if (index >= Cuda.deviceCount()) {
      throw new InputException(
          "--device " + device + ": this machine has " + Cuda.deviceCount() + " CUDA devices");
    }
    if (!cuda) {
      throw new InputException("--device " + device + ": this is computed on the CPU only");
    }
    return Device.cuda(index);
  }

  /**
   * The number of the CUDA device that an option names; none for auto and cpu.
   *
   * @throws InputException where it is none of these
   */
  static OptionalInt cuda(String device) {
    if (device.equals("auto") || device.equals("cpu")) {
      return OptionalInt.empty();
    }
    Matcher named = CUDA.matcher(device);
    if (!named.matches()) {
      throw new InputException("--device " + device + " is none of auto, cpu, cuda and cuda:N");
    }
    return OptionalInt.of(named.group(1) == null ? 0 : Integer.parseInt(named.group(1)));
  }
}

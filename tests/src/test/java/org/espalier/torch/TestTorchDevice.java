package org.espalier.torch;

import static org.junit.jupiter.api.Assumptions.assumeTrue;

import org.espalier.device.Cuda;
import org.espalier.device.Device;

/** For tests tagged {@code device}: libtorch in host memory, our kernels on the emulated CUDA device. */
public final class TestTorchDevice {
  private TestTorchDevice() {}

  /** That device; the test is skipped where the emulator is not loaded. */
  public static TorchDevice get() {
    assumeTrue(
        Cuda.isAvailable() && System.getProperty("espalier.cuda.probe", "").equals("always"),
        "no emulated CUDA device");
    return TorchDevice.hostMemoryOf(Device.cuda(0));
  }
}

package org.espalier.device;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assumptions.assumeTrue;

import java.nio.file.Files;
import java.nio.file.Path;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.ValueSource;

/** Drivers that refuse, by the stand-in of tests/cuda/driver: the CPU computes, and the reason is told. */
class DriverTest {
  /** What a process of its own prints. */
  public static final class Probe {
    private Probe() {}

    public static void main(String[] arguments) {
      System.out.println(Device.best() + " " + Cuda.deviceCount());
      System.out.println(Cuda.unavailabilityCause().getMessage());
    }
  }

  /** Results of cuInit: no memory, not initialized, no device, no driver that fits, unknown. */
  @ParameterizedTest
  @ValueSource(ints = {2, 3, 100, 803, 999})
  void theCpuComputes(int init) throws Exception {
    Path folder =
        Path.of(System.getProperty("espalier.root"), "java/kernels/target/cmake/tests/cuda/driver");
    assumeTrue(Files.exists(folder.resolve("libcuda.so.1")), "built without CUDA");
    ProcessBuilder builder =
        new ProcessBuilder(
                Path.of(System.getProperty("java.home"), "bin", "java").toString(),
                "-Xshare:auto",
                "-XX:TieredStopAtLevel=1",
                "-Despalier.cuda.probe=always",
                "-cp",
                System.getProperty("java.class.path"),
                Probe.class.getName())
            .redirectError(ProcessBuilder.Redirect.INHERIT);
    builder.environment().put("LD_LIBRARY_PATH", folder.toAbsolutePath().toString());
    builder.environment().put("DRIVER_INIT", String.valueOf(init));
    Process process = builder.start();
    String[] said = new String(process.getInputStream().readAllBytes()).split("\n");
    assertEquals(0, process.waitFor());
    assertEquals("cpu 0", said[0]);
    assertEquals("CUDA devices: ", said[1].substring(0, "CUDA devices: ".length()));
  }
}

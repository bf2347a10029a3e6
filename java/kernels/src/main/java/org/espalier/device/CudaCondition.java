package org.espalier.device;

import java.util.Locale;

/**
 * What NVML says of a CUDA device at one moment.
 *
 * @param driver the driver's version; empty where unknown
 * @param smMegahertz the clock of the multiprocessors; here and below -1: the device does not tell
 * @param memoryMegahertz the clock of the memory
 * @param celsius the temperature of the chip
 * @param milliwatts the power it takes
 * @param memoryUsed bytes in use, by all processes
 * @param memoryBytes all bytes
 */
public record CudaCondition(
    String driver,
    int smMegahertz,
    int memoryMegahertz,
    int celsius,
    int milliwatts,
    long memoryUsed,
    long memoryBytes) {

  /** For people to read. */
  @Override
  public String toString() {
    return String.format(
        Locale.ROOT,
        "driver %s, clocks %s and %s, %s, %s, %s GiB of %s GiB used",
        driver.isEmpty() ? "?" : driver,
        value(smMegahertz, "MHz"),
        value(memoryMegahertz, "MHz"),
        value(celsius, "°C"),
        milliwatts < 0 ? "? W" : milliwatts / 1000 + " W",
        gibibytes(memoryUsed),
        gibibytes(memoryBytes));
  }

  private static String value(int number, String unit) {
    return (number < 0 ? "?" : Integer.toString(number)) + " " + unit;
  }

  private static String gibibytes(long bytes) {
    return bytes < 0 ? "?" : String.format(Locale.ROOT, "%.1f", bytes * 0x1p-30);
  }
}

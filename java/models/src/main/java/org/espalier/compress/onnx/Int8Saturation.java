package org.espalier.compress.onnx;

import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Arrays;
import java.util.HashSet;
import java.util.Set;

/**
 * Whether ONNX Runtime's products of unsigned 8-bit activations and signed 8-bit weights can
 * saturate on a processor. Without the VNNI instructions x86 adds two such products in 16 bits
 * (VPMADDUBSW), where 255·127 + 255·127 is too large; weights of 7 bits and unsigned ones, see {@link WeightIntegers}, stay exact.
 */
public final class Int8Saturation {
  private Int8Saturation() {}

  /**
   * The warning that products saturate here, in one clause.
   *
   * @param remedy the setting that makes weights of which products are exact
   */
  public static String warning(String remedy) {
    return "8-bit products of ONNX Runtime saturate on this processor (it lacks VNNI), which"
        + " falsifies answers; "
        + remedy
        + " keeps them exact";
  }

  /** Whether products saturate on this machine; false where its processor cannot be told. */
  public static boolean onThisMachine() {
    Path cpuInfo = Path.of("/proc/cpuinfo");
    try {
      return Files.isReadable(cpuInfo) && of(Files.readString(cpuInfo));
    } catch (IOException e) {
      return false;
    }
  }

  /**
   * Whether products saturate on a processor.
   *
   * @param cpuInfo the contents of Linux' {@code /proc/cpuinfo}
   */
  public static boolean of(String cpuInfo) {
    for (String line : cpuInfo.split("\n")) {
      if (line.startsWith("flags")) {
        Set<String> flags = new HashSet<>(Arrays.asList(line.split("[\\s:]+")));
        boolean exact = flags.contains("avx512_vnni") || flags.contains("avx_vnni");
        return flags.contains("ssse3") && !exact;
      }
    }
    return false;
  }
}

package org.espalier;

import static org.junit.jupiter.api.Assumptions.assumeTrue;

import java.util.List;
import org.espalier.compress.onnx.Int8Saturation;
import org.espalier.compress.onnx.WeightIntegers;

/** What tests of int8 models in ONNX Runtime need: 8-bit products that do not saturate. */
public final class ExactProducts {
  static final String REASON =
      "8-bit products of ONNX Runtime saturate on this processor, which lacks VNNI";

  private ExactProducts() {}

  /** Whether this is one; on others weights of 7 bits are exact. */
  public static boolean areHere() {
    return !Int8Saturation.onThisMachine();
  }

  /** The weights whose products are exact here: uint8 everywhere, int8 where {@link #areHere}. */
  public static List<WeightIntegers> weights() {
    return areHere()
        ? List.of(WeightIntegers.INT8, WeightIntegers.UINT8)
        : List.of(WeightIntegers.UINT8);
  }

  /** Whether it is another. */
  static boolean areMissing() {
    return !areHere();
  }

  /** Skips what follows on others. */
  public static void assume() {
    assumeTrue(areHere(), REASON);
  }
}

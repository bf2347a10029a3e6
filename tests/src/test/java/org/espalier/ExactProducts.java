package org.espalier;

import static org.junit.jupiter.api.Assumptions.assumeTrue;

import org.espalier.compress.onnx.Int8Saturation;

/** What tests of int8 models in ONNX Runtime need: a processor on which its 8-bit products do not saturate. */
public final class ExactProducts {
  static final String REASON =
      "8-bit products of ONNX Runtime saturate on this processor, which lacks VNNI";

  private ExactProducts() {}

  /** Whether this is one; on others weights of 7 bits are exact. */
  public static boolean areHere() {
    return !Int8Saturation.onThisMachine();
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

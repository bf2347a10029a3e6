package org.espalier.cli;

import java.util.Locale;
import org.espalier.format.Quantity;

/** What commands say of the models that they wrote. */
final class Format {
  private Format() {}

  /** The size of a file that was made of another. */
  static String sizes(long output, long input) {
    return String.format(
        Locale.ROOT,
        "%s from %s, ratio %.3f",
        Quantity.bytes(output),
        Quantity.bytes(input),
        input == 0 ? 1 : (double) output / input);
  }

  /** How much faster than the original a model is. */
  static String speedup(double times) {
    return String.format(
        Locale.ROOT, "%.2f times the original's in ONNX Runtime, one thread", times);
  }
}

package org.espalier.compress.onnx;

import java.util.Locale;
import java.util.Optional;

/** The warning about a quantized model that runs slower than its original. */
public final class Slowdown {
  /** A model is called slower below this speed-up. What is nearer to 1 may be noise of the timing. */
  private static final double SLOWER = 0.95;

  private Slowdown() {}

  /**
   * Says so in one clause.
   *
   * @param speedup the original's time divided by the model's; NaN where nothing was timed
   * @return empty where it is not slower
   */
  public static Optional<String> of(double speedup) {
    if (!(speedup < SLOWER)) {
      return Optional.empty();
    }
    return Optional.of(
        String.format(
            Locale.ROOT,
            "the quantized model is slower here: on this machine it takes %.2f times as long as the"
                + " original in ONNX Runtime (one thread, one example)",
            1 / speedup));
  }
}

package org.espalier.compress.onnx;

/**
 * The range of an activation tensor that 8 bits represent; what lies outside is clipped. Zero is
 * always inside, so that it is represented exactly.
 *
 * @param min the smallest value represented, at most 0, finite
 * @param max the largest value represented, at least 0, finite
 */
public record ActivationRange(float min, float max) {
  public ActivationRange {
    if (!(min <= 0 && max >= 0 && Float.isFinite(max - min))) {
      throw new IllegalArgumentException("range [" + min + ", " + max + "] must be finite with 0");
    }
  }

  /**
   * The step between two represented values: (max − min)/255, or 1 where nothing but zero or values
   * too small for float32 arithmetic were seen.
   */
  public float scale() {
    float scale = (max - min) / 255f;
    return scale < Float.MIN_NORMAL ? 1f : scale;
  }

  /** The unsigned integer in [0, 255] that stands for 0. */
  public int zeroPoint() {
    return (int) Math.max(0, Math.min(255, Math.rint(-min / scale())));
  }
}

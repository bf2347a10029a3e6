package org.espalier.compress.onnx;

/**
 * The range of an activation tensor that 8 bits represent; what lies outside is clipped. Zero is
 * always inside, so that it is represented exactly.
 *
 * @param min the smallest value represented, at most 0, finite
 * @param max the largest value represented, at least 0, finite
 */
public record ActivationRange(float min, float max) {
  /** A step that is made to fit so many times changes by no more than a quarter. */
  private static final int FEW_STEPS = 4;

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

  /**
   * The range whose 256 values all lie within the bounds of a Clip, so that the grid clips as it does, and that
   * has the lower one among them where values reach it. Where 0 is outside the bounds, or few steps away from
   * the one that is reached, the range stays as it is, and the Clip has to stay too.
   */
  ActivationRange within(float low, float high) {
    if (low > 0 || high < 0) {
      return this;
    }
    ActivationRange inside = new ActivationRange(Math.max(min, low), Math.min(max, high));
    float step = inside.scale();
    int below = inside.zeroPoint();
    boolean fits = true;
    if (low < 0 && (inside.min == low || below * step > -low)) {
      below = inside.max == 0 ? 255 : (int) (-inside.min / step);
      if (below < FEW_STEPS) {
        return this;
      }
      step = -low / below;
      fits = false;
    }
    int above = 255 - below;
    if (above * step > high) {
      if (above < FEW_STEPS) {
        return this;
      }
      step = high / above;
      fits = false;
    }
    // A hair less, so that rounding does not lead over a bound.
    float less = step * (1 - 0x1p-22f);
    return fits ? inside : new ActivationRange(-below * less, above * less);
  }
}

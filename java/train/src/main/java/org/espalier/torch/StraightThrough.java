package org.espalier.torch;

import org.bytedeco.pytorch.GradMode;
import org.bytedeco.pytorch.Scalar;
import org.bytedeco.pytorch.ScalarOptional;
import org.bytedeco.pytorch.Tensor;

/** The gradient of rounding: that of what was rounded where nothing was clipped, and none elsewhere. */
public final class StraightThrough {
  private StraightThrough() {}

  /**
   * Values on the grid {@code scale · (q − zero)} behind the gradient of what they were.
   *
   * @param x what was rounded
   * @param y the same on the grid, of the type and shape of x; nobody else may write to it afterwards
   * @param least the smallest q
   * @param most the largest q
   * @return y, in memory that it shares; y itself where no gradient is asked for
   */
  public static Tensor of(Tensor x, Tensor y, float scale, int zero, double least, double most) {
    if (!GradMode.is_enabled() || !x.requires_grad()) {
      return y;
    }
    // Half a step beyond the outermost integers is where rounding starts to clip.
    double low = (least - zero - 0.5) * scale;
    double high = (most - zero + 0.5) * scale;
    Tensor passed =
        x.clamp(new ScalarOptional(new Scalar(low)), new ScalarOptional(new Scalar(high)));
    // The gradient of clamp needs x alone, so what it gave can take other values.
    passed.set_data(y);
    return passed;
  }
}

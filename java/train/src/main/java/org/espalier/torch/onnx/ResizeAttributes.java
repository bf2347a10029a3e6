package org.espalier.torch.onnx;

/**
 * The attributes of a Resize.
 *
 * @param coordinates how positions are found
 * @param nearest which element a position between two takes
 * @param cubic the coefficient of cubic weights
 * @param excludeOutside whether cubic weights are of elements inside alone
 * @param outside what a crop has where there is no element
 * @param axes those that are resized; null for all
 * @param policy how sizes keep the ratio of the axes
 */
record ResizeAttributes(
    String mode,
    String coordinates,
    String nearest,
    double cubic,
    boolean excludeOutside,
    double outside,
    long[] axes,
    String policy) {
  private static final String STRETCH = "stretch";

  /** The attributes of a node. */
  static ResizeAttributes of(Node n) {
    boolean later = n.opset() >= 18;
    if (later && n.flag("antialias", false)) {
      throw n.unsupported("antialias = 1");
    }
    return new ResizeAttributes(
        n.choice("mode", "nearest", "nearest", "linear", "cubic"),
        n.choice(
            "coordinate_transformation_mode",
            "half_pixel",
            "half_pixel",
            "pytorch_half_pixel",
            "align_corners",
            "asymmetric",
            "tf_half_pixel_for_nn",
            "tf_crop_and_resize",
            "half_pixel_symmetric"),
        n.choice(
            "nearest_mode",
            "round_prefer_floor",
            "round_prefer_floor",
            "round_prefer_ceil",
            "floor",
            "ceil"),
        n.real("cubic_coeff_a", -0.75),
        n.flag("exclude_outside", false),
        n.real("extrapolation_value", 0),
        later ? n.integers("axes", null) : null,
        later
            ? n.choice("keep_aspect_ratio_policy", STRETCH, STRETCH, "not_larger", "not_smaller")
            : STRETCH);
  }

  /** Those of an Upsample. */
  static ResizeAttributes ofUpsample(Node n) {
    if (n.opset() > 9) {
      throw n.unsupported("Upsample after operator set 9");
    }
    String mode = n.choice("mode", "nearest", "nearest", "linear");
    return new ResizeAttributes(mode, "asymmetric", "floor", 0, false, 0, null, STRETCH);
  }

  boolean stretches() {
    return policy.equals(STRETCH);
  }

  boolean crops() {
    return coordinates.equals("tf_crop_and_resize");
  }
}

package org.espalier.torch.onnx;

import static org.espalier.torch.onnx.ScriptCall.ints;

import org.espalier.torch.onnx.ScriptTable.Sink;

/** What {@link ResizeOperators} runs, in TorchScript, crops excepted. */
final class ScriptResize {
  private ScriptResize() {}

  static void add(Sink table) {
    table.one("Resize", ScriptResize::resize);
    table.one("Upsample", ScriptResize::upsample);
    table.one("GridSample", ScriptResize::gridSample);
  }

  private static String resize(ScriptCall c) {
    Node n = c.node();
    String mode = n.choice("mode", "nearest", "nearest", "linear", "cubic");
    String rule =
        n.choice(
            "coordinate_transformation_mode",
            "half_pixel",
            "half_pixel",
            "pytorch_half_pixel",
            "align_corners",
            "asymmetric",
            "tf_half_pixel_for_nn",
            "half_pixel_symmetric");
    String nearest =
        n.choice(
            "nearest_mode",
            "round_prefer_floor",
            "round_prefer_floor",
            "round_prefer_ceil",
            "floor",
            "ceil");
    String cubic = ScriptCall.number(n.real("cubic_coeff_a", -0.75));
    String exclude = ScriptCall.flag(n.flag("exclude_outside", false) && mode.equals("cubic"));
    n.real("extrapolation_value", 0); // it is for crops
    boolean later = n.opset() >= 18;
    if (later && n.flag("antialias", false)) {
      throw n.unsupported("antialias = 1");
    }
    String axes = ints(later ? n.integers("axes", new long[0]) : new long[0]);
    String policy =
        later
            ? n.choice(
                "keep_aspect_ratio_policy", "stretch", "stretch", "not_larger", "not_smaller")
            : "stretch";
    String sizes = c.has(3) ? c.ints(3) : ints();
    String words = "'" + String.join("', '", policy, mode, rule, nearest) + "'";
    return c.call("_resize", c.in(0), c.reals(2), sizes, axes, words, cubic, exclude);
  }

  private static String upsample(ScriptCall c) {
    if (c.node().opset() > 9) {
      throw c.node().unsupported("Upsample after operator set 9");
    }
    String mode = c.node().choice("mode", "nearest", "nearest", "linear");
    String words = "'stretch', '" + mode + "', 'asymmetric', 'floor'";
    return c.call("_resize", c.in(0), c.reals(1), ints(), ints(), words, "0.0", "False");
  }

  private static String gridSample(ScriptCall c) {
    Node n = c.node();
    String mode = n.choice("mode", "bilinear", "bilinear", "linear", "nearest", "bicubic", "cubic");
    String padding = n.choice("padding_mode", "zeros", "zeros", "border", "reflection");
    boolean align = n.flag("align_corners", false);
    int method = mode.equals("nearest") ? 1 : mode.endsWith("cubic") ? 2 : 0;
    int edge = padding.equals("border") ? 1 : padding.equals("reflection") ? 2 : 0;
    return "torch.grid_sampler("
        + c.in(0)
        + ", "
        + c.in(1)
        + ", "
        + method
        + ", "
        + edge
        + ", "
        + ScriptCall.flag(align)
        + ")";
  }
}

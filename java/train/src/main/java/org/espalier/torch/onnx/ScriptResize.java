package org.espalier.torch.onnx;

import static org.espalier.torch.onnx.ScriptCall.ints;

import java.util.List;
import org.espalier.torch.onnx.ScriptTable.Sink;

/** What {@link ResizeOperators} run, in TorchScript: nearest and linear, without crops. */
final class ScriptResize {
  /** Their numbers in {@code _position}. */
  private static final List<String> COORDINATES =
      List.of(
          "half_pixel",
          "pytorch_half_pixel",
          "align_corners",
          "asymmetric",
          "tf_half_pixel_for_nn",
          "half_pixel_symmetric");

  /** Their numbers in {@code _nearest}. */
  private static final List<String> NEAREST =
      List.of("round_prefer_floor", "round_prefer_ceil", "floor", "ceil");

  private ScriptResize() {}

  static void add(Sink table) {
    table.one("Resize", ScriptResize::resize);
    table.one("Upsample", ScriptResize::upsample);
  }

  private static String resize(ScriptCall c) {
    Node n = c.node();
    // Exporters write what only other modes read.
    n.real("cubic_coeff_a", -0.75);
    n.flag("exclude_outside", false);
    n.real("extrapolation_value", 0);
    if (n.opset() >= 18) {
      n.choice("keep_aspect_ratio_policy", "stretch", "stretch");
      if (n.flag("antialias", false)) {
        throw n.unsupported("antialias = 1");
      }
    }
    long[] axes = n.opset() >= 18 ? n.integers("axes", null) : null;
    return call(
        c,
        c.orNone(2),
        c.orNone(3),
        axes == null ? ints() : ints(axes),
        n.choice("mode", "nearest", "nearest", "linear"),
        n.choice(
            "coordinate_transformation_mode", "half_pixel", COORDINATES.toArray(String[]::new)),
        n.choice("nearest_mode", "round_prefer_floor", NEAREST.toArray(String[]::new)));
  }

  private static String upsample(ScriptCall c) {
    if (c.node().opset() > 9) {
      throw c.node().unsupported("Upsample after operator set 9");
    }
    String mode = c.node().choice("mode", "nearest", "nearest", "linear");
    return call(c, c.in(1), "None", ints(), mode, "asymmetric", "floor");
  }

  private static String call(
      ScriptCall c,
      String scales,
      String sizes,
      String axes,
      String mode,
      String coordinates,
      String nearest) {
    return c.call(
        "_resize",
        c.in(0),
        scales,
        sizes,
        axes,
        mode.equals("linear") ? "True" : "False",
        "" + COORDINATES.indexOf(coordinates),
        "" + NEAREST.indexOf(nearest));
  }
}

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
    ResizeAttributes a = ResizeAttributes.of(c.node());
    if (a.crops()) {
      throw c.node().unsupported("coordinate_transformation_mode = '" + a.coordinates() + "'");
    }
    return resize(c, a, c.reals(2), c.has(3) ? c.ints(3) : ints());
  }

  private static String upsample(ScriptCall c) {
    return resize(c, ResizeAttributes.ofUpsample(c.node()), c.reals(1), ints());
  }

  private static String resize(ScriptCall c, ResizeAttributes a, String scales, String sizes) {
    String words = String.join("', '", a.policy(), a.mode(), a.coordinates(), a.nearest());
    return c.call(
        "_resize",
        c.in(0),
        scales,
        sizes,
        a.axes() == null ? ints() : ints(a.axes()),
        "'" + words + "'",
        ScriptCall.number(a.cubic()),
        ScriptCall.flag(a.excludeOutside() && a.mode().equals("cubic")));
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

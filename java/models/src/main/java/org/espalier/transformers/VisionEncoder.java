package org.espalier.transformers;

import static org.espalier.format.onnx.Attributes.attribute;

import java.util.List;

/**
 * Image encoders of the kind of ViT: squares of an image as tokens, learned positions, norms before blocks. The graph takes
 * {@code pixel_values} [batch, channels, height, width] and gives {@code last_hidden_state}, or the {@code logits} of the
 * head that classifies images.
 */
final class VisionEncoder extends Encoder {
  private static final String FIRST = "embeddings.cls_token";
  private static final String CLASSIFIES = "ForImageClassification";

  private final String base;
  private final long channels;
  private final long side;
  private final long patch;
  private final boolean bias;

  VisionEncoder(Configuration config, GraphWriter g) {
    super(
        config,
        g,
        Sizes.of(config),
        config.positive("layer_norm_eps", 1e-12),
        config.choice("hidden_act", "gelu", GraphWriter.ACTIVATIONS));
    base = g.base("vit.", FIRST);
    channels = config.size("num_channels", 3);
    side = config.size("image_size", 224);
    patch = config.size("patch_size", 16);
    if (side < patch) {
      throw config.wrong("image_size", "patch_size = " + patch + " or more");
    }
    bias = config.flag("qkv_bias", true);
  }

  @Override
  void write(List<String> classes) {
    String x = embedded(g.floatInput("pixel_values", BATCH, channels, side, side));
    for (long n = 0; n < sizes.layers(); n++) {
      x = layer(x, base + "encoder.layer." + n);
    }
    x = norm(x, base + "layernorm");
    if (names(classes, CLASSIFIES)) {
      String logits = g.linear(first(x), "classifier", hidden, config.labels(), true);
      g.output(LOGITS, logits, BATCH, config.labels());
    } else {
      g.output(STATES, x, BATCH, tokens(), hidden);
    }
  }

  private long tokens() {
    return side / patch * (side / patch) + 1;
  }

  /** Squares by a convolution, behind one more token. */
  private String embedded(String pixels) {
    String path = base + "embeddings.patch_embeddings.projection";
    String filters = g.weight(path + ".weight", hidden, channels, patch, patch);
    String squares =
        g.node(
            "Conv",
            path,
            List.of(pixels, filters, g.weight(path + ".bias", hidden)),
            attribute("kernel_shape", new long[] {patch, patch}),
            attribute("strides", new long[] {patch, patch}));
    String flat = g.node("Reshape", path, List.of(squares, g.wholes(0, 0, -1)));
    String rows = g.node("Transpose", path, List.of(flat), attribute("perm", new long[] {0, 2, 1}));
    path = base + "embeddings";
    String images = g.node("Unsqueeze", path, List.of(g.length(pixels, 0), g.wholes(0)));
    String size =
        g.node("Concat", path + "/size", List.of(images, g.wholes(1, 1)), attribute("axis", 0L));
    String one = g.node("Expand", path, List.of(g.weight(base + FIRST, 1, 1, hidden), size));
    String all = g.node("Concat", path, List.of(one, rows), attribute("axis", 1L));
    String places = g.weight(path + ".position_embeddings", 1, tokens(), hidden);
    return g.node("Add", path, List.of(all, places));
  }

  private String layer(String x, String path) {
    String own = path + ".attention.attention";
    List<String> names = List.of(own + ".query", own + ".key", own + ".value");
    String seen = attention(norm(x, path + ".layernorm_before"), own, names, bias, null);
    String out = g.linear(seen, path + ".attention.output.dense", hidden, hidden, true);
    x = g.node("Add", path + ".attention", List.of(out, x));
    String normed = norm(x, path + ".layernorm_after");
    out = feedForward(normed, path + ".intermediate.dense", path + ".output.dense");
    return g.node("Add", path + ".output", List.of(out, x));
  }
}

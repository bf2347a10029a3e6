package org.espalier.transformers;

import static org.espalier.format.onnx.Attributes.attribute;

import java.util.List;

/** Image encoders, whose tokens are squares of an image. The graph takes {@code pixel_values} [batch, channels, height, width]. */
abstract class ImageEncoder extends PreNormEncoder {
  static final String CLASSIFIES = "ForImageClassification";

  private final long channels;
  private final long patch;

  /** Squares to a side of what {@code image_size} says. */
  final long row;

  ImageEncoder(Configuration config, GraphWriter g, Sizes sizes, double epsilon, Layer names) {
    super(
        config,
        g,
        sizes,
        epsilon,
        config.choice("hidden_act", "gelu", GraphWriter.ACTIVATIONS),
        names);
    channels = config.size("num_channels", 3);
    patch = config.size("patch_size", 16);
    if (side() < patch) {
      throw config.wrong("image_size", "patch_size = " + patch + " or more");
    }
    row = side() / patch;
  }

  private long side() {
    return config.size("image_size", 224);
  }

  /** Height and width of images. */
  long[] image() {
    return new long[] {side(), side()};
  }

  /** How many squares an image has. */
  final long squares() {
    return image()[0] / patch * (image()[1] / patch);
  }

  final long patch() {
    return patch;
  }

  /** The input. */
  final String pixels() {
    return g.floatInput("pixel_values", BATCH, channels, image()[0], image()[1]);
  }

  /**
   * Squares by a convolution, [batch, squares, hidden].
   *
   * @param path of its filters
   * @param bias whether it has one
   */
  final String squares(String pixels, String path, boolean bias) {
    String filters = g.weight(path + ".weight", hidden, channels, patch, patch);
    String found =
        g.node(
            "Conv",
            path,
            bias
                ? List.of(pixels, filters, g.weight(path + ".bias", hidden))
                : List.of(pixels, filters),
            attribute("kernel_shape", new long[] {patch, patch}),
            attribute("strides", new long[] {patch, patch}));
    String flat = g.node("Reshape", path, List.of(found, g.wholes(0, 0, -1)));
    return g.node("Transpose", path, List.of(flat), attribute("perm", new long[] {0, 2, 1}));
  }

  /**
   * Learned tokens for each image, [batch, count, hidden].
   *
   * @param tokens a tensor that ends with [count, hidden]
   */
  final String forEach(String pixels, String tokens, long count) {
    String images =
        g.once(
            "images",
            () -> g.node("Unsqueeze", "images", List.of(g.length(pixels, 0), g.wholes(0))));
    String size =
        g.node("Concat", tokens, List.of(images, g.wholes(count, 1)), attribute("axis", 0L));
    return g.node("Expand", tokens, List.of(tokens, size));
  }

  /** Gives out the logits of images. */
  final void giveLogits(String x, String path, long width) {
    g.output(LOGITS, g.linear(x, path, width, config.labels(), true), BATCH, config.labels());
  }
}

package org.espalier.transformers;

import java.util.List;
import java.util.stream.Stream;

/** Encoders whose layers have their norms before each block, and add what a block makes. */
abstract class PreNormEncoder extends Encoder {
  /**
   * How the modules of a layer are called.
   *
   * @param norm before attention
   * @param innerNorm before the feed-forward block
   */
  record Layer(
      String norm,
      String query,
      String key,
      String value,
      String out,
      String innerNorm,
      String in,
      String down) {}

  private final Layer names;

  PreNormEncoder(
      Configuration config,
      GraphWriter g,
      Sizes sizes,
      double epsilon,
      String activation,
      Layer names) {
    super(config, g, sizes, epsilon, activation);
    this.names = names;
  }

  /**
   * All layers.
   *
   * @param prefix what stands before a layer's number
   * @param bias whether queries, keys and values have a bias
   * @param more what is added to scores, or null
   */
  final String layers(String x, String prefix, boolean bias, String more) {
    for (long n = 0; n < sizes.layers(); n++) {
      x = layer(x, prefix + n, bias, more);
    }
    return x;
  }

  private String layer(String x, String path, boolean bias, String more) {
    List<String> products =
        Stream.of(names.query(), names.key(), names.value()).map(path::concat).toList();
    String seen =
        attention(norm(x, path + names.norm()), path + "/attention", products, bias, more);
    String out = g.linear(seen, path + names.out(), hidden, hidden, true);
    x = g.node("Add", path + "/attention", List.of(scaled(out, path, 1), x));
    out = fed(norm(x, path + names.innerNorm()), path + names.in(), path + names.down());
    return g.node("Add", path + "/feed_forward", List.of(scaled(out, path, 2), x));
  }

  /**
   * What of a block's result is added.
   *
   * @param block 1 for attention, 2 for the feed-forward block
   */
  String scaled(String out, String path, int block) {
    return out;
  }

  /** Gives out what a projection into the space of images and texts makes of one state each. */
  final void giveEmbedding(String name, String pooled, String path) {
    long width = config.size("projection_dim", 512);
    g.output(name, g.linear(pooled, path, hidden, width, false), BATCH, width);
  }

  /** The feed-forward block. */
  String fed(String x, String in, String down) {
    return feedForward(x, in, down);
  }
}

package org.espalier.transformers;

import java.util.List;

/**
 * Language models of the kind of GPT-2: learned positions, layer norms before each block, weights that stand as [in, out], and
 * one product for queries, keys and values.
 */
final class Gpt2Decoder extends Decoder {
  private static final String WORDS = "wte.weight";

  private final String base;
  private final long hidden;
  private final long inner;
  private final double epsilon;
  private final String activation;

  Gpt2Decoder(Configuration config, GraphWriter g) {
    super(config, g, sizes(config));
    base = g.base("transformer.", WORDS);
    hidden = sizes.hidden();
    inner = config.size("n_inner", 4 * hidden);
    epsilon = config.positive("layer_norm_epsilon", 1e-5);
    activation = config.choice("activation_function", "gelu_new", GraphWriter.ACTIVATIONS);
    config.refuse("add_cross_attention");
  }

  private static Sizes sizes(Configuration config) {
    long hidden = config.size("n_embd");
    long heads = config.size("n_head");
    if (hidden % heads != 0) {
      throw config.wrong("n_embd", "a multiple of n_head = " + heads);
    }
    return new Sizes(
        hidden,
        heads,
        heads,
        hidden / heads,
        config.size("n_layer"),
        config.size("n_positions", 1024));
  }

  private String table() {
    return g.weight(base + WORDS, words, hidden);
  }

  @Override
  String embedded(String ids) {
    String found = g.node("Gather", base + "wte", List.of(table(), ids));
    String places = g.weight(base + "wpe.weight", sizes.positions(), hidden);
    String place = g.node("Gather", base + "wpe", List.of(places, positions()));
    return g.node("Add", base + "wpe", List.of(found, place));
  }

  @Override
  String layer(String x, long n) {
    String path = base + "h." + n;
    g.ignore(path + ".attn.bias"); // which tokens are seen
    g.ignore(path + ".attn.masked_bias");
    String normed = norm(x, path + ".ln_1");
    String products = g.turnedLinear(normed, path + ".attn.c_attn", hidden, 3 * hidden);
    Attention how = new Attention(scale(n), 0, 0, null);
    String seen = attend(List.of(products), path + ".attn", n, how);
    String out = g.turnedLinear(seen, path + ".attn.c_proj", hidden, hidden);
    x = g.node("Add", path + "/attention", List.of(x, out));
    String wide = g.turnedLinear(norm(x, path + ".ln_2"), path + ".mlp.c_fc", hidden, inner);
    wide = g.activation(activation, wide, path + ".mlp");
    out = g.turnedLinear(wide, path + ".mlp.c_proj", inner, hidden);
    return g.node("Add", path + "/feed_forward", List.of(x, out));
  }

  private String norm(String x, String path) {
    return g.layerNorm(x, path, hidden, epsilon);
  }

  private double scale(long n) {
    double scale = config.flag("scale_attn_weights", true) ? 1 / Math.sqrt(sizes.width()) : 1;
    return config.flag("scale_attn_by_inverse_layer_idx", false) ? scale / (n + 1) : scale;
  }

  @Override
  String normed(String x) {
    return norm(x, base + "ln_f");
  }

  @Override
  String byWords(String x) {
    boolean tied = config.flag("tie_word_embeddings", true);
    if (tied) {
      g.ignore("lm_head.weight");
    }
    return g.product(x, "lm_head", tied ? table() : g.weight("lm_head.weight", words, hidden));
  }
}

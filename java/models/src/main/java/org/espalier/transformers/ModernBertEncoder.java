package org.espalier.transformers;

import java.util.HashMap;
import java.util.List;
import java.util.Map;

/**
 * Text encoders of the kind of ModernBERT: rotary positions, norms before blocks, a gated feed-forward block, and layers in
 * which tokens see their neighbours alone.
 */
final class ModernBertEncoder extends TextEncoder {
  private static final String WORDS = "embeddings.tok_embeddings.weight";

  private final String base;
  private final boolean attentionBias;
  private final boolean innerBias;
  private final boolean normBias;
  private final List<Boolean> sliding;
  private final Map<Boolean, List<String>> tables = new HashMap<>();

  ModernBertEncoder(Configuration config, GraphWriter g) {
    super(
        config,
        g,
        Sizes.of(config),
        config.positive("norm_eps", 1e-5),
        config.choice("hidden_activation", "gelu", GraphWriter.ACTIVATIONS));
    base = g.base("model.", WORDS);
    attentionBias = config.flag("attention_bias", false);
    innerBias = config.flag("mlp_bias", false);
    normBias = config.flag("norm_bias", false);
    sliding = config.sliding(sizes.layers());
    config.refuse("rope_scaling");
  }

  private String table() {
    return g.weight(base + WORDS, words(), hidden);
  }

  private String modernNorm(String x, String path) {
    return g.layerNorm(x, path, hidden, epsilon, normBias);
  }

  private boolean isLocal(long n) {
    return sliding.isEmpty()
        ? n % config.size("global_attn_every_n_layers", 3) != 0
        : sliding.get((int) n);
  }

  @Override
  String states(String ids, String mask) {
    String found = g.node("Gather", base + "embeddings.tok_embeddings", List.of(table(), ids));
    String x = modernNorm(found, base + "embeddings.norm");
    String far = tokens.hiding(mask);
    String near = null;
    for (long n = 0; n < sizes.layers(); n++) {
      if (isLocal(n) && near == null) {
        near =
            g.node(
                "Min",
                "neighbours",
                List.of(far, tokens.strangers(ids, config.size("local_attention", 128) / 2)));
      }
      x = layer(x, n, isLocal(n) ? near : far);
    }
    return modernNorm(x, base + "final_norm");
  }

  private String layer(String x, long n, String more) {
    String path = base + "layers." + n;
    String own = path + ".attn";
    String normed = n == 0 ? x : modernNorm(x, path + ".attn_norm");
    String all = g.linear(normed, own + ".Wqkv", hidden, 3 * hidden, attentionBias);
    List<String> parts = g.parts(all, own, 3);
    String seen =
        attend(
            heads(turned(parts.get(0), own + ".q", n), own + ".q"),
            turnedHeads(turned(parts.get(1), own + ".k", n), own + ".k"),
            heads(parts.get(2), own + ".v"),
            own,
            Math.sqrt(sizes.width()),
            more);
    String out = g.linear(seen, own + ".Wo", hidden, hidden, attentionBias);
    x = g.node("Add", own, List.of(x, out));
    return g.node("Add", path + ".mlp", List.of(x, gated(x, path)));
  }

  private String gated(String x, String path) {
    long inner = sizes.inner();
    String normed = modernNorm(x, path + ".mlp_norm");
    path += ".mlp";
    List<String> parts =
        g.parts(g.linear(normed, path + ".Wi", hidden, 2 * inner, innerBias), path, 2);
    String opened = g.activation(activation, parts.get(0), path);
    String both = g.node("Mul", path, List.of(opened, parts.get(1)));
    return g.linear(both, path + ".Wo", inner, hidden, innerBias);
  }

  /** Queries or keys turned by their places. */
  private String turned(String x, String path, long n) {
    List<String> angles = tables.computeIfAbsent(isLocal(n), this::angles);
    return tokens.turned(x, path, angles.get(0), angles.get(1));
  }

  /** The tables of cosines and of sines. */
  private List<String> angles(boolean local) {
    double theta =
        local
            ? config.positive("local_rope_theta", config.positive("global_rope_theta", 160000))
            : config.positive("global_rope_theta", 160000);
    Configuration settings = config.group("rope_parameters");
    if (settings != null) {
      settings = settings.group(local ? "sliding_attention" : "full_attention");
    }
    long places = config.size("max_position_embeddings");
    RotaryTable.Turns turns = RotaryTable.turns(settings, theta, sizes.width(), 0, places);
    String name = local ? "_local" : "";
    return List.of(
        g.constant(RotaryTable.table("cos_cache" + name, false, turns)),
        g.constant(RotaryTable.table("sin_cache" + name, true, turns)));
  }

  @Override
  String classified(String x, String mask) {
    String pooling = config.choice("classifier_pooling", "cls", List.of("cls", "mean"));
    return linearHead(
        head(pooling.equals("cls") ? tokens.first(x) : tokens.mean(x, tokens.kept(mask), "mean")),
        "classifier");
  }

  private String head(String x) {
    boolean bias = config.flag("classifier_bias", false);
    String bent =
        g.activation(
            config.choice("classifier_activation", "gelu", GraphWriter.ACTIVATIONS),
            g.linear(x, "head.dense", hidden, hidden, bias),
            "head");
    return modernNorm(bent, "head.norm");
  }

  @Override
  String tagged(String x) {
    return linearHead(head(x), "classifier");
  }

  @Override
  String bounded(String x) {
    return g.linear(head(x), "classifier", hidden, 2, true);
  }

  @Override
  String filled(String x) {
    if (!g.has("head.dense.weight")) {
      return null;
    }
    String bias = config.flag("decoder_bias", true) ? "decoder.bias" : null;
    return byWords(head(x), table(), hidden, "decoder", bias);
  }
}

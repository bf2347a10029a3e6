package org.espalier.transformers;

import java.util.List;
import java.util.Map;

/**
 * Language models of the kind of Gemma: what is embedded is multiplied by √hidden, and norms multiply by one more than their
 * weight says.
 */
class GemmaDecoder extends LlamaDecoder {
  private static final String GELU = "gelu_pytorch_tanh";

  GemmaDecoder(Configuration config, GraphWriter g) {
    super(
        config.withDefaults(
            Map.of("head_dim", 256, "hidden_act", GELU, "tie_word_embeddings", true)),
        g);
  }

  @Override
  final boolean looksAhead() {
    return config.flag("use_bidirectional_attention", false);
  }

  @Override
  final double embeddingScale() {
    return Math.sqrt(hidden);
  }

  @Override
  final String normScale(String path, long width) {
    String weight = super.normScale(path, width);
    return g.once(
        path + "/scale", () -> g.node("Add", path + "/scale", List.of(weight, g.number(1))));
  }

  /** Norms before and behind blocks, a scale of scores that settings have, and a cap of logits. */
  private abstract static class Later extends GemmaDecoder {
    Later(Configuration config, GraphWriter g) {
      super(
          config.withDefaults(
              Map.of(
                  "hidden_activation",
                  GELU,
                  "num_key_value_heads",
                  4,
                  "sliding_window",
                  4096,
                  "query_pre_attn_scalar",
                  256)),
          g);
    }

    @Override
    final String layer(String x, long n) {
      String path = base + "layers." + n;
      String seen = attention(norm(x, path + ".input_layernorm"), path + ".self_attn", n);
      x = sum(x, norm(seen, path + ".post_attention_layernorm"), path + "/attention");
      String made = feedForward(norm(x, path + ".pre_feedforward_layernorm"), path + ".mlp");
      return sum(x, norm(made, path + ".post_feedforward_layernorm"), path + "/feed_forward");
    }

    @Override
    final double scale() {
      return 1 / Math.sqrt(config.positive("query_pre_attn_scalar", 256));
    }

    @Override
    final String finished(String product) {
      return capped(product, "lm_head", config.positive("final_logit_softcapping", 0));
    }
  }

  /** Gemma 2: a window in every second layer, and a cap of scores. */
  static final class Gemma2 extends Later {
    Gemma2(Configuration config, GraphWriter g) {
      super(
          config.withDefaults(Map.of("attn_logit_softcapping", 50, "final_logit_softcapping", 30)),
          g);
      config.refuse("use_bidirectional_attention");
    }

    @Override
    double scoreCap() {
      return config.positive("attn_logit_softcapping", 0);
    }

    @Override
    long window(long n) {
      return slides(n, n % 2 == 0) ? config.whole("sliding_window", 0, 0) : 0;
    }
  }

  /**
   * Gemma 3: norms of heads, more layers with windows, which are turned by their own base, and no cap of scores. That of
   * EmbeddingGemma reads texts in both directions.
   */
  static final class Gemma3 extends Later {
    private final Configuration angles;

    Gemma3(Configuration config, GraphWriter g) {
      super(config, g);
      config.refuse("attn_logit_softcapping");
      angles = config.group("rope_parameters");
      if (angles != null && angles.group("full_attention") == null) {
        throw config.wrong(
            "rope_parameters", "an object with full_attention and sliding_attention");
      }
    }

    private boolean isLocal(long n) {
      return slides(n, (n + 1) % config.size("sliding_window_pattern", 6) != 0);
    }

    @Override
    long window(long n) {
      return isLocal(n) ? config.whole("sliding_window", 0, 0) : 0;
    }

    @Override
    Rotary rotary(long n) {
      double theta =
          isLocal(n)
              ? config.positive("rope_local_base_freq", 10000)
              : config.positive("rope_theta", 1e6);
      String name = isLocal(n) ? "_local" : "";
      if (angles != null) {
        return rotary(
            name, angles.group(isLocal(n) ? "sliding_attention" : "full_attention"), theta);
      }
      return rotary(name, isLocal(n) ? null : config.group("rope_scaling"), theta);
    }

    @Override
    boolean normsHeads() {
      return true;
    }
  }
}

package org.espalier.transformers;

import java.util.List;
import java.util.Map;

/** Language models whose feed-forward blocks are {@link Experts}, beside kinds that have none. */
final class MixtureDecoder {
  private MixtureDecoder() {}

  /** Mistral with experts in each layer. */
  static final class Mixtral extends LlamaDecoder {
    private static final Gated NAMES = new Gated(".w1", ".w3", ".w2");

    private final Experts experts;

    Mixtral(Configuration config, GraphWriter g) {
      super(
          config.withDefaults(
              Map.of("num_key_value_heads", 8, "rms_norm_eps", 1e-5, "rope_theta", 1e6)),
          g);
      experts = Experts.of(this.config, g, hidden, "num_local_experts", true);
    }

    @Override
    boolean hasBias() {
      return false;
    }

    @Override
    boolean hasOutputBias() {
      return false;
    }

    @Override
    long window(long n) {
      return config.whole("sliding_window", 0, 0);
    }

    @Override
    String block(String x, String path, long n) {
      return experts.write(
          x,
          path + ".block_sparse_moe",
          (tokens, expert) -> feedForward(tokens, expert, NAMES, inner, false));
    }
  }

  /** Qwen2 with experts in some layers, and one more that all tokens take, by a gate of its own. */
  static class Qwen2 extends LlamaDecoder.Qwen2 {
    private final Experts experts;
    private final List<Long> without;
    private final long step;
    private final long expertInner;

    Qwen2(Configuration config, GraphWriter g) {
      super(config, g);
      // Transformers 5 writes it as Mixtral's.
      String count = config.has("num_local_experts") ? "num_local_experts" : "num_experts";
      experts = Experts.of(config, g, hidden, count, config.flag("norm_topk_prob", false));
      without = config.wholes("mlp_only_layers");
      step = config.size("decoder_sparse_step", 1);
      expertInner = config.size("moe_intermediate_size");
    }

    @Override
    boolean hasBias() {
      return config.flag("qkv_bias", true);
    }

    @Override
    long window(long n) {
      boolean slides = config.flag("use_sliding_window", false);
      boolean early = n % 2 == 0 && n < config.whole("max_window_layers", 28, 0);
      if (!slides(n, early && slides)) {
        return 0;
      }
      if (!slides) {
        throw config.wrong("use_sliding_window", "true, for the layers that slide,");
      }
      return config.size("sliding_window", 4096);
    }

    @Override
    final String block(String x, String path, long n) {
      String own = path + ".mlp";
      if (without.contains(n) || (n + 1) % step != 0) {
        return feedForward(x, own);
      }
      String made =
          experts.write(
              x,
              own,
              (tokens, expert) -> feedForward(tokens, expert, Gated.USUAL, expertInner, false));
      return withShared(x, made, own);
    }

    /** What the experts of a block made, with the one that all tokens take. */
    String withShared(String x, String made, String path) {
      String all = path + ".shared_expert";
      long width = config.size("shared_expert_intermediate_size");
      String shared = feedForward(x, all, Gated.USUAL, width, false);
      String gate = g.linear(x, all + "_gate", hidden, 1, false);
      String share = g.node("Sigmoid", all + "_gate", List.of(gate));
      String part = g.node("Mul", all + "/share", List.of(share, shared));
      return g.node("Add", path, List.of(made, part));
    }
  }

  /** The same with norms of heads, without the expert of all tokens. */
  static final class Qwen3 extends Qwen2 {
    Qwen3(Configuration config, GraphWriter g) {
      super(config, g);
    }

    @Override
    boolean hasBias() {
      return config.flag("attention_bias", false);
    }

    @Override
    boolean hasOutputBias() {
      return hasBias();
    }

    @Override
    boolean normsHeads() {
      return true;
    }

    @Override
    long window(long n) {
      return config.flag("use_sliding_window", false) ? config.size("sliding_window", 4096) : 0;
    }

    @Override
    String withShared(String x, String made, String path) {
      return made;
    }
  }
}

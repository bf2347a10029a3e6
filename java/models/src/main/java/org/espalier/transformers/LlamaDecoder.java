package org.espalier.transformers;

import static org.espalier.format.onnx.Attributes.attribute;

import ai.onnx.proto.OnnxMl.TensorProto.DataType;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import org.espalier.InputException;
import org.espalier.format.onnx.OnnxInitializer;

/**
 * Language models of the kind of Llama: rotary positions, root mean square norms, a gated feed-forward block, fewer heads for
 * keys and values than for queries. Kinds that differ from it are classes below.
 */
class LlamaDecoder extends Decoder {
  /** How many numbers of a head ONNX Runtime turns at once. */
  private static final long PAIRS = 16;

  final String base;
  final long hidden;
  final long heads;
  final long shared;
  final long width;
  final long inner;
  private final double epsilon;
  private final String activation;
  private final List<Boolean> sliding;
  private final Map<String, Rotary> tables = new HashMap<>();

  LlamaDecoder(Configuration config, GraphWriter g) {
    super(config, g, Sizes.of(config));
    base = g.base("model.", "embed_tokens.weight");
    hidden = sizes.hidden();
    heads = sizes.heads();
    shared = sizes.shared();
    width = sizes.width();
    inner = config.size("intermediate_size");
    epsilon = config.positive("rms_norm_eps", 1e-6);
    activation =
        config.choice(
            config.has("hidden_activation") ? "hidden_activation" : "hidden_act",
            "silu",
            GraphWriter.ACTIVATIONS);
    sliding = config.sliding(sizes.layers());
  }

  @Override
  final String embedded(String ids) {
    String found = g.node("Gather", base + "embed_tokens", List.of(table(), ids));
    return scaled(found, base + "embed_tokens", embeddingScale());
  }

  private String table() {
    return g.weight(base + "embed_tokens.weight", words, hidden);
  }

  /** x · factor. */
  final String scaled(String x, String path, double factor) {
    return factor == 1 ? x : g.node("Mul", path + "/scaled", List.of(x, g.number((float) factor)));
  }

  /** By what rows of the table of words are multiplied. */
  double embeddingScale() {
    return 1;
  }

  @Override
  String layer(String x, long n) {
    String path = base + "layers." + n;
    String seen = attention(norm(x, path + ".input_layernorm"), path + ".self_attn", n);
    x = sum(x, seen, path + "/attention");
    String made = block(norm(x, path + ".post_attention_layernorm"), path, n);
    return sum(x, made, path + "/feed_forward");
  }

  /**
   * The block behind the attention of a layer.
   *
   * @param path of the layer
   */
  String block(String x, String path, long n) {
    return feedForward(x, path + ".mlp");
  }

  /** What a block gives is added to what it took. */
  String sum(String x, String y, String path) {
    return g.node("Add", path, List.of(x, y));
  }

  /** The norm of tokens. */
  final String norm(String x, String path) {
    return norm(x, path, hidden);
  }

  final String norm(String x, String path, long width) {
    return g.rootMeanSquareNorm(x, path, normScale(path, width), epsilon);
  }

  /** By what a norm multiplies. */
  String normScale(String path, long width) {
    return g.weight(path + ".weight", width);
  }

  final String attention(String x, String path, long n) {
    Attention how = new Attention(scale(), scoreCap(), window(n), rotary(n));
    String seen = attend(products(x, path), path, n, how);
    return g.linear(seen, path + ".o_proj", heads * width, hidden, hasOutputBias());
  }

  /** Queries, keys and values, or one value of all. */
  List<String> products(String x, String path) {
    return List.of(
        queries(g.linear(x, path + ".q_proj", hidden, heads * width, hasBias()), path),
        keys(g.linear(x, path + ".k_proj", hidden, shared * width, hasBias()), path),
        g.linear(x, path + ".v_proj", hidden, shared * width, hasBias()));
  }

  String queries(String q, String path) {
    return normsHeads() ? headNorm(q, path + ".q_norm", heads) : q;
  }

  String keys(String k, String path) {
    return normsHeads() ? headNorm(k, path + ".k_norm", shared) : k;
  }

  /** Whether each head of queries and keys is normed. */
  boolean normsHeads() {
    return false;
  }

  private String headNorm(String x, String path, long count) {
    String apart = g.node("Reshape", path, List.of(x, g.wholes(0, 0, count, width)));
    String normed = norm(apart, path, width);
    return g.node("Reshape", path + "/together", List.of(normed, g.wholes(0, 0, count * width)));
  }

  /** Of the products that queries, keys and values are. */
  boolean hasBias() {
    return config.flag("attention_bias", false);
  }

  boolean hasOutputBias() {
    return config.flag("attention_bias", false);
  }

  /** Of products of queries and keys. */
  double scale() {
    return 1 / Math.sqrt(width);
  }

  /** Beyond which scores do not go; 0 for none. */
  double scoreCap() {
    return 0;
  }

  /** How many tokens one sees in a layer, itself among them; 0 for all. */
  long window(long n) {
    return slides(n, false) ? config.whole("sliding_window", 0, 0) : 0;
  }

  /** Whether a layer has a window, by the types of layers, or as {@code otherwise} says where there are none. */
  final boolean slides(long n, boolean otherwise) {
    return sliding.isEmpty() ? otherwise : sliding.get((int) n);
  }

  /** What turns the queries and keys of a layer; null where nothing does. */
  Rotary rotary(long n) {
    return rotary("", RotaryTable.settings(config), config.positive("rope_theta", 10000));
  }

  /**
   * Queries and keys turned by their places.
   *
   * @param name of the tables, beside others
   */
  final Rotary rotary(String name, Configuration settings, double theta) {
    return tables.computeIfAbsent(
        name,
        key -> {
          if (RotaryTable.isDynamic(settings)) {
            return dynamicRotary(name, settings, theta);
          }
          RotaryTable.Turns turns =
              RotaryTable.turns(
                  settings,
                  theta,
                  turned(),
                  config.whole("original_max_position_embeddings", 0, 1),
                  sizes.positions());
          return new Rotary(
              g.constant(RotaryTable.table("cos_cache" + name, false, turns)),
              g.constant(RotaryTable.table("sin_cache" + name, true, turns)),
              "");
        });
  }

  /**
   * Tables of the positions that there are. For n tokens, more than m = {@code max_position_embeddings}, the base is θ · (factor
   * · n / m − (factor − 1))^(d / (d − 2)).
   */
  private Rotary dynamicRotary(String name, Configuration settings, double theta) {
    String path = "rotary" + name;
    int turned = (int) turned();
    double factor = RotaryTable.required(settings, "factor");
    float[] exponents = new float[turned / 2];
    for (int i = 0; i < exponents.length; i++) {
      exponents[i] = -2f * i / turned;
    }
    String longest = g.node("Max", path, List.of(totalLength(), g.whole(sizes.positions())));
    String tokens = asFloats(longest, path + "/longest");
    String times =
        g.node(
            "Mul",
            path + "/longest",
            List.of(tokens, g.number((float) (factor / sizes.positions()))));
    String ratio = g.node("Sub", path, List.of(times, g.number((float) (factor - 1))));
    String growth = g.number((float) (turned / (turned - 2.0)));
    String grown = g.node("Pow", path + "/base", List.of(ratio, growth));
    float first = (float) RotaryTable.base(settings, theta);
    String base = g.node("Mul", path + "/base", List.of(grown, g.number(first)));
    String powers =
        g.constant(
            OnnxInitializer.floats(path + "/exponents", new long[] {exponents.length}, exponents));
    String angles = g.node("Pow", path, List.of(base, powers));
    String places = g.node("Range", path, List.of(g.whole(0), totalLength(), g.whole(1)));
    String rows = g.node("Unsqueeze", path, List.of(asFloats(places, path), g.wholes(1)));
    String all = g.node("Mul", path, List.of(rows, angles));
    return new Rotary(g.node("Cos", path, List.of(all)), g.node("Sin", path, List.of(all)), "");
  }

  private String asFloats(String x, String path) {
    return g.node("Cast", path, List.of(x), attribute("to", DataType.FLOAT_VALUE));
  }

  /** What part of a head is turned. */
  final double rotaryShare() {
    Configuration settings = RotaryTable.settings(config);
    double share = config.positive("partial_rotary_factor", 1);
    return settings == null ? share : settings.positive("partial_rotary_factor", share);
  }

  /** How many numbers of a head are turned. */
  long turned() {
    if (rotaryShare() != 1) {
      throw config.wrong("partial_rotary_factor", "1, for heads that turn as a whole,");
    }
    return pairs(width);
  }

  final long pairs(long turned) {
    if (turned % PAIRS != 0 || turned < 1 || turned > width) {
      throw new InputException(
          config.place()
              + ": of heads of "
              + width
              + " numbers (head_dim, or hidden_size / num_attention_heads) "
              + turned
              + " are turned by their places; ONNX Runtime turns multiples of "
              + PAIRS);
    }
    return turned;
  }

  String feedForward(String x, String path) {
    return feedForward(x, path, Gated.USUAL, inner, config.flag("mlp_bias", false));
  }

  /**
   * What the products of a gated block are called.
   *
   * @param gate is activated, and multiplied by {@code up}
   */
  record Gated(String gate, String up, String down) {
    static final Gated USUAL = new Gated(".gate_proj", ".up_proj", ".down_proj");
  }

  final String feedForward(String x, String path, Gated names, long inner, boolean bias) {
    String gate = g.linear(x, path + names.gate(), hidden, inner, bias);
    String up = g.linear(x, path + names.up(), hidden, inner, bias);
    return g.linear(gated(gate, up, path), path + names.down(), inner, hidden, bias);
  }

  /** activation(gate) · up. */
  final String gated(String gate, String up, String path) {
    return g.node("Mul", path, List.of(g.activation(activation, gate, path + ".gate_proj"), up));
  }

  @Override
  final String normed(String x) {
    return norm(x, base + "norm");
  }

  @Override
  final String byWords(String x) {
    boolean tied = config.flag("tie_word_embeddings", false);
    if (tied) {
      g.ignore("lm_head.weight");
    }
    return finished(
        tied ? g.product(x, "lm_head", table()) : g.linear(x, "lm_head", hidden, words, false));
  }

  /** Products of states and words as logits. */
  String finished(String product) {
    return product;
  }

  /** cap · tanh(x / cap); as it is where there is no cap. */
  final String capped(String x, String path, double cap) {
    if (cap == 0) {
      return x;
    }
    String part = g.node("Div", path + "/cap", List.of(x, g.number((float) cap)));
    String bent = g.node("Tanh", path + "/cap", List.of(part));
    return g.node("Mul", path + "/cap", List.of(bent, g.number((float) cap)));
  }

  /** Each layer has a window. */
  static final class Mistral extends LlamaDecoder {
    Mistral(Configuration config, GraphWriter g) {
      super(config, g);
    }

    @Override
    long window(long n) {
      return slides(n, true) ? config.whole("sliding_window", 4096, 0) : 0;
    }
  }

  /** Later layers have a window where that is switched on; queries, keys and values have a bias. */
  static class Qwen2 extends LlamaDecoder {
    Qwen2(Configuration config, GraphWriter g) {
      super(config, g);
    }

    @Override
    boolean hasBias() {
      return true;
    }

    @Override
    boolean hasOutputBias() {
      return false;
    }

    @Override
    long window(long n) {
      boolean later =
          config.flag("use_sliding_window", false) && n >= config.whole("max_window_layers", 28, 0);
      return slides(n, later) ? config.whole("sliding_window", 0, 0) : 0;
    }
  }

  /** Qwen2 with norms of heads, and biases only where settings say so. */
  static final class Qwen3 extends Qwen2 {
    Qwen3(Configuration config, GraphWriter g) {
      super(config.withDefaults(Map.of("head_dim", 128)), g);
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
  }

  /** Some layers know no positions. */
  static final class SmolLm3 extends LlamaDecoder {
    private final double[] turning;

    SmolLm3(Configuration config, GraphWriter g) {
      super(
          config.withDefaults(
              Map.of("tie_word_embeddings", true, "rope_theta", 2e6, "num_key_value_heads", 4)),
          g);
      turning = config.numbers("no_rope_layers");
      if (config.has("no_rope_layers") && turning.length < sizes.layers()) {
        throw config.wrong("no_rope_layers", "0 or 1 for each of num_hidden_layers");
      }
    }

    private boolean turns(long n) {
      return turning.length == 0
          ? (n + 1) % config.size("no_rope_layer_interval", 4) != 0
          : turning[(int) n] != 0;
    }

    @Override
    Rotary rotary(long n) {
      return turns(n) ? super.rotary(n) : null;
    }

    @Override
    long window(long n) {
      if (!config.flag("use_sliding_window", false)) {
        if (slides(n, false)) {
          throw config.wrong("use_sliding_window", "true, for the layers that slide,");
        }
        return 0;
      }
      return slides(n, !turns(n)) ? config.whole("sliding_window", 0, 0) : 0;
    }
  }

  /** Factors of what is embedded, of scores, of what blocks add and of logits. */
  static final class Granite extends LlamaDecoder {
    Granite(Configuration config, GraphWriter g) {
      super(config, g);
    }

    @Override
    double embeddingScale() {
      return config.positive("embedding_multiplier", 1);
    }

    @Override
    double scale() {
      return config.positive("attention_multiplier", 1);
    }

    @Override
    String sum(String x, String y, String path) {
      return super.sum(x, scaled(y, path, config.positive("residual_multiplier", 1)), path);
    }

    @Override
    String finished(String product) {
      double divisor = config.positive("logits_scaling", 1);
      return divisor == 1
          ? product
          : g.node("Div", "lm_head", List.of(product, g.number((float) divisor)));
    }
  }

  /** Norms behind blocks and none before them; all heads of queries are normed together, and those of keys. */
  static final class Olmo2 extends LlamaDecoder {
    Olmo2(Configuration config, GraphWriter g) {
      super(config.withDefaults(Map.of("rms_norm_eps", 1e-5)), g);
    }

    @Override
    String layer(String x, long n) {
      String path = base + "layers." + n;
      String seen = attention(x, path + ".self_attn", n);
      x = sum(x, norm(seen, path + ".post_attention_layernorm"), path + "/attention");
      String made = feedForward(x, path + ".mlp");
      return sum(x, norm(made, path + ".post_feedforward_layernorm"), path + "/feed_forward");
    }

    @Override
    String queries(String q, String path) {
      return norm(q, path + ".q_norm", heads * width);
    }

    @Override
    String keys(String k, String path) {
      return norm(k, path + ".k_norm", shared * width);
    }
  }
}

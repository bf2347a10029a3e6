package org.espalier.transformers;

import java.util.ArrayList;
import java.util.List;
import org.espalier.transformers.TransformersModel.Part;

/** Models of the kind of BART: learned positions behind two that nothing has, norms behind each block. */
class BartModel extends EncoderDecoder {
  private static final Layer NAMES =
      new Layer(
          ".layers.",
          ".self_attn",
          ".self_attn_layer_norm",
          ".encoder_attn",
          ".encoder_attn_layer_norm",
          ".final_layer_norm",
          ".q_proj",
          ".k_proj",
          ".v_proj",
          ".out_proj");

  /** How many rows of the table of places are before the first. */
  private static final int OFFSET = 2;

  BartModel(Configuration config, GraphWriter g, Part part) {
    super(
        config,
        g,
        part,
        sizes(config, "encoder"),
        sizes(config, "decoder"),
        g.base("model.", "encoder.layers.0.final_layer_norm.weight"),
        NAMES,
        1e-5,
        config.choice("activation_function", "gelu", GraphWriter.ACTIVATIONS));
  }

  private static Sizes sizes(Configuration config, String part) {
    return Sizes.of(
        config, "d_model", part + "_attention_heads", part + "_ffn_dim", part + "_layers");
  }

  @Override
  boolean normsFirst() {
    return false;
  }

  @Override
  boolean hasBias(String name) {
    return true;
  }

  @Override
  final String fed(String x, String path) {
    return feedForward(x, path + ".fc1", path + ".fc2");
  }

  @Override
  String finished(String x) {
    return x;
  }

  @Override
  long words() {
    return config.size("vocab_size");
  }

  /** What the head is called. */
  String head() {
    return "lm_head";
  }

  /** The names of the table of words that this part reads by, in which it may be stored. */
  List<String> tables() {
    return List.of(
        base + "shared.weight",
        base + "encoder.embed_tokens.weight",
        base + "decoder.embed_tokens.weight");
  }

  private boolean tied() {
    return config.flag("tie_word_embeddings", true);
  }

  private String table() {
    List<String> stored = new ArrayList<>(tables());
    if (tied() && part == Part.DECODER) {
      stored.add(head() + ".weight");
    }
    return table(stored, words());
  }

  @Override
  String embedded() {
    String path = side() + ".embed_tokens";
    String x = g.node("Gather", path, List.of(table(), IDS));
    boolean scales = config.flag("scale_embedding", false);
    x = scaled(x, path, scales ? Math.sqrt(hidden) : 1);
    path = side() + ".embed_positions";
    return placed(g.node("Add", path, List.of(x, rowsOfPlaces(path))));
  }

  /** The rows of places, [tokens, hidden]. */
  String rowsOfPlaces(String path) {
    long count = config.size("max_position_embeddings") + OFFSET;
    String table = g.weight(path + ".weight", count, hidden);
    String rows = g.node("Add", path + "/rows", List.of(ownPlaces(), g.whole(OFFSET)));
    return g.node("Gather", path, List.of(table, rows));
  }

  /** What the first layer takes of the sums of words and places. */
  String placed(String x) {
    return norm(x, side() + ".layernorm_embedding");
  }

  @Override
  final String byWords(String x) {
    String bias = "final_logits_bias";
    String product =
        tied() ? g.product(x, head(), table()) : g.linear(x, head(), hidden, words(), false);
    return g.has(bias)
        ? g.node("Add", bias, List.of(product, g.weight(bias, 1, words())))
        : product;
  }

  /** mBART: norms before each block, and behind the last. */
  static final class MBart extends BartModel {
    MBart(Configuration config, GraphWriter g, Part part) {
      super(config, g, part);
    }

    @Override
    boolean normsFirst() {
      return true;
    }

    @Override
    String finished(String x) {
      return norm(x, side() + ".layer_norm");
    }
  }
}

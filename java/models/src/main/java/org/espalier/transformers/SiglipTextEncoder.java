package org.espalier.transformers;

import static org.espalier.format.onnx.Attributes.attribute;

import java.util.HashMap;
import java.util.List;
import java.util.Map;

/**
 * Text encoders of the kind of SigLIP's, which read texts of one length, as their processor makes them: padding is seen as any
 * token, and the state of the last token is that of the text. The graph takes {@code input_ids} alone, of any length up to
 * that one, pads them itself, and gives {@code text_embeds}. 0, with which texts of a batch are padded, is padding too.
 */
final class SiglipTextEncoder extends PreNormEncoder {
  private static final String BASE = "text_model.";
  private static final String TOKENIZER = "tokenizer_config.json";

  private final long length;
  private final long padding;

  SiglipTextEncoder(Configuration config, GraphWriter g) {
    this(g, config.withDefaults(defaults()));
  }

  private SiglipTextEncoder(GraphWriter g, Configuration config) {
    super(
        config,
        g,
        Sizes.of(config),
        config.positive("layer_norm_eps", 1e-6),
        config.choice("hidden_act", "", GraphWriter.ACTIVATIONS),
        ClipImageEncoder.NAMES);
    length = config.size("max_position_embeddings");
    padding = padding(config);
    if (padding >= config.size("vocab_size")) {
      throw config.wrong("vocab_size", "more than the token of padding, " + padding + ",");
    }
  }

  /** The token of padding: that of the tokenizer where its settings lie in the folder and say so. */
  private static long padding(Configuration config) {
    Configuration tokenizer = config.beside(TOKENIZER);
    Configuration tokens = tokenizer == null ? null : tokenizer.group("added_tokens_decoder");
    if (tokens != null && tokenizer.has("pad_token")) {
      String name = tokenizer.name("pad_token");
      for (String token : tokens.keys()) {
        if (name.equals(tokens.name(token)) && token.matches("[0-9]{1,9}")) {
          return Long.parseLong(token);
        }
      }
    }
    return config.whole("pad_token_id", 1, 0);
  }

  private static Map<String, Object> defaults() {
    Map<String, Object> defaults = new HashMap<>(SiglipImageEncoder.defaults());
    defaults.put("vocab_size", 32000);
    defaults.put("max_position_embeddings", 64);
    return defaults;
  }

  @Override
  void write(List<String> classes) {
    String ids = padded(g.input("input_ids", TOKENS));
    String path = BASE + "embeddings.token_embedding";
    String words = g.weight(path + ".weight", config.size("vocab_size"), hidden);
    String found = g.node("Gather", path, List.of(words, ids));
    path = BASE + "embeddings.position_embedding";
    String places = g.weight(path + ".weight", length, hidden);
    String x = g.node("Add", path, List.of(found, places));
    x = norm(layers(x, BASE + "encoder.layers.", true, null), BASE + "final_layer_norm");
    String last = g.node("Gather", "last", List.of(x, g.whole(length - 1)), attribute("axis", 1L));
    long width = config.size("projection_size", hidden);
    String made = g.linear(last, BASE + "head", hidden, width, true);
    g.output(ClipTextEncoder.EMBEDDING, made, BATCH, width);
  }

  /** Tokens with padding up to the length that texts have. */
  private String padded(String ids) {
    String path = "padding";
    String marked = padding == 0 ? ids : marked(ids, path);
    String lacking = g.node("Sub", path, List.of(g.whole(length), g.length(ids, 1)));
    String some = g.node("Max", path, List.of(lacking, g.whole(0)));
    String one = g.node("Unsqueeze", path, List.of(some, g.wholes(0)));
    String sides = g.node("Concat", path, List.of(g.wholes(0, 0, 0), one), attribute("axis", 0L));
    return g.node("Pad", path, List.of(marked, sides, g.whole(padding)));
  }

  /** Tokens with padding in place of 0. */
  private String marked(String ids, String path) {
    String none = g.node("Equal", path, List.of(ids, g.whole(0)));
    return g.node("Where", path, List.of(none, g.whole(padding), ids));
  }
}

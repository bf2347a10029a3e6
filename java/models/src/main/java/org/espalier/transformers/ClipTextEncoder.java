package org.espalier.transformers;

import static org.espalier.format.onnx.Attributes.attribute;

import ai.onnx.proto.OnnxMl.TensorProto.DataType;
import java.util.HashMap;
import java.util.List;
import java.util.Map;

/**
 * Text encoders of the kind of CLIP's: tokens see those before them, and the state of the one that ends a text is projected
 * into the space of images. The graph takes {@code input_ids} and {@code attention_mask} and gives {@code text_embeds}, or
 * {@code last_hidden_state} without the projection.
 */
final class ClipTextEncoder extends PreNormEncoder {
  static final String EMBEDDING = "text_embeds";

  /** What configurations said of the end of texts when it was the largest token. */
  private static final long LARGEST = 2;

  private final String base;
  private final long end;

  ClipTextEncoder(Configuration config, GraphWriter g) {
    this(g, config.withDefaults(defaults()));
  }

  private ClipTextEncoder(GraphWriter g, Configuration config) {
    super(
        config,
        g,
        Sizes.of(config),
        config.positive("layer_norm_eps", 1e-5),
        config.choice("hidden_act", "quick_gelu", GraphWriter.ACTIVATIONS),
        ClipImageEncoder.NAMES);
    base = g.base("text_model.", "embeddings.token_embedding.weight");
    end = config.whole("eos_token_id", 49407, 0);
  }

  private static Map<String, Object> defaults() {
    Map<String, Object> defaults = new HashMap<>();
    defaults.put("vocab_size", 49408);
    defaults.put("hidden_size", 512);
    defaults.put("intermediate_size", 2048);
    defaults.put("num_hidden_layers", 12);
    defaults.put("num_attention_heads", 8);
    defaults.put("max_position_embeddings", 77);
    return defaults;
  }

  @Override
  void write(List<String> classes) {
    String ids = g.input("input_ids", TOKENS);
    String mask = g.input(MASK, TOKENS);
    String more =
        g.node("Min", "seen", List.of(tokens.hiding(mask), tokens.later(tokens.distances(ids))));
    String x = layers(embedded(ids), base + "encoder.layers.", true, more);
    x = norm(x, base + "final_layer_norm");
    if (names(classes, ClipImageEncoder.PROJECTS)) {
      giveEmbedding(EMBEDDING, ended(x, ids), "text_projection");
    } else {
      g.output(STATES, x, BATCH, TOKENS, hidden);
    }
  }

  private String embedded(String ids) {
    String path = base + "embeddings.token_embedding";
    String words = g.weight(path + ".weight", config.size("vocab_size"), hidden);
    String found = g.node("Gather", path, List.of(words, ids));
    path = base + "embeddings.position_embedding";
    String rows = g.weight(path + ".weight", config.size("max_position_embeddings"), hidden);
    String place = g.node("Gather", path, List.of(rows, tokens.places(ids)));
    return g.node("Add", path, List.of(found, place));
  }

  /** The state of the first token that ends a text, [batch, hidden]. */
  private String ended(String x, String ids) {
    String path = "end";
    String ends = end == LARGEST ? ids : g.node("Equal", path, List.of(ids, g.whole(end)));
    String numbers = g.node("Cast", path, List.of(ends), attribute("to", DataType.INT32_VALUE));
    String place = g.node("ArgMax", path, List.of(numbers), attribute("axis", 1L));
    return g.node("GatherND", path, List.of(x, place), attribute("batch_dims", 1L));
  }
}

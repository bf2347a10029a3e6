package org.espalier.transformers;

import static org.espalier.format.onnx.Attributes.attribute;

import java.util.HashMap;
import java.util.List;
import java.util.Map;

/**
 * Image encoders of the kind of CLIP's: a norm before all layers, and one of the first token that is projected into the space
 * of texts. The graph gives {@code image_embeds}, or {@code last_hidden_state} without the projection, or the {@code logits}
 * of the head that classifies images.
 */
final class ClipImageEncoder extends ImageEncoder {
  static final String EMBEDDING = "image_embeds";

  /** How the class of a model that projects ends. */
  static final String PROJECTS = "WithProjection";

  static final Layer NAMES =
      new Layer(
          ".layer_norm1",
          ".self_attn.q_proj",
          ".self_attn.k_proj",
          ".self_attn.v_proj",
          ".self_attn.out_proj",
          ".layer_norm2",
          ".mlp.fc1",
          ".mlp.fc2");

  private final String base;

  ClipImageEncoder(Configuration config, GraphWriter g) {
    this(g, config.withDefaults(defaults()));
  }

  private ClipImageEncoder(GraphWriter g, Configuration config) {
    super(config, g, Sizes.of(config), config.positive("layer_norm_eps", 1e-5), NAMES);
    base = g.base("vision_model.", "embeddings.class_embedding");
  }

  private static Map<String, Object> defaults() {
    Map<String, Object> defaults = new HashMap<>();
    defaults.put("hidden_size", 768);
    defaults.put("intermediate_size", 3072);
    defaults.put("num_hidden_layers", 12);
    defaults.put("num_attention_heads", 12);
    defaults.put("patch_size", 32);
    defaults.put("hidden_act", "quick_gelu");
    return defaults;
  }

  @Override
  void write(List<String> classes) {
    String x = layers(embedded(pixels()), base + "encoder.layers.", true, null);
    if (names(classes, CLASSIFIES)) {
      giveLogits(mean(between(x, "squares", 1, Long.MAX_VALUE)), "classifier", hidden);
    } else if (names(classes, PROJECTS)) {
      String pooled = norm(tokens.first(x), base + "post_layernorm");
      giveEmbedding(EMBEDDING, pooled, "visual_projection");
    } else {
      g.output(STATES, x, BATCH, 1 + squares(), hidden);
    }
  }

  private String embedded(String pixels) {
    String path = base + "embeddings";
    String first = forEach(pixels, g.weight(path + ".class_embedding", hidden), 1);
    String squares = squares(pixels, path + ".patch_embedding", false);
    String all = g.node("Concat", path, List.of(first, squares), attribute("axis", 1L));
    String places = g.weight(path + ".position_embedding.weight", 1 + squares(), hidden);
    return norm(g.node("Add", path, List.of(all, places)), base + "pre_layrnorm");
  }
}

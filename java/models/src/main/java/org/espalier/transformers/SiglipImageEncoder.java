package org.espalier.transformers;

import static org.espalier.format.onnx.Attributes.attribute;

import java.util.HashMap;
import java.util.List;
import java.util.Map;

/**
 * Image encoders of the kind of SigLIP's: squares alone are tokens, and a learned query attends to what the layers give. The
 * graph gives {@code image_embeds}, or {@code last_hidden_state} where the model has no such head, or the {@code logits} of
 * the head that classifies images.
 */
final class SiglipImageEncoder extends ImageEncoder {
  private static final String BASE = "vision_model.";

  SiglipImageEncoder(Configuration config, GraphWriter g) {
    this(g, config.withDefaults(defaults()));
  }

  private SiglipImageEncoder(GraphWriter g, Configuration config) {
    super(
        config,
        g,
        Sizes.of(config),
        config.positive("layer_norm_eps", 1e-6),
        ClipImageEncoder.NAMES);
  }

  /** What both encoders leave out. */
  static Map<String, Object> defaults() {
    Map<String, Object> defaults = new HashMap<>();
    defaults.put("hidden_size", 768);
    defaults.put("intermediate_size", 3072);
    defaults.put("num_hidden_layers", 12);
    defaults.put("num_attention_heads", 12);
    defaults.put("hidden_act", "gelu_pytorch_tanh");
    return defaults;
  }

  @Override
  void write(List<String> classes) {
    String path = BASE + "embeddings";
    String squares = squares(pixels(), path + ".patch_embedding", true);
    String places = g.weight(path + ".position_embedding.weight", squares(), hidden);
    String x = g.node("Add", path, List.of(squares, places));
    x = norm(layers(x, BASE + "encoder.layers.", true, null), BASE + "post_layernorm");
    if (names(classes, CLASSIFIES)) {
      giveLogits(mean(x), "classifier", hidden);
    } else if (config.flag("vision_use_head", true)) {
      g.output(ClipImageEncoder.EMBEDDING, pooled(x), BATCH, hidden);
    } else {
      g.output(STATES, x, BATCH, squares(), hidden);
    }
  }

  /** What the learned query sees, through one more feed-forward block: [batch, hidden]. */
  private String pooled(String x) {
    String path = BASE + "head";
    String query = forEach(x, g.weight(path + ".probe", 1, 1, hidden), 1);
    String all = g.node("Concat", path, List.of(query, x), attribute("axis", 1L));
    String own = path + ".attention";
    String product = g.product(all, own, g.weight(own + ".in_proj_weight", 3 * hidden, hidden));
    String biased =
        g.node("Add", own, List.of(product, g.weight(own + ".in_proj_bias", 3 * hidden)));
    List<String> parts = g.parts(biased, own, 3);
    String k = between(parts.get(1), own + ".k", 1, Long.MAX_VALUE);
    String v = between(parts.get(2), own + ".v", 1, Long.MAX_VALUE);
    String seen =
        attend(
            heads(between(parts.get(0), own + ".q", 0, 1), own + ".q"),
            turnedHeads(k, own + ".k"),
            heads(v, own + ".v"),
            own,
            Math.sqrt(sizes.width()),
            null);
    String out = tokens.first(g.linear(seen, own + ".out_proj", hidden, hidden, true));
    String fed = feedForward(norm(out, path + ".layernorm"), path + ".mlp.fc1", path + ".mlp.fc2");
    return g.node("Add", path + "/pooled", List.of(out, fed));
  }
}

package org.espalier.transformers;

import static org.espalier.format.onnx.Attributes.attribute;

import java.util.ArrayList;
import java.util.List;

/**
 * Image encoders of the kind of ViT: learned tokens before the squares of an image, and learned positions of both. The graph
 * gives {@code last_hidden_state}, or the {@code logits} of the head that classifies images.
 */
class VisionEncoder extends ImageEncoder {
  private static final String FIRST = "embeddings.cls_token";

  private static final Layer NAMES =
      new Layer(
          ".layernorm_before",
          ".attention.attention.query",
          ".attention.attention.key",
          ".attention.attention.value",
          ".attention.output.dense",
          ".layernorm_after",
          ".intermediate.dense",
          ".output.dense");

  final String base;
  private final boolean bias;

  VisionEncoder(Configuration config, GraphWriter g) {
    this(config, g, "vit.", Sizes.of(config), NAMES);
  }

  VisionEncoder(Configuration config, GraphWriter g, String prefix, Sizes sizes, Layer names) {
    super(config, g, sizes, config.positive("layer_norm_eps", 1e-12), names);
    base = g.base(prefix, FIRST);
    bias = config.flag("qkv_bias", true);
  }

  /** The learned tokens before squares that have positions. */
  List<String> learned() {
    return List.of(FIRST);
  }

  /** How many tokens stand before squares. */
  long before() {
    return learned().size();
  }

  @Override
  final void write(List<String> classes) {
    String x = layers(embedded(pixels()), base + "encoder.layer.", bias, null);
    x = norm(x, base + "layernorm");
    if (!classified(x, classes)) {
      g.output(STATES, x, BATCH, before() + squares(), hidden);
    }
  }

  /** Gives out the logits of a head; false where none is named. */
  boolean classified(String x, List<String> classes) {
    boolean named = names(classes, CLASSIFIES);
    if (named) {
      giveLogits(tokens.first(x), "classifier", hidden);
    }
    return named;
  }

  private String embedded(String pixels) {
    List<String> parts = new ArrayList<>();
    for (String token : learned()) {
      parts.add(forEach(pixels, g.weight(base + token, 1, 1, hidden), 1));
    }
    String path = base + "embeddings";
    parts.add(squares(pixels, path + ".patch_embeddings.projection", true));
    String all = g.node("Concat", path, parts, attribute("axis", 1L));
    String x = g.node("Add", path, List.of(all, positions(path + ".position_embeddings")));
    return registered(x, pixels);
  }

  /** The table of positions, [1, tokens, hidden]. */
  String positions(String name) {
    return g.weight(name, 1, learned().size() + squares(), hidden);
  }

  /** The same with learned tokens that have no positions. */
  String registered(String x, String pixels) {
    return x;
  }

  /** DeiT: a second learned token, which follows a teacher, and a head of its own for it. */
  static final class Deit extends VisionEncoder {
    private static final String FOLLOWS = "WithTeacher";

    Deit(Configuration config, GraphWriter g) {
      super(config, g, "deit.", Sizes.of(config), NAMES);
    }

    @Override
    List<String> learned() {
      return List.of(FIRST, "embeddings.distillation_token");
    }

    @Override
    boolean classified(String x, List<String> classes) {
      if (!names(classes, CLASSIFIES + FOLLOWS)) {
        return super.classified(x, classes);
      }
      long labels = config.labels();
      String second = g.node("Gather", "second", List.of(x, g.whole(1)), attribute("axis", 1L));
      String own = g.linear(tokens.first(x), "cls_classifier", hidden, labels, true);
      String taught = g.linear(second, "distillation_classifier", hidden, labels, true);
      String both = g.node("Add", LOGITS, List.of(own, taught));
      String mean = g.node("Mul", LOGITS, List.of(both, g.number(0.5f)));
      g.output(LOGITS, mean, BATCH, labels);
      return true;
    }
  }
}

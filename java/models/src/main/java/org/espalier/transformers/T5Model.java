package org.espalier.transformers;

import static org.espalier.format.onnx.Attributes.attribute;

import java.util.ArrayList;
import java.util.List;
import org.espalier.format.onnx.OnnxInitializer;
import org.espalier.transformers.TransformersModel.Part;

/**
 * Models of the kind of T5: root mean square norms before each block, no biases, and to scores, which nothing divides, is
 * added what is learned of how far tokens are from one another.
 */
final class T5Model extends EncoderDecoder {
  private static final String GATED = "gated-";
  private static final long MOST_DISTANCE = 1 << 20;

  private final String inner;
  private final boolean gated;

  T5Model(Configuration config, GraphWriter g, Part part) {
    super(
        config,
        g,
        part,
        sizes(config, config.size("num_layers")),
        sizes(config, config.size("num_decoder_layers", config.size("num_layers"))),
        "",
        names(part),
        config.positive("layer_norm_epsilon", 1e-6),
        activation(feedForward(config)));
    gated = feedForward(config).startsWith(GATED);
    inner = part == Part.ENCODER ? ".layer.1" : ".layer.2";
  }

  private static Layer names(Part part) {
    return new Layer(
        ".block.",
        ".layer.0.SelfAttention",
        ".layer.0.layer_norm",
        ".layer.1.EncDecAttention",
        ".layer.1.layer_norm",
        part == Part.ENCODER ? ".layer.1.layer_norm" : ".layer.2.layer_norm",
        ".q",
        ".k",
        ".v",
        ".o");
  }

  private static Sizes sizes(Configuration config, long layers) {
    return new Sizes(
        config.size("d_model"),
        config.size("num_heads"),
        config.size("d_kv"),
        config.size("d_ff"),
        layers);
  }

  private static String feedForward(Configuration config) {
    List<String> known = new ArrayList<>(GraphWriter.ACTIVATIONS);
    GraphWriter.ACTIVATIONS.forEach(name -> known.add(GATED + name));
    return config.choice("feed_forward_proj", "relu", known);
  }

  private static String activation(String feedForward) {
    return feedForward.equals("gated-gelu") ? "gelu_new" : feedForward.replace(GATED, "");
  }

  @Override
  boolean normsFirst() {
    return true;
  }

  @Override
  String blockNorm(String x, String path) {
    return g.rootMeanSquareNorm(x, path, g.weight(path + ".weight", hidden), epsilon);
  }

  @Override
  boolean hasBias(String name) {
    return false;
  }

  @Override
  double divisor() {
    return 1;
  }

  private boolean tied() {
    return config.flag("tie_word_embeddings", true);
  }

  /** Newer configurations say whether states are scaled, and that tables are tied where the head is not. */
  private boolean hasHead() {
    String head = "lm_head.weight";
    return !tied() || config.has("scale_decoder_outputs") && g.has(head);
  }

  private String table() {
    List<String> stored =
        new ArrayList<>(
            List.of("shared.weight", "encoder.embed_tokens.weight", "decoder.embed_tokens.weight"));
    if (part == Part.DECODER && !hasHead()) {
      stored.add("lm_head.weight");
    }
    return table(stored, words());
  }

  @Override
  String embedded() {
    return g.node("Gather", side() + ".embed_tokens", List.of(table(), IDS));
  }

  @Override
  String scoreTerms(String hiding) {
    String path = side() + ".block.0.layer.0.SelfAttention.relative_attention_bias";
    long buckets = config.whole("relative_attention_num_buckets", 32, 4);
    long far = config.size("relative_attention_max_distance", 128);
    if (far <= buckets / 2 || far > MOST_DISTANCE) {
      throw config.wrong(
          "relative_attention_max_distance",
          "more than half of relative_attention_num_buckets = "
              + buckets
              + ", and at most "
              + MOST_DISTANCE
              + ",");
    }
    long[] rows = new long[2 * (int) far + 1];
    for (int i = 0; i < rows.length; i++) {
      rows[i] = bucket(i - (int) far, (int) buckets, (int) far);
    }
    String table =
        g.constant(OnnxInitializer.int64s(path + "/table", new long[] {rows.length}, rows));
    String near = g.node("Min", path, List.of(distances(), g.whole(far)));
    String both = g.node("Max", path, List.of(near, g.whole(-far)));
    String from = g.node("Add", path, List.of(both, g.whole(far)));
    String which = g.node("Gather", path + "/buckets", List.of(table, from));
    String weight = g.weight(path + ".weight", buckets, sizes.heads());
    String found = g.node("Gather", path, List.of(weight, which));
    long[] order = {2, 0, 1};
    String byHead = g.node("Transpose", path, List.of(found), attribute("perm", order));
    String wide = g.node("Unsqueeze", path, List.of(byHead, g.wholes(0)));
    return g.node("Add", path + "/mask", List.of(wide, hiding));
  }

  /** By how far a token is behind another: near ones are told apart, farther ones share, the farthest one. */
  private int bucket(int distance, int all, int far) {
    boolean both = part == Part.ENCODER;
    int count = both ? all / 2 : all;
    int from = both && distance < 0 ? count : 0;
    int behind = both ? Math.abs(distance) : Math.max(0, distance);
    int exact = count / 2;
    if (behind < exact) {
      return from + behind;
    }
    float share = (float) Math.log((float) behind / exact) / (float) Math.log((double) far / exact);
    return from + Math.min(count - 1, exact + (int) (share * (count - exact)));
  }

  @Override
  String fed(String x, String path) {
    String block = path + inner + ".DenseReluDense";
    String first = block + (gated ? ".wi_0" : ".wi");
    String wide = g.linear(x, first, hidden, sizes.inner(), false);
    wide = g.activation(activation, wide, first);
    if (gated) {
      String linear = g.linear(x, block + ".wi_1", hidden, sizes.inner(), false);
      wide = g.node("Mul", block, List.of(wide, linear));
    }
    return g.linear(wide, block + ".wo", sizes.inner(), hidden, false);
  }

  @Override
  String finished(String x) {
    return blockNorm(x, side() + ".final_layer_norm");
  }

  @Override
  long words() {
    return config.size("vocab_size");
  }

  @Override
  String byWords(String x) {
    boolean scales = config.flag("scale_decoder_outputs", tied());
    x = scaled(x, "lm_head", scales ? 1 / Math.sqrt(hidden) : 1);
    return hasHead()
        ? g.linear(x, "lm_head", hidden, words(), false)
        : g.product(x, "lm_head", table());
  }
}

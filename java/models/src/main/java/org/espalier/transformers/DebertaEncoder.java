package org.espalier.transformers;

import static org.espalier.format.onnx.Attributes.attribute;

import ai.onnx.proto.OnnxMl.AttributeProto;
import java.util.List;
import java.util.Map;
import java.util.function.IntUnaryOperator;

/**
 * Text encoders of the kind of DeBERTa-v2 and -v3: queries are multiplied with what is learned of how far keys are, and keys
 * with what is learned of how far queries are.
 */
final class DebertaEncoder extends BertEncoder {
  private static final String SELF = ".attention.self";
  private static final Names NAMES =
      Names.attending(SELF + ".query_proj", SELF + ".key_proj", SELF + ".value_proj");

  /** More tokens than which no text has. */
  private final long places;

  /** The farthest distance. */
  private final long farthest;

  /** Of distances to a side; less than 1 where each is its own. */
  private final long buckets;

  /** How many rows there are for distances to a side. */
  private final long span;

  private final boolean queriesSeeDistance;
  private final boolean keysSeeDistance;
  private final boolean shared;
  private String distanceRows;
  private String ofQueries;
  private String ofKeys;

  DebertaEncoder(Configuration config, GraphWriter g) {
    super(
        config.withDefaults(Map.of("layer_norm_eps", 1e-7, "type_vocab_size", 0)),
        g,
        "deberta.",
        NAMES);
    config.refuse("conv_kernel_size");
    if (config.size("attention_head_size", sizes.width()) != sizes.width()) {
      throw config.wrong("attention_head_size", "hidden_size / num_attention_heads");
    }
    if (!config.flag("relative_attention", false)) {
      throw config.wrong("relative_attention", "true");
    }
    places = config.size("max_position_embeddings", 512);
    long most = config.whole("max_relative_positions", -1, -1);
    farthest = most < 1 ? places : most;
    buckets = config.whole("position_buckets", -1, -1);
    span = buckets < 1 ? farthest : buckets;
    List<String> types = config.parts("pos_att_type");
    queriesSeeDistance = types.remove("c2p");
    keysSeeDistance = types.remove("p2c");
    if (!types.isEmpty()) {
      throw config.wrong("pos_att_type", "c2p and p2c");
    }
    shared = config.flag("share_att_key", false);
  }

  @Override
  long rowWidth() {
    return config.size("embedding_size", hidden);
  }

  @Override
  boolean hasPlaces() {
    return config.flag("position_biased_input", true);
  }

  @Override
  String embedded(String ids, String mask) {
    String path = base + "embeddings";
    String x = summed(ids);
    if (rowWidth() != hidden) {
      x = g.linear(x, path + ".embed_proj", rowWidth(), hidden, false);
    }
    return g.node("Mul", path, List.of(norm(x, path + ".LayerNorm"), tokens.kept(mask)));
  }

  @Override
  String scoreTerms(String ids, String mask) {
    String path = base + "encoder.rel_embeddings";
    String rows = g.weight(path + ".weight", 2 * span, hidden);
    for (String norm : config.parts("norm_rel_ebd")) {
      if (norm.equals("layer_norm")) {
        rows = norm(rows, base + "encoder.LayerNorm");
      } else if (!norm.equals("none")) {
        throw config.wrong("norm_rel_ebd", "layer_norm or none");
      }
    }
    distanceRows = g.node("Unsqueeze", path, List.of(rows, g.wholes(0)));
    String size =
        g.node(
            "Concat",
            path,
            List.of(
                g.node("Unsqueeze", path + "/texts", List.of(g.length(ids, 0), g.wholes(0))),
                g.wholes(sizes.heads(), 1, 1)),
            attribute("axis", 0L));
    if (queriesSeeDistance) {
      ofQueries = rows(ids, path + "/queries", size, distance -> row(bucket(distance)));
    }
    if (keysSeeDistance) {
      ofKeys = rows(ids, path + "/keys", size, distance -> row(-bucket(distance)));
    }
    return tokens.hiding(mask);
  }

  /** Rows by distance, [batch, heads, tokens, tokens]. */
  private String rows(String ids, String path, String size, IntUnaryOperator row) {
    return g.node("Expand", path, List.of(byDistance(ids, path, places, row), size));
  }

  /** The row of a distance, or of a bucket of them. */
  private int row(int bucket) {
    return (int) Math.max(0, Math.min(2 * span - 1, span + bucket));
  }

  /** Near distances are their own buckets; farther ones share them the more the farther they are. */
  private int bucket(int distance) {
    long middle = buckets / 2;
    int far = Math.abs(distance);
    if (buckets < 1 || far <= middle) {
      return distance;
    }
    float share =
        (float) Math.log((float) far / middle)
            / (float) Math.log((float) ((farthest - 1.0) / middle));
    int bucket = (int) ((float) Math.ceil(share * (middle - 1)) + middle);
    return distance < 0 ? -bucket : bucket;
  }

  private String projected(String x, String path, String place) {
    return g.linear(x, path, place, hidden, hidden, true);
  }

  @Override
  String attention(String x, String path, String more) {
    String self = path + SELF;
    String query = self + ".query_proj";
    String key = self + ".key_proj";
    String value = self + ".value_proj";
    String queries = heads(projected(x, query, query), query);
    String keys = projected(x, key, key);
    int terms = 1 + (queriesSeeDistance ? 1 : 0) + (keysSeeDistance ? 1 : 0);
    double divisor = Math.sqrt((double) sizes.width() * terms);
    if (queriesSeeDistance) {
      String rows = shared ? key : self + ".pos_key_proj";
      String found = byRows(queries, rows, self + ".c2p", ofQueries);
      more = sum(more, found, divisor);
    }
    if (keysSeeDistance) {
      String rows = shared ? query : self + ".pos_query_proj";
      String place = self + ".p2c";
      String found = byRows(heads(keys, key + "/rows"), rows, place, ofKeys);
      AttributeProto turned = attribute("perm", new long[] {0, 1, 3, 2});
      more = sum(more, g.node("Transpose", place, List.of(found), turned), divisor);
    }
    String values = heads(projected(x, value, value), value);
    return attend(queries, turnedHeads(keys, key), values, self, divisor, more);
  }

  /**
   * Products of tokens and of rows of distances, each by its distances.
   *
   * @param path of the layer that the rows pass
   * @param place where the nodes stand
   */
  private String byRows(String tokens, String path, String place, String which) {
    String rows = turnedHeads(projected(distanceRows, path, place + "/rows"), place + "/rows");
    String all = g.node("MatMul", place, List.of(tokens, rows));
    return g.node("GatherElements", place, List.of(all, which), attribute("axis", 3L));
  }

  private String sum(String more, String term, double divisor) {
    String part = g.node("Div", term, List.of(term, g.number((float) divisor)));
    return g.node("Add", term, List.of(part, more));
  }

  @Override
  String classified(String x, String mask) {
    String dense = g.linear(tokens.first(x), "pooler.dense", hidden, hidden, true);
    String bend = config.choice("pooler_hidden_act", "gelu", GraphWriter.ACTIVATIONS);
    return linearHead(g.activation(bend, dense, "pooler"), "classifier");
  }
}

package org.espalier.transformers;

import java.util.HashMap;
import java.util.Map;

/** A model of the kind of DeBERTa-v3 in plain loops. */
final class SmallDeberta extends SmallEncoder {
  /** The farthest distance. */
  private static final int FARTHEST = 24;

  private static final String ROWS = "deberta.encoder.rel_embeddings.weight";
  private static final String NORM = "deberta.encoder.LayerNorm";
  private static final String SELF = ".attention.self.";

  private final boolean shared;
  private final int buckets;
  private final int span;

  /** Rows of distances as layers project them. */
  private final Map<String, double[]> projected = new HashMap<>();

  /**
   * @param shared whether distances are projected as tokens are
   * @param buckets of distances to a side; −1 where each is its own
   */
  SmallDeberta(boolean shared, int buckets) {
    super("deberta-v2", "deberta.");
    this.shared = shared;
    this.buckets = buckets;
    span = buckets > 0 ? buckets : FARTHEST;
    names =
        Layer.bert(
            SELF + "query_proj",
            SELF + "key_proj",
            SELF + "value_proj",
            ".attention.output.dense",
            ".attention.output.LayerNorm");
    parts = 0;
    settings =
        ", \"relative_attention\": true, \"position_biased_input\": false, \"share_att_key\": "
            + shared
            + ", \"position_buckets\": "
            + buckets
            + ", \"max_relative_positions\": 24, \"norm_rel_ebd\": \"layer_norm\","
            + " \"pos_att_type\": "
            + (shared ? "\"p2c|c2p\"" : "[\"c2p\", \"p2c\"]");
  }

  @Override
  void addEmbeddings(SmallCheckpoint w) {
    w.add("deberta.embeddings.word_embeddings.weight", 0, 1, WORDS, HIDDEN);
    w.norm("deberta.embeddings.LayerNorm", HIDDEN, true);
    w.add(ROWS, 0, 1, 2 * span, HIDDEN);
    w.norm(NORM, HIDDEN, true);
  }

  @Override
  void addLayer(SmallCheckpoint w, String path) {
    super.addLayer(w, path);
    if (!shared) {
      w.linear(path + SELF + "pos_key_proj", HIDDEN, HIDDEN, true);
      w.linear(path + SELF + "pos_query_proj", HIDDEN, HIDDEN, true);
    }
  }

  @Override
  double[][] embedded(SmallCheckpoint w, int[] text) {
    double[][] x = new double[text.length][];
    for (int t = 0; t < text.length; t++) {
      double[] row = w.row("deberta.embeddings.word_embeddings.weight", text[t], HIDDEN);
      x[t] = w.layerNorm("deberta.embeddings.LayerNorm", row, epsilon);
    }
    return x;
  }

  private int bucket(int distance) {
    int middle = buckets / 2;
    int far = Math.abs(distance);
    if (buckets < 0 || far <= middle) {
      return distance;
    }
    double share = Math.log((double) far / middle) / Math.log((FARTHEST - 1.0) / middle);
    int bucket = (int) Math.ceil(share * (middle - 1)) + middle;
    return distance < 0 ? -bucket : bucket;
  }

  private double[] projected(SmallCheckpoint w, String layer, int row) {
    return projected.computeIfAbsent(
        layer + " " + row,
        key -> w.linear(layer, w.layerNorm(NORM, w.row(ROWS, row, HIDDEN), epsilon)));
  }

  @Override
  double score(
      SmallCheckpoint w, String path, double[][] q, double[][] k, int from, int to, int head) {
    int row = Math.max(0, Math.min(2 * span - 1, span + bucket(from - to)));
    String pos = path + SELF + (shared ? "" : "pos_");
    int at = head * WIDTH;
    double sum =
        SmallCheckpoint.dot(q[from], at, k[to], at, WIDTH)
            + SmallCheckpoint.dot(q[from], at, projected(w, pos + "key_proj", row), at, WIDTH)
            + SmallCheckpoint.dot(k[to], at, projected(w, pos + "query_proj", row), at, WIDTH);
    return sum / Math.sqrt(3 * WIDTH);
  }
}

package org.espalier.transformers;

import java.util.Arrays;

/** A model of the kind of ModernBERT in plain loops, of four layers. */
final class SmallModernBert extends SmallEncoder {
  private static final int DEEP = 4;

  /** How far neighbours are. */
  private static final int NEAR = 3;

  SmallModernBert(String base, String settings) {
    super("modernbert", base);
    parts = 0;
    this.settings = settings;
  }

  @Override
  String config() {
    return """
           {"model_type": "modernbert", "architectures": ["%s"], "hidden_size": %d,
            "intermediate_size": %d, "vocab_size": %d, "num_hidden_layers": %d,
            "num_attention_heads": %d, "max_position_embeddings": %d, "norm_eps": %s,
            "global_attn_every_n_layers": 3, "local_attention": %d, "global_rope_theta": 900.0,
            "local_rope_theta": 50.0, "id2label": {"0": "a", "1": "b", "2": "c"}%s}
           """
        .formatted(
            architecture, HIDDEN, INNER, WORDS, DEEP, HEADS, PLACES, epsilon, 2 * NEAR, settings);
  }

  @Override
  void addEmbeddings(SmallCheckpoint w) {
    w.add(base + "embeddings.tok_embeddings.weight", 0, 1, WORDS, HIDDEN);
    w.norm(base + "embeddings.norm", HIDDEN, false);
    w.norm(base + "final_norm", HIDDEN, false);
    for (int n = 0; n < DEEP; n++) {
      String path = base + "layers." + n;
      if (n > 0) {
        w.norm(path + ".attn_norm", HIDDEN, false);
      }
      w.linear(path + ".attn.Wqkv", HIDDEN, 3 * HIDDEN, false);
      w.linear(path + ".attn.Wo", HIDDEN, HIDDEN, false);
      w.norm(path + ".mlp_norm", HIDDEN, false);
      w.linear(path + ".mlp.Wi", HIDDEN, 2 * INNER, false);
      w.linear(path + ".mlp.Wo", INNER, HIDDEN, false);
    }
  }

  @Override
  void addLayer(SmallCheckpoint w, String path) {}

  void addHead(SmallCheckpoint w) {
    w.linear("head.dense", HIDDEN, HIDDEN, false);
    w.norm("head.norm", HIDDEN, false);
  }

  double[] headOf(SmallCheckpoint w, double[] x) {
    double[] bent = SmallCheckpoint.each(w.linear("head.dense", x), SmallCheckpoint::gelu);
    return w.layerNorm("head.norm", bent, epsilon);
  }

  @Override
  double[][] states(SmallCheckpoint w, int[] text) {
    double[][] x = new double[text.length][];
    for (int t = 0; t < text.length; t++) {
      double[] row = w.row(base + "embeddings.tok_embeddings.weight", text[t], HIDDEN);
      x[t] = w.layerNorm(base + "embeddings.norm", row, epsilon);
    }
    for (int n = 0; n < DEEP; n++) {
      layer(w, base + "layers." + n, x, n);
    }
    return each(x, row -> w.layerNorm(base + "final_norm", row, epsilon));
  }

  private void layer(SmallCheckpoint w, String path, double[][] x, int n) {
    boolean local = n % 3 != 0;
    double[][] q = new double[x.length][];
    double[][] k = new double[x.length][];
    double[][] v = new double[x.length][];
    for (int t = 0; t < x.length; t++) {
      double[] normed = n == 0 ? x[t] : w.layerNorm(path + ".attn_norm", x[t], epsilon);
      double[] all = w.linear(path + ".attn.Wqkv", normed);
      q[t] = turned(Arrays.copyOfRange(all, 0, HIDDEN), t, local ? 50 : 900);
      k[t] = turned(Arrays.copyOfRange(all, HIDDEN, 2 * HIDDEN), t, local ? 50 : 900);
      v[t] = Arrays.copyOfRange(all, 2 * HIDDEN, 3 * HIDDEN);
    }
    for (int t = 0; t < x.length; t++) {
      double[] query = q[t];
      double[] seen = new double[HIDDEN];
      for (int at = 0; at < HIDDEN; at += WIDTH) {
        int head = at;
        SmallCheckpoint.attend(
            to -> SmallCheckpoint.dot(query, head, k[to], head, WIDTH) / Math.sqrt(WIDTH),
            v,
            local ? Math.max(0, t - NEAR) : 0,
            local ? Math.min(x.length, t + NEAR + 1) : x.length,
            head,
            head,
            WIDTH,
            seen);
      }
      x[t] = SmallCheckpoint.plus(x[t], w.linear(path + ".attn.Wo", seen));
      double[] both = w.linear(path + ".mlp.Wi", w.layerNorm(path + ".mlp_norm", x[t], epsilon));
      double[] made = new double[INNER];
      for (int i = 0; i < INNER; i++) {
        made[i] = SmallCheckpoint.gelu(both[i]) * both[INNER + i];
      }
      x[t] = SmallCheckpoint.plus(x[t], w.linear(path + ".mlp.Wo", made));
    }
  }

  private static double[] turned(double[] rows, int place, double theta) {
    int half = WIDTH / 2;
    double[] turned = new double[rows.length];
    for (int at = 0; at < rows.length; at += WIDTH) {
      for (int i = 0; i < half; i++) {
        double angle = place * Math.pow(theta, -2.0 * i / WIDTH);
        double a = rows[at + i];
        double b = rows[at + half + i];
        turned[at + i] = a * Math.cos(angle) - b * Math.sin(angle);
        turned[at + half + i] = b * Math.cos(angle) + a * Math.sin(angle);
      }
    }
    return turned;
  }
}

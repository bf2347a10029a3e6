package org.espalier.transformers;

/** A model of the kind of OLMo 2 in plain loops. */
final class SmallOlmo2 extends SmallDecoder {
  SmallOlmo2() {
    super("olmo2", "");
  }

  @Override
  void addLayer(SmallCheckpoint w, String path) {
    addProducts(w, path);
    addNorm(w, path + ".self_attn.q_norm", HEADS * WIDTH);
    addNorm(w, path + ".self_attn.k_norm", SHARED * WIDTH);
    addNorm(w, path + ".post_attention_layernorm", HIDDEN);
    addNorm(w, path + ".post_feedforward_layernorm", HIDDEN);
  }

  @Override
  void layer(SmallCheckpoint w, String path, double[][] x, int n, int longest) {
    double[][] seen = attention(w, path + ".self_attn", x, n, longest);
    add(x, each(seen, row -> norm(w, path + ".post_attention_layernorm", row)));
    double[][] made = each(x, row -> feedForward(w, path + ".mlp", row));
    add(x, each(made, row -> norm(w, path + ".post_feedforward_layernorm", row)));
  }

  @Override
  double[] queries(SmallCheckpoint w, String path, double[] x) {
    return norm(w, path + ".q_norm", super.queries(w, path, x));
  }

  @Override
  double[] keys(SmallCheckpoint w, String path, double[] x) {
    return norm(w, path + ".k_norm", super.keys(w, path, x));
  }
}

package org.espalier.transformers;

/** A model of the kind of Granite in plain loops. */
final class SmallGranite extends SmallDecoder {
  SmallGranite() {
    super(
        "granite",
        ", \"embedding_multiplier\": 1.5, \"attention_multiplier\": 0.2,"
            + " \"residual_multiplier\": 0.7, \"logits_scaling\": 4.0");
  }

  @Override
  double[] embedded(double[] row) {
    return SmallCheckpoint.each(row, v -> 1.5 * v);
  }

  @Override
  double scale() {
    return 0.2;
  }

  @Override
  void layer(SmallCheckpoint w, String path, double[][] x, int n, int longest) {
    double[][] normed = each(x, row -> norm(w, path + ".input_layernorm", row));
    add(x, less(attention(w, path + ".self_attn", normed, n, longest)));
    normed = each(x, row -> norm(w, path + ".post_attention_layernorm", row));
    add(x, less(each(normed, row -> feedForward(w, path + ".mlp", row))));
  }

  private static double[][] less(double[][] rows) {
    return each(rows, row -> SmallCheckpoint.each(row, v -> 0.7 * v));
  }

  @Override
  double[] finished(double[] logits) {
    return SmallCheckpoint.each(logits, v -> v / 4);
  }
}

package org.espalier.transformers;

/** A model of the kind of Gemma in plain loops. */
class SmallGemma extends SmallDecoder {
  SmallGemma(String type, String settings) {
    super(type, settings);
    tied = true;
  }

  /**
   * A model of gemma3_text whose second of three layers sees all.
   *
   * @param settings of that, or of bases 200 of others and 3000 of this one, whose angles are divided by 8
   */
  static SmallGemma gemma3(String settings) {
    return gemma3(settings, 3);
  }

  /** The same with another window. */
  static SmallGemma gemma3(String settings, int window) {
    String own = ", \"query_pre_attn_scalar\": 24, \"sliding_window\": " + window;
    SmallGemma model = new Sandwich("gemma3_text", own + settings, 0, 0);
    model.headNorms = true;
    model.windows = new int[] {window, 0, window};
    double[] local = powers(200, WIDTH);
    double[] far = SmallCheckpoint.each(powers(3000, WIDTH), f -> f / 8);
    model.frequencies = new double[][] {local, far, local};
    return model;
  }

  @Override
  final void addNorm(SmallCheckpoint w, String path, int width) {
    w.normAroundZero(path, width);
  }

  @Override
  final double[] norm(SmallCheckpoint w, String path, double[] x) {
    return w.rootMeanSquareNorm(path, x, EPSILON, 1);
  }

  @Override
  final double[] embedded(double[] row) {
    return SmallCheckpoint.each(row, v -> v * Math.sqrt(HIDDEN));
  }

  @Override
  final double activation(double x) {
    return SmallCheckpoint.geluNew(x);
  }

  /** Norms before and behind blocks, and scores of products over the root of 24. */
  static final class Sandwich extends SmallGemma {
    private final double scoreCap;
    private final double logitCap;

    /**
     * @param scoreCap 0 for none, as {@code logitCap}
     */
    Sandwich(String type, String settings, double scoreCap, double logitCap) {
      super(type, settings);
      this.scoreCap = scoreCap;
      this.logitCap = logitCap;
    }

    @Override
    void addLayer(SmallCheckpoint w, String path) {
      super.addLayer(w, path);
      addNorm(w, path + ".pre_feedforward_layernorm", HIDDEN);
      addNorm(w, path + ".post_feedforward_layernorm", HIDDEN);
    }

    @Override
    void layer(SmallCheckpoint w, String path, double[][] x, int n, int longest) {
      double[][] normed = each(x, row -> norm(w, path + ".input_layernorm", row));
      double[][] seen = attention(w, path + ".self_attn", normed, n, longest);
      add(x, each(seen, row -> norm(w, path + ".post_attention_layernorm", row)));
      normed = each(x, row -> norm(w, path + ".pre_feedforward_layernorm", row));
      double[][] made = each(normed, row -> feedForward(w, path + ".mlp", row));
      add(x, each(made, row -> norm(w, path + ".post_feedforward_layernorm", row)));
    }

    @Override
    double scale() {
      return 1 / Math.sqrt(24);
    }

    @Override
    double cap() {
      return scoreCap;
    }

    @Override
    double[] finished(double[] logits) {
      return logitCap == 0
          ? logits
          : SmallCheckpoint.each(logits, v -> logitCap * Math.tanh(v / logitCap));
    }
  }
}

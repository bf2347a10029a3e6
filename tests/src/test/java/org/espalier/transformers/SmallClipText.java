package org.espalier.transformers;

/** The text encoder of a model of the kind of CLIP in plain loops. */
final class SmallClipText extends SmallEncoder {
  static final Layer NAMES =
      new Layer(
          "encoder.layers.",
          ".self_attn.q_proj",
          ".self_attn.k_proj",
          ".self_attn.v_proj",
          ".self_attn.out_proj",
          ".layer_norm1",
          ".mlp.fc1",
          ".mlp.fc2",
          ".layer_norm2");

  private final int end;

  /**
   * @param end the token that ends a text, 2 for the largest; −1 for a model that does not project
   */
  SmallClipText(int end) {
    super("clip_text_model", "text_model.");
    this.end = end;
    architecture = end < 0 ? "CLIPTextModel" : "CLIPTextModelWithProjection";
    activation = SmallCheckpoint::quickGelu;
    names = NAMES;
    parts = 0;
    settings =
        ", \"eos_token_id\": %d, \"projection_dim\": %d"
            .formatted(Math.max(0, end), SmallClipImage.SHARED);
  }

  @Override
  void addEmbeddings(SmallCheckpoint w) {
    w.add(base + "embeddings.token_embedding.weight", 0, 1, WORDS, HIDDEN);
    w.add(base + "embeddings.position_embedding.weight", 0, 1, PLACES, HIDDEN);
    w.norm(base + "final_layer_norm", HIDDEN, true);
    if (end >= 0) {
      w.linear("text_projection", HIDDEN, SmallClipImage.SHARED, false);
    }
  }

  @Override
  int seen(int token, int tokens) {
    return token + 1;
  }

  @Override
  double[][] states(SmallCheckpoint w, int[] text) {
    double[][] x = new double[text.length][];
    for (int t = 0; t < text.length; t++) {
      double[] word = w.row(base + "embeddings.token_embedding.weight", text[t], HIDDEN);
      double[] place = w.row(base + "embeddings.position_embedding.weight", t, HIDDEN);
      x[t] = SmallCheckpoint.plus(word, place);
    }
    x = each(preNormLayers(w, x), row -> w.layerNorm(base + "final_layer_norm", row, epsilon));
    return end < 0 ? x : new double[][] {w.linear("text_projection", x[ended(text)])};
  }

  /** The place of the first token that ends a text; the first of all where none does. */
  private int ended(int[] text) {
    int found = 0;
    for (int t = text.length - 1; t >= 0; t--) {
      boolean ends = end == 2 ? text[t] >= text[found] : text[t] == end;
      found = ends ? t : found;
    }
    return found;
  }
}

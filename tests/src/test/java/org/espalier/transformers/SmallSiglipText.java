package org.espalier.transformers;

import java.util.Arrays;

/** The text encoder of a model of the kind of SigLIP in plain loops, which fills texts up with what is seen as any token. */
class SmallSiglipText extends SmallEncoder {
  private final int filling;

  /**
   * @param filling the token that fills texts up
   */
  SmallSiglipText(int filling) {
    super("siglip_text_model", "text_model.");
    this.filling = filling;
    architecture = "SiglipTextModel";
    activation = SmallCheckpoint::geluNew;
    names = SmallClipText.NAMES;
    parts = 0;
    masks = false;
    settings =
        ", \"pad_token_id\": %d, \"projection_size\": %d".formatted(filling, SmallClipImage.SHARED);
  }

  @Override
  void addEmbeddings(SmallCheckpoint w) {
    w.add(base + "embeddings.token_embedding.weight", 0, 1, WORDS, HIDDEN);
    w.add(base + "embeddings.position_embedding.weight", 0, 1, PLACES, HIDDEN);
    w.norm(base + "final_layer_norm", HIDDEN, true);
    w.linear(base + "head", HIDDEN, SmallClipImage.SHARED, true);
  }

  @Override
  double[][] states(SmallCheckpoint w, int[] text) {
    int[] filled = Arrays.copyOf(text, PLACES);
    Arrays.fill(filled, text.length, PLACES, filling);
    double[][] x = new double[PLACES][];
    for (int t = 0; t < PLACES; t++) {
      double[] word = w.row(base + "embeddings.token_embedding.weight", filled[t], HIDDEN);
      double[] place = w.row(base + "embeddings.position_embedding.weight", t, HIDDEN);
      x[t] = SmallCheckpoint.plus(word, place);
    }
    x = preNormLayers(w, x);
    double[] last = w.layerNorm(base + "final_layer_norm", x[PLACES - 1], epsilon);
    return new double[][] {w.linear(base + "head", last)};
  }
}

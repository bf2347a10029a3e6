package org.espalier.transformers;

import java.util.List;

/** The image encoder of a model of the kind of SigLIP in plain loops. */
final class SmallSiglipImage extends SmallVision {
  private final boolean pools;

  /**
   * @param classifies whether it has a head that does; else it pools
   * @param pools false for a model without the head that does
   */
  SmallSiglipImage(boolean classifies, boolean pools) {
    super("siglip_vision_model", "vision_model.", classifies);
    this.pools = pools;
    architecture = "SiglipVisionModel";
    activation = SmallCheckpoint::geluNew;
    names = SmallClipText.NAMES;
    settings += pools ? "" : ", \"vision_use_head\": false";
  }

  @Override
  String config() {
    return classifies
        ? """
          {"model_type": "siglip", "architectures": ["SiglipForImageClassification"],
           "id2label": {"0": "a", "1": "b", "2": "c"}, "vision_config": %s}
          """
            .formatted(super.config().replace("id2label", "none"))
        : super.config();
  }

  @Override
  void addEmbeddings(SmallCheckpoint w) {
    w.add(embeddings + "position_embedding.weight", 0, 1, ROW * ROW, HIDDEN);
    addFilters(w, embeddings + "patch_embedding", true);
    w.norm(base + "post_layernorm", HIDDEN, true);
    if (classifies) {
      addHead(w);
    } else if (pools) {
      String head = base + "head";
      w.add(head + ".probe", 0, 1, 1, 1, HIDDEN);
      w.add(head + ".attention.in_proj_weight", 0, 0.15, 3 * HIDDEN, HIDDEN);
      w.add(head + ".attention.in_proj_bias", 0, 0.2, 3 * HIDDEN);
      w.linear(head + ".attention.out_proj", HIDDEN, HIDDEN, true);
      w.norm(head + ".layernorm", HIDDEN, true);
      w.linear(head + ".mlp.fc1", HIDDEN, INNER, true);
      w.linear(head + ".mlp.fc2", INNER, HIDDEN, true);
    }
  }

  @Override
  double[][] output(SmallCheckpoint w, float[] pixels, int image) {
    List<double[]> squares = squares(w, pixels, image, embeddings + "patch_embedding");
    double[][] x = new double[squares.size()][];
    for (int t = 0; t < x.length; t++) {
      double[] place = w.row(embeddings + "position_embedding.weight", t, HIDDEN);
      x[t] = SmallCheckpoint.plus(squares.get(t), place);
    }
    x = each(preNormLayers(w, x), row -> w.layerNorm(base + "post_layernorm", row, epsilon));
    if (classifies) {
      return new double[][] {w.linear("classifier", SmallClipImage.mean(x))};
    }
    return pools ? new double[][] {pooled(w, x)} : x;
  }

  private double[] pooled(SmallCheckpoint w, double[][] x) {
    String head = base + "head";
    double[] query = third(w, w.row(head + ".probe", 0, HIDDEN), 0);
    double[][] keys = each(x, row -> third(w, row, 1));
    double[][] values = each(x, row -> third(w, row, 2));
    double[] seen = new double[HIDDEN];
    for (int h = 0; h < HEADS; h++) {
      int at = h * WIDTH;
      SmallCheckpoint.attend(
          t -> SmallCheckpoint.dot(query, at, keys[t], at, WIDTH) / Math.sqrt(WIDTH),
          values,
          0,
          x.length,
          at,
          at,
          WIDTH,
          seen);
    }
    double[] out = w.linear(head + ".attention.out_proj", seen);
    double[] normed = w.layerNorm(head + ".layernorm", out, epsilon);
    double[] inner = SmallCheckpoint.each(w.linear(head + ".mlp.fc1", normed), activation);
    return SmallCheckpoint.plus(out, w.linear(head + ".mlp.fc2", inner));
  }

  /** Queries, keys or values, whose weights stand in one matrix. */
  private static double[] third(SmallCheckpoint w, double[] x, int which) {
    float[] weights = w.get("vision_model.head.attention.in_proj_weight");
    float[] biases = w.get("vision_model.head.attention.in_proj_bias");
    double[] y = new double[HIDDEN];
    for (int o = 0; o < HIDDEN; o++) {
      int row = which * HIDDEN + o;
      y[o] = biases[row];
      for (int i = 0; i < HIDDEN; i++) {
        y[o] += (double) weights[row * HIDDEN + i] * x[i];
      }
    }
    return y;
  }
}

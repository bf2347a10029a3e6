package org.espalier.transformers;

import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;

/** The image encoder of a model of the kind of CLIP in plain loops. */
final class SmallClipImage extends SmallVision {
  static final int SHARED = 20;

  private final String end;

  /**
   * @param end of the class: Model, ModelWithProjection or ForImageClassification
   */
  SmallClipImage(String end) {
    super("clip_vision_model", "vision_model.", end.startsWith("For"));
    this.end = end;
    architecture = "CLIPVision" + end;
    activation = SmallCheckpoint::quickGelu;
    names = SmallClipText.NAMES;
    settings += ", \"projection_dim\": " + SHARED;
  }

  /** Models that classify are of the whole, and say so of the part that they have. */
  @Override
  String config() {
    return classifies
        ? """
          {"model_type": "clip", "architectures": ["CLIPForImageClassification"],
           "id2label": {"0": "a", "1": "b", "2": "c"}, "vision_config": %s}
          """
            .formatted(super.config().replace("id2label", "none"))
        : super.config();
  }

  private boolean projects() {
    return end.endsWith("WithProjection");
  }

  @Override
  void addEmbeddings(SmallCheckpoint w) {
    w.add(embeddings + "class_embedding", 0, 1, HIDDEN);
    w.add(embeddings + "position_embedding.weight", 0, 1, 1 + ROW * ROW, HIDDEN);
    addFilters(w, embeddings + "patch_embedding", false);
    w.norm(base + "pre_layrnorm", HIDDEN, true);
    if (projects()) {
      w.norm(base + "post_layernorm", HIDDEN, true);
      w.linear("visual_projection", HIDDEN, SHARED, false);
    } else if (classifies) {
      addHead(w);
    }
  }

  @Override
  double[][] output(SmallCheckpoint w, float[] pixels, int image) {
    List<double[]> tokens = new ArrayList<>();
    tokens.add(w.row(embeddings + "class_embedding", 0, HIDDEN));
    tokens.addAll(squares(w, pixels, image, embeddings + "patch_embedding"));
    double[][] x = new double[tokens.size()][];
    for (int t = 0; t < x.length; t++) {
      double[] place = w.row(embeddings + "position_embedding.weight", t, HIDDEN);
      double[] sum = SmallCheckpoint.plus(tokens.get(t), place);
      x[t] = w.layerNorm(base + "pre_layrnorm", sum, epsilon);
    }
    x = preNormLayers(w, x);
    if (projects()) {
      double[] pooled = w.layerNorm(base + "post_layernorm", x[0], epsilon);
      return new double[][] {w.linear("visual_projection", pooled)};
    }
    return classifies
        ? new double[][] {w.linear("classifier", mean(Arrays.copyOfRange(x, 1, x.length)))}
        : x;
  }

  static double[] mean(double[][] x) {
    double[] mean = new double[x[0].length];
    for (double[] row : x) {
      mean = SmallCheckpoint.plus(mean, SmallCheckpoint.each(row, v -> v / x.length));
    }
    return mean;
  }
}

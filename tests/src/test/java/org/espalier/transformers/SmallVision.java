package org.espalier.transformers;

import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import java.util.Random;
import java.util.Set;
import org.bytedeco.pytorch.Tensor;
import org.bytedeco.pytorch.global.torch;

/** A model of the kind of ViT in plain loops, of images of six squares to a side of four pixels. */
final class SmallVision extends SmallEncoder {
  private static final int CHANNELS = 3;
  private static final int PATCH = 4;
  private static final int ROW = 6;
  private static final int SIDE = ROW * PATCH + 1; // the last pixels are in no square
  private static final int TOKENS = ROW * ROW + 1;
  private static final int IMAGES = 2;

  private final boolean classifies;
  private final String embeddings;

  SmallVision(String base, boolean classifies) {
    super("vit", base);
    this.classifies = classifies;
    embeddings = base + "embeddings.";
    architecture = classifies ? "ViTForImageClassification" : "ViTModel";
    names =
        new Layer(
            "encoder.layer.",
            ".attention.attention.query",
            ".attention.attention.key",
            ".attention.attention.value",
            ".attention.output.dense",
            ".layernorm_before",
            ".intermediate.dense",
            ".output.dense",
            ".layernorm_after");
    settings = ", \"image_size\": %d, \"patch_size\": %d".formatted(SIDE, PATCH);
  }

  @Override
  void addEmbeddings(SmallCheckpoint w) {
    w.add(embeddings + "cls_token", 0, 1, 1, 1, HIDDEN);
    w.add(embeddings + "position_embeddings", 0, 1, 1, TOKENS, HIDDEN);
    String projection = embeddings + "patch_embeddings.projection";
    w.add(projection + ".weight", 0, 0.2, HIDDEN, CHANNELS, PATCH, PATCH);
    w.add(projection + ".bias", 0, 0.2, HIDDEN);
    w.norm(base + "layernorm", HIDDEN, true);
    if (classifies) {
      w.linear("classifier", HIDDEN, LABELS, true);
    }
  }

  @Override
  void compare(Path folder) throws Exception {
    SmallCheckpoint w = weights();
    Random random = new Random(8);
    float[] pixels = new float[IMAGES * CHANNELS * SIDE * SIDE];
    for (int i = 0; i < pixels.length; i++) {
      pixels[i] = (float) random.nextGaussian();
    }
    List<double[][]> expected = new ArrayList<>();
    for (int image = 0; image < IMAGES; image++) {
      double[][] x = states(w, tokens(w, pixels, image));
      expected.add(classifies ? new double[][] {w.linear("classifier", x[0])} : x);
    }
    Tensor input = torch.tensor(pixels).reshape(IMAGES, CHANNELS, SIDE, SIDE);
    compare(folder, w, config(), Map.of("pixel_values", input), expected, Set.of());
  }

  private double[][] tokens(SmallCheckpoint w, float[] pixels, int image) {
    double[][] x = new double[TOKENS][];
    x[0] = w.row(embeddings + "cls_token", 0, HIDDEN);
    for (int t = 1; t < TOKENS; t++) {
      x[t] = square(w, pixels, image, (t - 1) / ROW * PATCH, (t - 1) % ROW * PATCH);
    }
    for (int t = 0; t < TOKENS; t++) {
      x[t] = SmallCheckpoint.plus(x[t], w.row(embeddings + "position_embeddings", t, HIDDEN));
    }
    return x;
  }

  private double[] square(SmallCheckpoint w, float[] pixels, int image, int top, int left) {
    float[] filters = w.get(embeddings + "patch_embeddings.projection.weight");
    double[] sums = new double[HIDDEN];
    for (int o = 0; o < HIDDEN; o++) {
      sums[o] = w.get(embeddings + "patch_embeddings.projection.bias")[o];
      for (int c = 0; c < CHANNELS; c++) {
        for (int i = 0; i < PATCH; i++) {
          for (int j = 0; j < PATCH; j++) {
            int at = ((image * CHANNELS + c) * SIDE + top + i) * SIDE + left + j;
            sums[o] += pixels[at] * filters[((o * CHANNELS + c) * PATCH + i) * PATCH + j];
          }
        }
      }
    }
    return sums;
  }

  private double[][] states(SmallCheckpoint w, double[][] x) {
    for (int n = 0; n < LAYERS; n++) {
      String path = base + names.layers() + n;
      double[][] normed = each(x, row -> w.layerNorm(path + names.norm(), row, epsilon));
      double[][] seen = attention(w, path, normed);
      for (int t = 0; t < x.length; t++) {
        x[t] = SmallCheckpoint.plus(x[t], w.linear(path + names.out(), seen[t]));
        double[] inner =
            w.linear(path + names.in(), w.layerNorm(path + names.end(), x[t], epsilon));
        double[] down =
            w.linear(path + names.down(), SmallCheckpoint.each(inner, SmallCheckpoint::gelu));
        x[t] = SmallCheckpoint.plus(x[t], down);
      }
    }
    return each(x, row -> w.layerNorm(base + "layernorm", row, epsilon));
  }
}

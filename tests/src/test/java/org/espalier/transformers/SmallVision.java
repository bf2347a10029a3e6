package org.espalier.transformers;

import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import java.util.Random;
import org.bytedeco.pytorch.Tensor;
import org.bytedeco.pytorch.global.torch;

/** A model of the kind of ViT in plain loops, of images of six squares to a side of four pixels; classes that differ from it say how. */
class SmallVision extends SmallEncoder {
  static final int CHANNELS = 3;
  static final int PATCH = 4;
  static final int ROW = 6;
  static final int SIDE = ROW * PATCH + 1; // the last pixels are in no square
  private static final int IMAGES = 2;

  final boolean classifies;
  final String embeddings;

  /** The learned tokens before squares that have positions. */
  List<String> learned = List.of("cls_token");

  /** The size of images. */
  int height = SIDE;

  int width = SIDE;

  SmallVision(String base, boolean classifies) {
    this("vit", base, classifies);
    architecture = classifies ? "ViTForImageClassification" : "ViTModel";
  }

  SmallVision(String type, String base, boolean classifies) {
    super(type, base);
    this.classifies = classifies;
    embeddings = base + "embeddings.";
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
    for (String token : learned) {
      w.add(embeddings + token, 0, 1, 1, 1, HIDDEN);
    }
    int tokens = learned.size() + ROW * ROW;
    w.add(embeddings + "position_embeddings", 0, 1, 1, tokens, HIDDEN);
    addFilters(w, embeddings + "patch_embeddings.projection", true);
    w.norm(base + "layernorm", HIDDEN, true);
    if (classifies) {
      addHead(w);
    }
  }

  static void addFilters(SmallCheckpoint w, String path, boolean bias) {
    w.add(path + ".weight", 0, 0.2, HIDDEN, CHANNELS, PATCH, PATCH);
    if (bias) {
      w.add(path + ".bias", 0, 0.2, HIDDEN);
    }
  }

  void addHead(SmallCheckpoint w) {
    w.linear("classifier", HIDDEN, LABELS, true);
  }

  /** What the head makes of states. */
  double[] logits(SmallCheckpoint w, double[][] x) {
    return w.linear("classifier", x[0]);
  }

  @Override
  void compare(Path folder) throws Exception {
    SmallCheckpoint w = weights();
    Random random = new Random(8);
    float[] pixels = new float[IMAGES * CHANNELS * height * width];
    for (int i = 0; i < pixels.length; i++) {
      pixels[i] = (float) random.nextGaussian();
    }
    List<double[][]> expected = new ArrayList<>();
    for (int image = 0; image < IMAGES; image++) {
      expected.add(output(w, pixels, image));
    }
    Tensor input = torch.tensor(pixels).reshape(IMAGES, CHANNELS, height, width);
    compare(folder, w, config(), Map.of("pixel_values", input), expected, unused);
  }

  double[][] output(SmallCheckpoint w, float[] pixels, int image) {
    double[][] x = preNormLayers(w, tokens(w, pixels, image));
    x = each(x, row -> w.layerNorm(base + "layernorm", row, epsilon));
    return classifies ? new double[][] {logits(w, x)} : x;
  }

  private double[][] tokens(SmallCheckpoint w, float[] pixels, int image) {
    List<double[]> x = new ArrayList<>();
    for (String token : learned) {
      x.add(w.row(embeddings + token, 0, HIDDEN));
    }
    x.addAll(squares(w, pixels, image, embeddings + "patch_embeddings.projection"));
    double[][] places = places(w, x.size());
    for (int t = 0; t < places.length; t++) {
      x.set(t, SmallCheckpoint.plus(x.get(t), places[t]));
    }
    addRegisters(w, x);
    return x.toArray(double[][]::new);
  }

  /** The positions of tokens. */
  double[][] places(SmallCheckpoint w, int tokens) {
    double[][] places = new double[tokens][];
    for (int t = 0; t < tokens; t++) {
      places[t] = w.row(embeddings + "position_embeddings", t, HIDDEN);
    }
    return places;
  }

  /** Puts tokens that have no positions among others. */
  void addRegisters(SmallCheckpoint w, List<double[]> x) {}

  /** The squares of an image, as many as fit. */
  final List<double[]> squares(SmallCheckpoint w, float[] pixels, int image, String path) {
    List<double[]> squares = new ArrayList<>();
    for (int top = 0; top + PATCH <= height; top += PATCH) {
      for (int left = 0; left + PATCH <= width; left += PATCH) {
        squares.add(square(w, pixels, image, top, left, path));
      }
    }
    return squares;
  }

  private double[] square(
      SmallCheckpoint w, float[] pixels, int image, int top, int left, String path) {
    float[] filters = w.get(path + ".weight");
    double[] sums = new double[HIDDEN];
    for (int o = 0; o < HIDDEN; o++) {
      sums[o] = w.has(path + ".bias") ? w.get(path + ".bias")[o] : 0;
      for (int c = 0; c < CHANNELS; c++) {
        for (int i = 0; i < PATCH; i++) {
          for (int j = 0; j < PATCH; j++) {
            int at = ((image * CHANNELS + c) * height + top + i) * width + left + j;
            sums[o] += pixels[at] * filters[((o * CHANNELS + c) * PATCH + i) * PATCH + j];
          }
        }
      }
    }
    return sums;
  }
}

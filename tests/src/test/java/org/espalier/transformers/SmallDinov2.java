package org.espalier.transformers;

import java.io.IOException;
import java.nio.FloatBuffer;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import java.util.Set;
import org.bytedeco.javacpp.FloatPointer;
import org.bytedeco.pytorch.InterpolateFuncOptions;
import org.bytedeco.pytorch.LongVector;
import org.bytedeco.pytorch.Tensor;
import org.bytedeco.pytorch.global.torch;
import org.bytedeco.pytorch.kBicubic;

/** A model of the kind of DINOv2 in plain loops, whose positions libtorch resamples. */
final class SmallDinov2 extends SmallVision {
  private static final int GATED = 40; // two thirds of 1.25 · 48, up to a multiple of 8

  private final int registers;
  private final boolean gated;

  /**
   * @param registers how many there are; 0 for a model that knows none
   * @param gated whether feed-forward blocks are
   */
  SmallDinov2(int registers, boolean gated, boolean classifies) {
    super(
        registers > 0 ? "dinov2_with_registers" : "dinov2",
        !classifies ? "" : registers > 0 ? "dinov2_with_registers." : "dinov2.",
        classifies);
    this.registers = registers;
    this.gated = gated;
    architecture = classifies ? "Dinov2ForImageClassification" : "Dinov2Model";
    names =
        new Layer(
            "encoder.layer.",
            ".attention.attention.query",
            ".attention.attention.key",
            ".attention.attention.value",
            ".attention.output.dense",
            ".norm1",
            ".mlp.fc1",
            ".mlp.fc2",
            ".norm2");
    settings +=
        ", \"mlp_ratio\": 1.25, \"use_swiglu_ffn\": %s, \"num_register_tokens\": %d"
            .formatted(gated, registers);
    unused = Set.of(embeddings + "mask_token");
  }

  /** Has images made in another size. */
  SmallDinov2 of(Path folder, int height, int width) throws IOException {
    this.height = height;
    this.width = width;
    Files.writeString(
        folder.resolve("preprocessor_config.json"),
        "{\"size\": {\"shortest_edge\": 50}, \"crop_size\": {\"height\": %d, \"width\": %d}}"
            .formatted(height, width));
    return this;
  }

  @Override
  void addEmbeddings(SmallCheckpoint w) {
    super.addEmbeddings(w);
    w.add(embeddings + "mask_token", 0, 1, 1, HIDDEN);
    if (registers > 0) {
      w.add(embeddings + "register_tokens", 0, 1, 1, registers, HIDDEN);
    }
  }

  @Override
  void addLayer(SmallCheckpoint w, String path) {
    super.addLayer(w, path);
    for (String name : List.of(".mlp.fc1.weight", ".mlp.fc1.bias", ".mlp.fc2.weight")) {
      w.remove(path + name);
    }
    if (gated) {
      w.remove(path + ".mlp.fc2.bias");
      w.linear(path + ".mlp.weights_in", HIDDEN, 2 * GATED, true);
      w.linear(path + ".mlp.weights_out", GATED, HIDDEN, true);
    } else {
      w.linear(path + ".mlp.fc1", HIDDEN, 60, true);
      w.linear(path + ".mlp.fc2", 60, HIDDEN, true);
    }
    w.add(path + ".layer_scale1.lambda1", 0.5, 0.2, HIDDEN);
    w.add(path + ".layer_scale2.lambda1", 0.5, 0.2, HIDDEN);
  }

  @Override
  double[] scaled(SmallCheckpoint w, String path, double[] out) {
    double[] scaled = new double[out.length];
    for (int i = 0; i < out.length; i++) {
      scaled[i] = out[i] * w.get(path + ".lambda1")[i];
    }
    return scaled;
  }

  @Override
  double[] fed(SmallCheckpoint w, String path, double[] x) {
    if (!gated) {
      return super.fed(w, path, x);
    }
    double[] both = w.linear(path + ".mlp.weights_in", x);
    double[] inner = new double[GATED];
    for (int i = 0; i < GATED; i++) {
      inner[i] = SmallCheckpoint.silu(both[i]) * both[GATED + i];
    }
    return w.linear(path + ".mlp.weights_out", inner);
  }

  @Override
  void addHead(SmallCheckpoint w) {
    w.linear("classifier", 2 * HIDDEN, LABELS, true);
  }

  @Override
  double[] logits(SmallCheckpoint w, double[][] x) {
    double[] both = new double[2 * HIDDEN];
    int squares = x.length - 1 - registers;
    for (int i = 0; i < HIDDEN; i++) {
      both[i] = x[0][i];
      for (int t = 1 + registers; t < x.length; t++) {
        both[HIDDEN + i] += x[t][i] / squares;
      }
    }
    return w.linear("classifier", both);
  }

  @Override
  void addRegisters(SmallCheckpoint w, List<double[]> x) {
    for (int r = 0; r < registers; r++) {
      x.add(1 + r, w.row(embeddings + "register_tokens", r, HIDDEN));
    }
  }

  @Override
  double[][] places(SmallCheckpoint w, int tokens) {
    if (height == SIDE && width == SIDE) {
      return super.places(w, tokens);
    }
    float[] table = w.get(embeddings + "position_embeddings");
    long[] whole = {1, 1 + ROW * ROW, HIDDEN};
    Tensor squares =
        torch
            .tensor(table)
            .reshape(whole)
            .narrow(1, 1, ROW * ROW)
            .reshape(1, ROW, ROW, HIDDEN)
            .permute(0, 3, 1, 2);
    Tensor made = interpolated(squares).permute(0, 2, 3, 1).contiguous();
    FloatBuffer values = new FloatPointer(made.data_ptr()).capacity(made.numel()).asBuffer();
    List<double[]> places = new ArrayList<>();
    places.add(w.row(embeddings + "position_embeddings", 0, HIDDEN));
    for (int t = 1; t < tokens; t++) {
      double[] place = new double[HIDDEN];
      for (int i = 0; i < HIDDEN; i++) {
        place[i] = values.get();
      }
      places.add(place);
    }
    return places.toArray(double[][]::new);
  }

  /** As {@code torch.nn.functional.interpolate}; of models with registers with {@code antialias}. */
  private Tensor interpolated(Tensor squares) {
    InterpolateFuncOptions options = new InterpolateFuncOptions();
    options.size().put(new LongVector(height / PATCH, width / PATCH));
    options.mode().put(new kBicubic());
    options.align_corners().put(false);
    options.antialias().put(registers > 0);
    return torch.interpolate(squares, options);
  }
}

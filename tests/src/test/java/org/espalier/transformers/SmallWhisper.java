package org.espalier.transformers;

import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.Random;
import org.bytedeco.pytorch.Tensor;
import org.bytedeco.pytorch.global.torch;

/** A model of the kind of Whisper in plain loops. */
final class SmallWhisper extends SmallBart {
  private static final int MELS = 5;
  private static final int STATES = 7;
  private static final int FRAMES = 2 * STATES;

  SmallWhisper() {
    super("whisper");
    stored = "decoder.embed_tokens";
    hasBias = false;
    added = "model.encoder.embed_positions.weight";
    settings =
        ", \"num_mel_bins\": %d, \"max_source_positions\": %d, \"max_target_positions\": %d"
            .formatted(MELS, STATES, PLACES);
  }

  @Override
  boolean keysHaveBias() {
    return false;
  }

  @Override
  void addPlaces(SmallCheckpoint w, String part) {
    boolean hears = part.endsWith("encoder");
    w.add(part + ".embed_positions.weight", 0, 0.5, hears ? STATES : PLACES, HIDDEN);
    if (hears) {
      w.add(part + ".conv1.weight", 0, 0.3, HIDDEN, MELS, 3);
      w.add(part + ".conv1.bias", 0, 0.2, HIDDEN);
      w.add(part + ".conv2.weight", 0, 0.1, HIDDEN, HIDDEN, 3);
      w.add(part + ".conv2.bias", 0, 0.2, HIDDEN);
    }
  }

  @Override
  double[] placed(SmallCheckpoint w, String part, double[] row, int place) {
    return SmallCheckpoint.plus(row, w.row(part + ".embed_positions.weight", place, HIDDEN));
  }

  /** By frame and mel. */
  private static float[][] features(int which) {
    Random random = new Random(which);
    float[][] features = new float[FRAMES][MELS];
    for (float[] frame : features) {
      for (int i = 0; i < MELS; i++) {
        frame[i] = (float) random.nextGaussian();
      }
    }
    return features;
  }

  @Override
  Map<String, Tensor> inputs() {
    float[] all = new float[TEXTS.length * MELS * FRAMES];
    for (int at = 0; at < all.length; at++) {
      int frame = at % FRAMES;
      int mel = at / FRAMES % MELS;
      all[at] = features(at / FRAMES / MELS)[frame][mel];
    }
    Map<String, Tensor> inputs = new HashMap<>();
    inputs.put("input_features", torch.tensor(all).reshape(TEXTS.length, MELS, FRAMES));
    return inputs;
  }

  @Override
  double[][] heard(SmallCheckpoint w, int which) {
    double[][] x = new double[FRAMES][MELS];
    for (int t = 0; t < FRAMES; t++) {
      for (int i = 0; i < MELS; i++) {
        x[t][i] = features(which)[t][i];
      }
    }
    x = convolved(w, "model.encoder.conv1", x, 1);
    x = convolved(w, "model.encoder.conv2", x, 2);
    for (int t = 0; t < STATES; t++) {
      x[t] = placed(w, "model.encoder", x[t], t);
    }
    return x;
  }

  private static double[][] convolved(SmallCheckpoint w, String path, double[][] x, int step) {
    float[] filters = w.get(path + ".weight");
    int in = x[0].length;
    double[][] made = new double[x.length / step][HIDDEN];
    for (int t = 0; t < made.length; t++) {
      for (int o = 0; o < HIDDEN; o++) {
        double sum = w.get(path + ".bias")[o];
        for (int tap : List.of(0, 1, 2)) {
          int from = t * step + tap - 1;
          for (int i = 0; from >= 0 && from < x.length && i < in; i++) {
            sum += filters[(o * in + i) * 3 + tap] * x[from][i];
          }
        }
        made[t][o] = SmallCheckpoint.gelu(sum);
      }
    }
    return made;
  }
}

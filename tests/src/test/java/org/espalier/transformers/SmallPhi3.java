package org.espalier.transformers;

import java.util.Arrays;

/** A model of the kind of Phi-3 in plain loops. */
class SmallPhi3 extends SmallDecoder {
  private static final int QUERIES = HEADS * WIDTH;
  private static final int KEYS = SHARED * WIDTH;

  SmallPhi3(String settings) {
    super("phi3", settings);
  }

  @Override
  void addProducts(SmallCheckpoint w, String path) {
    w.linear(path + ".self_attn.qkv_proj", HIDDEN, QUERIES + 2 * KEYS, false);
    w.linear(path + ".self_attn.o_proj", QUERIES, HIDDEN, false);
    w.linear(path + ".mlp.gate_up_proj", HIDDEN, 2 * INNER, false);
    w.linear(path + ".mlp.down_proj", INNER, HIDDEN, false);
  }

  private static double[] part(SmallCheckpoint w, String path, double[] x, int from, int size) {
    return Arrays.copyOfRange(w.linear(path + ".qkv_proj", x), from, from + size);
  }

  @Override
  double[] queries(SmallCheckpoint w, String path, double[] x) {
    return part(w, path, x, 0, QUERIES);
  }

  @Override
  double[] keys(SmallCheckpoint w, String path, double[] x) {
    return part(w, path, x, QUERIES, KEYS);
  }

  @Override
  double[] values(SmallCheckpoint w, String path, double[] x) {
    return part(w, path, x, QUERIES + KEYS, KEYS);
  }

  @Override
  double[] feedForward(SmallCheckpoint w, String path, double[] x) {
    double[] both = w.linear(path + ".gate_up_proj", x);
    double[] up = Arrays.copyOfRange(both, INNER, 2 * INNER);
    return w.linear(path + ".down_proj", gated(Arrays.copyOf(both, INNER), up));
  }

  /** Pre-trained on texts of up to ten tokens; half of a head is turned. */
  static final class OfLongContexts extends SmallPhi3 {
    private static final double[] SHORT = {1, 1.1, 1.2, 1.5, 2, 2.5, 3, 4};
    private static final double[] LONG = {1.5, 2, 3, 5, 8, 9, 12, 20};

    OfLongContexts() {
      super(
          ", \"partial_rotary_factor\": 0.5, \"original_max_position_embeddings\": 10,"
              + " \"rope_scaling\": {\"type\": \"longrope\", \"short_factor\": "
              + Arrays.toString(SHORT)
              + ", \"long_factor\": "
              + Arrays.toString(LONG)
              + "}");
      turnedBy(powers(10000, WIDTH / 2));
    }

    @Override
    double[] angles(int n, int longest) {
      double[] angles = frequencies[n].clone();
      for (int i = 0; i < angles.length; i++) {
        angles[i] /= (longest > 10 ? LONG : SHORT)[i];
      }
      return angles;
    }

    /** By the ratio of 64 positions to those of pre-training. */
    @Override
    double stretch() {
      return Math.sqrt(1 + Math.log(6.4) / Math.log(10));
    }
  }
}

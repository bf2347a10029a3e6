package org.espalier.transformers;

import java.util.Arrays;
import org.espalier.format.safetensors.SafetensorsDtype;

/** A model of the kind of GPT-2 in plain loops. */
final class SmallGpt2 extends ReferenceDecoder {
  private static final int HIDDEN = 32;
  private static final int HEADS = 4;
  private static final int WIDTH = 8;
  private static final int PLACES = 24;
  private static final double EPSILON = 1e-5;

  private final String base;
  private final String settings;
  private final boolean other;
  private final int inner;

  /**
   * @param settings empty, or those of 24 inner channels, a head of its own and scores divided by the number of the layer
   */
  SmallGpt2(String base, String settings) {
    super(HIDDEN, HEADS, HEADS, WIDTH);
    this.base = base;
    this.settings = settings;
    other = !settings.isEmpty();
    inner = other ? 24 : 4 * HIDDEN;
  }

  @Override
  String config() {
    return """
{"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], "n_embd": %d, "n_head": %d,
 "n_layer": %d, "n_positions": %d, "vocab_size": %d, "activation_function": "gelu_new"%s%s}
"""
        .formatted(
            HIDDEN,
            HEADS,
            LAYERS,
            PLACES,
            WORDS,
            settings,
            other ? ", \"tie_word_embeddings\": false" : "");
  }

  @Override
  SmallCheckpoint weights() {
    SmallCheckpoint w = new SmallCheckpoint(3, SafetensorsDtype.F32);
    w.add(base + "wte.weight", 0, 1, WORDS, HIDDEN);
    w.add(base + "wpe.weight", 0, 1, PLACES, HIDDEN);
    for (int n = 0; n < LAYERS; n++) {
      String path = base + "h." + n;
      w.norm(path + ".ln_1", HIDDEN, true);
      w.turnedLinear(path + ".attn.c_attn", HIDDEN, 3 * HIDDEN);
      w.turnedLinear(path + ".attn.c_proj", HIDDEN, HIDDEN);
      w.norm(path + ".ln_2", HIDDEN, true);
      w.turnedLinear(path + ".mlp.c_fc", HIDDEN, inner);
      w.turnedLinear(path + ".mlp.c_proj", inner, HIDDEN);
    }
    w.norm(base + "ln_f", HIDDEN, true);
    if (other) {
      w.linear("lm_head", HIDDEN, WORDS, false);
    }
    return w;
  }

  @Override
  double[][] states(SmallCheckpoint w, int[] text, int longest) {
    int tokens = text.length;
    double[][] x = new double[tokens][];
    for (int t = 0; t < tokens; t++) {
      x[t] =
          SmallCheckpoint.plus(
              w.row(base + "wte.weight", text[t], HIDDEN), w.row(base + "wpe.weight", t, HIDDEN));
    }
    for (int n = 0; n < LAYERS; n++) {
      String path = base + "h." + n;
      double[][] q = new double[tokens][];
      double[][] k = new double[tokens][];
      double[][] v = new double[tokens][];
      for (int t = 0; t < tokens; t++) {
        double[] all =
            w.turnedLinear(path + ".attn.c_attn", w.layerNorm(path + ".ln_1", x[t], EPSILON));
        q[t] = Arrays.copyOfRange(all, 0, HIDDEN);
        k[t] = Arrays.copyOfRange(all, HIDDEN, 2 * HIDDEN);
        v[t] = Arrays.copyOfRange(all, 2 * HIDDEN, 3 * HIDDEN);
      }
      double scale = 1 / Math.sqrt(WIDTH) / (other ? n + 1 : 1);
      for (int t = 0; t < tokens; t++) {
        double[] seen = seen(q[t], k, v, t, 0, scale, 0);
        x[t] = SmallCheckpoint.plus(x[t], w.turnedLinear(path + ".attn.c_proj", seen));
        double[] normed = w.layerNorm(path + ".ln_2", x[t], EPSILON);
        double[] wide =
            SmallCheckpoint.each(
                w.turnedLinear(path + ".mlp.c_fc", normed), SmallCheckpoint::geluNew);
        x[t] = SmallCheckpoint.plus(x[t], w.turnedLinear(path + ".mlp.c_proj", wide));
      }
    }
    return SmallDecoder.each(x, row -> w.layerNorm(base + "ln_f", row, EPSILON));
  }

  @Override
  double[] logits(SmallCheckpoint w, double[] state) {
    return byWords(w.get(other ? "lm_head.weight" : base + "wte.weight"), state);
  }
}

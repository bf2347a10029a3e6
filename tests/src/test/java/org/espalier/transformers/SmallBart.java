package org.espalier.transformers;

import java.util.List;
import java.util.Set;
import java.util.function.DoubleUnaryOperator;

/** Models of the kinds of BART, mBART and Marian in plain loops. */
class SmallBart extends ReferencePair {
  private static final int HEADS = 3;
  private static final int ANSWERING_HEADS = 4;
  private static final int INNER = 64;
  private static final int ANSWERING_INNER = 72;
  static final int PLACES = 40;
  private static final double EPSILON = 1e-5;

  private final String type;
  private final boolean marian;
  private final boolean normsFirst;

  /** What is before the names of tensors. */
  String base = "model.";

  /** By which name the table of words is stored. */
  String stored = "shared";

  /** Another table for answers, and how many words it has; 0 for none. */
  int ownWords;

  /** Whether waves are stored, as other numbers than those that follow. */
  boolean storesWaves;

  boolean tied = true;
  boolean scales;
  boolean hasBias = true;
  String activation = "gelu";
  DoubleUnaryOperator bend = SmallCheckpoint::gelu;
  String settings = "";

  /**
   * @param type bart, mbart, marian or whisper
   */
  SmallBart(String type) {
    this.type = type;
    marian = type.equals("marian");
    normsFirst = type.equals("mbart") || type.equals("whisper");
    if (marian) {
      computed =
          Set.of("model.encoder.embed_positions.weight", "model.decoder.embed_positions.weight");
    }
  }

  @Override
  String config() {
    return """
           {"model_type": "%s", "architectures": ["ConditionalModel"], "d_model": %d,
            "encoder_layers": %d, "decoder_layers": %d, "encoder_attention_heads": %d,
            "decoder_attention_heads": %d, "encoder_ffn_dim": %d, "decoder_ffn_dim": %d,
            "vocab_size": %d, "max_position_embeddings": %d, "activation_function": "%s",
            "scale_embedding": %s, "tie_word_embeddings": %s%s%s}
           """
        .formatted(
            type,
            HIDDEN,
            LAYERS,
            ANSWERING_LAYERS,
            HEADS,
            ANSWERING_HEADS,
            INNER,
            ANSWERING_INNER,
            WORDS,
            PLACES,
            activation,
            scales,
            tied,
            ownWords > 0
                ? ", \"share_encoder_decoder_embeddings\": false, \"decoder_vocab_size\": "
                    + ownWords
                : "",
            settings);
  }

  @Override
  int heads() {
    return ANSWERING_HEADS;
  }

  @Override
  int width() {
    return HIDDEN / ANSWERING_HEADS;
  }

  private String table(boolean answers) {
    return base
        + (ownWords == 0 ? stored : (answers ? "decoder" : "encoder") + ".embed_tokens")
        + ".weight";
  }

  private int words() {
    return ownWords > 0 ? ownWords : WORDS;
  }

  @Override
  SmallCheckpoint weights() {
    SmallCheckpoint w = new SmallCheckpoint(type.hashCode(), dtype);
    w.add(table(false), 0, 0.5, WORDS, HIDDEN);
    if (ownWords > 0) {
      w.add(table(true), 0, 0.5, ownWords, HIDDEN);
    }
    for (String part : List.of("encoder", "decoder")) {
      boolean answers = part.equals("decoder");
      if (!marian) {
        addPlaces(w, base + part);
      } else if (storesWaves) {
        w.add(base + part + ".embed_positions.weight", 0, 0.5, PLACES, HIDDEN);
      }
      int inner = answers ? ANSWERING_INNER : INNER;
      for (int n = 0; n < (answers ? ANSWERING_LAYERS : LAYERS); n++) {
        String path = base + part + ".layers." + n;
        addAttention(w, path + ".self_attn");
        if (answers) {
          addAttention(w, path + ".encoder_attn");
        }
        w.linear(path + ".fc1", HIDDEN, inner, true);
        w.linear(path + ".fc2", inner, HIDDEN, true);
        w.norm(path + ".final_layer_norm", HIDDEN, true);
      }
      if (normsFirst) {
        w.norm(base + part + ".layer_norm", HIDDEN, true);
      }
    }
    if (!tied) {
      w.linear("lm_head", HIDDEN, words(), false);
    }
    if (hasBias) {
      w.add("final_logits_bias", 0, 0.5, 1, words());
    }
    return w;
  }

  void addPlaces(SmallCheckpoint w, String part) {
    w.add(part + ".embed_positions.weight", 0, 0.5, PLACES + 2, HIDDEN);
    w.norm(part + ".layernorm_embedding", HIDDEN, true);
  }

  boolean keysHaveBias() {
    return true;
  }

  private void addAttention(SmallCheckpoint w, String path) {
    for (String name : List.of(".q_proj", ".k_proj", ".v_proj", ".out_proj")) {
      w.linear(path + name, HIDDEN, HIDDEN, !name.equals(".k_proj") || keysHaveBias());
    }
    w.norm(path + "_layer_norm", HIDDEN, true);
  }

  private double[][] embedded(SmallCheckpoint w, boolean answers, int[] text) {
    String part = base + (answers ? "decoder" : "encoder");
    double[][] x = new double[text.length][];
    for (int t = 0; t < text.length; t++) {
      double[] row = w.row(table(answers), text[t], HIDDEN);
      if (scales) {
        row = SmallCheckpoint.each(row, v -> v * Math.sqrt(HIDDEN));
      }
      x[t] = placed(w, part, row, t);
    }
    return x;
  }

  /** What is made of a word's row and its place. */
  double[] placed(SmallCheckpoint w, String part, double[] row, int place) {
    if (marian) {
      String waves = part + ".embed_positions.weight";
      double[] wave = storesWaves ? w.row(waves, place, HIDDEN) : wave(place);
      return SmallCheckpoint.plus(row, wave);
    }
    double[] learned = w.row(part + ".embed_positions.weight", place + 2, HIDDEN);
    return norm(w, part + ".layernorm_embedding", SmallCheckpoint.plus(row, learned));
  }

  /** What the first layer of the encoder takes. */
  double[][] heard(SmallCheckpoint w, int which) {
    return embedded(w, false, TEXTS[which]);
  }

  private static double[] wave(int place) {
    double[] wave = new double[HIDDEN];
    for (int i = 0; i < HIDDEN / 2; i++) {
      double angle = place * Math.exp(-Math.log(10000) * 2 * i / HIDDEN);
      wave[i] = Math.sin(angle);
      wave[HIDDEN / 2 + i] = Math.cos(angle);
    }
    return wave;
  }

  private static double[] norm(SmallCheckpoint w, String path, double[] x) {
    return w.layerNorm(path, x, EPSILON);
  }

  @Override
  double[][] read(SmallCheckpoint w, int which) {
    double[][] x = heard(w, which);
    for (int n = 0; n < LAYERS; n++) {
      String path = base + "encoder.layers." + n;
      x = attended(w, path + ".self_attn", x, null, HEADS, false);
      x = fed(w, path, x);
    }
    return finished(w, "encoder", x);
  }

  private double[][] finished(SmallCheckpoint w, String part, double[][] x) {
    return normsFirst ? each(x, row -> norm(w, base + part + ".layer_norm", row)) : x;
  }

  @Override
  double[][] answered(SmallCheckpoint w, double[][] read, int[] tokens) {
    double[][] x = embedded(w, true, tokens);
    for (int n = 0; n < ANSWERING_LAYERS; n++) {
      String path = base + "decoder.layers." + n;
      x = attended(w, path + ".self_attn", x, null, ANSWERING_HEADS, true);
      x = attended(w, path + ".encoder_attn", x, read, ANSWERING_HEADS, false);
      x = fed(w, path, x);
    }
    float[] head = w.get(tied ? table(true) : "lm_head.weight");
    return each(
        finished(w, "decoder", x),
        row -> {
          double[] logits = ReferenceDecoder.byWords(head, row);
          for (int i = 0; hasBias && i < logits.length; i++) {
            logits[i] += w.get("final_logits_bias")[i];
          }
          return logits;
        });
  }

  private double[][] fed(SmallCheckpoint w, String path, double[][] x) {
    return block(
        x,
        normsFirst,
        row -> norm(w, path + ".final_layer_norm", row),
        from ->
            each(
                from,
                row ->
                    w.linear(
                        path + ".fc2", SmallCheckpoint.each(w.linear(path + ".fc1", row), bend))));
  }

  private double[][] attended(
      SmallCheckpoint w, String path, double[][] x, double[][] other, int heads, boolean causal) {
    return block(
        x,
        normsFirst,
        row -> norm(w, path + "_layer_norm", row),
        from -> attention(w, path, from, other == null ? from : other, heads, causal));
  }

  private static double[][] attention(
      SmallCheckpoint w, String path, double[][] x, double[][] other, int heads, boolean causal) {
    double[][] q = each(x, row -> w.linear(path + ".q_proj", row));
    double[][] k = each(other, row -> w.linear(path + ".k_proj", row));
    double[][] v = each(other, row -> w.linear(path + ".v_proj", row));
    int width = HIDDEN / heads;
    double[][] out = new double[x.length][HIDDEN];
    for (int t = 0; t < x.length; t++) {
      for (int head = 0; head < heads; head++) {
        int from = t;
        int at = head * width;
        SmallCheckpoint.attend(
            to -> SmallCheckpoint.dot(q[from], at, k[to], at, width) / Math.sqrt(width),
            v,
            0,
            causal ? t + 1 : other.length,
            at,
            at,
            width,
            out[t]);
      }
    }
    return each(out, row -> w.linear(path + ".out_proj", row));
  }
}

package org.espalier.transformers;

import java.util.Arrays;
import org.espalier.format.safetensors.SafetensorsDtype;

/** A model of the kind of Llama in plain loops; classes that differ from it say how. */
class SmallDecoder extends ReferenceDecoder {
  static final int HIDDEN = 48;
  static final int INNER = 64;
  static final int HEADS = 4;
  static final int SHARED = 2;
  static final int WIDTH = 32;
  static final double EPSILON = 1e-5;

  final String type;
  final String settings;

  /** By layer, the angles of the pairs of a head at place 1; null for none. */
  double[][] frequencies = new double[LAYERS][];

  /** How many tokens each layer sees; 0 for all. */
  int[] windows = new int[LAYERS];

  SafetensorsDtype dtype = SafetensorsDtype.F32;
  boolean bias;
  boolean outputBias;
  boolean headNorms;
  boolean tied;

  /**
   * @param settings more of its configuration, each with a comma before it
   */
  SmallDecoder(String type, String settings) {
    super(HIDDEN, HEADS, SHARED, WIDTH);
    this.type = type;
    this.settings = settings;
    turnedBy(powers(10000, WIDTH));
  }

  final SmallDecoder turnedBy(double[] all) {
    Arrays.fill(frequencies, all);
    return this;
  }

  static double[] powers(double theta, int rotated) {
    double[] all = new double[rotated / 2];
    for (int i = 0; i < all.length; i++) {
      all[i] = 1 / Math.pow(theta, 2.0 * i / rotated);
    }
    return all;
  }

  @Override
  String config() {
    return """
           {"model_type": "%s", "architectures": ["%sForCausalLM"], "hidden_size": %d,
            "intermediate_size": %d, "vocab_size": %d, "num_hidden_layers": %d,
            "num_attention_heads": %d, "num_key_value_heads": %d, "head_dim": %d,
            "rms_norm_eps": %s, "max_position_embeddings": 64,
            "tie_word_embeddings": %s, "use_cache": true%s}
           """
        .formatted(
            type, type, HIDDEN, INNER, WORDS, LAYERS, HEADS, SHARED, WIDTH, EPSILON, tied,
            settings);
  }

  @Override
  SmallCheckpoint weights() {
    SmallCheckpoint w = new SmallCheckpoint(type.hashCode(), dtype);
    w.add("model.embed_tokens.weight", 0, 1, WORDS, HIDDEN);
    for (int n = 0; n < LAYERS; n++) {
      addLayer(w, "model.layers." + n);
    }
    addNorm(w, "model.norm", HIDDEN);
    if (!tied) {
      w.linear("lm_head", HIDDEN, WORDS, false);
    }
    return w;
  }

  void addLayer(SmallCheckpoint w, String path) {
    addNorm(w, path + ".input_layernorm", HIDDEN);
    addProducts(w, path);
    addNorm(w, path + ".post_attention_layernorm", HIDDEN);
  }

  void addProducts(SmallCheckpoint w, String path) {
    w.linear(path + ".self_attn.q_proj", HIDDEN, HEADS * WIDTH, bias);
    w.linear(path + ".self_attn.k_proj", HIDDEN, SHARED * WIDTH, bias);
    w.linear(path + ".self_attn.v_proj", HIDDEN, SHARED * WIDTH, bias);
    w.linear(path + ".self_attn.o_proj", HEADS * WIDTH, HIDDEN, outputBias);
    if (headNorms) {
      addNorm(w, path + ".self_attn.q_norm", WIDTH);
      addNorm(w, path + ".self_attn.k_norm", WIDTH);
    }
    w.linear(path + ".mlp.gate_proj", HIDDEN, INNER, false);
    w.linear(path + ".mlp.up_proj", HIDDEN, INNER, false);
    w.linear(path + ".mlp.down_proj", INNER, HIDDEN, false);
  }

  void addNorm(SmallCheckpoint w, String path, int width) {
    w.norm(path, width, false);
  }

  @Override
  double[][] states(SmallCheckpoint w, int[] text, int longest) {
    double[][] x = new double[text.length][];
    for (int t = 0; t < text.length; t++) {
      x[t] = embedded(w.row("model.embed_tokens.weight", text[t], HIDDEN));
    }
    for (int n = 0; n < LAYERS; n++) {
      layer(w, "model.layers." + n, x, n, longest);
    }
    return each(x, row -> norm(w, "model.norm", row));
  }

  @Override
  double[] logits(SmallCheckpoint w, double[] state) {
    return finished(byWords(w.get(tied ? "model.embed_tokens.weight" : "lm_head.weight"), state));
  }

  double[] embedded(double[] row) {
    return row;
  }

  double[] finished(double[] logits) {
    return logits;
  }

  double[] norm(SmallCheckpoint w, String path, double[] x) {
    return w.rootMeanSquareNorm(path, x, EPSILON);
  }

  void layer(SmallCheckpoint w, String path, double[][] x, int n, int longest) {
    double[][] normed = each(x, row -> norm(w, path + ".input_layernorm", row));
    add(x, attention(w, path + ".self_attn", normed, n, longest));
    normed = each(x, row -> norm(w, path + ".post_attention_layernorm", row));
    add(x, each(normed, row -> feedForward(w, path + ".mlp", row)));
  }

  /** What is computed of a row. */
  interface Row {
    double[] of(double[] x);
  }

  static double[][] each(double[][] rows, Row f) {
    return Arrays.stream(rows).map(f::of).toArray(double[][]::new);
  }

  static void add(double[][] x, double[][] y) {
    for (int t = 0; t < x.length; t++) {
      x[t] = SmallCheckpoint.plus(x[t], y[t]);
    }
  }

  final double[][] attention(SmallCheckpoint w, String path, double[][] x, int n, int longest) {
    double[][] q = each(x, row -> queries(w, path, row));
    double[][] k = each(x, row -> keys(w, path, row));
    double[][] v = each(x, row -> values(w, path, row));
    for (int t = 0; t < x.length; t++) {
      turn(q[t], t, n, longest);
      turn(k[t], t, n, longest);
    }
    double[][] out = new double[x.length][];
    for (int t = 0; t < x.length; t++) {
      double[] seen = seen(q[t], k, v, t, windows[n], scale(), cap());
      out[t] = w.linear(path + ".o_proj", seen);
    }
    return out;
  }

  double scale() {
    return 1 / Math.sqrt(WIDTH);
  }

  double cap() {
    return 0;
  }

  double[] queries(SmallCheckpoint w, String path, double[] x) {
    return headsNormed(w, path + ".q_norm", w.linear(path + ".q_proj", x));
  }

  double[] keys(SmallCheckpoint w, String path, double[] x) {
    return headsNormed(w, path + ".k_norm", w.linear(path + ".k_proj", x));
  }

  double[] values(SmallCheckpoint w, String path, double[] x) {
    return w.linear(path + ".v_proj", x);
  }

  private double[] headsNormed(SmallCheckpoint w, String path, double[] x) {
    if (headNorms) {
      for (int head = 0; head < x.length; head += WIDTH) {
        double[] own = norm(w, path, Arrays.copyOfRange(x, head, head + WIDTH));
        System.arraycopy(own, 0, x, head, WIDTH);
      }
    }
    return x;
  }

  /** Queries or keys of a token, turned by its place. */
  private void turn(double[] rows, int place, int n, int longest) {
    double[] angles = angles(n, longest);
    for (int head = 0; angles != null && head < rows.length; head += WIDTH) {
      int half = angles.length;
      for (int i = 0; i < half; i++) {
        double a = rows[head + i];
        double b = rows[head + i + half];
        double cos = stretch() * Math.cos(place * angles[i]);
        double sin = stretch() * Math.sin(place * angles[i]);
        rows[head + i] = a * cos - b * sin;
        rows[head + i + half] = b * cos + a * sin;
      }
    }
  }

  double[] angles(int n, int longest) {
    return frequencies[n];
  }

  /** By what turned numbers are multiplied. */
  double stretch() {
    return 1;
  }

  double[] feedForward(SmallCheckpoint w, String path, double[] x) {
    double[] gate = w.linear(path + ".gate_proj", x);
    return w.linear(path + ".down_proj", gated(gate, w.linear(path + ".up_proj", x)));
  }

  final double[] gated(double[] gate, double[] up) {
    double[] both = new double[gate.length];
    for (int i = 0; i < both.length; i++) {
      both[i] = activation(gate[i]) * up[i];
    }
    return both;
  }

  double activation(double x) {
    return SmallCheckpoint.silu(x);
  }
}

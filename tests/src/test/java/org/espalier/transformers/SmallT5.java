package org.espalier.transformers;

import java.util.List;
import java.util.function.DoubleUnaryOperator;
import java.util.function.UnaryOperator;
import org.espalier.format.safetensors.SafetensorsDtype;

/** A model of the kind of T5 in plain loops. */
final class SmallT5 extends ReferencePair {
  private static final int HEADS = 3;

  /** Of a head: together they are wider than what layers compute on. */
  private static final int WIDTH = 20;

  private static final int INNER = 64;
  private static final double EPSILON = 1e-6;

  /** So few that the farthest tokens of these texts share one. */
  private static final int BUCKETS = 8;

  private static final int FAR = 6;

  private final boolean gated;
  private final String feedForward;
  private final DoubleUnaryOperator bend;

  boolean tied = true;

  /** Whether the head is a table of its own. */
  boolean hasHead;

  boolean scales = true;
  String settings = "";

  /**
   * @param feedForward relu or gated-gelu
   */
  SmallT5(String feedForward) {
    this.feedForward = feedForward;
    gated = feedForward.equals("gated-gelu");
    bend = gated ? SmallCheckpoint::geluNew : x -> Math.max(0, x);
  }

  /** As T5 1.1 and mT5: gated, with a head of its own. */
  static SmallT5 ofAHead() {
    SmallT5 model = new SmallT5("gated-gelu");
    model.tied = false;
    model.hasHead = true;
    model.scales = false;
    return model;
  }

  @Override
  String config() {
    return """
           {"model_type": "t5", "architectures": ["T5ForConditionalGeneration"], "d_model": %d,
            "d_kv": %d, "d_ff": %d, "num_layers": %d, "num_decoder_layers": %d, "num_heads": %d,
            "vocab_size": %d, "relative_attention_num_buckets": %d,
            "relative_attention_max_distance": %d, "feed_forward_proj": "%s",
            "tie_word_embeddings": %s%s}
           """
        .formatted(
            HIDDEN,
            WIDTH,
            INNER,
            LAYERS,
            ANSWERING_LAYERS,
            HEADS,
            WORDS,
            BUCKETS,
            FAR,
            feedForward,
            tied,
            settings);
  }

  @Override
  int heads() {
    return HEADS;
  }

  @Override
  int width() {
    return WIDTH;
  }

  @Override
  SmallCheckpoint weights() {
    SmallCheckpoint w = new SmallCheckpoint(5, SafetensorsDtype.F32);
    w.add("shared.weight", 0, 1, WORDS, HIDDEN);
    for (String part : List.of("encoder", "decoder")) {
      boolean answers = part.equals("decoder");
      w.add(table(part), 0, 0.5, BUCKETS, HEADS);
      for (int n = 0; n < (answers ? ANSWERING_LAYERS : LAYERS); n++) {
        String path = part + ".block." + n + ".layer.";
        addAttention(w, path + "0.SelfAttention");
        w.norm(path + "0.layer_norm", HIDDEN, false);
        if (answers) {
          addAttention(w, path + "1.EncDecAttention");
          w.norm(path + "1.layer_norm", HIDDEN, false);
        }
        String last = path + (answers ? 2 : 1);
        for (String in : gated ? List.of(".wi_0", ".wi_1") : List.of(".wi")) {
          w.linear(last + ".DenseReluDense" + in, HIDDEN, INNER, false);
        }
        w.linear(last + ".DenseReluDense.wo", INNER, HIDDEN, false);
        w.norm(last + ".layer_norm", HIDDEN, false);
      }
      w.norm(part + ".final_layer_norm", HIDDEN, false);
    }
    if (hasHead) {
      w.linear("lm_head", HIDDEN, WORDS, false);
    }
    return w;
  }

  private static String table(String part) {
    return part + ".block.0.layer.0.SelfAttention.relative_attention_bias.weight";
  }

  private static void addAttention(SmallCheckpoint w, String path) {
    for (String name : List.of(".q", ".k", ".v")) {
      w.linear(path + name, HIDDEN, HEADS * WIDTH, false);
    }
    w.linear(path + ".o", HEADS * WIDTH, HIDDEN, false);
  }

  private double[][] embedded(SmallCheckpoint w, int[] text) {
    double[][] x = new double[text.length][];
    for (int t = 0; t < text.length; t++) {
      x[t] = w.row("shared.weight", text[t], HIDDEN);
    }
    return x;
  }

  @Override
  double[][] read(SmallCheckpoint w, int which) {
    double[][] x = embedded(w, TEXTS[which]);
    for (int n = 0; n < LAYERS; n++) {
      String path = "encoder.block." + n + ".layer.";
      x = block(x, w, path + "0", y -> attention(w, path + "0.SelfAttention", y, y, "encoder"));
      x = block(x, w, path + "1", y -> each(y, row -> fed(w, path + "1.DenseReluDense", row)));
    }
    return each(x, row -> norm(w, "encoder.final_layer_norm", row));
  }

  @Override
  double[][] answered(SmallCheckpoint w, double[][] read, int[] tokens) {
    double[][] x = embedded(w, tokens);
    for (int n = 0; n < ANSWERING_LAYERS; n++) {
      String path = "decoder.block." + n + ".layer.";
      x = block(x, w, path + "0", y -> attention(w, path + "0.SelfAttention", y, y, "decoder"));
      x = block(x, w, path + "1", y -> attention(w, path + "1.EncDecAttention", y, read, null));
      x = block(x, w, path + "2", y -> each(y, row -> fed(w, path + "2.DenseReluDense", row)));
    }
    return each(
        x,
        row -> {
          double[] state = norm(w, "decoder.final_layer_norm", row);
          if (scales) {
            state = SmallCheckpoint.each(state, v -> v / Math.sqrt(HIDDEN));
          }
          String head = hasHead ? "lm_head.weight" : "shared.weight";
          return ReferenceDecoder.byWords(w.get(head), state);
        });
  }

  private static double[][] block(
      double[][] x, SmallCheckpoint w, String path, UnaryOperator<double[][]> made) {
    return block(x, true, row -> norm(w, path + ".layer_norm", row), made);
  }

  private static double[] norm(SmallCheckpoint w, String path, double[] x) {
    return w.rootMeanSquareNorm(path, x, EPSILON);
  }

  private double[] fed(SmallCheckpoint w, String path, double[] x) {
    double[] wide = SmallCheckpoint.each(w.linear(path + (gated ? ".wi_0" : ".wi"), x), bend);
    if (gated) {
      double[] up = w.linear(path + ".wi_1", x);
      for (int i = 0; i < wide.length; i++) {
        wide[i] *= up[i];
      }
    }
    return w.linear(path + ".wo", wide);
  }

  /**
   * @param part whose table of distances counts; null for none, as of what the encoder read
   */
  private static double[][] attention(
      SmallCheckpoint w, String path, double[][] x, double[][] other, String part) {
    double[][] q = each(x, row -> w.linear(path + ".q", row));
    double[][] k = each(other, row -> w.linear(path + ".k", row));
    double[][] v = each(other, row -> w.linear(path + ".v", row));
    double[][] out = new double[x.length][HEADS * WIDTH];
    for (int t = 0; t < x.length; t++) {
      for (int h = 0; h < HEADS; h++) {
        int from = t;
        int head = h;
        int at = h * WIDTH;
        SmallCheckpoint.attend(
            to -> {
              double score = SmallCheckpoint.dot(q[from], at, k[to], at, WIDTH);
              return part == null
                  ? score
                  : score + w.get(table(part))[bucket(part, to - from) * HEADS + head];
            },
            v,
            0,
            "decoder".equals(part) ? t + 1 : other.length,
            at,
            at,
            WIDTH,
            out[t]);
      }
    }
    return each(out, row -> w.linear(path + ".o", row));
  }

  /** By hand for 8 buckets and a farthest distance of 6. */
  private static int bucket(String part, int ahead) {
    int far = Math.abs(ahead);
    if (part.equals("encoder")) {
      // Of 4 to a side two are exact; 2 · 3^(1/2) = 3.46 begins the last.
      int bucket = far < 2 ? far : far < 3.46 ? 2 : 3;
      return ahead > 0 ? 4 + bucket : bucket;
    }
    // Of 8 four are exact; 4 · 1.5^(i/4) = 4.43, 4.90, 5.42 begin the next.
    return far < 4 ? far : far < 4.43 ? 4 : far < 4.90 ? 5 : far < 5.42 ? 6 : 7;
  }
}

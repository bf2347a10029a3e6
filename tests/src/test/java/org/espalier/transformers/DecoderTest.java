package org.espalier.transformers;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertTrue;

import ai.onnxruntime.OnnxTensor;
import ai.onnxruntime.OrtEnvironment;
import ai.onnxruntime.OrtException;
import ai.onnxruntime.OrtSession;
import java.io.IOException;
import java.nio.FloatBuffer;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import org.espalier.format.onnx.OnnxModel;
import org.espalier.format.onnx.OnnxWeight;
import org.espalier.format.onnx.OnnxWeights;
import org.espalier.format.safetensors.SafetensorsDtype;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;

/** Language models of each kind give in ONNX Runtime what plain loops compute of the same weights. */
class DecoderTest {
  private static final int HIDDEN = 48;
  private static final int INNER = 40;
  private static final int WORDS = 30;
  private static final int LAYERS = 3;
  private static final int HEADS = 4;
  private static final int SHARED = 2;
  private static final int WIDTH = 16;
  private static final double EPSILON = 1e-5;
  private static final int[][] TEXTS = {
    {3, 17, 0, 29, 8, 8, 21, 4, 11, 25, 1, 13}, {5, 6, 7}, {28, 2, 19, 19, 10, 14, 9}
  };

  @TempDir private Path folder;

  /**
   * What a model of a kind does beside the others.
   *
   * @param settings more of its configuration, each with a comma before it
   * @param windows how many tokens each layer sees; 0 for all
   */
  private record Case(
      String type,
      SafetensorsDtype dtype,
      String settings,
      boolean bias,
      boolean outputBias,
      boolean headNorms,
      boolean tied,
      double[] frequencies,
      int[] windows) {

    String config() {
      return """
             {"model_type": "%s", "architectures": ["%sForCausalLM"], "hidden_size": %d,
              "intermediate_size": %d, "vocab_size": %d, "num_hidden_layers": %d,
              "num_attention_heads": %d, "num_key_value_heads": %d, "head_dim": %d,
              "rms_norm_eps": %s, "hidden_act": "silu", "max_position_embeddings": 64,
              "tie_word_embeddings": %s, "use_cache": true%s}
             """
          .formatted(
              type, type, HIDDEN, INNER, WORDS, LAYERS, HEADS, SHARED, WIDTH, EPSILON, tied,
              settings);
    }

    SmallCheckpoint weights(long seed) {
      SmallCheckpoint w = new SmallCheckpoint(seed, dtype);
      w.add("model.embed_tokens.weight", 0, 1, WORDS, HIDDEN);
      for (int n = 0; n < LAYERS; n++) {
        String path = "model.layers." + n;
        w.norm(path + ".input_layernorm", HIDDEN, false);
        w.linear(path + ".self_attn.q_proj", HIDDEN, HEADS * WIDTH, bias);
        w.linear(path + ".self_attn.k_proj", HIDDEN, SHARED * WIDTH, bias);
        w.linear(path + ".self_attn.v_proj", HIDDEN, SHARED * WIDTH, bias);
        w.linear(path + ".self_attn.o_proj", HEADS * WIDTH, HIDDEN, outputBias);
        if (headNorms) {
          w.norm(path + ".self_attn.q_norm", WIDTH, false);
          w.norm(path + ".self_attn.k_norm", WIDTH, false);
        }
        w.norm(path + ".post_attention_layernorm", HIDDEN, false);
        w.linear(path + ".mlp.gate_proj", HIDDEN, INNER, false);
        w.linear(path + ".mlp.up_proj", HIDDEN, INNER, false);
        w.linear(path + ".mlp.down_proj", INNER, HIDDEN, false);
      }
      w.norm("model.norm", HIDDEN, false);
      if (!tied) {
        w.linear("lm_head", HIDDEN, WORDS, false);
      }
      return w;
    }

    /** The logits of each token of a text. */
    double[][] logits(SmallCheckpoint w, int[] text) {
      double[][] x = new double[text.length][];
      for (int t = 0; t < text.length; t++) {
        x[t] = w.row("model.embed_tokens.weight", text[t], HIDDEN);
      }
      for (int n = 0; n < LAYERS; n++) {
        String path = "model.layers." + n;
        double[][] q = new double[text.length][];
        double[][] k = new double[text.length][];
        double[][] v = new double[text.length][];
        for (int t = 0; t < text.length; t++) {
          double[] normed = w.rootMeanSquareNorm(path + ".input_layernorm", x[t], EPSILON);
          q[t] = turned(w, path + ".self_attn.q", normed, t);
          k[t] = turned(w, path + ".self_attn.k", normed, t);
          v[t] = w.linear(path + ".self_attn.v_proj", normed);
        }
        for (int t = 0; t < text.length; t++) {
          double[] seen = new double[HEADS * WIDTH];
          int from = windows[n] > 0 ? Math.max(0, t + 1 - windows[n]) : 0;
          for (int head = 0; head < HEADS; head++) {
            int shared = head / (HEADS / SHARED) * WIDTH;
            SmallCheckpoint.attend(q[t], k, v, from, t + 1, head * WIDTH, shared, WIDTH, seen);
          }
          x[t] = SmallCheckpoint.plus(x[t], w.linear(path + ".self_attn.o_proj", seen));
        }
        for (int t = 0; t < text.length; t++) {
          double[] normed = w.rootMeanSquareNorm(path + ".post_attention_layernorm", x[t], EPSILON);
          double[] gate = w.linear(path + ".mlp.gate_proj", normed);
          double[] up = w.linear(path + ".mlp.up_proj", normed);
          for (int i = 0; i < INNER; i++) {
            up[i] *= gate[i] / (1 + Math.exp(-gate[i]));
          }
          x[t] = SmallCheckpoint.plus(x[t], w.linear(path + ".mlp.down_proj", up));
        }
      }
      double[][] logits = new double[text.length][WORDS];
      for (int t = 0; t < text.length; t++) {
        double[] last = w.rootMeanSquareNorm("model.norm", x[t], EPSILON);
        float[] head = w.get(tied ? "model.embed_tokens.weight" : "lm_head.weight");
        for (int word = 0; word < WORDS; word++) {
          for (int i = 0; i < HIDDEN; i++) {
            logits[t][word] += head[word * HIDDEN + i] * last[i];
          }
        }
      }
      return logits;
    }

    /** Queries or keys of a token, its heads normed where the model does, and turned by its place. */
    private double[] turned(SmallCheckpoint w, String path, double[] x, int place) {
      double[] rows = w.linear(path + "_proj", x);
      for (int head = 0; head < rows.length; head += WIDTH) {
        double[] own = Arrays.copyOfRange(rows, head, head + WIDTH);
        if (headNorms) {
          own = w.rootMeanSquareNorm(path + "_norm", own, EPSILON);
        }
        for (int i = 0; i < WIDTH / 2; i++) {
          double cos = Math.cos(place * frequencies[i]);
          double sin = Math.sin(place * frequencies[i]);
          rows[head + i] = own[i] * cos - own[i + WIDTH / 2] * sin;
          rows[head + i + WIDTH / 2] = own[i + WIDTH / 2] * cos + own[i] * sin;
        }
      }
      return rows;
    }
  }

  private static double[] frequencies(double theta) {
    double[] all = new double[WIDTH / 2];
    for (int i = 0; i < all.length; i++) {
      all[i] = 1 / Math.pow(theta, 2.0 * i / WIDTH);
    }
    return all;
  }

  private static final Case LLAMA =
      new Case(
          "llama",
          SafetensorsDtype.F32,
          ", \"rope_theta\": 1000.0, \"attention_bias\": true",
          true,
          true,
          false,
          false,
          frequencies(1000),
          new int[LAYERS]);

  private static final Case MISTRAL =
      new Case(
          "mistral",
          SafetensorsDtype.BF16,
          ", \"sliding_window\": 4, \"rope_scaling\": {\"type\": \"linear\", \"factor\": 2.0}",
          false,
          false,
          false,
          false,
          Arrays.stream(frequencies(10000)).map(f -> f / 2).toArray(),
          new int[] {4, 4, 4});

  private static final Case QWEN2 =
      new Case(
          "qwen2",
          SafetensorsDtype.BF16,
          ", \"rope_theta\": 1000000.0, \"use_sliding_window\": true, \"sliding_window\": 3,"
              + " \"max_window_layers\": 2",
          true,
          false,
          false,
          true,
          frequencies(1e6),
          new int[] {0, 0, 3});

  private static final Case QWEN3 =
      new Case(
          "qwen3",
          SafetensorsDtype.F32,
          ", \"rope_parameters\": {\"rope_type\": \"default\", \"rope_theta\": 500.0},"
              + " \"sliding_window\": 5, \"layer_types\": [\"full_attention\","
              + " \"sliding_attention\", \"full_attention\"]",
          false,
          false,
          true,
          true,
          frequencies(500),
          new int[] {0, 5, 0});

  @Test
  void llama() throws Exception {
    compare(LLAMA);
  }

  @Test
  void llamaOfLongContexts() throws Exception {
    double[] stretched = frequencies(10000);
    for (int i = 0; i < stretched.length; i++) {
      double length = 2 * Math.PI / stretched[i];
      if (length > 32.0 / 1) {
        stretched[i] /= 8;
      } else if (length > 32.0 / 4) {
        double smooth = (32 / length - 1) / (4 - 1);
        stretched[i] = (1 - smooth) * stretched[i] / 8 + smooth * stretched[i];
      }
    }
    compare(
        new Case(
            "llama",
            SafetensorsDtype.F32,
            ", \"rope_scaling\": {\"rope_type\": \"llama3\", \"factor\": 8.0,"
                + " \"low_freq_factor\": 1.0, \"high_freq_factor\": 4.0,"
                + " \"original_max_position_embeddings\": 32}",
            false,
            false,
            false,
            false,
            stretched,
            new int[LAYERS]));
  }

  @Test
  void mistral() throws Exception {
    compare(MISTRAL);
  }

  @Test
  void qwen2() throws Exception {
    compare(QWEN2);
  }

  @Test
  void qwen3() throws Exception {
    compare(QWEN3);
  }

  /** A text that is read in two parts has the logits that it has as a whole. */
  @Test
  void textsGoOn() throws Exception {
    SmallCheckpoint weights = QWEN3.weights(5);
    weights.write(folder, QWEN3.config());
    OnnxModel model = TransformersModel.read(folder, note -> {});
    int[] text = TEXTS[0];
    double[][] whole = QWEN3.logits(weights, text);
    Map<String, float[][][][]> past = new HashMap<>();
    try (OrtSession session =
        OrtEnvironment.getEnvironment()
            .createSession(model.toBuffer(), new OrtSession.SessionOptions())) {
      for (int[] part : new int[][] {{0, 5}, {5, 6}, {6, text.length}}) {
        Map<String, OnnxTensor> inputs = new HashMap<>();
        long[][] ids = new long[1][part[1] - part[0]];
        for (int t = part[0]; t < part[1]; t++) {
          ids[0][t - part[0]] = text[t];
        }
        long[][] mask = new long[1][part[1]];
        Arrays.fill(mask[0], 1);
        put(inputs, "input_ids", ids);
        put(inputs, "attention_mask", mask);
        for (int n = 0; n < LAYERS; n++) {
          for (String what : List.of(".key", ".value")) {
            float[][][][] before = past.get(n + what);
            inputs.put(
                "past_key_values." + n + what,
                before == null
                    ? none(1)
                    : OnnxTensor.createTensor(OrtEnvironment.getEnvironment(), before));
          }
        }
        try (OrtSession.Result result = session.run(inputs)) {
          float[][][] logits = (float[][][]) result.get("logits").orElseThrow().getValue();
          for (int t = part[0]; t < part[1]; t++) {
            close(whole[t], logits[0][t - part[0]], "token " + t);
          }
          for (int n = 0; n < LAYERS; n++) {
            for (String what : List.of(".key", ".value")) {
              past.put(
                  n + what,
                  (float[][][][]) result.get("present." + n + what).orElseThrow().getValue());
            }
          }
        }
      }
    }
  }

  private static void put(Map<String, OnnxTensor> inputs, String name, Object values)
      throws OrtException {
    inputs.put(name, OnnxTensor.createTensor(OrtEnvironment.getEnvironment(), values));
  }

  private static OnnxTensor none(int texts) throws OrtException {
    return OnnxTensor.createTensor(
        OrtEnvironment.getEnvironment(),
        FloatBuffer.allocate(0),
        new long[] {texts, SHARED, 0, WIDTH});
  }

  /** Weights keep their names and are found with their shapes, tied tables as tables. */
  @Test
  void weightsKeepTheirNames() throws IOException {
    SmallCheckpoint weights = QWEN2.weights(2);
    weights.write(folder, QWEN2.config());
    List<String> found = new ArrayList<>();
    for (OnnxWeight w : OnnxWeights.of(TransformersModel.read(folder, note -> {}))) {
      found.add(w.name());
      assertTrue(weights.has(w.name()), w.name());
    }
    assertEquals(1 + 7 * LAYERS, found.size(), found.toString());
  }

  /** Compares a padded batch. */
  private void compare(Case c) throws Exception {
    SmallCheckpoint weights = c.weights(1);
    weights.write(folder, c.config());
    List<String> notes = new ArrayList<>();
    OnnxModel model = TransformersModel.read(folder, notes::add);
    assertEquals(List.of(), notes);
    int longest = TEXTS[0].length;
    long[][] ids = new long[TEXTS.length][longest];
    long[][] mask = new long[TEXTS.length][longest];
    for (int i = 0; i < TEXTS.length; i++) {
      for (int t = 0; t < TEXTS[i].length; t++) {
        ids[i][t] = TEXTS[i][t];
        mask[i][t] = 1;
      }
    }
    Map<String, OnnxTensor> inputs = new HashMap<>();
    put(inputs, "input_ids", ids);
    put(inputs, "attention_mask", mask);
    for (int n = 0; n < LAYERS; n++) {
      inputs.put("past_key_values." + n + ".key", none(TEXTS.length));
      inputs.put("past_key_values." + n + ".value", none(TEXTS.length));
    }
    try (OrtSession session =
            OrtEnvironment.getEnvironment()
                .createSession(model.toBuffer(), new OrtSession.SessionOptions());
        OrtSession.Result result = session.run(inputs)) {
      float[][][] logits = (float[][][]) result.get("logits").orElseThrow().getValue();
      for (int i = 0; i < TEXTS.length; i++) {
        double[][] expected = c.logits(weights, TEXTS[i]);
        for (int t = 0; t < TEXTS[i].length; t++) {
          close(expected[t], logits[i][t], "text " + i + " token " + t);
        }
      }
    }
  }

  private static void close(double[] expected, float[] actual, String where) {
    for (int i = 0; i < expected.length; i++) {
      assertEquals(expected[i], actual[i], 2e-4 * Math.max(1, Math.abs(expected[i])), where);
    }
  }
}
